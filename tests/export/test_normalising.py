"""Fused normalisations taken apart: the same numbers, and no optimiser puts them together again."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.transformers.onnx_model import OnnxModel

from tasks.export.normalising import split_skip_layernorm

FEATURES = 12
FUSED = "SkipLayerNormalization"


def normalisation(bias: bool, outputs: list[str]) -> OnnxModel:
    """Return a graph that adds x and y [B, S, H] and normalises."""
    rng = np.random.default_rng(0)
    names = ["gamma", "beta", *(["bias"] if bias else [])]
    node = helper.make_node(FUSED, ["x", "y", *names], outputs, domain="com.microsoft", epsilon=1e-3)
    sizes = ["batch", "tokens", FEATURES]
    graph = helper.make_graph(
        [node],
        "normalisation",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, sizes) for name in "xy"],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, sizes) for name in outputs if name],
        [numpy_helper.from_array(rng.normal(size=FEATURES).astype(np.float32), name) for name in names],
    )
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    return OnnxModel(helper.make_model(graph, opset_imports=imports, ir_version=8))


def run(model: OnnxModel, optimised: Path) -> np.ndarray:
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath, options.log_severity_level = str(optimised), 4
    session = onnxruntime.InferenceSession(model.model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    x, y = np.random.default_rng(1).normal(size=(2, 3, 5, FEATURES)).astype(np.float32)
    return session.run(["out"], {"x": x, "y": y})[0]


@pytest.mark.parametrize("bias", [True, False])
def test_the_parts_compute_what_the_whole_does_and_stay_apart(bias: bool, tmp_path: Path) -> None:
    model = normalisation(bias, ["out"])
    whole = run(model, tmp_path / "whole.onnx")
    assert split_skip_layernorm(model) == 1
    np.testing.assert_allclose(run(model, tmp_path / "parts.onnx"), whole, atol=1e-5)
    kinds = {
        name: [node.op_type for node in onnx.load(tmp_path / name).graph.node] for name in ("whole.onnx", "parts.onnx")
    }
    assert kinds == {"whole.onnx": [FUSED], "parts.onnx": ["Sum", "LayerNormalization"]}


def test_one_whose_sum_is_read_too_is_left_whole() -> None:
    model = normalisation(True, ["out", "", "", "sum"])
    assert split_skip_layernorm(model) == 0
    assert [node.op_type for node in model.nodes()] == [FUSED]
