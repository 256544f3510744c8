"""Rewrites a fused graph so that short sentences cost a GPU what they are worth. Its inputs and outputs stay.

Three things, all exact up to rounding:

1. Attention kernels work on tiles of 64 to 128 tokens, and a sentence has eleven. So as many sentences as fit into
   `ROW` tokens are laid side by side into one row, with a mask that lets each see itself alone. All other operators
   work token by token and notice nothing.
2. The head reads the first token only. After the last attention the other tokens are dropped, and with them two thirds
   of that layer's work.
3. Of the three biases of attention two vanish: what the keys' adds is the same for all keys, which softmax does not
   see, and what the values' adds is a constant, which goes into the bias that comes next.

Shape letters: B sentences, S tokens, G sentences of a row, R rows, H features.
"""

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.transformers.onnx_model import OnnxModel

ROW = 128  # tokens: of 32 to 128 the fastest on an H200
BLIND = 10_000.0  # is taken off the scores of what a token must not see; fp16 holds it
DOMAIN = "com.microsoft"
# Operators that compute each token by itself.
BY_TOKEN = {"MatMul", "SkipLayerNormalization", "LayerNormalization", "BiasGelu", "Gelu", "FastGelu", "Add"}


def pack_rows(model: OnnxModel, row: int = ROW) -> bool:
    """Rewrite a graph in place; tell whether it was one that can be, else it is as it was.

    It can where the first token of fused attention's result is all that the head reads, and nothing else between
    looks beyond a token.

    Args:
        model: fused, in fp32, with the inputs input_ids and attention_mask [B, S].
        row: tokens that sentences are laid side by side in; one of more than half as many is a row of its own.
    """
    attentions = model.get_nodes_by_op_type("Attention")
    if not attentions or not _works_by_token(model, attentions):
        return False
    writer = _Writer(model, row)
    first, last = attentions[0], attentions[-1]
    entering, leaving = first.input[0], last.output[0]
    writer.fill_up(("input_ids", "attention_mask", "token_type_ids"))
    writer.redirect(entering, writer.reshape(entering, ["rows", "row_tokens", -1]))
    bias = writer.attention_bias()
    for node in attentions:
        writer.replace_attention(node, bias)
    for name in (last.input[0], leaving):
        readers = [node for node in model.input_name_to_nodes()[name] if node.op_type in BY_TOKEN]
        spared = [node for node in readers if node.name.startswith(_Writer.PREFIX)]  # the last attention's own
        writer.redirect(name, writer.first_tokens(name), besides=spared)
    (head,) = (node for node in model.nodes() if _takes_first_token(model, node))
    writer.redirect(head.output[0], writer.without_filling(head.output[0]))
    model.update_graph()  # drops the weights that went into others
    model.topological_sort()
    return True


def _works_by_token(model: OnnxModel, attentions: list[onnx.NodeProto]) -> bool:
    """Tell whether everything from the first attention to the choice of the first token works by token or attends."""
    if len({node.input[3] if len(node.input) > 3 else "" for node in attentions}) != 1:
        return False
    consumers = model.input_name_to_nodes()
    waiting, seen, chosen = [attentions[0].input[0]], set[str](), 0
    while waiting:
        for node in consumers.get(waiting.pop(), []):
            if _takes_first_token(model, node):
                chosen += 1
            elif node.op_type not in BY_TOKEN | {"Attention"}:
                return False
            elif node.output[0] not in seen:
                seen.add(node.output[0])
                waiting.append(node.output[0])
    return chosen == 1 and not seen & {output.name for output in model.model.graph.output}


def _takes_first_token(model: OnnxModel, node: onnx.NodeProto) -> bool:
    if node.op_type != "Gather" or node.name.startswith(_Writer.PREFIX):
        return False
    axis = next((attribute.i for attribute in node.attribute if attribute.name == "axis"), 0)
    index = model.get_constant_value(node.input[1])
    return axis == 1 and index is not None and index.size == 1 and int(index.reshape(-1)[0]) == 0


