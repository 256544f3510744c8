"""How sentences lie in the rows of a graph: one in each row, or as many as fit into a row side by side.

Attention kernels of a GPU work on tiles of 64 to 128 tokens; a sentence has about eleven. Packed sentences share a row,
and a bias on the scores masks those of the others.

Sizes are computed from input shapes, which ONNX Runtime does on the CPU; all other tensors stay on the device, so that
a run can be captured as a CUDA graph.

Shape letters: B sentences, S tokens of a sentence, G sentences of a row, R rows, T = G * S tokens of a row, H features,
N heads (or 1), Q queries, P positions.
"""

import sys
from functools import cached_property

import numpy as np
from onnx import helper

from tasks.export.encoder_description import MASK_VALUE, Values
from tasks.export.graph_builder import GraphBuilder

PACKED_ROW_TOKENS = 128  # the fastest of 32 to 128 on an H200


class PaddedLayout:
    """Each sentence is a row: R = B and T = S.

    Attributes:
        ids: the inputs by name, [B, S].
        tokens: S, as a tensor [1] on the CPU.
    """

    def __init__(self, builder: GraphBuilder, inputs: list[str], dtype: type, row: int = 0) -> None:
        """Prepare the inputs.

        Args:
            builder: of the graph.
            inputs: names of the graph's inputs.
            dtype: type of biases and masks.
            row: unused: tokens of a packed row.
        """
        self.builder, self.dtype = builder, dtype
        self.ids = {name: name for name in inputs}
        self.tokens = self.builder.add("Shape", ["attention_mask"], start=1, end=2)

    def rows(self, tensor: str) -> str:
        """Lay a tensor [B, S, H] in rows [R, T, H]."""
        return tensor

    def first_tokens(self, tensor: str) -> str:
        """Return the first token of each sentence in rows [R, T, H], [R, G, H]."""
        return self._first(tensor, 1)

    def first_rows(self, scores: str) -> str:
        """Return the scores of the first tokens, [R, N, G, T] of [R, N, T, T]."""
        return self._first(scores, 2)

    def sentences(self, tensor: str) -> str:
        """Return what belongs to the batch's sentences, [B, ...]."""
        return tensor

    def positions(self, _: int) -> str:
        """Return the positions in the sentence of tokens in rows, for RotaryEmbedding, given P: all count from 0."""
        return self.builder.constant([0])

    def mean(self, tensor: str) -> str:
        """Return the mean of each sentence's tokens in rows [R, T, H], as [B, 1, H]."""
        add = self.builder.add
        count = add("ReduceSum", [self._mask, self.builder.constant([1])], keepdims=1)
        shares = add("Div", [self._mask, add("Max", [count, self.builder.scalar(1.0, self.dtype)])])
        return add("MatMul", [add("Unsqueeze", [shares, self.builder.constant([1])]), self._unpacked(tensor)])

    def without_padding(self, tensor: str) -> str:
        """Replace padding in rows [B, S, H] by zeros."""
        return self.builder.add(
            "Mul", [tensor, self.builder.add("Unsqueeze", [self._mask, self.builder.constant([2])])]
        )

    def score_bias(self, distances: Values | None, first_only: bool, expand: bool) -> str:
        """Return what is added to attention scores, [R, N, Q, T].

        Args:
            distances: [N, 2P] by distance between tokens, as in `Attention.distances`; None for padding only.
            first_only: whether only first tokens ask.
            expand: whether Q must be T where one row would broadcast.
        """
        if distances is not None:
            relative = self._relative(distances)
            relative = self.first_rows(relative) if first_only else relative
            return self.builder.add("Add", [relative, self._padding])
        if first_only or not expand:
            return self._padding
        shape = self._list(self.builder.add("Shape", [self._padding], start=0, end=2), self.tokens, self.tokens)
        return self.builder.add("Expand", [self._padding, shape])

    def near(self, table: str, axis: int, length: int) -> str:
        """Return the part of a table [..., 2P, ...] for distances from -(S - 1) to S; `length` is 2P."""
        middle = self.builder.constant([length // 2])
        bounds = [self.builder.add("Sub", [middle, self.tokens]), self.builder.add("Add", [middle, self.tokens])]
        return self.builder.add("Slice", [table, *bounds, self.builder.constant([axis])])

    def scores_by_token(self, scores: str) -> str:
        """Return scores by token [A, N, Q, S] of scores by distance [A, N, Q, 2S], of tokens 0 to Q - 1.

        Token i's score for token j is at the column of j - i, which is j - i + S - 1: a step to the left from row to
        row. Read with rows of 2S - 1, the same numbers have it at column j + S - 1.
        """
        add, constant = self.builder.add, self.builder.constant
        kept = add("Mul", [add("Shape", [scores], start=2, end=3), self._width])
        flat = add("Reshape", [scores, constant([0, 0, -1])])
        flat = add("Slice", [flat, constant([0]), kept, constant([2])])
        rows = add("Reshape", [flat, self._list(0, 0, -1, self._width)])
        return add("Slice", [rows, self._last, self._width, constant([3])])

    @cached_property
    def _last(self) -> str:
        """Return S - 1."""
        return self.builder.add("Sub", [self.tokens, self.builder.constant([1])])

    @cached_property
    def _width(self) -> str:
        """Return 2S - 1."""
        return self.builder.add("Add", [self.tokens, self._last])

    def _relative(self, distances: Values) -> str:
        """Return [1, N, S, S] of the values at distances."""
        near = self.near(self.builder.constant(distances[None, :, None], self.dtype), 3, distances.shape[1])
        shape = self._list(1, distances.shape[0], self.tokens, 1)
        return self.scores_by_token(self.builder.add("Expand", [near, shape]))

    @cached_property
    def _mask(self) -> str:
        """Return [B, S]: 1 for tokens and 0 for padding."""
        to = helper.np_dtype_to_tensor_dtype(np.dtype(self.dtype))
        return self.builder.add("Cast", [self.ids["attention_mask"]], to=to)

    @cached_property
    def _padding(self) -> str:
        """Return [R, 1, 1, T]: 0 for tokens and -MASK_VALUE for padding."""
        padding = self.builder.add("Sub", [self._mask, self.builder.scalar(1.0, self.dtype)])
        padding = self.builder.add("Mul", [padding, self.builder.scalar(MASK_VALUE, self.dtype)])
        return self._row_bias(padding)

    def _row_bias(self, padding: str) -> str:
        return self.builder.add("Unsqueeze", [padding, self.builder.constant([1, 2])])

    def _unpacked(self, tensor: str) -> str:
        """Return [B, S, H] of rows."""
        return tensor

    def _first(self, tensor: str, axis: int) -> str:
        return self.builder.add("Gather", [tensor, self.builder.constant([0])], axis=axis)

    def _list(self, *sizes: str | int) -> str:
        """Return a shape of sizes, each a number or a tensor [1]."""
        names = [size if isinstance(size, str) else self.builder.constant([size]) for size in sizes]
        return self.builder.add("Concat", names, axis=0)


class PackedLayout(PaddedLayout):
    """As many sentences as fit lie in a row, at most all of the batch; sentences of zeros fill the last row.

    `ids` are [R * G, S].
    """

    def __init__(self, builder: GraphBuilder, inputs: list[str], dtype: type, row: int) -> None:
        """Prepare the inputs; `row` is the number of tokens of a row, and a longer sentence has one of its own."""
        super().__init__(builder, inputs, dtype)
        add, one = builder.add, builder.constant([1])
        self._row = row
        self._batch = add("Shape", ["attention_mask"], start=0, end=1)
        fitting = add("Max", [add("Div", [builder.constant([row]), self.tokens]), one])
        self._group = add("Min", [self._batch, fitting])
        self._rows = add("Div", [add("Sub", [add("Add", [self._batch, self._group]), one]), self._group])
        self._filled = add("Mul", [self._rows, self._group])
        self._row_tokens = add("Mul", [self._group, self.tokens])
        filling = self._list(add("Sub", [self._filled, self._batch]), self.tokens)
        empty = add("Expand", [builder.constant([[0]]), filling])
        self.ids = {name: add("Concat", [name, empty], axis=0) for name in inputs}

    def rows(self, tensor: str) -> str:
        """Lay a tensor [R * G, S, H] in rows [R, T, H]."""
        return self._reshape(tensor, self._rows, self._row_tokens, -1)

    def sentences(self, tensor: str) -> str:
        """Return what belongs to the batch's sentences: without those that fill the last row."""
        return self.builder.add("Slice", [tensor, self.builder.constant([0]), self._batch])

    def positions(self, limit: int) -> str:
        """Return the positions in the sentence of tokens in rows, [R, T], given P."""
        return self._positions or self._add_positions(limit)

    def score_bias(self, distances: Values | None, first_only: bool, expand: bool) -> str:
        """Return what is added to attention scores, [R, N, Q, T]: also the tokens of other sentences are masked."""
        add, group, tokens = self.builder.add, self._group, self.tokens
        others = self.builder.constant((np.eye(self._row) - 1) * MASK_VALUE, self.dtype)
        bounds = [self.builder.constant([0, 0]), self._list(group, group), self.builder.constant([0, 1])]
        others = self._reshape(add("Slice", [others, *bounds]), 1, group, 1, group, 1)
        heads = 1
        if distances is None:
            block = add("Expand", [others, self._list(1, group, tokens, group, tokens)])
        else:
            heads = distances.shape[0]
            block = add("Add", [others, self._reshape(self._relative(distances), heads, 1, tokens, 1, tokens)])
        block = self._reshape(block, 1, heads, self._row_tokens, self._row_tokens)
        return add("Add", [self.first_rows(block) if first_only else block, self._padding])

    def _add_positions(self, limit: int) -> str:
        counted = self.builder.add(
            "Slice", [self.builder.constant(np.arange(limit)), self.builder.constant([0]), self.tokens]
        )
        counted = self.builder.add("Expand", [counted, self._list(self._filled, self.tokens)])
        self._positions = self._reshape(counted, self._rows, self._row_tokens)
        return self._positions

    _positions = ""

    def _row_bias(self, padding: str) -> str:
        return self._reshape(padding, self._rows, 1, 1, self._row_tokens)

    def _unpacked(self, tensor: str) -> str:
        return self._reshape(tensor, self._filled, self.tokens, -1)

    def _first(self, tensor: str, axis: int) -> str:
        bounds = [self.builder.constant([number]) for number in (0, sys.maxsize, axis)]
        return self.builder.add("Slice", [tensor, *bounds, self.tokens])

    def _reshape(self, tensor: str, *sizes: str | int) -> str:
        return self.builder.add("Reshape", [tensor, self._list(*sizes)])
