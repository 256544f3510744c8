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
from onnx import TensorProto
from onnxruntime.transformers.onnx_model import OnnxModel

from tasks.export.graph_editor import MICROSOFT_DOMAIN, GraphEditor, upstream_nodes

PACKED_ROW_TOKENS = 128  # tokens: of 32 to 128 the fastest on an H200
MASK_VALUE = 10_000.0  # is taken off the scores of what a token must not see; fp16 holds it
# Operators that compute each token by itself.
TOKENWISE_OPS = {"MatMul", "SkipLayerNormalization", "LayerNormalization", "BiasGelu", "Gelu", "FastGelu", "Add"}


def pack_rows(model: OnnxModel, row: int = PACKED_ROW_TOKENS) -> bool:
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
    writer = _PackingEditor(model, row)
    first, last = attentions[0], attentions[-1]
    entering, leaving = first.input[0], last.output[0]
    writer.pad_rows(("input_ids", "attention_mask", "token_type_ids"))
    writer.redirect(entering, writer.reshape(entering, ["rows", "row_tokens", -1]))
    bias = writer.attention_bias()
    for node in attentions:
        writer.replace_attention(node, bias)
    for name in (last.input[0], leaving):
        readers = [node for node in model.input_name_to_nodes()[name] if node.op_type in TOKENWISE_OPS]
        spared = [node for node in readers if node.name.startswith(_PackingEditor.PREFIX)]  # the last attention's own
        writer.redirect(name, writer.first_tokens(name), besides=spared)
    (head,) = (node for node in model.nodes() if _takes_first_token(model, node))
    writer.redirect(head.output[0], writer.unpad_rows(head.output[0]))
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
            elif node.op_type not in TOKENWISE_OPS | {"Attention"}:
                return False
            elif node.output[0] not in seen:
                seen.add(node.output[0])
                waiting.append(node.output[0])
    return chosen == 1 and not seen & {output.name for output in model.model.graph.output}


def _takes_first_token(model: OnnxModel, node: onnx.NodeProto) -> bool:
    if node.op_type != "Gather" or node.name.startswith(_PackingEditor.PREFIX):
        return False
    axis = next((attribute.i for attribute in node.attribute if attribute.name == "axis"), 0)
    index = model.get_constant_value(node.input[1])
    return axis == 1 and index is not None and index.size == 1 and int(index.reshape(-1)[0]) == 0


