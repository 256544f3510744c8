"""The loss of a training step: cross entropy against label probabilities, with or without R-Drop.

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
    logits: torch.Tensor, targets: torch.Tensor, total: torch.Tensor | int, r_drop: float = 0.0
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return (loss [], correct predictions []), computed in fp32.

    Args:
        logits: [B, 2]; for R-Drop [2B, 2], the same sentences twice with different dropout.
        targets: [B, 2], each row the probabilities of the classes; a row of zeros has no loss.
        total: sentences of the whole step, by which the loss is divided.
        r_drop: weight of the symmetric KL divergence of the two passes. Source: Wu et al. 2021,
            https://arxiv.org/abs/2106.14448, equation 4, halved, so that weight 0 gives the usual cross entropy.
    """
    first, *second = logits.float().split(len(targets))
    loss = cross_entropy(first, targets, reduction="sum") / total
    if second:
        loss = (loss + cross_entropy(second[0], targets, reduction="sum") / total) / 2
        log_p, log_q = (part.log_softmax(-1) for part in (first, second[0]))
        symmetric_kl = (log_p.exp() - log_q.exp()) * (log_p - log_q)  # [B, 2], to be summed over the classes
        loss = loss + r_drop / 4 * (symmetric_kl * targets.sum(-1, keepdim=True)).sum() / total
    correct = targets.gather(-1, first.detach().argmax(-1, keepdim=True)) >= 0.5
    return loss, correct.sum()


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
