"""The loss of a training step: cross entropy against label probabilities, with or without R-Drop and SiFT.

Targets are probabilities of the classes, which covers hard labels, smoothed labels and distillation.
Shape letters: N sentences, B sentences of a batch, S tokens of its longest sentence, 2 classes.
"""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy

NO_MARK = -1.0  # of tokens that are neither right nor wrong: special tokens and padding


def smooth_labels(labels: NDArray[Any], share: float) -> NDArray[np.float64]:
    """Return targets [N, 2] of labels [N], with a share of each spread over both classes.

    Source: Szegedy et al. 2015, https://arxiv.org/abs/1512.00567, section 7.
    """
    return np.eye(2)[labels] * (1 - share) + share / 2


def classification_loss(
    logits: torch.Tensor, targets: torch.Tensor, total: torch.Tensor | int, r_drop: float = 0.0, sift: float = 0.0
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return (loss [], correct predictions []), computed in fp32.

    Args:
        logits: [B, 2]; for R-Drop the same sentences again with different dropout, for SiFT last under noise:
            [2B, 2] or [3B, 2].
        targets: [B, 2], each row the probabilities of the classes; a row of zeros has no loss.
        total: sentences of the whole step, by which the loss is divided.
        r_drop: weight of the symmetric KL divergence of the two passes. Source: Liang et al. 2021,
            https://arxiv.org/abs/2106.14448, equation 4, halved, so that weight 0 gives the usual cross entropy.
        sift: weight of the symmetric KL divergence of the pass under noise from the first; see `adversarial_noise`.
    """
    first, *others = logits.float().split(len(targets))
    noisy = others.pop() if sift else first
    loss = cross_entropy(first, targets, reduction="sum") / total
    counted = targets.sum(-1, keepdim=True)
    if others:
        loss = (loss + cross_entropy(others[0], targets, reduction="sum") / total) / 2
        loss = loss + r_drop / 4 * (divergence(first, others[0]) * counted).sum() / total
    if sift:
        loss = loss + sift * (divergence(first, noisy) * counted).sum() / total
    correct = targets.gather(-1, first.detach().argmax(-1, keepdim=True)) >= 0.5
    return loss, correct.sum()


def divergence(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """Return the symmetric KL divergence of two answers given as logits [B, 2]: [B, 2], to be summed over classes."""
    log_p, log_q = one.log_softmax(-1), other.log_softmax(-1)
    return (log_p.exp() - log_q.exp()) * (log_p - log_q)


def token_loss(logits: torch.Tensor, marks: torch.Tensor, total: torch.Tensor | int) -> torch.Tensor:
    """Return the binary cross entropy of the tokens, averaged in each sentence, then over the sentences of a step; [].

    Args:
        logits: [B, S].
        marks: [B, S], 1 for wrong tokens, 0 for right ones; those of NO_MARK have no loss.
        total: sentences of the whole step, by which the loss is divided.
    """
    counted = (marks != NO_MARK).float()
    loss = binary_cross_entropy_with_logits(logits.float(), marks.clamp(min=0), reduction="none") * counted
    return (loss.sum(-1) / counted.sum(-1).clamp(min=1)).sum() / total
