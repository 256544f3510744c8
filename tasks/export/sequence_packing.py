"""Rewrites a fused ONNX graph so that a GPU computes fewer padded tokens; inputs and outputs stay the same.

Three changes, each exact up to rounding:

1. Attention kernels work on tiles of 64 to 128 tokens; a sentence has about eleven. As many sentences as
   `sentences_of_row` says are packed into one row, with an attention bias that masks the others. All other operators
   work per token.
2. The head reads only the first token, so after the last attention all other tokens are dropped, which saves two
   thirds of that layer's work.
3. K's bias shifts all scores of a query equally, so softmax cancels it. Softmax weights sum to 1, so V's bias is a
   constant and is folded into the next bias.

Shape letters: B sentences, S tokens of a sentence, G sentences of a row, R rows, H features.
"""

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto
from onnxruntime.transformers.onnx_model import OnnxModel

from tasks.export.encoder_description import MASK_VALUE
from tasks.export.encoder_layout import sentences_by_length
from tasks.export.graph_builder import MICROSOFT_DOMAIN
from tasks.export.graph_editor import GraphEditor, upstream_nodes
from tasks.inference.packed_shapes import PACK_TOKENS

# Operators without interaction between tokens.
TOKENWISE_OPS = {"MatMul", "SkipLayerNormalization", "LayerNormalization", "BiasGelu", "Gelu", "FastGelu", "Add"}


def pack_rows(model: OnnxModel, row: int = PACK_TOKENS) -> bool:
    """Rewrite a graph in place; return False, and leave it unchanged, if it does not have the required form.

    The form: fused attention, a head that reads only the first token, and otherwise only operators that work per token.

    Args:
        model: fused, in fp32, with the inputs input_ids and attention_mask [B, S].
        row: tokens of a packed row; a sentence of more than half of it gets its own row.
    """
    attentions = model.get_nodes_by_op_type("Attention")
    if not attentions or not _is_tokenwise(model, attentions):
        return False
    editor = _PackingEditor(model, row)
    first, last = attentions[0], attentions[-1]
    entering, leaving = first.input[0], last.output[0]
    editor.pad_rows(("input_ids", "attention_mask", "token_type_ids"))
    editor.redirect(entering, editor.reshape(entering, ["rows", "row_tokens", -1]))
    bias = editor.attention_bias()
    for node in attentions:
        editor.replace_attention(node, bias)
    for name in (last.input[0], leaving):
        readers = [node for node in model.input_name_to_nodes()[name] if node.op_type in TOKENWISE_OPS]
        spared = [node for node in readers if node.name.startswith(_PackingEditor.PREFIX)]  # of the last attention
        editor.redirect(name, editor.first_tokens(name), besides=spared)
    (head,) = (node for node in model.nodes() if _takes_first_token(model, node))
    editor.redirect(head.output[0], editor.unpad_rows(head.output[0]))
    model.update_graph()  # removes weights that are no longer used
    model.topological_sort()
    return True


