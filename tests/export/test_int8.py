"""Products in int8 with a scale per row: exact cases, the bound of rounding, nodes left alone; split normalisation."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.transformers.onnx_model import OnnxModel

from tasks.export.int8 import (
    LOW_ZERO,
    PAIR_MAX,
    UINT8_MAX,
    WEIGHT_MAX,
    quantise_columns,
    quantise_rows,
    root_powers,
    split_skip_layernorm,
)

Real = NDArray[np.float32]
FEATURES = 12
FUSED = "SkipLayerNormalization"


def products(*matrices: Real, opset: int = 17) -> OnnxModel:
    """Return a graph that multiplies x [B, S, K] with each matrix and with the transpose of itself."""
    nodes = [helper.make_node("MatMul", ["x", f"w{i}"], [f"y{i}"]) for i in range(len(matrices))]
    nodes += [
        helper.make_node("Transpose", ["x"], ["t"], perm=[0, 2, 1]),
        helper.make_node("MatMul", ["x", "t"], ["s"]),
    ]
    graph = helper.make_graph(
        nodes,
        "products",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", "tokens", len(matrices[0])])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for node in nodes for name in node.output[:1]],
        [numpy_helper.from_array(matrix, f"w{i}") for i, matrix in enumerate(matrices)],
    )
    imports = [helper.make_opsetid("", opset), helper.make_opsetid("com.microsoft", 1)]
    return OnnxModel(helper.make_model(graph, opset_imports=imports, ir_version=8))


def run(model: OnnxModel, x: Real) -> list[Real]:
    session = onnxruntime.InferenceSession(model.model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"x": x})


def draw(*sizes: int, seed: int = 0) -> Real:
    return np.random.default_rng(seed).normal(size=sizes).astype(np.float32)


def activated(operator: str, matrix: Real) -> OnnxModel:
    """Return a graph that applies an activation function to x [B, S, K] and multiplies it with a matrix."""
    model = products(matrix, opset=20)
    for node in model.nodes():
        node.input[0] = "a"
    model.model.graph.node.insert(0, helper.make_node(operator, ["x"], ["a"]))
    return model


@pytest.mark.parametrize("opset", [17, 20])  # from 18 on reductions take their axes as an input
def test_whole_numbers_within_127_are_multiplied_exactly(opset: int) -> None:
    x = np.random.default_rng(0).integers(-127, 128, (2, 3, 16)).astype(np.float32)
    w = np.random.default_rng(1).integers(-63, 64, (16, 8)).astype(np.float32)
    x[..., 0], w[0], w[1] = 127, -127, 0  # each row and column has the scale 1
    model = products(w, opset=opset)
    assert quantise_rows(model) == 1
    np.testing.assert_array_equal(run(model, x)[0], x @ w)


@pytest.mark.parametrize("rows", [1, 40])  # ONNX Runtime has kernels of their own for one row
@pytest.mark.parametrize("features", [(64, 63), (127, -127), (-64, -63), (0, 127, 127, 0), (127, 0, 0, 127)])
def test_no_cpu_saturates_the_sum_of_two_products(features: tuple[int, ...], rows: int) -> None:
    """CPUs without VNNI add pairs in 16 bits: here all are as large as can be, and two of two pairs would saturate."""
    assert UINT8_MAX * PAIR_MAX < 2**15
    weights = np.tile(np.array(features, np.float32), 768 // len(features))
    x, w = np.full((1, rows, 768), 127, np.float32), np.repeat(weights[:, None], 64, axis=1)
    model = products(w)
    quantise_rows(model)
    np.testing.assert_array_equal(run(model, x)[0], x @ w)


@pytest.mark.parametrize("shift", [-5.0, 0.0, 5.0])
def test_rounding_costs_at_most_half_a_step_of_each_factor(shift: float) -> None:
    x, w = draw(4, 7, 64) + np.float32(shift), draw(64, 32, seed=1)
    model = products(w)
    quantise_rows(model)
    step_x, step_w = np.abs(x).max(-1, keepdims=True) / 127, quantise_columns(w)[1]
    limit = np.abs(x).sum(-1, keepdims=True) * step_w / 2 + step_x / 2 * np.abs(w).sum(0) + 64 * step_x * step_w / 4
    assert (np.abs(run(model, x)[0] - x @ w) <= limit * 1.001).all()


def test_large_features_do_not_cost_the_others_their_steps() -> None:
    x, w = draw(4, 7, 64), draw(64, 32, seed=1)
    x[..., 3] *= 1_000
    w[3] /= 1_000
    errors = []
    for sizes in ({}, {"x": np.sqrt(np.square(x).mean(axis=(0, 1)))}):
        model = products(w)
        assert quantise_rows(model, sizes) == 1
        errors.append(np.abs(run(model, x)[0] - x @ w).mean())
    assert errors[1] < errors[0] / 10


def test_features_without_a_size_have_finite_products() -> None:
    model = products(draw(8, 4))
    quantise_rows(model, {"x": np.zeros(8, np.float32)})
    assert not run(model, np.zeros((2, 3, 8), np.float32))[0].any()
    assert np.isfinite(run(model, draw(2, 3, 8))[0]).all()


def test_features_are_divided_by_powers_of_two() -> None:
    sizes = np.array([1, 3.9, 4.1, 16, 60, 0.25, 0], np.float32)
    assert root_powers(sizes).tolist() == [1, 2, 2, 4, 8, 0.5, 2**-20]


@pytest.mark.parametrize("operator", ["Relu", "Gelu"])
def test_after_an_activation_function_the_range_is_nearly_all_positive(operator: str) -> None:
    x, w = 5 * draw(4, 7, 64), draw(64, 32, seed=1)
    model = activated(operator, w)
    before = run(model, x)[0]
    assert quantise_rows(model) == 1
    most = np.maximum(x, 0).max(-1, keepdims=True)
    step_x, step_w = np.maximum(most / (255 - LOW_ZERO), 0.17 / LOW_ZERO), quantise_columns(w)[1]
    limit = np.abs(x).sum(-1, keepdims=True) * step_w / 2 + step_x / 2 * np.abs(w).sum(0) + 64 * step_x * step_w / 4
    assert (np.abs(run(model, x)[0] - before) <= limit * 1.001).all()


def test_a_row_has_the_same_product_in_every_batch() -> None:
    model = products(draw(64, 32))
    quantise_rows(model)
    alone = draw(1, 1, 64, seed=2)
    among = np.concatenate([1_000 * draw(1, 5, 64, seed=3), alone], axis=1)
    np.testing.assert_array_equal(run(model, among)[0][:, -1:], run(model, alone)[0])


def test_a_row_of_zeros_stays_zero() -> None:
    model = products(draw(8, 4))
    quantise_rows(model)
    assert not run(model, np.zeros((2, 3, 8), np.float32))[0].any()


def test_a_column_of_zeros_stays_zero() -> None:
    w = draw(8, 4)
    w[:, 2] = 0
    model = products(w)
    quantise_rows(model)
    assert not run(model, draw(2, 3, 8))[0][..., 2].any()


def test_no_rows_give_no_rows() -> None:
    model = products(draw(8, 4))
    quantise_rows(model)
    assert run(model, np.zeros((0, 3, 8), np.float32))[0].shape == (0, 3, 4)


def test_what_several_products_read_is_quantised_once() -> None:
    model = products(draw(8, 4), draw(8, 4, seed=1), draw(8, 4, seed=2))
    assert quantise_rows(model) == 3
    kinds = [node.op_type for node in model.nodes()]
    assert (kinds.count("QuantizeLinear"), kinds.count("MatMulIntegerToFloat")) == (1, 3)


def test_products_of_two_activations_and_with_other_numbers_are_left_alone() -> None:
    model = products(draw(8, 4))
    model.get_initializer("w0").CopyFrom(numpy_helper.from_array(draw(8, 4).astype(np.float64), "w0"))
    before = [node.op_type for node in model.nodes()]
    assert quantise_rows(model) == 0
    assert [node.op_type for node in model.nodes()] == before


def test_the_fp32_weights_are_removed() -> None:
    model = products(draw(64, 32))
    quantise_rows(model)
    kept = [tensor.data_type for tensor in model.model.graph.initializer if np.prod(tensor.dims) >= 64 * 32]
    assert kept == [TensorProto.INT8]


@given(arrays(np.float32, (5, 3), elements=st.floats(-1e6, 1e6, width=32)))
def test_each_weight_is_rounded_by_half_a_step_of_its_column_at_most(weights: Real) -> None:
    rounded, scales = quantise_columns(weights)
    assert rounded.dtype == np.int8
    assert np.abs(rounded.astype(int)).max() <= WEIGHT_MAX
    pairs = np.pad(rounded.astype(int), ((0, 1), (0, 0))).reshape(3, 2, 3)
    for sign in (1, -1):
        assert np.maximum(sign * pairs, 0).sum(axis=1).max() <= PAIR_MAX
    assert (np.abs(rounded * scales - weights) <= scales * 0.5001).all()


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


def run_normalisation(model: OnnxModel, optimised: Path) -> np.ndarray:
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath, options.log_severity_level = str(optimised), 4
    session = onnxruntime.InferenceSession(model.model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    x, y = np.random.default_rng(1).normal(size=(2, 3, 5, FEATURES)).astype(np.float32)
    return session.run(["out"], {"x": x, "y": y})[0]


@pytest.mark.parametrize("bias", [True, False])
def test_a_split_normalisation_computes_the_same_and_is_not_fused_again(bias: bool, tmp_path: Path) -> None:
    model = normalisation(bias, ["out"])
    fused = run_normalisation(model, tmp_path / "fused.onnx")
    assert split_skip_layernorm(model) == 1
    np.testing.assert_allclose(run_normalisation(model, tmp_path / "parts.onnx"), fused, atol=1e-5)
    kinds = {
        name: [node.op_type for node in onnx.load(tmp_path / name).graph.node] for name in ("fused.onnx", "parts.onnx")
    }
    assert kinds == {"fused.onnx": [FUSED], "parts.onnx": ["Sum", "LayerNormalization"]}


def test_a_normalisation_whose_sum_is_read_is_left_alone() -> None:
    model = normalisation(True, ["out", "", "", "sum"])
    assert split_skip_layernorm(model) == 0
    assert [node.op_type for node in model.nodes()] == [FUSED]
