"""The export as a whole: the bundle's content, variants that are left out, and a subprocess that crashes or hangs."""

import json
import logging
import os
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from toy import facts, origin

from tasks.core.errors import VerdictError
from tasks.core.files import read_json, write_json
from tasks.evaluation.threshold_choice import choose_on_validation
from tasks.export import bundle_export as export
from tasks.export.bundle_export import export_bundle, load_export
from tasks.export.onnx_export import WrittenGraphs
from tasks.export.subprocess_call import run_in_subprocess
from tasks.export.torch_reference import PARITY_SHAPES
from tasks.inference.bundle import VARIANTS, verify, write_manifest
from tasks.inference.decision import threshold_of
from tasks.inference.external_data import reject_external_data


def die(*_: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def hang(*_: Any) -> None:
    time.sleep(120)


def leave_int8(model: str, folder: str, facts: Any, _: Any) -> WrittenGraphs:
    """Stand for an export whose int8 graph differs from torch."""
    (Path(folder) / "model.onnx").write_bytes(b"graph")
    shape: Any = {"provider": "CPUExecutionProvider", "difference": {"1x1": 0.0}, "sentences": 0, "half": None}
    return written({"fp32": shape}, facts)


def written(parity: dict[str, Any], facts: Any = None) -> WrittenGraphs:
    """Return what an export without int8 says of its graphs."""
    return WrittenGraphs(
        facts=facts,
        exporter="tracing",
        fused={"Attention": 2},
        parity=parity,
        left_out={"int8": "changes 10 of 100 labels (10.00%), expected at most 1.0%"},
        attempts={},
        remarks=[],
        digests={},
        seconds={"describe": 0.1},
    )


@pytest.fixture(params=VARIANTS)
def graph(request: pytest.FixtureRequest, complete: Any) -> Path:
    return Path(complete["bundle"]) / VARIANTS[request.param]


def test_every_variant_is_within_its_limits(complete: Any) -> None:
    assert list(complete["variants"]) == ["fp32", "fp16", "int8"]
    assert complete["left_out"] == {}
    for parity in complete["variants"].values():
        assert list(parity["difference"]) == [*(f"{rows}x{length}" for rows, length in PARITY_SHAPES), "sentences"]
        assert parity["sentences"] == 88
        assert parity["changed"] <= 1
        assert parity["not_finite"] == []
    assert max(complete["variants"]["fp32"]["difference"].values()) <= 1e-4
    assert max(complete["variants"]["fp16"]["difference"].values()) <= 2e-2
    for variant, attempts in complete["attempts"].items():
        assert (attempts[-1]["parity"], attempts[-1]["fault"]) == (complete["variants"][variant], None)
    assert complete["parity"] == complete["variants"]["fp32"]["difference"]


@pytest.mark.parametrize("shape", [(1, 1), (3, 2), (5, 40)])
def test_batch_and_sequence_are_free(graph: Path, shape: tuple[int, int]) -> None:
    session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    feed = {node.name: np.ones(shape, np.int64) for node in session.get_inputs()}
    (logits,) = session.run(None, feed)
    assert logits.shape == (shape[0], 2)
    assert logits.dtype == np.float32


def test_each_graph_has_its_origin_as_metadata(graph: Path) -> None:
    properties = {entry.key: entry.value for entry in onnx.load(graph).metadata_props}
    expected = origin()
    assert VARIANTS[properties["variant"]] == graph.name
    assert json.loads(properties["labels"]) == expected["labels"]
    assert (properties["max_length"], properties["pad_id"]) == ("16", "0")
    assert {name: properties[name] for name in ("encoder", "dataset", "git_commit")} == {
        name: expected[name] for name in ("encoder", "dataset", "git_commit")
    }


def test_each_graph_is_one_file(graph: Path) -> None:
    model = onnx.load(graph, load_external_data=False)
    assert all(tensor.data_location != onnx.TensorProto.EXTERNAL for tensor in model.graph.initializer)
    reject_external_data(graph)


def test_without_sentences_to_compare_on_only_fp32_is_shipped(exported: Any) -> None:
    assert list(exported["variants"]) == ["fp32"]
    reason = "was not made: there are no sentences for a comparison with torch"
    assert exported["left_out"] == {"fp16": reason, "int8": reason}
    assert set(verify(Path(exported["bundle"]))["files"]) == {"model.onnx", "tokenizer.json"}


def test_variants_that_are_not_shipped_are_logged_and_recorded(
    trained: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(export, "_write_graphs", leave_int8)
    with caplog.at_level(logging.DEBUG, logger="tasks"):
        exported = export_bundle(trained["model"], str(tmp_path), origin())
    reason = "changes 10 of 100 labels (10.00%), expected at most 1.0%"
    assert f"model.cpu.onnx is not shipped: it {reason}" in caplog.messages
    levels = {record.getMessage(): record.levelno for record in caplog.records}
    assert levels["exported to ONNX (tracing); fused: 2 Attention"] == logging.DEBUG  # for --verbose
    (line,) = (message for message in levels if message.startswith("exported to ONNX: "))
    assert levels[line] == logging.INFO
    assert read_json(tmp_path / "export.json")["left_out"] == {"int8": reason}
    assert exported["left_out"] == {"int8": reason}


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"fp32": 0, "fp16": 1, "int8": 3}, "int8 differs most from torch, in 3 of 400 validation labels"),
        ({"fp32": 0, "int8": 0}, "all of them label 400 validation sentences as torch does"),
    ],
)
def test_the_summary_names_the_variant_that_changes_most_labels(
    caplog: pytest.LogCaptureFixture, changed: dict[str, int], said: str
) -> None:
    shape: Any = {"provider": "CPUExecutionProvider", "difference": {"1x1": 0.0}, "torch_mcc": 0.5, "mcc": 0.5}
    parity = {name: shape | {"sentences": 400, "changed": count, "half": None} for name, count in changed.items()}
    with caplog.at_level(logging.INFO, logger="tasks"):
        export._log_summary(written(parity))
    assert caplog.messages[0] == f"exported to ONNX: {', '.join(changed)}; {said}"


