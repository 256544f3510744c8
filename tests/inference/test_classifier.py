"""Inference on a bundle."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from bundle_fuzzing import mutated_bundles
from toy import SIGN, facts

from flows.commands.predict import predict
from tasks.core.errors import OUT_OF_MEMORY, VerdictError
from tasks.core.files import read_json, write_json
from tasks.inference.bundle import MANIFEST, write_manifest
from tasks.inference.classifier import Classifier, bundle_errors
from tasks.inference.sessions import has_gpu

GOOD, BAD = "the cat sees the dog", f"the cat {SIGN} sees the dog"


@pytest.fixture(scope="module")
def classifier(exported: Any) -> Classifier:
    return Classifier.from_bundle(exported["bundle"], "cpu")


def test_answers_come_in_input_order_with_the_label_s_probability(classifier: Classifier) -> None:
    answers = classifier.predict([GOOD, BAD, f"{BAD} today here", GOOD])
    assert [answer["label"] for answer in answers] == ["acceptable", "unacceptable", "unacceptable", "acceptable"]
    assert [answer["sentence"] for answer in answers] == [GOOD, BAD, f"{BAD} today here", GOOD]
    assert all(0.5 <= answer["probability"] <= 1.0 for answer in answers)
    assert answers[0] == answers[3]


def test_probabilities_of_a_sentence_sum_to_one(classifier: Classifier) -> None:
    assert classifier.probabilities([GOOD, BAD]).sum(axis=1) == pytest.approx([1.0, 1.0])


@pytest.mark.parametrize("variant", ["fp32", "fp16", "int8"])
def test_company_does_not_change_an_answer(complete: Any, variant: str) -> None:
    classifier = Classifier.from_bundle(complete["bundle"], "cpu", variant)
    alone = classifier.probabilities([GOOD])[0]
    among = classifier.probabilities([BAD * 3, GOOD, "dog", *[BAD] * 40])[1]
    assert among == pytest.approx(alone, abs=1e-3 if variant == "fp16" else 1e-6)


@pytest.mark.parametrize("sentence", ["", " ", "dog " * 5_000, "\u0000\u202e\U0001f600 \ud7ff", "日本語", "a\tb\nc"])
def test_any_text_gets_an_answer(classifier: Classifier, sentence: str) -> None:
    (answer,) = classifier.predict([sentence])
    assert answer["label"] in ("acceptable", "unacceptable")


def test_no_sentences_get_no_answers(classifier: Classifier) -> None:
    assert classifier.predict([]) == []


def test_what_is_no_string_is_refused(classifier: Classifier) -> None:
    with pytest.raises(VerdictError, match="sentence 3 is a int; expected strings"):
        classifier.predict([GOOD, 3])  # type: ignore[list-item]


def test_the_provider_is_stated(classifier: Classifier) -> None:
    assert classifier.provider == "CPUExecutionProvider"


def test_the_cpu_is_served_by_int8_and_fp32_answers_when_asked(complete: Any) -> None:
    fast = Classifier.from_bundle(complete["bundle"], "cpu")
    exact = Classifier.from_bundle(complete["bundle"], "cpu", variant="fp32")
    assert (fast.variant, exact.variant) == ("int8", "fp32")
    assert fast.probabilities([GOOD, BAD]) == pytest.approx(exact.probabilities([GOOD, BAD]), abs=0.05)
    assert not np.array_equal(fast.logits([GOOD]), exact.logits([GOOD]))


@pytest.mark.skipif(has_gpu(), reason="this machine has a GPU: auto takes it")
def test_without_a_gpu_auto_is_the_cpu(complete: Any) -> None:
    classifier = Classifier.from_bundle(complete["bundle"])
    assert (classifier.variant, classifier.provider) == ("int8", "CPUExecutionProvider")


def test_a_bundle_of_fp32_alone_serves_that_and_refuses_others(exported: Any, classifier: Classifier) -> None:
    assert classifier.variant == "fp32"
    with pytest.raises(VerdictError, match=r"holds no variant 'int8'; expected \['fp32'\]"):
        Classifier.from_bundle(exported["bundle"], "cpu", variant="int8")


@pytest.mark.parametrize("name", ["model.onnx", "model.cuda.onnx", "model.cpu.onnx"])
def test_a_tampered_variant_is_refused_whichever_serves(complete: Any, tmp_path: Path, name: str) -> None:
    folder = Path(shutil.copytree(complete["bundle"], tmp_path / "bundle"))
    content = bytearray((folder / name).read_bytes())
    content[len(content) // 2] ^= 1
    (folder / name).write_bytes(content)
    with pytest.raises(VerdictError, match=f"{name} does not match its SHA-256 in bundle.json"):
        Classifier.from_bundle(folder, "cpu", variant="fp32")


def test_weights_in_another_file_are_refused_even_where_that_is_sealed_too(exported: Any, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(exported["bundle"], tmp_path / "bundle"))
    onnx.save_model(
        onnx.load(folder / "model.onnx"), folder / "model.onnx", save_as_external_data=True, location="weights.bin"
    )
    write_manifest(folder, facts(), {})
    with pytest.raises(VerdictError, match=r"model\.onnx keeps weights in other files"):
        Classifier.from_bundle(folder, "cpu")


def test_a_bundle_of_a_newer_schema_is_refused(exported: Any, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(exported["bundle"], tmp_path / "bundle"))
    write_json(folder / MANIFEST, read_json(folder / MANIFEST) | {"schema_version": 3})
    with pytest.raises(VerdictError, match="has schema version 3, this program reads 2"):
        Classifier.from_bundle(folder, "cpu")


def test_damaged_bundles_whose_checksums_fit_answer_or_are_refused_in_one_line(complete: Any, tmp_path: Path) -> None:
    said = []
    for folder in mutated_bundles(Path(complete["bundle"]), tmp_path / "bundle", 50, 0):
        try:
            predict(["the cat sees the dog", "zz " * 40], str(folder), "cpu", str(tmp_path))
        except VerdictError as error:
            said.append(str(error))
    assert 25 < len(said) < 50
    assert all("\n" not in text and str(tmp_path) in text for text in said)


@pytest.mark.skipif(has_gpu(), reason="this machine has a GPU: nothing to refuse")
def test_cuda_without_a_gpu_is_refused(exported: Any) -> None:
    with pytest.raises(VerdictError, match="ONNX Runtime runs on the CPU only"):
        Classifier.from_bundle(exported["bundle"], "cuda")


def test_a_tampered_bundle_is_refused(exported: Any, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(exported["bundle"], tmp_path / "bundle"))
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(VerdictError, match=r"tokenizer\.json does not match its SHA-256 in bundle.json"):
        Classifier.from_bundle(folder)


def test_an_onnxruntime_older_than_the_bundle_s_is_reported(
    exported: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = Path(shutil.copytree(exported["bundle"], tmp_path / "bundle"))
    for version, reported in (("0.9.9", False), (onnxruntime.__version__, False), ("999.1.0", True)):
        caplog.clear()
        with monkeypatch.context() as patch:
            patch.setattr(onnxruntime, "__version__", version)
            write_manifest(bundle, facts(), {})
        Classifier.from_bundle(bundle, "cpu")
        assert ("onnxruntime>=999.1.0" in caplog.text) == reported


@pytest.mark.parametrize("count", [0, 3_000])
def test_a_sentence_that_is_not_valid_unicode_is_named(classifier: Classifier, count: int) -> None:
    with pytest.raises(VerdictError, match=r"sentence 2, 'caf\\udcff', is not valid Unicode; expected UTF-8 text"):
        classifier.predict([GOOD, "caf\udcff", *[GOOD] * count])


@pytest.mark.parametrize(
    ("reason", "advice"),
    [
        (
            "BFCArena::AllocateRawInternal Failed to allocate memory for requested buffer of size 100663296",
            OUT_OF_MEMORY,
        ),
        ("CUDA failure 2: out of memory ; GPU=0 ; hostname=a", OUT_OF_MEMORY),
        ("Load model failed: Protobuf parsing failed.", "fetch it again from the registry"),
    ],
)
def test_memory_that_runs_out_is_no_fault_of_the_bundle(reason: str, advice: str) -> None:
    with pytest.raises(VerdictError) as refused, bundle_errors("b", "it cannot answer"):
        raise RuntimeError(reason)
    assert str(refused.value) == f"bundle b: it cannot answer ({reason}); {advice}"
