"""Puts products in int8 in the place of a graph's products with constant matrices. Its inputs and outputs stay.

Activations have a scale and a zero for each row, that is token, taken as they come. With one scale for a batch, as ONNX
Runtime's `quantize_dynamic` has it, 14 of 800 sentences got another label alone than in company; scales that are fixed
beforehand keep fewer labels. Weights have a scale for each column. The products are `MatMulIntegerToFloat`, for which
CPUs have vector instructions (AVX-512 VNNI; older ones cut off what of two products exceeds 16 bits); with weights in
blocks (`MatMulNBits`) they are hardly faster than in fp32. Embeddings and the head stay fp32.

The operator knows no zero of a row, and needs none: a few rows of weights more bring each column's sum to nothing, and
the bytes that meet them are the row's zero. What the zero adds to all products of a column then cancels out.

Shape letters: R rows of activations, K features in, M features out, J rows of weights more.
"""

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto
from onnxruntime.transformers.onnx_model import OnnxModel

from tasks.export.graph_editor import MICROSOFT_DOMAIN, GraphEditor

INT8_MAX = 127  # of weights; without -128 both signs have the same range
UINT8_MAX = 255  # steps of activations, which are unsigned: CPUs multiply unsigned by signed
MAX_EXTRA_ROWS = 63  # largest of the weights more: CPUs without VNNI add two products in 16 bits
MIN_SCALE = 1e-12  # of a row's or column's range, as zeros have none
REDUCTIONS_BY_INPUT = 18  # opset from which reductions take their axes as an input


def quantise_rows(model: OnnxModel) -> int:
    """Rewrite a graph in fp32 in place; return how many products are in int8 now."""
    writer = _Int8Editor(model)
    products: dict[str, list[onnx.NodeProto]] = {}  # by what they multiply: queries, keys and values share it
    for node in model.get_nodes_by_op_type("MatMul"):
        if writer.multiplies_by_matrix(node):
            products.setdefault(node.input[0], []).append(node)
    for entering, nodes in products.items():
        writer.replace(entering, nodes)
    model.update_graph()  # drops the weights in fp32
    model.topological_sort()
    return sum(map(len, products.values()))


class _Int8Editor(GraphEditor):
    """Adds the nodes that quantise rows and multiply bytes."""

    def __init__(self, model: OnnxModel) -> None:
        super().__init__(model, "int8_")

    def multiplies_by_matrix(self, node: onnx.NodeProto) -> bool:
        """Tell whether a product's second factor is a constant matrix [K, M] in fp32."""
        tensor = self.model.get_initializer(node.input[1])
        return tensor is not None and tensor.data_type == TensorProto.FLOAT and len(tensor.dims) == 2

    def replace(self, entering: str, nodes: list[onnx.NodeProto]) -> None:
        """Put products of bytes in the place of all products of one tensor."""
        columns = [quantise_columns(self.value(node.input[1])) for node in nodes]
        features = len(columns[0][0])
        more = max(extra_rows(weights) for weights, _ in columns)
        rounded, scales = self._quantise(entering, features, more)
        sizes = self.add("Slice", [self.add("Shape", [entering]), self.constant([0]), self.constant([-1])])
        for node, (weights, steps) in zip(nodes, columns, strict=True):
            self.model.remove_node(node)
            factors = [
                self.constant(zero_column_sums(weights, more), np.int8),
                self.scalar(1.0),
                self.constant(steps, np.float32),
            ]
            product = self.add("MatMulIntegerToFloat", [rounded, *factors], domain=MICROSOFT_DOMAIN)
            product = self.add("Mul", [product, scales])
            whole = self.add("Concat", [sizes, self.constant([weights.shape[1]])], axis=0)
            self.add("Reshape", [product, whole], node.output[0])

    def _quantise(self, name: str, features: int, more: int) -> tuple[str, str]:
        """Return the bytes [R, K + J] and scales [R, 1] of a tensor."""
        rows = self.add("Reshape", [name, self.constant([-1, features])])
        nothing = self.scalar(0.0)
        least = self.add("Min", [self._reduce("ReduceMin", rows), nothing])
        largest = self.add("Max", [self._reduce("ReduceMax", rows), nothing])
        width = self.add("Max", [self.add("Sub", [largest, least]), self.scalar(MIN_SCALE)])
        scales = self.add("Mul", [width, self.scalar(1 / UINT8_MAX)])
        zeros = self.add("QuantizeLinear", [self.add("Neg", [least]), scales], axis=0)
        rounded = self.add("QuantizeLinear", [rows, scales, zeros], axis=0)
        last = self.constant([-1])
        if more:
            column = self.add("Unsqueeze", [zeros, last])
            rounded = self.add("Concat", [rounded, self.add("Expand", [column, self.constant([1, more])])], axis=1)
        return rounded, self.add("Unsqueeze", [scales, last])

    def _reduce(self, operator: str, name: str) -> str:
        """Reduce [R, K] to [R]."""
        if self.model.get_opset_version() >= REDUCTIONS_BY_INPUT:
            return self.add(operator, [name, self.constant([1])], keepdims=0)
        return self.add(operator, [name], axes=[1], keepdims=0)


def quantise_columns(weights: NDArray[np.float32]) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Round a matrix [K, M] to bytes; return them and the scale of each column, [M]."""
    scales = np.maximum(np.abs(weights).max(axis=0), MIN_SCALE) / np.float32(INT8_MAX)
    return np.rint(weights / scales).astype(np.int8), scales.astype(np.float32)


def extra_rows(weights: NDArray[np.int8]) -> int:
    """Return how many rows more bring the sum of each column of [K, M] to nothing."""
    return -(-int(np.abs(weights.sum(axis=0, dtype=np.int64)).max(initial=0)) // MAX_EXTRA_ROWS)


def zero_column_sums(weights: NDArray[np.int8], more: int) -> NDArray[np.int8]:
    """Add `more` rows to [K, M], so that each column's sum is 0; what is lacking is shared out evenly."""
    lacking = -weights.sum(axis=0, dtype=np.int64)
    shares = np.diff(lacking * np.arange(more + 1)[:, None] // max(more, 1), axis=0)
    return np.concatenate([weights, shares.astype(np.int8)])
