"""The graphs of every architecture in every variant, the choice of the exporter, and the parity limits."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from architectures import ARCHITECTURES, export_once, random_model
from onnx import numpy_helper
from tiny import tiny_bert
from toy import origin
from transformers import BertConfig

from tasks.core.errors import VerdictError
from tasks.export import onnx_export as graphs
from tasks.export.onnx_export import (
    UNFUSABLE,
    VARIANT_MAKERS,
    ExportedGraphs,
    VariantMaker,
    choose_exporter,
    export_by,
    write_graphs,
    write_variant,
)
from tasks.export.parity import LogitsModule, ParityCase, compare_with_torch, parity_error, random_cases, random_inputs
from tasks.export.sequence_packing import PACKED_ROW_TOKENS
from tasks.inference.bundle import VARIANTS
from tasks.inference.external_data import reject_external_data

pytestmark = pytest.mark.filterwarnings("ignore")  # the tracer warns of every Python branch; parity shows a wrong one
FACTS: Any = {**origin(), "pad_id": 0}
DIFFERENCES = {"fp32": 1e-4, "fp16": 2e-2, "int8": 0.5}  # of these models' logits; their weights are random and large
MAKERS = [(variant, make) for variant, makers in VARIANT_MAKERS.items() for make in makers]


def altered(maker: VariantMaker, factor: float) -> VariantMaker:
    """Return a maker whose graph has another classifier."""

    def make(exported: ExportedGraphs) -> onnx.ModelProto:
        model = onnx.ModelProto()
        model.CopyFrom(maker(exported))
        found = [tensor for tensor in model.graph.initializer if tensor.name.endswith("classifier.weight")]
        for weight in found:
            values = numpy_helper.to_array(weight)
            weight.CopyFrom(numpy_helper.from_array(values * values.dtype.type(factor), weight.name))
        assert found
        return model

    return make


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_architecture_is_exported_in_every_variant(name: str, tmp_path: Path) -> None:
    logits, exported, remarks = export_once(name)
    cases = random_cases(logits)
    assert exported.exporter == "tracing"
    assert remarks == []
    layers = logits.model.config.num_hidden_layers
    fusable = logits.model.config.model_type not in UNFUSABLE
    assert graphs.attention_of(exported) == (layers if fusable else 0)
    sizes = {}
    for variant, make in MAKERS:
        path = tmp_path / "model.onnx"
        graphs.save_graph(make(exported), path, FACTS, variant)
        reject_external_data(path)
        parity = compare_with_torch(cases, path, "cpu")
        reason = parity_error(variant, parity)
        assert reason == (None if variant == "fp32" else "was not compared with torch on any sentence")
        assert max(parity["difference"].values()) <= DIFFERENCES[variant]
        sizes[make] = path.stat().st_size
    assert (
        sizes[graphs.make_fp16] < sizes[graphs.make_fp32] + 2 * PACKED_ROW_TOKENS**2
    )  # the constant that masks other sentences of a row
    assert sizes[graphs.make_int8_blockwise] < sizes[graphs.make_fp32]


def test_the_shape_of_bert_base_is_fused_completely() -> None:
    logits = random_model(
        BertConfig(
            vocab_size=20, hidden_size=24, num_attention_heads=12, intermediate_size=96, max_position_embeddings=80
        )
    )
    exported, _ = choose_exporter(logits)
    assert exported.fused == {
        "Attention": 12,
        "EmbedLayerNormalization": 1,
        "SkipLayerNormalization": 24,
        "BiasGelu": 12,
    }


def test_the_dynamo_exporter_is_used_when_the_tracing_one_is_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone(*_: Any) -> None:
        raise TypeError("export() got an unexpected keyword argument 'dynamo'")

    monkeypatch.setitem(graphs.EXPORTERS, "tracing", gone)
    logits = random_model(tiny_bert().config)
    exported, remarks = choose_exporter(logits)
    assert exported.exporter == "dynamo"
    assert remarks[0] == "the tracing exporter failed: TypeError: export() got an unexpected keyword argument 'dynamo'"
    for variant, make in MAKERS:
        path = tmp_path / "model.onnx"
        graphs.save_graph(make(exported), path, FACTS, variant)
        reject_external_data(path)
        assert max(compare_with_torch(random_cases(logits), path, "cpu")["difference"].values()) <= DIFFERENCES[variant]


@pytest.mark.parametrize(
    ("fused", "taken", "tried"),
    [
        ({"tracing": 2, "dynamo": 2}, "tracing", ["tracing"]),
        ({"tracing": 1, "dynamo": 2}, "dynamo", ["tracing", "dynamo"]),
        ({"tracing": 1, "dynamo": 1}, "tracing", ["tracing", "dynamo"]),
        ({"tracing": 0, "dynamo": 1}, "dynamo", ["tracing", "dynamo"]),
    ],
)
def test_the_exporter_with_the_most_fused_attention_is_taken(
    fused: dict[str, int], taken: str, tried: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    tried_exporters = []

    def export(exporter: str, _: LogitsModule) -> ExportedGraphs:
        tried_exporters.append(exporter)
        return ExportedGraphs(exporter, None, None, {"Attention": fused[exporter]})  # type: ignore[arg-type]

    monkeypatch.setattr(graphs, "export_by", export)
    exported, remarks = choose_exporter(LogitsModule(tiny_bert()))
    assert (exported.exporter, tried_exporters) == (taken, tried)
    assert [remark.split()[2] for remark in remarks] == [name for name in tried if fused[name] < 2]


def test_a_model_that_no_exporter_can_write_is_an_error_with_every_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(exporter: str, _: LogitsModule) -> ExportedGraphs:
        raise RuntimeError(f"{exporter} cannot")

    monkeypatch.setattr(graphs, "export_by", fail)
    with pytest.raises(VerdictError, match=r"no exporter can write bert: .*tracing cannot; .*dynamo cannot") as caught:
        choose_exporter(LogitsModule(tiny_bert()))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("factor", "fault"),
    [
        (1.05, r"differs from torch by \d.*, expected at most 0\.0001"),
        (float("nan"), "has NaN or Inf logits at 1x1"),
    ],
)
def test_an_altered_fp32_graph_fails_the_run(
    factor: float, fault: str, trained: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(graphs.VARIANT_MAKERS, "fp32", [altered(make, factor) for make in VARIANT_MAKERS["fp32"]])
    with pytest.raises(VerdictError, match=rf"^ONNX graph {fault}; not shipped: model\.onnx$"):
        write_graphs(trained["model"], str(tmp_path), origin(), None)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("variant", "factor", "reason"),
    [
        ("fp16", 1.05, "differs from torch by"),
        ("fp16", float("nan"), "has NaN or Inf logits"),
        ("int8", -1.0, "sentences torch's label, expected 99.0%"),
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
    monkeypatch.setitem(graphs.VARIANT_MAKERS, variant, [altered(make, factor) for make in VARIANT_MAKERS[variant]])
    with np.errstate(invalid="ignore"):
        written = write_graphs(trained["model"], str(tmp_path), origin(), toy_split[1])
    assert list(written["left_out"]) == [variant]
    assert reason in written["left_out"][variant]
    others = {name: file for name, file in VARIANTS.items() if name != variant}
    assert list(written["parity"]) == list(others)
    assert {path.name for path in tmp_path.iterdir()} == set(others.values())


def test_a_variant_that_cannot_be_made_is_left_out_with_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: ExportedGraphs) -> onnx.ModelProto:
        raise RuntimeError("no kernel\nfor this")

    monkeypatch.setitem(graphs.VARIANT_MAKERS, "int8", [fail])
    case = random_cases(LogitsModule(tiny_bert()))[0]._replace(name="sentences")
    nothing: Any = None
    assert write_variant("int8", nothing, tmp_path / "model.cpu.onnx", FACTS, [case]) == (
        None,
        ["could not be made: RuntimeError: no kernel"],
    )
    assert list(tmp_path.iterdir()) == []


def test_a_variant_is_made_by_the_next_maker_if_the_first_exceeds_its_limits(
    trained: Any, toy_split: tuple[str, str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = VARIANT_MAKERS["int8"]
    monkeypatch.setitem(graphs.VARIANT_MAKERS, "int8", [altered(first, -1.0), second])
    written = write_graphs(trained["model"], str(tmp_path), origin(), toy_split[1])
    assert written["left_out"] == {}
    assert written["parity"]["int8"]["equal"] >= 0.99
    (remark,) = written["remarks"]
    assert remark.startswith("the first int8 graph gives ")
    operators = {node.op_type for node in onnx.load(tmp_path / VARIANTS["int8"]).graph.node}
    assert ("MatMulNBits" in operators, "MatMulIntegerToFloat" in operators) == (True, False)


@pytest.mark.parametrize("name", ["mpnet", "deberta-v2"])
def test_relative_positions_keep_their_buckets_in_fp16(name: str, tmp_path: Path) -> None:
    """Buckets of relative positions come from a logarithm; rounded in fp16, some fell into the next bucket."""
    logits = random_model(ARCHITECTURES[name])
    for named, parameter in logits.named_parameters():
        if "relative_attention_bias" in named or "rel_embeddings" in named:
            parameter.data *= 20  # so that a wrong bucket shows
    exported = export_by("tracing", logits)
    inputs = random_inputs(logits, 4, 60)
    with torch.inference_mode():
        expected = logits(*map(torch.from_numpy, inputs.values())).numpy()
    graphs.save_graph(graphs.make_fp16(exported), tmp_path / "model.onnx", FACTS, "fp16")
    parity = compare_with_torch([ParityCase("far apart", inputs, expected, None)], tmp_path / "model.onnx", "cpu")
    assert parity["difference"]["far apart"] < 5e-3


def test_exporting_prints_nothing_and_counts_fused_operators(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    exported = export_by("tracing", random_model(ARCHITECTURES["minilm"]))
    assert exported.exporter == "tracing"
    assert exported.fused.get("BiasGelu") == 6
    for _, make in MAKERS:
        onnx.save_model(make(exported), tmp_path / "model.onnx")
    assert capsys.readouterr().out == ""