def test_a_killed_export_is_one_line_and_leaves_no_bundle(
    trained: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export, "_write_graphs", die)
    with pytest.raises(VerdictError, match=r"^the export to ONNX was ended by SIGKILL; if memory ran out"):
        export_bundle(trained["model"], str(tmp_path), origin())
    assert list(tmp_path.iterdir()) == []


def test_an_export_over_its_limit_is_one_line_and_leaves_no_bundle(
    trained: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export, "_write_graphs", hang)
    monkeypatch.setattr(export, "EXPORT_TIMEOUT_S", 0.5)
    with pytest.raises(VerdictError, match=r"^the export to ONNX did not end in 0\.5 s and was stopped"):
        export_bundle(trained["model"], str(tmp_path), origin())
    assert list(tmp_path.iterdir()) == []


def import_what_few_exports_need() -> list[str]:
    from tasks.export import onnx_export  # the server imported it, with the folder of onnxruntime.transformers

    assert onnx_export.WRITTEN_MAKERS
    export.find_onnxruntime_tools()
    from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

    from tasks.export.torch_export import choose_exporter

    return [MatMulNBitsQuantizer.__name__, choose_exporter.__name__]


def test_what_few_exports_need_is_imported_in_the_subprocess() -> None:
    found = run_in_subprocess("the import", 120, import_what_few_exports_need)
    assert found == ["MatMulNBitsQuantizer", "choose_exporter"]


def test_the_time_limit_grows_with_the_sentences(toy_split: tuple[str, str, str]) -> None:
    assert export._time_limit(None) == 1_800
    assert export._time_limit(toy_split[1]) == 1_800 + 88


def copy_export(exported: Any, folder: Path) -> dict[str, Any]:
    """Copy a bundle with its export.json to a job's folder; return the content of export.json."""
    shutil.copytree(exported["bundle"], folder / "bundle")
    shutil.copy(Path(exported["bundle"]).with_name("export.json"), folder)
    record: dict[str, Any] = read_json(folder / "export.json")
    return record


def test_a_finished_export_is_found_again_where_its_folder_was_moved(exported: Any, tmp_path: Path) -> None:
    assert load_export(str(tmp_path)) is None
    assert load_export(str(Path(exported["bundle"]).parent)) == exported
    record = copy_export(exported, tmp_path)
    assert record["bundle"] == "bundle"
    assert load_export(str(tmp_path)) == exported | {"bundle": str(tmp_path / "bundle")}


def test_a_damaged_export_or_one_of_another_schema_version_is_not_reused(
    exported: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    record = copy_export(exported, tmp_path)
    for broken in (
        record | {"schema_version": 1},
        {key: value for key, value in record.items() if key != "schema_version"},
        {key: value for key, value in record.items() if key != "left_out"},
        record | {"digest": "0" * 64},
        [],
    ):
        write_json(tmp_path / "export.json", broken)
        assert load_export(str(tmp_path)) is None
        assert "; the model is exported again" in caplog.messages[-1]
    write_json(tmp_path / "export.json", record)
    assert load_export(str(tmp_path)) is not None
    graph = tmp_path / "bundle" / "model.onnx"
    graph.write_bytes(graph.read_bytes()[:-1] + b"!")
    assert load_export(str(tmp_path)) is None


def test_one_model_and_one_set_of_facts_give_one_digest(
    trained: Any, complete: Any, toy_split: tuple[str, str, str], tmp_path: Path
) -> None:
    again = export_bundle(trained["model"], str(tmp_path), origin(), toy_split[1], "cpu", choose_threshold=True)
    assert again["threshold"] == choose_on_validation(complete["bundle"], toy_split[1], "cpu")
    assert threshold_of(verify(Path(again["bundle"]))) == again["threshold"]["threshold"]
    assert write_manifest(Path(again["bundle"]), facts(), {})["digest"] == complete["digest"]
