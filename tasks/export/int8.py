"""Rewrites an fp32 ONNX graph for CPUs: matrix products in int8, and normalisation without ONNX Runtime's slow fusion.

Activations are quantised dynamically with a scale and a zero point per row (token), weights with a scale per column.
With one scale per batch, as in ONNX Runtime's `quantize_dynamic`, the label of 14 of 800 sentences depended on the
other sentences of the batch; with static scales fewer labels equal torch's. Embeddings and the head stay in fp32.

Products are `MatMulIntegerToFloat`, which uses the CPU's int8 instructions (AVX-512 VNNI; CPUs without it saturate the
sum of two products at 16 bits). `MatMulNBits`, with weights in blocks, is hardly faster than fp32 and serves as the
fallback (`quantise_blocks`).

The product of an activation row x with zero point z is x @ w - z * sum(w), and MatMulIntegerToFloat cannot subtract a z
per row. So J rows are appended to the weights that make every column sum 0, and z is appended J times to each
activation row: the correction is then 0.

Shape letters: R activation rows, K input features, M output features, J extra weight rows.
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
INT8_MAX = 127  # weights are in [-127, 127], symmetric without -128
UINT8_MAX = 255  # activations are unsigned: CPU instructions multiply uint8 by int8
MAX_EXTRA_WEIGHT = 63  # largest absolute value in an extra row: two products must fit in 16 bits on CPUs without VNNI
MIN_SCALE = 1e-12  # lower bound of a row's or column's range, against division by 0
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

    def has_constant_matrix(self, node: onnx.NodeProto) -> bool:
        """Return whether a product's second factor is a constant fp32 matrix [K, M]."""
        tensor = self.model.get_initializer(node.input[1])
        return tensor is not None and tensor.data_type == TensorProto.FLOAT and len(tensor.dims) == 2

    def replace(self, activation: str, nodes: list[onnx.NodeProto]) -> None:
        """Replace all products of one activation tensor, which is quantised once."""
        columns = [quantise_columns(self.value(node.input[1])) for node in nodes]
        features = len(columns[0][0])
        extra = max(extra_rows(weights) for weights, _ in columns)
        rounded, scales = self._quantise(activation, features, extra)
        sizes = self.add("Slice", [self.add("Shape", [activation]), self.constant([0]), self.constant([-1])])
        for node, (weights, weight_scales) in zip(nodes, columns, strict=True):
            self.model.remove_node(node)
            factors = [
                self.constant(zero_column_sums(weights, extra), np.int8),
                self.scalar(1.0),
                self.constant(weight_scales, np.float32),
            ]
            product = self.add("MatMulIntegerToFloat", [rounded, *factors], domain=MICROSOFT_DOMAIN)
            product = self.add("Mul", [product, scales])
            shape = self.add("Concat", [sizes, self.constant([weights.shape[1]])], axis=0)
            self.add("Reshape", [product, shape], node.output[0])

    def _quantise(self, name: str, features: int, extra: int) -> tuple[str, str]:
        """Quantise a tensor to uint8 [R, K + J] with scales [R, 1]; return the names of both."""
        rows = self.add("Reshape", [name, self.constant([-1, features])])
        zero = self.scalar(0.0)
        least = self.add("Min", [self._reduce("ReduceMin", rows), zero])
        largest = self.add("Max", [self._reduce("ReduceMax", rows), zero])
        width = self.add("Max", [self.add("Sub", [largest, least]), self.scalar(MIN_SCALE)])
        scales = self.add("Mul", [width, self.scalar(1 / UINT8_MAX)])
        zeros = self.add("QuantizeLinear", [self.add("Neg", [least]), scales], axis=0)
        rounded = self.add("QuantizeLinear", [rows, scales, zeros], axis=0)
        last = self.constant([-1])
        if extra:
            column = self.add("Unsqueeze", [zeros, last])
            rounded = self.add("Concat", [rounded, self.add("Expand", [column, self.constant([1, extra])])], axis=1)
        return rounded, self.add("Unsqueeze", [scales, last])

    def _reduce(self, operator: str, name: str) -> str:
        """Reduce [R, K] to [R]."""
        if self.model.get_opset_version() >= REDUCTIONS_BY_INPUT:
            return self.add(operator, [name, self.constant([1])], keepdims=0)
        return self.add(operator, [name], axes=[1], keepdims=0)


def quantise_columns(weights: NDArray[np.float32]) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Quantise a matrix [K, M] to int8; return it with the scale of each column, [M]."""
    scales = np.maximum(np.abs(weights).max(axis=0), MIN_SCALE) / np.float32(INT8_MAX)
    return np.rint(weights / scales).astype(np.int8), scales.astype(np.float32)


def extra_rows(weights: NDArray[np.int8]) -> int:
    """Return J, the number of extra rows that can make every column of [K, M] sum to 0."""
    return -(-int(np.abs(weights.sum(axis=0, dtype=np.int64)).max(initial=0)) // MAX_EXTRA_WEIGHT)


def zero_column_sums(weights: NDArray[np.int8], extra: int) -> NDArray[np.int8]:
    """Append J = `extra` rows to [K, M] that make every column sum to 0, with values as equal as possible."""
    missing = -weights.sum(axis=0, dtype=np.int64)
    shares = np.diff(missing * np.arange(extra + 1)[:, None] // max(extra, 1), axis=0)
    return np.concatenate([weights, shares.astype(np.int8)])
