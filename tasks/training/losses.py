"""The loss of a training step: cross entropy against label probabilities, with or without R-Drop.

Targets are probabilities, so that a label, a smoothed label and what other models say are one and the same thing.
Shape letters: N sentences, B sentences of a batch, 2 classes.
"""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.functional import cross_entropy


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
        logits: [B, 2]; for R-Drop [2B, 2], the same sentences twice with other places dropped.
        targets: [B, 2], each row the probabilities of the classes; a row of zeros does not count.
        total: what the loss is divided by: the number of sentences of the whole step.
        r_drop: weight of how far the two passes differ. Source: Wu et al. 2021, https://arxiv.org/abs/2106.14448,
            equation 4, halved, so that the loss without it is the usual one.
    """
    first, *second = logits.float().split(len(targets))
    loss = cross_entropy(first, targets, reduction="sum") / total
    if second:
        loss = (loss + cross_entropy(second[0], targets, reduction="sum") / total) / 2
        one, other = (part.log_softmax(-1) for part in (first, second[0]))
        both_ways = (one.exp() - other.exp()) * (one - other)
        loss = loss + r_drop / 4 * (both_ways * targets.sum(-1, keepdim=True)).sum() / total
    right = targets.gather(-1, first.detach().argmax(-1, keepdim=True)) >= 0.5
    return loss, right.sum()
