"""Rewrites an fp32 ONNX graph for CPUs: matrix products in int8, and normalisation without ONNX Runtime's slow fusion.

Activations are quantised dynamically with a scale per row (token), weights with a scale per column. With one scale per
batch, as in ONNX Runtime's `quantize_dynamic`, the label of 14 of 800 sentences depended on the other sentences of the
batch; with static scales fewer labels equal torch's. Embeddings and the head stay in fp32.

Products are `MatMulIntegerToFloat`, which multiplies uint8 by int8 and adds pairs of products. CPUs without VNNI
saturate such a sum at 16 bits, so weights are in [-64, 64]: no sum exceeds 2 * 255 * 64, and every CPU gets the same
products. With weights up to 127 an encoder with large features was seven times as far from fp32 there. The zero point
is the same for all rows, which the operator can subtract: 128, or a smaller one after an activation function that is
bounded below, whose range is nearly all positive.

`MatMulNBits`, with weights in blocks, serves as the fallback (`quantise_blocks`): closer to fp32, and slower than it on
CPUs without VNNI.

Shape letters: R activation rows, K input features, M output features.
"""

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto
from onnxruntime.transformers.onnx_model import OnnxModel

from tasks.export.graph_builder import MICROSOFT_DOMAIN
from tasks.export.graph_editor import GraphEditor

INT8_BLOCK = 32  # weights: with 32 the 22 M encoder gave all of 409 sentences torch's label, with 128 99.8%
INT8_PRODUCTS = 4  # accuracy_level of MatMulNBits: activations in int8 too
WEIGHT_MAX = 64  # of quantised weights: 2 * UINT8_MAX * WEIGHT_MAX < 2^15
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


def quantise_rows(model: OnnxModel) -> int:
    """Replace products with constant fp32 matrices by int8 ones, in place; return how many."""
    editor = _Int8Editor(model)
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

    def __init__(self, model: OnnxModel) -> None:
        super().__init__(model, "int8_")
        self._producers = model.output_name_to_node()

    def has_constant_matrix(self, node: onnx.NodeProto) -> bool:
        """Return whether a product's second factor is a constant fp32 matrix [K, M]."""
        tensor = self.model.get_initializer(node.input[1])
        return tensor is not None and tensor.data_type == TensorProto.FLOAT and len(tensor.dims) == 2

    def replace(self, activation: str, nodes: list[onnx.NodeProto]) -> None:
        """Replace all products of one activation tensor, which is quantised once."""
        matrices = [self.value(node.input[1]) for node in nodes]
        rounded, scales, zero = self._quantise(activation, len(matrices[0]))
        sizes = self.add("Slice", [self.add("Shape", [activation]), self.constant([0]), self.constant([-1])])
        for node, matrix in zip(nodes, matrices, strict=True):
            self.model.remove_node(node)
            weights, weight_scales = quantise_columns(matrix)
            factors = [
                self.constant(weights, np.int8),
                self.scalar(1.0),
                self.constant(weight_scales, np.float32),
                self.constant(zero, np.uint8),
            ]
            product = self.add("MatMulIntegerToFloat", [rounded, *factors], domain=MICROSOFT_DOMAIN)
            product = self.add("Mul", [product, scales])
            shape = self.add("Concat", [sizes, self.constant([weights.shape[1]])], axis=0)
            self.add("Reshape", [product, shape], node.output[0])

    def _quantise(self, name: str, features: int) -> tuple[str, str, int]:
        """Quantise a tensor to uint8 [R, K] with scales [R, 1]; return the names of both, and the zero point."""
        producer = self._producers.get(name)
        least = LEAST_OUTPUTS.get(producer.op_type) if producer else None
        rows = self.add("Reshape", [name, self.constant([-1, features])])
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


def quantise_columns(weights: NDArray[np.float32]) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Quantise a matrix [K, M] to int8; return it with the scale of each column, [M]."""
    scales = np.maximum(np.abs(weights).max(axis=0) / np.float32(WEIGHT_MAX), np.float32(MIN_SCALE))
    return np.rint(weights / scales).astype(np.int8), scales.astype(np.float32)
