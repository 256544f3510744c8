"""The ONNX graph: free axes, metadata, parity that refuses."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from conftest import origin
from onnx import numpy_helper

from tasks.classifier import load_classifier
from tasks.errors import VerdictError
from tasks.export import PARITY_SHAPES, _Logits, export_bundle, input_names, load_export, measure_parity


@pytest.fixture
def graph(exported: Any) -> Path:
    return Path(exported["bundle"]) / "model.onnx"


def test_parity_is_measured_at_every_shape_and_within_the_limit(exported: Any) -> None:
    assert list(exported["parity"]) == [f"{rows}x{length}" for rows, length in PARITY_SHAPES]
    assert max(exported["parity"].values()) <= 1e-4


@pytest.mark.parametrize("shape", [(1, 1), (3, 2), (5, 40)])
def test_batch_and_sequence_are_free(graph: Path, shape: tuple[int, int]) -> None:
    session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    feed = {node.name: np.ones(shape, np.int64) for node in session.get_inputs()}
    assert session.run(None, feed)[0].shape == (shape[0], 2)


def test_the_graph_says_what_it_is(graph: Path) -> None:
    properties = {entry.key: entry.value for entry in onnx.load(graph).metadata_props}
    expected = origin()
    assert json.loads(properties["labels"]) == expected["labels"]
    assert properties["max_length"] == "16"
    assert {name: properties[name] for name in ("encoder", "dataset", "git_commit")} == {
        name: expected[name] for name in ("encoder", "dataset", "git_commit")
    }


def test_the_graph_is_one_file(graph: Path) -> None:
    model = onnx.load(graph, load_external_data=False)
    assert all(tensor.data_location != onnx.TensorProto.EXTERNAL for tensor in model.graph.initializer)


def test_a_graph_that_computes_something_else_is_refused(graph: Path, trained: Any, tmp_path: Path) -> None:
    model = onnx.load(graph)
    weight = next(tensor for tensor in model.graph.initializer if tensor.name.endswith("classifier.weight"))
    weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight) + 0.01, weight.name))
    onnx.save_model(model, tmp_path / "altered.onnx")
    classifier = load_classifier(trained["model"], attention="eager").eval()
    names = input_names(classifier)
    with pytest.raises(VerdictError, match="ONNX graph differs from torch by"):
        measure_parity(_Logits(classifier, names).eval(), names, tmp_path / "altered.onnx", 20)


def test_a_graph_of_nans_is_refused(graph: Path, trained: Any, tmp_path: Path) -> None:
    model = onnx.load(graph)
    weight = next(tensor for tensor in model.graph.initializer if tensor.name.endswith("classifier.weight"))
    weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight) * np.float32("nan"), weight.name))
    onnx.save_model(model, tmp_path / "nan.onnx")
    classifier = load_classifier(trained["model"], attention="eager").eval()
    names = input_names(classifier)
    with pytest.raises(VerdictError, match="differs from torch by nan"):
        measure_parity(_Logits(classifier, names).eval(), names, tmp_path / "nan.onnx", 20)


def test_a_finished_export_is_found_again_and_a_damaged_one_is_not(trained: Any, tmp_path: Path) -> None:
    assert load_export(str(tmp_path)) is None
    exported = export_bundle(trained["model"], str(tmp_path), origin())
    assert load_export(str(tmp_path)) == exported
    graph = tmp_path / "bundle" / "model.onnx"
    graph.write_bytes(graph.read_bytes()[:-1] + b"!")
    assert load_export(str(tmp_path)) is None


def test_one_model_and_one_set_of_facts_give_one_digest(trained: Any, exported: Any, tmp_path: Path) -> None:
    assert export_bundle(trained["model"], str(tmp_path), origin())["digest"] == exported["digest"]