class _PackingEditor(GraphEditor):
    """Adds the nodes that lay sentences side by side."""

    PREFIX = "packing_"

    def __init__(self, model: OnnxModel, row: int) -> None:
        super().__init__(model, self.PREFIX)
        self._row = row
        self._sizes = self._sizes_of_rows()

    def redirect(self, old: str, new: str, besides: list[onnx.NodeProto] | None = None) -> None:
        """Let the nodes that read one tensor read another, but for those that the other is made by, and `besides`."""
        own = upstream_nodes(self.model, [new], lambda node: node.name.startswith(self.prefix))
        spared = own | {node.name for node in besides or []}
        for node in self.model.input_name_to_nodes()[old]:
            if node.name not in spared:
                self.model.replace_node_input(node, old, new)

    def reshape(self, name: str, sizes: list[str | int]) -> str:
        """Reshape to sizes, each a number or the name of one in `_sizes`."""
        return self.add("Reshape", [name, self._list(sizes)])

    def pad_rows(self, inputs: tuple[str, ...]) -> None:
        """Add sentences of zeros, so that the last row is full; what the masks say of them no sentence sees."""
        empty = self.add("Expand", [self.constant([[0]]), self._list(["filling", "tokens"])])
        held = {value.name for value in self.model.model.graph.input}
        for name in inputs:
            if name in held:
                self.redirect(name, self.add("Concat", [name, empty], axis=0), besides=self._shapes)

    def unpad_rows(self, name: str) -> str:
        """Return the first B of R G."""
        parts = [self.constant([0]), self._sizes["sentences"], self.constant([0])]
        return self.add("Slice", [name, *parts])

    def first_tokens(self, name: str) -> str:
        """Return [R G, 1, H], the first tokens of rows [R, G S, H]."""
        alone = self.reshape(name, ["filled", "tokens", -1])
        return self.add("Gather", [alone, self.constant([0])], axis=1)

    def attention_bias(self) -> str:
        """Return [R, 1, G S, G S]: 0 where a token may look at another, which is one of its own sentence."""
        (filled,) = (
            node.output[0]
            for node in self.model.input_name_to_nodes()["attention_mask"]
            if node.op_type == "Concat" and node.name.startswith(self.prefix)
        )
        seen = self.add("Sub", [self.add("Cast", [filled], to=TensorProto.FLOAT), self.scalar(1.0)])
        seen = self.reshape(self.add("Mul", [seen, self.scalar(MASK_VALUE)]), ["rows", 1, 1, "group", "tokens"])
        group = self._list(["group", "group"])
        apart = self.constant((np.eye(self._row) - 1) * MASK_VALUE, np.float32)
        apart = self.add("Slice", [apart, self.constant([0, 0]), group, self.constant([0, 1])])
        both = self.add("Min", [self.reshape(apart, [1, "group", 1, "group", 1]), seen])
        whole = self.add("Expand", [both, self._list(["rows", "group", "tokens", "group", "tokens"])])
        return self.reshape(whole, ["rows", 1, "row_tokens", "row_tokens"])

    def replace_attention(self, node: onnx.NodeProto, bias: str) -> None:
        """Put products of their own for queries, keys and values, and attention over rows, in a node's place."""
        weights = np.split(self.value(node.input[1]), 3, axis=1)
        query_bias, _, value_bias = np.split(self.value(node.input[2]), 3)
        (heads,) = (attribute.i for attribute in node.attribute if attribute.name == "num_heads")
        query, key, value = (
            self.add("MatMul", [node.input[0], self.constant(np.ascontiguousarray(each), np.float32)])
            for each in weights
        )
        query = self.add("Add", [query, self.constant(query_bias, np.float32)])
        if not self._move_bias(node.output[0], value_bias):
            value = self.add("Add", [value, self.constant(value_bias, np.float32)])
        output = node.output[0]
        self.model.remove_node(node)
        self.add(
            "MultiHeadAttention", [query, key, value, "", "", bias], output, domain=MICROSOFT_DOMAIN, num_heads=heads
        )

    def _move_bias(self, name: str, bias: NDArray[np.float32]) -> bool:
        """Let the normalisation after the next product add what a bias of its input comes to."""
        readers = self.model.input_name_to_nodes().get(name, [])
        if len(readers) != 1 or readers[0].op_type != "MatMul":
            return False
        after = self.model.input_name_to_nodes().get(readers[0].output[0], [])
        if len(after) != 1 or after[0].op_type != "SkipLayerNormalization" or len(after[0].input) < 5:
            return False
        total = self.value(after[0].input[4]) + bias @ self.value(readers[0].input[1])
        after[0].input[4] = self.constant(total, np.float32)  # one of its own: equal ones are shared
        return True

    def _sizes_of_rows(self) -> dict[str, str]:
        """Compute the sizes, each [1]; ONNX Runtime computes what is made of shapes on the CPU.

        A row takes as many sentences as fit, and no more than there are.
        """
        shape = self.add("Shape", ["attention_mask"])
        self._shapes = [self.model.nodes()[-1]]
        one = self.constant([1])
        sentences = self.add("Gather", [shape, self.constant([0])])
        tokens = self.add("Gather", [shape, one])
        fitting = self.add("Div", [self.constant([self._row]), tokens])
        fitting = self.add("Where", [self.add("Less", [fitting, one]), one, fitting])
        group = self.add("Where", [self.add("Less", [sentences, fitting]), sentences, fitting])
        rows = self.add("Div", [self.add("Sub", [self.add("Add", [sentences, group]), one]), group])
        filled = self.add("Mul", [rows, group])
        return {
            "sentences": sentences,
            "tokens": tokens,
            "group": group,
            "rows": rows,
            "filled": filled,
            "filling": self.add("Sub", [filled, sentences]),
            "row_tokens": self.add("Mul", [group, tokens]),
        }

    def _list(self, sizes: list[str | int]) -> str:
        names = [self._sizes[size] if isinstance(size, str) else self.constant([size]) for size in sizes]
        return self.add("Concat", names, axis=0)
