"""The graphs of a model: who makes them, the limits, and what is left out."""

import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from architectures import ARCHITECTURES, random_model
from onnx import numpy_helper
from tiny import tiny_bert
from torch_differences import differences_from_torch
from toy import origin
from transformers import ModernBertConfig

from tasks.core.errors import VerdictError
from tasks.core.files import sha256_of
from tasks.export import onnx_export as graphs
from tasks.export import torch_export
from tasks.export.encoder_description import EncoderDescription
from tasks.export.encoder_families import NotDescribedError, load_encoder
from tasks.export.onnx_export import (
    WRITTEN_MAKERS,
    WrittenGraphs,
    choose_source,
    save_graph,
    write_graphs,
    write_variant,
)
from tasks.export.shipping_rule import REAL_CASE
from tasks.export.torch_export import EXPORTERS
from tasks.export.torch_reference import HalfReference, LogitsModule, TorchReference, random_cases, torch_reference
from tasks.inference.bundle import VARIANTS

ROOT = Path(__file__).parents[2]
FACTS: Any = {**origin(), "pad_id": 0}


Maker = Callable[..., onnx.ModelProto]


def write(model: str, folder: Path, rows: str | None) -> WrittenGraphs:
    return write_graphs(model, str(folder), FACTS, torch_reference(model, 16, rows))


def altered(maker: Maker, factor: float) -> Maker:
    """Return a maker whose graph has another classifier."""

    def make(*arguments: Any) -> onnx.ModelProto:
        model = maker(*arguments)
        found = [tensor for tensor in model.graph.initializer if tensor.name.endswith("classifier.weight")]
        for weight in found:
            values = numpy_helper.to_array(weight)
            weight.CopyFrom(numpy_helper.from_array(values * values.dtype.type(factor), weight.name))
        assert found
        return model

    return make


