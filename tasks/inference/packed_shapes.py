"""Which sentences a GPU computes together, and how many lie side by side in a row of the graph.

A graph for GPUs lays sentences in rows of up to 128 tokens. Attention with a bias, as between sentences of a row, is
fused by ONNX Runtime's memory-efficient kernel where a row has a multiple of 8 tokens; so a row has fewer sentences
than would fit, or they are padded. cuDNN's kernel takes any number and is a little faster, but plans each new pair of
rows and tokens for tens of milliseconds (README.md says what was measured), so sessions leave it out.

Shape letters: N sentences, B sentences of a batch, S tokens of a sentence, G sentences of a row, T = G * S tokens of a
row.
"""

from math import gcd

import numpy as np
from numpy.typing import NDArray

PACK_TOKENS = 128  # of a row at most; the fastest of 32 to 128 on an H200
BATCH_TOKENS = 256 * PACK_TOKENS
FUSED_TOKENS = 8  # of which T is a multiple, for the fused kernel of half precision


def packed_batches(lengths: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    """Divide N sentences, longest first, into batches whose sentences pack into rows of tokens.

    Args:
        lengths: [N], in tokens.

    Returns:
        Sentence indices [B] of each batch, which has at most BATCH_TOKENS tokens when its sentences are padded to their
        `packed_length`; except a batch of one sentence that is longer than that.
    """
    order = np.argsort(-lengths, kind="stable")
    batches, start = [], 0
    while start < len(order):
        length = packed_length(PACK_TOKENS, int(lengths[order[start]]))  # of full rows
        group = sentences_of_row(length)
        count = max(1, BATCH_TOKENS // length // group) * group
        batches.append(order[start : start + count])
        start += count
    return batches


def packed_length(sentences: int, tokens: int, max_length: int | None = None) -> int:
    """Return the smallest S from a number of tokens on with which attention of a batch is fused.

    Args:
        sentences: of the batch.
        tokens: of its longest sentence.
        max_length: tokens that the model reads of a sentence; the encoder may have no positions for more.
    """
    length = max(1, tokens)
    while not attention_is_fused(sentences, length):
        length += 1
    return length if max_length is None else max(tokens, min(length, max_length))


def attention_is_fused(sentences: int, tokens: int) -> bool:
    """Return whether rows of a batch [B, S] have a multiple of FUSED_TOKENS; fewer than G sentences are one row."""
    return min(sentences, sentences_of_row(tokens)) * tokens % FUSED_TOKENS == 0


def sentences_of_row(tokens: int, row: int = PACK_TOKENS) -> int:
    """Return G, the most sentences that fit and together have a multiple of FUSED_TOKENS, or else that fit.

    Graphs are exported with this rule.

    Args:
        tokens: S; a sentence longer than a row has one of its own.
        row: tokens of a row at most.
    """
    fitting = max(1, row // max(1, tokens))
    step = FUSED_TOKENS // gcd(FUSED_TOKENS, tokens)
    return fitting // step * step or fitting
