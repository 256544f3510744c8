"""Tokenised sentences on the device that trains: a batch is gathered there, nothing is copied for it."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from tasks.inference.tokenization import TokenIds

Inputs = dict[str, torch.Tensor]

# Lengths that batches are padded to where each length costs a capture; above them, multiples of the last.
BUCKETS = (8, 12, 16, 24, 32, 48, 64)


class TokenDataset:
    """N tokenised sentences and their targets; row N is a stand-in that fills up batches and does not count."""

    def __init__(self, ids: list[TokenIds], labels: NDArray[Any], pad_id: int, device: str) -> None:
        """Copy everything to the device once.

        Args:
            ids: token ids of each sentence.
            labels: [N], 0 or 1; or [N, 2], the probabilities of the two.
            pad_id: token that fills short sentences.
            device: cuda or cpu.
        """
        targets = np.eye(2)[labels] if labels.ndim == 1 else labels
        self.count = len(ids)
        self.lengths = np.array([len(row) for row in ids])
        self.labels: NDArray[np.int64] = targets.argmax(-1)
        self._pad_id = pad_id
        rows = [*ids, np.array([pad_id])]  # the stand-in has one token, so that no row is all padding
        lengths = np.array([len(row) for row in rows])
        self._tokens = torch.from_numpy(np.concatenate(rows)).to(device)
        self._starts = torch.from_numpy(np.cumsum(lengths) - lengths).to(device)
        self._lengths = torch.from_numpy(lengths).to(device)
        self._targets = torch.from_numpy(np.vstack([targets, np.zeros(2)]).astype(np.float32)).to(device)

    def batch(self, rows: NDArray[np.int64]) -> tuple[Inputs, torch.Tensor]:
        """Return rows padded to their own longest sentence."""
        return self.gather(torch.from_numpy(rows).to(self._tokens.device), int(self.lengths[rows].max()))

    def gather(self, rows: torch.Tensor, length: int) -> tuple[Inputs, torch.Tensor]:
        """Return input_ids and attention_mask [B, `length`], and targets [B, 2], of rows [B], a tensor on the device.

        The stand-in's targets are zeros.
        """
        places = torch.arange(length, device=rows.device)
        mask = places < self._lengths[rows].unsqueeze(1)
        at = (self._starts[rows].unsqueeze(1) + places).clamp(max=len(self._tokens) - 1)
        ids = self._tokens[at].where(mask, self._pad_id)
        return {"input_ids": ids, "attention_mask": mask.long()}, self._targets[rows]

    def bucket(self, rows: NDArray[np.int64]) -> int:
        """Return the length that a batch of rows is padded to where lengths are few."""
        return bucket_of(int(self.lengths[rows].max()))

    def buckets(self) -> list[int]:
        """Return the lengths that batches of these sentences can have."""
        return sorted({bucket_of(int(length)) for length in np.unique(self.lengths)}, reverse=True)


def bucket_of(length: int) -> int:
    """Return the smallest bucket that holds `length` tokens."""
    fitting = [bucket for bucket in BUCKETS if length <= bucket]
    return fitting[0] if fitting else -(-length // BUCKETS[-1]) * BUCKETS[-1]
