"""Inference on a bundle."""

import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from conftest import SIGN

from tasks.errors import VerdictError
from tasks.predict import Classifier, _load_pyfunc, has_gpu

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


def test_company_does_not_change_an_answer(classifier: Classifier) -> None:
    alone = classifier.probabilities([GOOD])[0]
    among = classifier.probabilities([BAD * 3, GOOD, "dog", *[BAD] * 40])[1]
    assert among == pytest.approx(alone, abs=1e-6)


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


@pytest.mark.skipif(has_gpu(), reason="this machine has a GPU: nothing to refuse")
def test_cuda_without_a_gpu_is_refused(exported: Any) -> None:
    with pytest.raises(VerdictError, match="ONNX Runtime runs on the CPU only"):
        Classifier.from_bundle(exported["bundle"], "cuda")


def test_a_tampered_bundle_is_refused(exported: Any, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(exported["bundle"], tmp_path / "bundle"))
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(VerdictError, match=r"tokenizer\.json is not the file that was sealed"):
        Classifier.from_bundle(folder)


@pytest.mark.parametrize("sentences", [[GOOD, BAD], pd.DataFrame({"text": [GOOD, BAD]}), pd.Series([GOOD, BAD])])
def test_the_pyfunc_door_takes_lists_and_frames(exported: Any, sentences: Any) -> None:
    answer = _load_pyfunc(exported["bundle"]).predict(sentences)
    assert list(answer.columns) == ["label", "probability"]
    assert answer["label"].tolist() == ["acceptable", "unacceptable"]
