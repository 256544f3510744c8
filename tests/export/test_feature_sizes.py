"""Sizes of features: exact values, the batches that are measured, graphs that stay as they are."""

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from tasks.export.feature_sizes import choose_inputs, measure_sizes
from tasks.export.torch_reference import ParityCase


def test_the_size_of_a_feature_is_its_root_mean_square_over_all_tokens() -> None:
    gain, bias = np.array([1, 2, 0, 3], np.float32), np.array([0, 0, 5, 4], np.float32)
    graph = helper.make_graph(
        [
            helper.make_node("LayerNormalization", ["x", "gain", "bias"], ["normalised"], axis=-1, epsilon=0.0),
            helper.make_node("Relu", ["normalised"], ["y"]),
        ],
        "normalisation",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", "tokens", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", "tokens", 4])],
        [numpy_helper.from_array(gain, "gain"), numpy_helper.from_array(bias, "bias")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    before = model.SerializeToString()
    x = np.array([[[1, -1, 1, -1], [-1, 1, -1, 1]]], np.float32)  # normalised already
    sizes = measure_sizes(model, [{"x": x}, {"x": -x}])  # type: ignore[dict-item]
    assert list(sizes) == ["normalised"]
    np.testing.assert_allclose(sizes["normalised"], [1, 2, 5, 5], rtol=1e-5)  # 7 and 1: the root of 25
    assert model.SerializeToString() == before
    assert measure_sizes(model, []) == {}


def test_batches_from_the_shortest_to_the_longest_sentences_are_measured() -> None:
    cases = [ParityCase(str(n), {"input_ids": np.array([n])}, np.zeros((1, 2), np.float32), None) for n in range(10)]
    assert [each["input_ids"].item() for each in choose_inputs(cases)] == [0, 3, 6, 9]
    assert [each["input_ids"].item() for each in choose_inputs(cases[:2])] == [0, 1]
    assert choose_inputs([]) == []
