"""Graphs that keep weights in other files are found, wherever in the graph the tensor stands."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from tasks.core.errors import VerdictError
from tasks.inference.external_data import reject_external_data


def tensor(external: bool) -> TensorProto:
    """Return a tensor, or one that says its bytes lie in another file."""
    made = numpy_helper.from_array(np.arange(6, dtype=np.float32), "weight")
    if external:
        made.ClearField("raw_data")
        made.data_location = TensorProto.EXTERNAL
        made.external_data.add(key="location", value="../secret")
    return made


def as_initialiser(weight: TensorProto) -> onnx.ModelProto:
    node = helper.make_node("Identity", ["weight"], ["out"])
    return _model([node], [weight])


def as_constant(weight: TensorProto) -> onnx.ModelProto:
    return _model([helper.make_node("Constant", [], ["out"], value=weight)], [])


def in_a_branch(weight: TensorProto) -> onnx.ModelProto:
    out = helper.make_tensor_value_info("out", TensorProto.FLOAT, [6])
    branch = helper.make_graph([helper.make_node("Identity", ["weight"], ["out"])], "branch", [], [out], [weight])
    yes = numpy_helper.from_array(np.array(True), "yes")
    return _model([helper.make_node("If", ["yes"], ["out"], then_branch=branch, else_branch=branch)], [yes])


def in_a_function(weight: TensorProto) -> onnx.ModelProto:
    model = _model([helper.make_node("Weight", [], ["out"], domain="own")], [])
    body = [helper.make_node("Constant", [], ["out"], value=weight)]
    model.functions.append(helper.make_function("own", "Weight", [], ["out"], body, [helper.make_opsetid("", 17)]))
    return model


def as_sparse(weight: TensorProto) -> onnx.ModelProto:
    model = as_initialiser(weight)
    model.graph.ClearField("initializer")
    indices = numpy_helper.from_array(np.arange(6), "indices")
    model.graph.sparse_initializer.append(helper.make_sparse_tensor(weight, indices, [6]))
    return model


def _model(nodes: list[onnx.NodeProto], weights: list[TensorProto]) -> onnx.ModelProto:
    out = helper.make_tensor_value_info("out", TensorProto.FLOAT, [6])
    return helper.make_model(helper.make_graph(nodes, "graph", [], [out], weights))


PLACES = [as_initialiser, as_constant, in_a_branch, in_a_function, as_sparse]


@pytest.mark.parametrize("place", PLACES)
def test_weights_in_the_file_pass_and_others_are_refused(
    place: Callable[[TensorProto], onnx.ModelProto], tmp_path: Path
) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(place(tensor(external=False)).SerializeToString())
    reject_external_data(path)
    path.write_bytes(place(tensor(external=True)).SerializeToString())
    with pytest.raises(VerdictError, match="keeps weights in other files, expected all in one"):
        reject_external_data(path)


def test_what_onnx_itself_writes_beside_the_file_is_refused(tmp_path: Path) -> None:
    model = as_initialiser(numpy_helper.from_array(np.zeros(4_096, np.float32), "weight"))
    onnx.save_model(model, tmp_path / "model.onnx", save_as_external_data=True, location="model.onnx.data")
    assert (tmp_path / "model.onnx.data").is_file()
    with pytest.raises(VerdictError, match="keeps weights in other files"):
        reject_external_data(tmp_path / "model.onnx")


@pytest.mark.parametrize("content", [b"", b"\x3a\x7f", b"\x3b", b"\xff" * 20, b"\x08"])
def test_what_is_no_model_is_refused_in_one_line(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(content)
    with pytest.raises(VerdictError, match="is no ONNX model") as caught:
        reject_external_data(tmp_path / "model.onnx")
    assert "\n" not in str(caught.value)