@pytest.mark.parametrize(
    ("factor", "fault"),
    [
        (1.05, r"differs from torch by \d.*, expected at most 0\.0001"),
        (float("nan"), "has NaN or Inf logits at 1x1, expected finite ones"),
    ],
)
def test_altered_fp32_graphs_fail_the_run(
    factor: float, fault: str, trained: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(WRITTEN_MAKERS, "fp32", [altered(make, factor) for make in WRITTEN_MAKERS["fp32"]])
    monkeypatch.setattr(torch_export, "make_fp32", altered(torch_export.make_fp32, factor))
    with pytest.raises(VerdictError, match=rf"^ONNX graph {fault}; not shipped: model\.onnx$"):
        write(trained["model"], tmp_path, None)
    assert list(tmp_path.iterdir()) == []


def test_a_written_fp32_graph_that_differs_from_torch_is_replaced_by_torchs_export(
    trained: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(WRITTEN_MAKERS, "fp32", [altered(make, 1.05) for make in WRITTEN_MAKERS["fp32"]])
    written = write(trained["model"], tmp_path, None)
    assert [attempt["maker"] for attempt in written["attempts"]["fp32"]] == ["make", "export_fp32"]
    assert written["remarks"][0].startswith("the fp32 graph of make differs from torch by ")
    assert max(written["parity"]["fp32"]["difference"].values()) <= 1e-4


@pytest.mark.parametrize(
    ("variant", "factor", "reason"),
    [
        ("fp16", 1.05, "differs from torch by"),
        ("fp16", float("nan"), "has NaN or Inf logits"),
        ("int8", -1.0, "), expected at most 1.0%"),
        ("int8", float("nan"), "has NaN or Inf logits"),
    ],
)
def test_an_altered_fast_graph_is_not_shipped_and_the_others_are(
    variant: str,
    factor: float,
    reason: str,
    trained: Any,
    toy_split: tuple[str, str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(WRITTEN_MAKERS, variant, [altered(make, factor) for make in WRITTEN_MAKERS[variant]])
    with np.errstate(invalid="ignore"):
        written = write(trained["model"], tmp_path, toy_split[1])
    assert list(written["left_out"]) == [variant]
    assert reason in written["left_out"][variant]
    others = {name: file for name, file in VARIANTS.items() if name != variant}
    assert list(written["parity"]) == list(others)
    assert {path.name for path in tmp_path.iterdir()} == set(others.values())


def test_a_variant_that_cannot_be_made_is_left_out_with_the_reason(tmp_path: Path) -> None:
    def fail() -> onnx.ModelProto:
        raise RuntimeError("no kernel\nfor this")

    logits = LogitsModule(tiny_bert())
    cases = random_cases(logits)
    reference = TorchReference(cases, cases, HalfReference(lambda: logits, cases), pad_id=0)
    written = write_variant("int8", [fail], tmp_path / "model.cpu.onnx", FACTS, reference)
    assert written.attempts == [
        {"maker": "fail", "parity": None, "fault": "could not be made: RuntimeError: no kernel"}
    ]
    assert (written.fused, written.digest, list(written.seconds)) == (Counter(), "", ["int8: fail"])
    assert list(tmp_path.iterdir()) == []


def test_a_variant_is_made_by_the_next_maker_if_the_first_exceeds_its_limits(
    trained: Any, toy_split: tuple[str, str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = WRITTEN_MAKERS["int8"]
    monkeypatch.setitem(WRITTEN_MAKERS, "int8", [altered(first, -1.0), second])
    written = write(trained["model"], tmp_path, toy_split[1])
    assert written["left_out"] == {}
    refused, shipped = written["attempts"]["int8"]
    assert refused["parity"] is not None
    assert refused["parity"]["changed"] > 80
    assert str(refused["fault"]).startswith(f"changes {refused['parity']['changed']} of 88 labels (")
    assert shipped == {"maker": "write_int8_blockwise", "parity": written["parity"]["int8"], "fault": None}
    assert written["parity"]["int8"]["changed"] <= 1
    assert written["remarks"] == [f"the int8 graph of {refused['maker']} {refused['fault']}"]
    operators = {node.op_type for node in onnx.load(tmp_path / VARIANTS["int8"]).graph.node}
    assert ("MatMulNBits" in operators, "MatMulIntegerToFloat" in operators) == (True, False)


def save(logits: LogitsModule, folder: Path) -> str:
    logits.model.save_pretrained(folder)
    return str(folder)


def test_the_writer_makes_the_graphs_of_a_described_model_and_their_fused_operators_are_counted(
    trained: Any, toy_split: tuple[str, str, str], tmp_path: Path
) -> None:
    written = write(trained["model"], tmp_path, toy_split[1])
    assert written["exporter"] == "writer"
    layers = 2
    assert written["fused"] == {
        "EmbedLayerNormalization": 1,
        "MultiHeadAttention": layers,
        "SkipLayerNormalization": 2 * layers,
        "BiasGelu": layers,
    }


def test_equal_weights_give_equal_bytes(trained: Any, toy_split: tuple[str, str, str], tmp_path: Path) -> None:
    for name in ("once", "again"):
        (tmp_path / name).mkdir()
        write(trained["model"], tmp_path / name, toy_split[1])
    for file in VARIANTS.values():
        assert (tmp_path / "once" / file).read_bytes() == (tmp_path / "again" / file).read_bytes()


def test_an_operator_that_only_gpus_have_is_tried_where_there_is_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The GPU is pretended, so that loading the graph fails and the next one ships."""
    gated = random_model(ModernBertConfig(**ARCHITECTURES["modernbert"].to_dict() | {"intermediate_size": 1152}))
    folder = save(gated, tmp_path / "gated")
    makers = [maker.__name__ for maker in choose_source(folder)[0].makers["fp16"]]
    assert makers == ["write_fp16", "write_fp16_products"]
    monkeypatch.setattr(graphs, "should_try_gpu", lambda device: True)
    tried = choose_source(folder)[0].makers["fp16"]
    assert [maker.__name__ for maker in tried] == ["write_fp16_cuda_only", *makers]
    cases = random_cases(gated)
    labelled = [case._replace(name=REAL_CASE, labels=case.expected.argmax(axis=1)) for case in cases]
    reference = TorchReference(cases, labelled, HalfReference(lambda: gated, labelled), pad_id=0)
    refused, shipped = write_variant("fp16", tried, tmp_path / "model.cuda.onnx", FACTS, reference).attempts
    assert "Failed to find kernel" in str(refused["fault"])
    assert (shipped["maker"], shipped["fault"]) == ("write_fp16", None)
    narrow = random_model(ARCHITECTURES["modernbert"])
    others = choose_source(save(narrow, tmp_path / "narrow"))[0].makers["fp16"]
    assert [maker.__name__ for maker in others] == makers


@pytest.mark.parametrize("cores", [1, 4])
def test_variants_made_side_by_side_come_in_order_with_the_digests_of_their_files(
    cores: int, trained: Any, toy_split: tuple[str, str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(graphs, "compute_threads", lambda: cores)
    written = write(trained["model"], tmp_path, toy_split[1])
    assert [list(part) for part in (written["attempts"], written["parity"])] == [list(VARIANTS)] * 2
    assert written["digests"] == {file: sha256_of(tmp_path / file) for file in VARIANTS.values()}
    parts = [
        f"{variant}: {step}{attempt['maker']}"
        for variant, attempts in written["attempts"].items()
        for attempt in attempts
        for step in ("", "compare ")
    ]
    assert list(written["seconds"]) == ["describe", *parts]
    assert min(written["seconds"].values()) >= 0


def test_making_graphs_of_a_described_model_imports_no_model_code() -> None:
    script = "import sys, tasks.export.onnx_export; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    heavy = {"transformers.modeling_utils", "torch.onnx", "pandas", "scipy", "onnx_ir"}
    assert heavy.intersection(done.stdout.split()) == set()


def test_a_model_without_a_description_goes_through_torchs_exporters_and_a_remark_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(EXPORTERS, "dynamo")  # takes ten seconds
    logits = random_model(ARCHITECTURES["albert"])
    source, remarks = choose_source(save(logits, tmp_path))
    assert source.exporter == "tracing"
    assert remarks[0] == "the graphs come from torch's exporters: the family albert has no description"
    save_graph(source.makers["fp32"][0](), tmp_path / "model.onnx", FACTS, "fp32")
    assert max(differences_from_torch(random_cases(logits), tmp_path / "model.onnx").values()) <= 1e-4


def test_a_configuration_of_another_form_goes_through_torchs_exporters_too(
    trained: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: str) -> EncoderDescription:
        raise AttributeError("no attribute\nlayer_types")

    monkeypatch.setattr(graphs, "load_encoder", fail)
    source, remarks = choose_source(trained["model"])
    assert source.exporter == "tracing"
    assert remarks == ["the graphs come from torch's exporters: AttributeError: no attribute"]


def test_a_folder_without_weights_in_one_file_has_no_description(tmp_path: Path) -> None:
    with pytest.raises(NotDescribedError, match=r"^there is no model\.safetensors$"):
        load_encoder(str(tmp_path))


def test_a_graph_that_is_too_large_for_one_file_is_an_error(
    trained: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(graphs, "MAX_GRAPH_BYTES", 5_000)
    with pytest.raises(VerdictError, match=r"^the fp32 graph has 0\.0 GB, an ONNX file at most 0\.0; choose a smaller"):
        write(trained["model"], tmp_path, None)
