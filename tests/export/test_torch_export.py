"""Torch's exporters, for encoders without a description: every variant, the choice of the exporter."""

import threading
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from architectures import ARCHITECTURES, random_model
from tiny import tiny_bert
from torch_differences import differences_from_torch
from toy import origin
from tqdm import tqdm
from transformers import BertConfig

from tasks.core.errors import VerdictError
from tasks.export import torch_export
from tasks.export.onnx_export import save_graph
from tasks.export.torch_export import EXPORTED_MAKERS, ExportedGraphs, choose_exporter, export_by
from tasks.export.torch_reference import LogitsModule, ParityCase, random_cases, random_inputs
from tasks.inference.external_data import reject_external_data

pytestmark = pytest.mark.filterwarnings("ignore")  # the tracer warns of every Python branch; parity shows a wrong one
FACTS: Any = {**origin(), "pad_id": 0}
DIFFERENCES = {"fp32": 1e-4, "fp16": 2e-2, "int8": 0.7}  # of these models' logits; their weights are random and large
MAKERS = [(variant, make) for variant, makers in EXPORTED_MAKERS.items() for make in makers]


@pytest.mark.parametrize(("name", "fused"), [("albert", 0), ("bert", 1)])
def test_every_variant_of_an_exported_model_answers_like_torch(name: str, fused: int, tmp_path: Path) -> None:
    logits = random_model(ARCHITECTURES[name])
    exported = export_by("tracing", logits)
    assert exported.fused == fused
    for variant, make in MAKERS:
        path = tmp_path / "model.onnx"
        save_graph(make(exported), path, FACTS, variant)
        reject_external_data(path)
        assert max(differences_from_torch(random_cases(logits), path).values()) <= DIFFERENCES[variant]


def test_attention_of_the_shape_of_bert_base_is_fused_in_every_layer() -> None:
    logits = random_model(
        BertConfig(
            vocab_size=20, hidden_size=24, num_attention_heads=12, intermediate_size=96, max_position_embeddings=80
        )
    )
    exported, remarks = choose_exporter(logits)
    assert (exported.fused, remarks) == (12, [])


def test_the_first_exporter_will_do_where_fused_attention_does_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(torch_export.EXPORTERS, "dynamo")
    exported, remarks = choose_exporter(random_model(ARCHITECTURES["albert"]), fused=False)
    assert (exported.exporter, exported.fused, remarks) == ("tracing", 0, [])


def test_the_dynamo_exporter_is_used_when_the_tracing_one_is_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone(*_: Any) -> None:
        raise TypeError("export() got an unexpected keyword argument 'dynamo'")

    monkeypatch.setitem(torch_export.EXPORTERS, "tracing", gone)
    logits = random_model(tiny_bert().config)
    exported, remarks = choose_exporter(logits)
    assert isinstance(tqdm.get_lock(), type(threading.RLock()))  # its own lock is a semaphore of the system
    assert exported.exporter == "dynamo"
    assert remarks[0] == "the tracing exporter failed: TypeError: export() got an unexpected keyword argument 'dynamo'"
    for variant, make in MAKERS:
        path = tmp_path / "model.onnx"
        save_graph(make(exported), path, FACTS, variant)
        reject_external_data(path)
        assert max(differences_from_torch(random_cases(logits), path).values()) <= DIFFERENCES[variant]


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
        return ExportedGraphs(exporter, None, None, fused[exporter])  # type: ignore[arg-type]

    monkeypatch.setattr(torch_export, "export_by", export)
    exported, remarks = choose_exporter(LogitsModule(tiny_bert()))
    assert (exported.exporter, tried_exporters) == (taken, tried)
    assert [remark.split()[2] for remark in remarks] == [name for name in tried if fused[name] < 2]


def test_a_model_that_no_exporter_can_write_is_an_error_with_every_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(exporter: str, _: LogitsModule) -> ExportedGraphs:
        raise RuntimeError(f"{exporter} cannot")

    monkeypatch.setattr(torch_export, "export_by", fail)
    with pytest.raises(VerdictError, match=r"no exporter can write bert: .*tracing cannot; .*dynamo cannot") as caught:
        choose_exporter(LogitsModule(tiny_bert()))
    assert "\n" not in str(caught.value)


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
    save_graph(torch_export.make_fp16(exported), tmp_path / "model.onnx", FACTS, "fp16")
    found = differences_from_torch([ParityCase("far apart", inputs, expected, None)], tmp_path / "model.onnx")
    assert found["far apart"] < 5e-3


def test_exporting_prints_nothing(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    exported = export_by("tracing", random_model(ARCHITECTURES["minilm"]))
    for _, make in MAKERS:
        onnx.save_model(make(exported), tmp_path / "model.onnx")
    assert capsys.readouterr().out == ""
