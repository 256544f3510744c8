"""Tokenised sentences on the device that trains: batches are gathered there, without copies from the host.

Shape letters: N sentences, B sentences of a batch, S tokens of its longest sentence.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer

from tasks.inference.tokenization import TokenIds, tokenise
from tasks.training.losses import NO_MARK, smooth_labels
from tasks.training.token_marks import mark_tokens

Inputs = dict[str, torch.Tensor]

# Tokens that batches are padded to where each length costs a CUDA graph; above them, multiples of the last.
BUCKETS = (8, 12, 16, 24, 32, 48, 64)


class TokenDataset:
    """N tokenised sentences and their targets; row N is a padding row: it fills up batches and has no loss."""

    def __init__(
        self,
        ids: list[TokenIds],
        labels: NDArray[Any],
        pad_id: int,
        device: str,
        marks: Sequence[NDArray[np.float32]] | None = None,
        positions: int | None = None,
    ) -> None:
        """Copy everything to the device once.

        Args:
            ids: token ids of each sentence.
            labels: [N], 0 or 1; or [N, 2], the probabilities of the two.
            pad_id: token that fills short sentences.
            device: cuda or cpu.
            marks: of each sentence's tokens, see `losses.token_loss`; None for no such loss.
            positions: tokens that the model has positions for; None without a limit.
        """
        targets = np.eye(2)[labels] if labels.ndim == 1 else labels
        self.count = len(ids)
        self.lengths = np.array([len(row) for row in ids])
        self.labels: NDArray[np.int64] = targets.argmax(-1)
        self._pad_id, self._positions = pad_id, positions
        rows = [*ids, np.array([pad_id])]  # the padding row has one token: attention over no token at all is NaN
        lengths = np.array([len(row) for row in rows])
        self._tokens = torch.from_numpy(np.concatenate(rows)).to(device)
        self._starts = torch.from_numpy(np.cumsum(lengths) - lengths).to(device)
        self._lengths = torch.from_numpy(lengths).to(device)
        self._targets = torch.from_numpy(np.vstack([targets, np.zeros(2)]).astype(np.float32)).to(device)
        self._marks = None if marks is None else torch.from_numpy(_pad_marks(marks, rows)).to(device)

    def batch(self, rows: NDArray[np.int64]) -> tuple[Inputs, torch.Tensor]:
        """Return input_ids and attention_mask [B, S], and targets [B, 2], padded to their longest sentence."""
        return self.gather(*self.place(rows))

    def place(self, rows: NDArray[np.int64]) -> tuple[torch.Tensor, int]:
        """Return row numbers [B] on the device, and the tokens of the longest of these sentences."""
        return torch.from_numpy(rows).to(self._tokens.device), int(self.lengths[rows].max())

    def gather(self, rows: torch.Tensor, length: int) -> tuple[Inputs, torch.Tensor]:
        """Return input_ids and attention_mask [B, `length`], and targets [B, 2]; those of the padding row are zeros.

        Args:
            rows: row numbers [B], on the device.
            length: tokens that all rows are padded to.
        """
        mask, indices = self._locate(rows, length)
        ids = self._tokens[indices].where(mask, self._pad_id)
        return {"input_ids": ids, "attention_mask": mask.long()}, self._targets[rows]

    def gather_marks(self, rows: torch.Tensor, length: int) -> torch.Tensor | None:
        """Return the marks [B, `length`] of the tokens that `gather` returns; None where there are none."""
        if self._marks is None:
            return None
        mask, indices = self._locate(rows, length)
        return self._marks[indices].where(mask, NO_MARK)

    def _locate(self, rows: torch.Tensor, length: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return which of [B, `length`] places are tokens, and where these are in the flat tensor."""
        positions = torch.arange(length, device=rows.device)
        mask = positions < self._lengths[rows].unsqueeze(1)
        return mask, (self._starts[rows].unsqueeze(1) + positions).clamp(max=len(self._tokens) - 1)

    def bucket(self, rows: NDArray[np.int64]) -> int:
        """Return the bucket, in tokens, of a batch of rows."""
        return bucket_of(int(self.lengths[rows].max()), self._positions)

    def buckets(self) -> list[int]:
        """Return the buckets, in tokens, that batches of these sentences can have, the largest first."""
        return sorted({bucket_of(int(length), self._positions) for length in np.unique(self.lengths)}, reverse=True)


def _pad_marks(marks: Sequence[NDArray[np.float32]], rows: Sequence[TokenIds]) -> NDArray[np.float32]:
    """Return the marks of all tokens of [N + 1] rows in one array; a token without a mark, as of row N, has NO_MARK."""
    padded = [np.full(len(row), NO_MARK, np.float32) for row in rows]
    for own, given in zip(padded, marks, strict=False):  # row N has none
        own[: len(given)] = given[: len(own)]
    return np.concatenate(padded)


def encode_rows(
    rows: pd.DataFrame,
    tokenizer: Tokenizer,
    pad_id: int,
    device: str,
    label_smoothing: float = 0.0,
    positions: int | None = None,
) -> TokenDataset:
    """Tokenise rows and copy them, with what is learned of them, to the device.

    Args:
        rows: sentences with labels 0 or 1, or with the probability of being acceptable (`acceptable`); tokens are
            marked where a column says what each sentence was corrupted from (`original`).
        tokenizer: of the model that shall read them.
        pad_id: token that fills short sentences.
        device: cuda or cpu.
        label_smoothing: share of each label that is spread over both classes.
        positions: tokens that the model has positions for; None without a limit.
    """
    ids = tokenise(tokenizer, rows["sentence"].tolist()).rows()
    if "acceptable" in rows:
        acceptable = rows["acceptable"].to_numpy(np.float64)
        targets = np.stack([1 - acceptable, acceptable], axis=1)
    else:
        targets = smooth_labels(rows["label"].to_numpy(np.int64), label_smoothing)
    marks = mark_tokens(tokenizer, rows["original"].tolist(), rows["sentence"].tolist()) if "original" in rows else None
    return TokenDataset(ids, targets, pad_id, device, marks, positions)


def bucket_of(length: int, positions: int | None = None) -> int:
    """Return the smallest bucket that holds `length` tokens; no model reads more than it has positions for."""
    fitting = [bucket for bucket in BUCKETS if length <= bucket]
    bucket = fitting[0] if fitting else -(-length // BUCKETS[-1]) * BUCKETS[-1]
    return bucket if positions is None else max(length, min(bucket, positions))
