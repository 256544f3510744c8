"""Training steps: forward, backward, clipping, AdamW, learning-rate schedule.

On a GPU the whole step is captured as one CUDA graph for each length of a batch: everything that a step needs (the
order of the sentences, the rate, counters) lies on the device, so that a step is one call and nothing waits for the
host. Where a model cannot be captured, and on a CPU, the same step runs call by call.

With a team, each process takes its share of the rows of every batch. A loss is divided by the sentences of the whole
batch, so that what the processes find, losses and gradients, adds up to the batch's.
"""

import logging
import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from tasks.training.adamw import TorchAdamW
from tasks.training.dataset import Inputs, TokenDataset
from tasks.training.flat_parameters import FlatParameters
from tasks.training.losses import classification_loss
from tasks.training.process_group import ProcessGroup

log = logging.getLogger(__name__)

Advance = Callable[[], None]
Rows = NDArray[np.int64]


class StepConfig(NamedTuple):
    """How a model is trained; steps of the schedule, then the settings of the same names.

    Precision auto means bf16 on a GPU and fp32 on a CPU.
    """

    steps: int
    batch_size: int
    learning_rate: float
    warmup_ratio: float
    weight_decay: float
    max_grad_norm: float
    layer_decay: float = 1.0
    r_drop: float = 0.0
    precision: str = "auto"


class StepOutputs(NamedTuple):
    """What an epoch gave: each step's loss [steps] and the number of sentences that it got right [steps]."""

    losses: torch.Tensor
    correct: torch.Tensor


def learning_rate_factor(step: int, total: int, warmup: int) -> float:
    """Return the share of the peak learning rate for a step, from 0: linear rise, then linear fall to 0."""
    if step < warmup:
        return (step + 1) / warmup
    return max(0.0, (total - step) / max(1, total - warmup))


def learning_rates(recipe: StepConfig) -> list[float]:
    """Return the learning rate of every step."""
    warmup = math.ceil(recipe.steps * recipe.warmup_ratio)
    return [recipe.learning_rate * learning_rate_factor(step, recipe.steps, warmup) for step in range(recipe.steps)]


class EagerStep:
    """Trains call by call; in bf16 autocast or fp32, with fp32 weights."""

    def __init__(
        self, model: nn.Module, data: TokenDataset, recipe: StepConfig, team: ProcessGroup | None = None
    ) -> None:
        """Prepare the optimiser; the model's parameters become views of flat ones."""
        self._model, self._data, self._team = model, data, team
        self._device = next(model.parameters()).device.type
        self._bf16 = uses_bf16(recipe.precision, self._device)
        self.flat = FlatParameters(model, recipe.weight_decay, recipe.layer_decay, torch.float32)
        self.optimizer = TorchAdamW(self.flat, recipe.max_grad_norm, team)
        self._rates = learning_rates(recipe)
        self._r_drop, self._batch_size = recipe.r_drop, recipe.batch_size
        self.parts = 1

    def run(self, batches: list[Rows], first: int, advance: Advance) -> StepOutputs:
        """Train on batches of row numbers, the first of which is step `first` of the schedule.

        Where memory does not suffice for a batch, it is taken in twice as many parts from there on; their gradients
        add up to the batch's. A process of a team does that alone, the others wait for its gradients; from the next
        epoch on all take as many parts.
        """
        self._model.train()
        losses, corrects = [], []
        for step, rows in enumerate(batches, start=first):
            loss, correct = self._with_memory_left(shard(rows, self._team), len(rows))
            self.optimizer.step(self._rates[step])
            losses.append(loss)
            corrects.append(correct)
            advance()
        if self._team:
            self.parts = self._team.all_reduce_max(self.parts)
        return accumulate(StepOutputs(torch.stack(losses), torch.stack(corrects)), self._team)

    def _with_memory_left(self, rows: Rows, total: int) -> tuple[torch.Tensor, torch.Tensor]:
        while True:
            try:
                return self._backward(rows, total)
            except torch.OutOfMemoryError:
                if self.parts >= len(rows):
                    raise
            self._model.zero_grad(set_to_none=True)  # what a part has left already
            self.parts = halve_micro_batches(self.parts, self._batch_size)

    def _backward(self, rows: Rows, total: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Leave the gradients of rows of a batch of `total`; return their loss [] and correct predictions []."""
        if len(rows) == 0:  # of a short batch the others have taken all
            return torch.zeros_like(self.flat.master[0]), torch.zeros_like(self.flat.master[0], dtype=torch.int64)
        losses, corrects = [], []
        for part in np.array_split(rows, min(self.parts, len(rows))):
            inputs, targets = self._data.batch(part)
            with torch.autocast(self._device, torch.bfloat16, enabled=self._bf16):
                logits = self._model(**duplicate_for_r_drop(inputs, self._r_drop)).logits
            loss, correct = classification_loss(logits, targets, total, self._r_drop)
            loss.backward()
            losses.append(loss.detach())
            corrects.append(correct)
        return torch.stack(losses).sum(), torch.stack(corrects).sum()


def uses_bf16(precision: str, device: str) -> bool:
    """Tell whether a device computes in bf16."""
    return precision == "bf16" or (precision == "auto" and device == "cuda")


def duplicate_for_r_drop(inputs: Inputs, r_drop: float) -> Inputs:
    """Return a batch's inputs; for R-Drop each sentence comes twice."""
    return {name: tensor.repeat(2, 1) for name, tensor in inputs.items()} if r_drop else inputs


def halve_micro_batches(parts: int, batch_size: int) -> int:
    """Double the number of parts that a batch is taken in, and tell it."""
    parts = min(2 * parts, batch_size)
    log.warning("out of memory: batches of %d are taken in %d parts, whose gradients are added", batch_size, parts)
    return parts


def shard(rows: Rows, team: ProcessGroup | None) -> Rows:
    """Return the rows that this process takes; neighbours, which are of like length, go to different processes."""
    return rows if team is None else rows[team.rank :: team.size]


def rows_per_rank(batch_size: int, team: ProcessGroup | None) -> int:
    """Return how many rows of a batch a process takes at the most."""
    return batch_size if team is None else -(-batch_size // team.size)


def accumulate(passed: StepOutputs, team: ProcessGroup | None) -> StepOutputs:
    """Return what an epoch gave to all processes together."""
    return passed if team is None else StepOutputs(team.all_reduce(passed.losses), team.all_reduce(passed.correct))
