"""How sentences lie in the rows of a graph: one in each row, or several side by side.

Attention kernels of a GPU work on tiles of 64 to 128 tokens; a sentence has about eleven. Packed sentences share a row,
and a bias on the scores masks those of the others.

Sizes are computed from input shapes, which ONNX Runtime does on the CPU; all other tensors stay on the device, so that
a run can be captured as a CUDA graph.

Shape letters: B sentences, S tokens of a sentence, G sentences of a row, R rows, T = G * S tokens of a row, H features,
N heads (or 1), Q tokens whose scores for others are computed, P positions.
"""

import sys
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from onnx import helper

from tasks.export.encoder_description import MASK_VALUE, Values
from tasks.export.graph_builder import GraphBuilder
from tasks.inference.packed_shapes import sentences_of_row


def sentences_by_length(row: int) -> list[int]:
    """Return the sentences of a row by their tokens; the last number, 1, is that of all that are longer.

    A graph looks sizes up in it. ONNX Runtime computes on the CPU what depends on input shapes and on constants of at
    most 100 numbers (1.31.1); with a longer table sizes would be computed on the GPU and copied back, and a graph with
    such copies cannot be captured.
    """
    return [sentences_of_row(tokens, row) for tokens in range(row // 2 + 2)]


class PaddedLayout:
    """Each sentence is a row: R = B and T = S.

    Attributes:
        ids: the inputs by name, [B, S].
        tokens: S, as a tensor [1] on the CPU.
    """

    def __init__(self, builder: GraphBuilder, inputs: list[str], dtype: type) -> None:
        """Prepare the inputs.

        Args:
            builder: of the graph.
            inputs: names of the graph's inputs.
            dtype: type of biases and masks.
        """
        self.builder, self.dtype = builder, dtype
        self.add, self.constant = builder.add, builder.constant
        self._lists: dict[tuple[str | int, ...], str] = {}
        self.ids = {name: name for name in inputs}
        self.tokens = self.add("Shape", ["attention_mask"], start=1, end=2)

    def rows(self, tensor: str) -> str:
        """Lay a tensor [B, S, H] in rows [R, T, H]."""
        return tensor

    def sentences(self, tensor: str) -> str:
        """Return what belongs to the batch's sentences, [B, ...]."""
        return tensor

    def first_tokens(self, tensor: str) -> str:
        """Return the first token of each sentence in rows [R, T, H], as [R, G, H]."""
        return self.add("Gather", [tensor, self.constant([0])], axis=1)

    def first_scores(self, scores: str) -> str:
        """Return the scores of the first token, [N, B, 1, S] of [N, B, S, S]."""
        return self.add("Gather", [scores, self.constant([0])], axis=2)

    def mean(self, tensor: str) -> str:
        """Return the mean of each sentence's tokens in rows [R, T, H], as [B, 1, H]."""
        count = self.add("ReduceSum", [self._mask, self.constant([1])], keepdims=1)
        shares = self.add("Div", [self._mask, self.add("Max", [count, self.builder.scalar(1.0, self.dtype)])])
        return self.add("MatMul", [self.add("Unsqueeze", [shares, self.constant([1])]), self._unpacked(tensor)])

    def without_padding(self, tensor: str) -> str:
        """Replace padding in rows [B, S, H] by zeros."""
        return self.add("Mul", [tensor, self.add("Unsqueeze", [self._mask, self.constant([2])])])

    def score_bias(self, distances: Values | None, first_asks: bool, expand: bool) -> str:
        """Return what is added to attention scores, [R, N, Q, T].

        Args:
            distances: [N, 2P] by distance between tokens, as in `Attention.distances`; None for masks only.
            first_asks: whether Q is 1, the first token.
            expand: whether Q must be T where one row would broadcast.
        """
        if distances is not None:
            relative = self._relative(distances)
            return self.masked(self.first_scores(relative) if first_asks else relative)
        if first_asks or not expand:
            return self._padding
        return self.add("Expand", [self._padding, self._list(1, 1, self.tokens, 1)])

    def masked(self, scores: str) -> str:
        """Return scores [N, B or 1, Q, S] for tokens of the own sentence as a bias with masks, [R, N, Q, T]."""
        return self.add("Add", [self.add("Transpose", [scores], perm=[1, 0, 2, 3]), self._padding])

    def near(self, table: str, axis: int, length: int) -> str:
        """Return the part of a table [..., 2P, ...] for distances from -(S - 1) to S; `length` is 2P."""
        middle = self.constant([length // 2])
        bounds = [self.add("Sub", [middle, self.tokens]), self.add("Add", [middle, self.tokens])]
        return self.add("Slice", [table, *bounds, self.constant([axis])])

    def scores_by_token(self, scores: str, count: str) -> str:
        """Return scores by token [N, B, Q, S] of scores by distance [N, B * Q, 2S], of tokens 0 to Q - 1.

        Token i's score for token j is at the column of j - i, which is j - i + S - 1: a step to the left from row to
        row. Read with rows of 2S - 1, the same numbers have it at column j + S - 1.

        Args:
            scores: by distance from -(S - 1) to S.
            count: Q, as a tensor [1].
        """
        rows = self.add("Reshape", [scores, self._list(0, -1, count, self._twice)])
        flat = self.add("Reshape", [rows, self.constant([0, 0, -1])])
        kept = self.add("Mul", [count, self._width])
        flat = self.add("Slice", [flat, self.constant([0]), kept, self.constant([2])])
        rows = self.add("Reshape", [flat, self._list(0, -1, count, self._width)])
        return self.add("Slice", [rows, self._last, self._width, self.constant([3])])

    def _relative(self, distances: Values) -> str:
        """Return [N, 1, S, S] of the values at distances."""
        near = self.near(self.constant(distances[:, None], self.dtype), 2, distances.shape[1])
        shape = self._list(distances.shape[0], self.tokens, 1)
        return self.scores_by_token(self.add("Expand", [near, shape]), self.tokens)

    @cached_property
    def _twice(self) -> str:
        """Return 2S."""
        return self.add("Add", [self.tokens, self.tokens])

    @cached_property
    def _last(self) -> str:
        """Return S - 1."""
        return self.add("Sub", [self.tokens, self.constant([1])])

    @cached_property
    def _width(self) -> str:
        """Return 2S - 1."""
        return self.add("Add", [self.tokens, self._last])

    @cached_property
    def _mask(self) -> str:
        """Return [B, S]: 1 for tokens and 0 for padding."""
        to = helper.np_dtype_to_tensor_dtype(np.dtype(self.dtype))
        return self.add("Cast", [self.ids["attention_mask"]], to=to)

    @cached_property
    def _padding(self) -> str:
        """Return [B, 1, 1, S]: 0 for tokens and -MASK_VALUE for padding."""
        padding = self.add("Gather", [self.constant([-MASK_VALUE, 0], self.dtype), self.ids["attention_mask"]])
        return self.add("Unsqueeze", [padding, self.constant([1, 2])])

    def _unpacked(self, tensor: str) -> str:
        """Return [B, S, H] of rows."""
        return tensor

    def _list(self, *sizes: str | int) -> str:
        """Return a shape of sizes, each a number or a tensor [1]; equal ones are one tensor."""
        if sizes not in self._lists:
            names = [size if isinstance(size, str) else self.constant([size]) for size in sizes]
            self._lists[sizes] = self.add("Concat", names, axis=0)
        return self._lists[sizes]


class PackedLayout(PaddedLayout):
    """As many sentences lie in a row as `sentences_of_row` says, at most all; sentences of zeros fill the last row.

    `ids` are [R * G, S], and B is R * G except in `sentences`.
    """

    def __init__(self, builder: GraphBuilder, inputs: list[str], dtype: type, row: int) -> None:
        """Prepare the inputs; `row` is the number of tokens of a row, and a longer sentence has one of its own."""
        super().__init__(builder, inputs, dtype)
        add, one = self.add, self.constant([1])
        self._row = row
        self._batch = add("Shape", ["attention_mask"], start=0, end=1)
        groups = sentences_by_length(row)
        index = add("Min", [self.tokens, self.constant([len(groups) - 1])])
        group = add("Gather", [self.constant(groups), index])
        self._group = add("Min", [self._batch, group])
        self._rows = add("Div", [add("Sub", [add("Add", [self._batch, self._group]), one]), self._group])
        self._filled = add("Mul", [self._rows, self._group])
        self._row_tokens = add("Mul", [self._group, self.tokens])
        filling = self._list(add("Sub", [self._filled, self._batch]), self.tokens)
        empty = add("Expand", [self.constant([[0]]), filling])
        self.ids = {name: add("Concat", [name, empty], axis=0) for name in inputs}

    def rows(self, tensor: str) -> str:
        """Lay a tensor [B, S, H] in rows [R, T, H]."""
        return self._reshape(tensor, self._rows, self._row_tokens, -1)

    def sentences(self, tensor: str) -> str:
        """Return what belongs to the batch's sentences: without those that fill the last row."""
        return self.add("Slice", [tensor, self.constant([0]), self._batch])

    def first_tokens(self, tensor: str) -> str:
        """Return the first token of each sentence in rows [R, T, H], as [R, G, H]."""
        bounds = [self.constant([number]) for number in (0, sys.maxsize, 1)]
        return self.add("Slice", [tensor, *bounds, self.tokens])

    def score_bias(self, distances: Values | None, first_asks: bool, expand: bool) -> str:
        """Return what is added to attention scores, [R, N, T, T]: also the tokens of other sentences are masked."""
        tokens, heads = self.tokens, 1
        if distances is None:
            block = self.add("Expand", [self._others, self._list(1, 1, tokens, 1, tokens)])
        else:
            heads = distances.shape[0]
            relative = self._reshape(self._relative(distances), heads, 1, tokens, 1, tokens)
            block = self.add("Add", [self._others, relative])
        block = self._reshape(block, 1, heads, self._row_tokens, self._row_tokens)
        return self.add("Add", [block, self._reshape(self._padding, self._rows, 1, 1, self._row_tokens)])

    def masked(self, scores: str) -> str:
        """Return scores [N, B, S, S] for tokens of the own sentence as a bias with masks, [R, N, T, T]."""
        group, tokens = self._group, self.tokens
        scores = self._reshape(scores, 0, self._rows, group, tokens, tokens)
        scores = self.add("Transpose", [scores], perm=[1, 0, 2, 3, 4])
        scores = self._reshape(self.add("Add", [scores, self._grouped_padding]), 0, 0, group, tokens, 1, tokens)
        scores = self.add("Where", [self._own, scores, self.builder.scalar(-MASK_VALUE, self.dtype)])
        return self._reshape(scores, 0, 0, self._row_tokens, self._row_tokens)

    @cached_property
    def _grouped_padding(self) -> str:
        """Return [R, 1, G, 1, S]: 0 for tokens and -MASK_VALUE for padding."""
        return self._reshape(self._padding, self._rows, 1, self._group, 1, self.tokens)

    @cached_property
    def _others(self) -> str:
        """Return [1, G, 1, G, 1]: -MASK_VALUE for two sentences of a row, and 0 for one and itself."""
        masks = self._blocks((np.eye(self._row) - 1) * MASK_VALUE, self.dtype)
        return self._reshape(masks, 1, self._group, 1, self._group, 1)

    @cached_property
    def _own(self) -> str:
        """Return [G, 1, G, 1]: whether two sentences of a row are the same."""
        return self._reshape(self._blocks(np.eye(self._row), np.bool_), self._group, 1, self._group, 1)

    def _blocks(self, table: NDArray[np.generic], dtype: type) -> str:
        """Return the part [G, G] of a table with a value for each pair of sentences of a row."""
        bounds = [self.constant([0, 0]), self._list(self._group, self._group), self.constant([0, 1])]
        return self.add("Slice", [self.constant(table, dtype), *bounds])

    def _unpacked(self, tensor: str) -> str:
        return self._reshape(tensor, self._filled, self.tokens, -1)

    def _reshape(self, tensor: str, *sizes: str | int) -> str:
        return self.add("Reshape", [tensor, self._list(*sizes)])