class _Writer:
    """Adds nodes and constants to a graph, under names of their own."""

    PREFIX = "packing_"

    def __init__(self, model: OnnxModel, row: int) -> None:
        self._model, self._row, self._count = model, row, 0
        self._sizes = self._sizes_of_rows()

    def redirect(self, old: str, new: str, besides: list[onnx.NodeProto] | None = None) -> None:
        """Let the nodes that read one tensor read another, but for those that the other is made by, and `besides`."""
        spared = self._makers(new) | {node.name for node in besides or []}
        for node in self._model.input_name_to_nodes()[old]:
            if node.name not in spared:
                self._model.replace_node_input(node, old, new)

    def reshape(self, name: str, sizes: list[str | int]) -> str:
        """Reshape to sizes, each a number or the name of one in `_sizes`."""
        return self._add("Reshape", [name, self._list(sizes)])

    def fill_up(self, inputs: tuple[str, ...]) -> None:
        """Add sentences of zeros, so that the last row is full; what the masks say of them no sentence sees."""
        empty = self._add("Expand", [self._constant([[0]]), self._list(["filling", "tokens"])])
        held = {value.name for value in self._model.model.graph.input}
        for name in inputs:
            if name in held:
                self.redirect(name, self._add("Concat", [name, empty], axis=0), besides=self._shapes)

    def without_filling(self, name: str) -> str:
        """Return the first B of R G."""
        parts = [self._constant([0]), self._sizes["sentences"], self._constant([0])]
        return self._add("Slice", [name, *parts])

    def first_tokens(self, name: str) -> str:
        """Return [R G, 1, H], the first tokens of rows [R, G S, H]."""
        alone = self.reshape(name, ["filled", "tokens", -1])
        return self._add("Gather", [alone, self._constant([0])], axis=1)

    def attention_bias(self) -> str:
        """Return [R, 1, G S, G S]: 0 where a token may look at another, which is one of its own sentence."""
        (filled,) = (
            node.output[0]
            for node in self._model.input_name_to_nodes()["attention_mask"]
            if node.op_type == "Concat" and node.name.startswith(self.PREFIX)
        )
        seen = self._add("Sub", [self._add("Cast", [filled], to=TensorProto.FLOAT), self._real(1.0)])
        seen = self.reshape(self._add("Mul", [seen, self._real(BLIND)]), ["rows", 1, 1, "group", "tokens"])
        group = self._list(["group", "group"])
        apart = self._constant((np.eye(self._row) - 1) * BLIND, np.float32)
        apart = self._add("Slice", [apart, self._constant([0, 0]), group, self._constant([0, 1])])
        both = self._add("Min", [self.reshape(apart, [1, "group", 1, "group", 1]), seen])
        whole = self._add("Expand", [both, self._list(["rows", "group", "tokens", "group", "tokens"])])
        return self.reshape(whole, ["rows", 1, "row_tokens", "row_tokens"])

    def replace_attention(self, node: onnx.NodeProto, bias: str) -> None:
        """Put products of their own for queries, keys and values, and attention over rows, in a node's place."""
        weights = np.split(self._value(node.input[1]), 3, axis=1)
        query_bias, _, value_bias = np.split(self._value(node.input[2]), 3)
        (heads,) = (attribute.i for attribute in node.attribute if attribute.name == "num_heads")
        query, key, value = (
            self._add("MatMul", [node.input[0], self._constant(np.ascontiguousarray(each), np.float32)])
            for each in weights
        )
        query = self._add("Add", [query, self._constant(query_bias, np.float32)])
        if not self._move_bias(node.output[0], value_bias):
            value = self._add("Add", [value, self._constant(value_bias, np.float32)])
        output = node.output[0]
        self._model.remove_node(node)
        self._add("MultiHeadAttention", [query, key, value, "", "", bias], output, domain=DOMAIN, num_heads=heads)

    def _move_bias(self, name: str, bias: NDArray[np.float32]) -> bool:
        """Let the normalisation after the next product add what a bias of its input comes to."""
        readers = self._model.input_name_to_nodes().get(name, [])
        if len(readers) != 1 or readers[0].op_type != "MatMul":
            return False
        after = self._model.input_name_to_nodes().get(readers[0].output[0], [])
        if len(after) != 1 or after[0].op_type != "SkipLayerNormalization" or len(after[0].input) < 5:
            return False
        total = self._value(after[0].input[4]) + bias @ self._value(readers[0].input[1])
        after[0].input[4] = self._constant(total, np.float32)  # one of its own: equal ones are shared
        return True

    def _sizes_of_rows(self) -> dict[str, str]:
        """Compute the sizes, each [1]; ONNX Runtime computes what is made of shapes on the CPU.

        A row takes as many sentences as fit, and no more than there are.
        """
        shape = self._add("Shape", ["attention_mask"])
        self._shapes = [self._model.nodes()[-1]]
        one = self._constant([1])
        sentences = self._add("Gather", [shape, self._constant([0])])
        tokens = self._add("Gather", [shape, one])
        fitting = self._add("Div", [self._constant([self._row]), tokens])
        fitting = self._add("Where", [self._add("Less", [fitting, one]), one, fitting])
        group = self._add("Where", [self._add("Less", [sentences, fitting]), sentences, fitting])
        rows = self._add("Div", [self._add("Sub", [self._add("Add", [sentences, group]), one]), group])
        filled = self._add("Mul", [rows, group])
        return {
            "sentences": sentences,
            "tokens": tokens,
            "group": group,
            "rows": rows,
            "filled": filled,
            "filling": self._add("Sub", [filled, sentences]),
            "row_tokens": self._add("Mul", [group, tokens]),
        }

    def _makers(self, name: str) -> set[str]:
        """Return the names of our own nodes that a tensor is made by."""
        makers = self._model.output_name_to_node()
        waiting, found = [name], set[str]()
        while waiting:
            node = makers.get(waiting.pop())
            if node is not None and node.name.startswith(self.PREFIX) and node.name not in found:
                found.add(node.name)
                waiting.extend(node.input)
        return found

    def _list(self, sizes: list[str | int]) -> str:
        names = [self._sizes[size] if isinstance(size, str) else self._constant([size]) for size in sizes]
        return self._add("Concat", names, axis=0)

    def _value(self, name: str) -> NDArray[np.float32]:
        return numpy_helper.to_array(self._model.get_initializer(name))

    def _real(self, value: float) -> str:
        return self._constant(value, np.float32)

    def _constant(self, values: object, kind: type = np.int64) -> str:
        self._count += 1
        tensor = numpy_helper.from_array(np.asarray(values, kind), f"{self.PREFIX}constant_{self._count}")
        self._model.add_initializer(tensor)
        return tensor.name

    def _add(self, operator: str, inputs: list[str], output: str = "", domain: str = "", **attributes: int) -> str:
        self._count += 1
        name = f"{self.PREFIX}{operator}_{self._count}"
        node = helper.make_node(operator, inputs, [output or name], name=name, domain=domain, **attributes)
        self._model.add_node(node)
        return output or name
