"""Rewrites an fp32 ONNX graph for CPUs: matrix products in int8, and normalisation without ONNX Runtime's slow fusion.

Activations are quantised dynamically with a scale per row (token), weights with a scale per column. With one scale per
batch, as in ONNX Runtime's `quantize_dynamic`, the label of 14 of 800 sentences depended on the other sentences of the
batch; with static scales fewer labels equal torch's. Embeddings and the head stay in fp32.

Products are `MatMulIntegerToFloat`, which multiplies uint8 by int8 and adds the products of input features 0 and 1, 2
and 3 and so on. CPUs without VNNI saturate such a sum at 16 bits, so the weights of one sign in a pair add up to at
most 128: no sum exceeds 255 * 128, and every CPU gets the same products. With all weights up to 127 an encoder with
large features was seven times as far from fp32 there; weights in [-64, 64] have half the resolution. The zero point is
the same for all rows, which the operator can subtract: 128, or a smaller one after an activation function that is
bounded below, whose range is nearly all positive.

Some features of a normalisation's output are far larger than others in every row, and leave few steps for these. All
are divided by the square root of their size, by which the weights are multiplied (SmoothQuant, Xiao et al. 2023): a
power of two, so nothing is rounded and equal weights give equal graphs although sizes are measured.

`MatMulNBits`, with weights in blocks, serves as the fallback (`quantise_blocks`): closer to fp32, and slower than it on
CPUs without VNNI.

Shape letters: R activation rows, K input features, M output features.
"""

from collections.abc import Mapping

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto
from onnxruntime.transformers.onnx_model import OnnxModel

from tasks.export.graph_builder import MICROSOFT_DOMAIN
from tasks.export.graph_editor import GraphEditor

Real = NDArray[np.float32]

INT8_BLOCK = 32  # weights: with 32 the 22 M encoder gave all of 409 sentences torch's label, with 128 99.8%
INT8_PRODUCTS = 4  # accuracy_level of MatMulNBits: activations in int8 too
WEIGHT_MAX = 127
PAIR_MAX = 128  # sum of the weights of one sign of a pair of features: UINT8_MAX * PAIR_MAX < 2^15
UINT8_MAX = 255  # activations are unsigned: CPU instructions multiply uint8 by int8
MIDDLE_ZERO = 128
# Lower bounds of activation functions; (1 + erf(x / sqrt(2))) * x / 2 is least at x = -0.75.
LEAST_OUTPUTS = {"Gelu": -0.17, "BiasGelu": -0.17, "FastGelu": -0.17, "Relu": 0.0}
LOW_ZERO = 24  # zero point of their outputs: the least one needs a scale of 0.007
MIN_SCALE = 1e-12  # lower bound of a row's or column's scale, against division by 0
REDUCTIONS_BY_INPUT = 18  # first opset in which reductions take their axes as an input


def split_skip_layernorm(model: OnnxModel) -> int:
    """Replace each SkipLayerNormalization by Sum and LayerNormalization, in place; return how many.

    On a CPU the fused operator of ONNX Runtime 1.31 takes several times as long as its parts. An Add may be fused again
    when the graph is loaded, a Sum is not. Nodes whose sum is read by others are left alone.
    """
    editor = GraphEditor(model, "layernorm_")
    fused = [node for node in model.get_nodes_by_op_type("SkipLayerNormalization") if len(node.output) == 1]
    for node in fused:
        entering, skip, gamma, beta, *bias = node.input
        (epsilon,) = (attribute.f for attribute in node.attribute if attribute.name == "epsilon")
        model.remove_node(node)
        total = editor.add("Sum", [entering, skip, *filter(None, bias)])
        editor.add("LayerNormalization", [total, gamma, beta], node.output[0], axis=-1, epsilon=epsilon)
    model.topological_sort()
    return len(fused)


def quantise_rows(model: OnnxModel, sizes: Mapping[str, Real] | None = None) -> int:
    """Replace products with constant fp32 matrices by int8 ones, in place; return how many.

    Args:
        model: graph in fp32.
        sizes: size of each feature, [K], of the activation tensors whose features are to be scaled.
    """
    editor = _Int8Editor(model, sizes or {})
    products: dict[str, list[onnx.NodeProto]] = {}  # by activation: queries, keys and values share one
    for node in model.get_nodes_by_op_type("MatMul"):
        if editor.has_constant_matrix(node):
            products.setdefault(node.input[0], []).append(node)
    for activation, nodes in products.items():
        editor.replace(activation, nodes)
    model.update_graph()  # removes the unused fp32 weights
    model.topological_sort()
    return sum(map(len, products.values()))


def quantise_blocks(model: onnx.ModelProto) -> onnx.ModelProto:
    """Quantise the constant matrices of products in blocks of INT8_BLOCK weights; the model is changed."""
    from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer  # brings sympy

    quantiser = MatMulNBitsQuantizer(
        model, bits=8, block_size=INT8_BLOCK, is_symmetric=True, accuracy_level=INT8_PRODUCTS
    )
    quantiser.process()
    return quantiser.model.model


