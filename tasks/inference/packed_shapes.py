"""Shapes of the batches that a GPU computes, few enough that most of them were computed before.

A graph for GPUs lays sentences side by side in rows of up to 128 tokens, and for each new pair of R and T attention is
planned, which takes as long as twenty batches (README.md says what was measured). So a batch is padded: its sentences
to one of 29 lengths up to 128 tokens, its rows to one of 13 numbers. As many sentences lie in a row as before, and a
full batch has as many rows.

Shape letters: N sentences, B sentences of a batch, S tokens of a sentence, G sentences of a row, R rows, T = G * S
tokens of a row.
"""

import numpy as np
from numpy.typing import NDArray

PACK_ROWS, PACK_TOKENS = 256, 128  # size of a batch: rows, and tokens of a row
ROW_STEP, TOKEN_STEP = PACK_ROWS // 8, PACK_TOKENS // 8  # in which the rows of a batch, and T, are rounded up


def packed_batches(lengths: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    """Divide N sentences, longest first, into batches whose sentences pack into rows of tokens.

    Args:
        lengths: [N], in tokens.

    Returns:
        Sentence indices [B] of each batch, which has at most PACK_ROWS rows of PACK_TOKENS tokens when it is padded to
        its `packed_shape`, or as many tokens in longer rows; except a batch of one sentence that is longer than that.
    """
    order = np.argsort(-lengths, kind="stable")
    batches, start = [], 0
    while start < len(order):
        count = _sentences_of_full_batch(_padded_length(int(lengths[order[start]])))
        batches.append(order[start : start + count])
        start += count
    return batches


def packed_shape(sentences: int, tokens: int, max_length: int) -> tuple[int, int]:
    """Return the shape [B, S] to which a batch is padded.

    Args:
        sentences: of the batch.
        tokens: of its longest sentence.
        max_length: tokens that the model reads of a sentence; the encoder may have no positions for more.
    """
    length = _padded_length(tokens)
    group = _sentences_of_row(length)
    rows = _round_up(sentences, group) // group
    padded = _round_up(rows, min(ROW_STEP, _power_of_two(rows))) * group
    return max(sentences, min(padded, _sentences_of_full_batch(length))), max(tokens, min(length, max_length))


def _padded_length(tokens: int) -> int:
    """Return the largest S that leaves G as it is and T within the next multiple of TOKEN_STEP.

    All S with the same G could have one length, but where few sentences share a row that is up to twice as long, and
    products take as long as there are tokens. Above two rows steps are an eighth of the power of two below the length.
    """
    group = _sentences_of_row(tokens)
    return _round_up(group * tokens, max(TOKEN_STEP, _power_of_two(tokens) // 16)) // group


def _sentences_of_row(tokens: int) -> int:
    """Return G, as the graph computes it; a sentence longer than a row has one of its own."""
    return max(1, PACK_TOKENS // max(1, tokens))


def _sentences_of_full_batch(tokens: int) -> int:
    if tokens <= PACK_TOKENS:
        return PACK_ROWS * _sentences_of_row(tokens)
    return max(1, PACK_ROWS * PACK_TOKENS // tokens)


def _round_up(number: int, step: int) -> int:
    return -(-number // step) * step


def _power_of_two(number: int) -> int:
    """Return the smallest power of two that is not below a number."""
    return 1 << max(number - 1, 0).bit_length()
