"""What was tried to raise MCC and is not in the product: each changes a training run from outside while a block runs.

`ablate_finetune.py` measures them beside the recipes, so that what was left out was left out for a reason.
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from tasks.evaluation.metrics import mcc
from tasks.training import dataset, seed_runs
from tasks.training import trainer as epochs


@contextlib.contextmanager
def averaged_epochs(last: int) -> Iterator[None]:
    """End with the mean of the last epochs' weights instead of the best epoch's.

    Source: Izmailov et al. 2018, https://arxiv.org/abs/1803.05407, once an epoch and on the usual schedule.
    """
    train, release = epochs._TrainerState.train, epochs._TrainerState.load_best_weights
    kept: dict[epochs._TrainerState, list[torch.Tensor]] = {}

    def keeping(self: epochs._TrainerState, *arguments: Any) -> epochs.EpochRecord:
        record = train(self, *arguments)
        kept.setdefault(self, []).append(self.stepper.flat.master.clone())
        return record

    def averaging(self: epochs._TrainerState) -> None:
        self._best.copy_(torch.stack(kept.pop(self)[-last:]).mean(0))
        release(self)

    with (
        patch.object(epochs._TrainerState, "train", keeping),
        patch.object(epochs._TrainerState, "load_best_weights", averaging),
    ):
        yield


@contextlib.contextmanager
def class_weights() -> Iterator[None]:
    """Let both labels weigh alike in the loss, however many sentences have them."""
    smoothed = dataset.smooth_labels

    def weighted(labels: NDArray[Any], share: float) -> NDArray[np.float64]:
        weights = len(labels) / (2 * np.bincount(labels, minlength=2))
        return smoothed(labels, share) * weights[labels, None]

    with patch.object(dataset, "smooth_labels", weighted):
        yield


@contextlib.contextmanager
def new_top_layers(count: int) -> Iterator[None]:
    """Start with fresh weights in the encoder's top layers.

    Source: Zhang et al. 2020, https://arxiv.org/abs/2006.05987, section 5.
    """
    load: Callable[..., Any] = seed_runs.load_start

    def loading(*arguments: Any, **options: Any) -> Any:
        model = load(*arguments, **options)
        for module in nn.ModuleList(model.base_model.encoder.layer[-count:]).modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=model.config.initializer_range)
                nn.init.zeros_(module.bias)
            elif isinstance(module, nn.LayerNorm):
                module.reset_parameters()
        return model

    with patch.object(seed_runs, "load_start", loading):
        yield


TRIED: dict[str, Callable[..., contextlib.AbstractContextManager[None]]] = {
    "averaged_epochs": averaged_epochs,
    "class_weights": class_weights,
    "new_top_layers": new_top_layers,
}


def best_threshold(labels: NDArray[Any], margins: NDArray[Any]) -> float:
    """Return the margin [N] of acceptable over unacceptable above which answering acceptable has the highest MCC."""
    values = np.unique(margins)
    between = np.concatenate([[0.0], (values[1:] + values[:-1]) / 2])
    return float(max(between, key=lambda limit: mcc(labels, (margins > limit).astype(np.int64))))