class _Int8Editor(GraphEditor):
    """Adds nodes that quantise activation rows and multiply in int8."""

    def __init__(self, model: OnnxModel, sizes: Mapping[str, Real]) -> None:
        super().__init__(model, "int8_")
        self._sizes = sizes
        self._producers = model.output_name_to_node()

    def has_constant_matrix(self, node: onnx.NodeProto) -> bool:
        """Return whether a product's second factor is a constant fp32 matrix [K, M]."""
        tensor = self.model.get_initializer(node.input[1])
        return tensor is not None and tensor.data_type == TensorProto.FLOAT and len(tensor.dims) == 2

    def replace(self, activation: str, nodes: list[onnx.NodeProto]) -> None:
        """Replace all products of one activation tensor, which is quantised once."""
        matrices = [self.value(node.input[1]) for node in nodes]
        rows = self.add("Reshape", [activation, self.constant([-1, len(matrices[0])])])
        if activation in self._sizes:
            divisors = root_powers(self._sizes[activation])
            rows = self.add("Mul", [rows, self.constant(1 / divisors, np.float32)])
            matrices = [matrix * divisors[:, None] for matrix in matrices]
        rounded, scales, zero = self._quantise(rows, self._least_output(activation))
        sizes = self.add("Slice", [self.add("Shape", [activation]), self.constant([0]), self.constant([-1])])
        for node, matrix in zip(nodes, matrices, strict=True):
            self.model.remove_node(node)
            weights, weight_scales = quantise_columns(matrix)
            constants = [
                self.constant(weights, np.int8),
                self.scalar(1.0),
                self.constant(weight_scales, np.float32),
                self.constant(zero, np.uint8),
            ]
            product = self.add("MatMulIntegerToFloat", [rounded, *constants], domain=MICROSOFT_DOMAIN)
            product = self.add("Mul", [product, scales])
            shape = self.add("Concat", [sizes, self.constant([weights.shape[1]])], axis=0)
            self.add("Reshape", [product, shape], node.output[0])

    def _least_output(self, activation: str) -> float | None:
        """Return the lower bound of an activation tensor; None if it has none."""
        producer = self._producers.get(activation)
        return LEAST_OUTPUTS.get(producer.op_type) if producer else None

    def _quantise(self, rows: str, least: float | None) -> tuple[str, str, int]:
        """Quantise rows [R, K] to uint8 with scales [R, 1]; return the names of both, and the zero point."""
        if least is None:
            zero, smallest, largest = MIDDLE_ZERO, MIN_SCALE, self.add("Abs", [rows])
        else:
            zero, smallest, largest = LOW_ZERO, max(MIN_SCALE, -least / LOW_ZERO), rows
        scales = self.add("Mul", [self._row_maximum(largest), self.scalar(1 / (UINT8_MAX - zero))])
        scales = self.add("Max", [scales, self.scalar(smallest)])
        zeros = self.add("Expand", [self.constant(zero, np.uint8), self.add("Shape", [scales])])
        rounded = self.add("QuantizeLinear", [rows, scales, zeros], axis=0)
        return rounded, self.add("Unsqueeze", [scales, self.constant([-1])]), zero

    def _row_maximum(self, name: str) -> str:
        """Reduce [R, K] to [R]."""
        if self.model.get_opset_version() >= REDUCTIONS_BY_INPUT:
            return self.add("ReduceMax", [name, self.constant([1])], keepdims=0)
        return self.add("ReduceMax", [name], axes=[1], keepdims=0)


def root_powers(sizes: Real) -> Real:
    """Return the powers of two nearest to the square roots of sizes."""
    return np.exp2(np.rint(np.log2(np.maximum(sizes, MIN_SCALE)) / 2)).astype(np.float32)


def quantise_columns(weights: Real) -> tuple[NDArray[np.int8], Real]:
    """Quantise a matrix [K, M] to int8; return it with the scale of each column, [M].

    No weight exceeds WEIGHT_MAX, and no pair of one sign exceeds PAIR_MAX: each weight is rounded by at most half, so
    the sum before may be PAIR_MAX - 1.
    """
    largest = np.abs(weights).max(axis=0) / np.float32(WEIGHT_MAX)
    pairs = np.pad(weights, ((0, len(weights) % 2), (0, 0))).reshape(-1, 2, weights.shape[1])
    for sign in (1, -1):
        sums = np.maximum(sign * pairs, 0).sum(axis=1).max(axis=0)
        largest = np.maximum(largest, sums / np.float32(PAIR_MAX - 1))
    scales = np.maximum(largest, np.float32(MIN_SCALE))
    return np.rint(weights / scales).astype(np.int8), scales.astype(np.float32)