def _is_tokenwise(model: OnnxModel, attentions: list[onnx.NodeProto]) -> bool:
    """Return whether all nodes from the first attention to the choice of the first token are tokenwise or attention."""
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
    """Adds the nodes that pack sentences into rows."""

    PREFIX = "packing_"

    def __init__(self, model: OnnxModel, row: int) -> None:
        super().__init__(model, self.PREFIX)
        self._row = row
        self._sizes = self._sizes_of_rows()

    def redirect(self, old: str, new: str, besides: list[onnx.NodeProto] | None = None) -> None:
        """Make the readers of one tensor read another, except the nodes upstream of the other and `besides`."""
        own = upstream_nodes(self.model, [new], lambda node: node.name.startswith(self.prefix))
        spared = own | {node.name for node in besides or []}
        for node in self.model.input_name_to_nodes()[old]:
            if node.name not in spared:
                self.model.replace_node_input(node, old, new)

    def reshape(self, name: str, sizes: list[str | int]) -> str:
        """Reshape to sizes, each a number or a key of `_sizes`."""
        return self.add("Reshape", [name, self._list(sizes)])

    def pad_rows(self, inputs: tuple[str, ...]) -> None:
        """Append sentences of zeros that fill the last row; other sentences never attend to them."""
        empty = self.add("Expand", [self.constant([[0]]), self._list(["filling", "tokens"])])
        held = {value.name for value in self.model.model.graph.input}
        for name in inputs:
            if name in held:
                self.redirect(name, self.add("Concat", [name, empty], axis=0), besides=self._shapes)

    def unpad_rows(self, name: str) -> str:
        """Return the first B of R * G sentences."""
        parts = [self.constant([0]), self._sizes["sentences"], self.constant([0])]
        return self.add("Slice", [name, *parts])

    def first_tokens(self, name: str) -> str:
        """Return [R * G, 1, H], the first token of each sentence in rows [R, G * S, H]."""
        sentences = self.reshape(name, ["filled", "tokens", -1])
        return self.add("Gather", [sentences, self.constant([0])], axis=1)

    def attention_bias(self) -> str:
        """Return [R, 1, G * S, G * S]: 0 between tokens of one sentence, else -MASK_VALUE."""
        (filled,) = (
            node.output[0]
            for node in self.model.input_name_to_nodes()["attention_mask"]
            if node.op_type == "Concat" and node.name.startswith(self.prefix)
        )
        padding = self.add("Sub", [self.add("Cast", [filled], to=TensorProto.FLOAT), self.scalar(1.0)])
        padding = self.reshape(self.add("Mul", [padding, self.scalar(MASK_VALUE)]), ["rows", 1, 1, "group", "tokens"])
        group = self._list(["group", "group"])
        others = self.constant((np.eye(self._row) - 1) * MASK_VALUE, np.float32)
        others = self.add("Slice", [others, self.constant([0, 0]), group, self.constant([0, 1])])
        both = self.add("Min", [self.reshape(others, [1, "group", 1, "group", 1]), padding])
        whole = self.add("Expand", [both, self._list(["rows", "group", "tokens", "group", "tokens"])])
        return self.reshape(whole, ["rows", 1, "row_tokens", "row_tokens"])

    def replace_attention(self, node: onnx.NodeProto, bias: str) -> None:
        """Replace a fused attention node by separate products for Q, K and V and attention over packed rows."""
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
        """Fold V's bias into the bias of the normalisation after the output projection; return whether possible."""
        readers = self.model.input_name_to_nodes().get(name, [])
        if len(readers) != 1 or readers[0].op_type != "MatMul":
            return False
        after = self.model.input_name_to_nodes().get(readers[0].output[0], [])
        if len(after) != 1 or after[0].op_type != "SkipLayerNormalization" or len(after[0].input) < 5:
            return False
        total = self.value(after[0].input[4]) + bias @ self.value(readers[0].input[1])
        after[0].input[4] = self.constant(total, np.float32)  # a new constant: the old one may be shared
        return True

    def _sizes_of_rows(self) -> dict[str, str]:
        """Add nodes for the sizes, each a tensor [1]; ONNX Runtime computes shape arithmetic on the CPU.

        A row has as many sentences as `sentences_of_row` says, at most all of them.
        """
        shape = self.add("Shape", ["attention_mask"])
        self._shapes = [self.model.nodes()[-1]]
        one = self.constant([1])
        sentences = self.add("Gather", [shape, self.constant([0])])
        tokens = self.add("Gather", [shape, one])
        groups = sentences_by_length(self._row)
        last = self.constant([len(groups) - 1])
        index = self.add("Where", [self.add("Less", [tokens, last]), tokens, last])
        group = self.add("Gather", [self.constant(groups), index])
        group = self.add("Where", [self.add("Less", [sentences, group]), sentences, group])
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
