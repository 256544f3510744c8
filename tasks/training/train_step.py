"""One training step (forward, backward, clipping, AdamW) launched operator by operator, and what all steps share.

`EagerStep` runs on any device; `cuda_graph_step.CudaGraphStep` replays the same step as a CUDA graph. Both train with a
linear warm-up and decay of the learning rate, and split a batch that does not fit in memory into micro-batches whose
gradients are accumulated.

In a process group each rank computes its share of the rows of every batch. A loss is divided by the number of sentences
of the whole batch, so that losses and gradients of the ranks add up to those of the batch.
"""

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from tasks.training.adamw import USUAL_CONSTANTS, AdamConstants, TorchAdamW
from tasks.training.adversarial_noise import find_noise, perturbed, repeat
from tasks.training.dataset import Inputs, TokenDataset
from tasks.training.flat_parameters import FlatParameters
from tasks.training.losses import classification_loss, token_loss
from tasks.training.process_group import ProcessGroup

log = logging.getLogger(__name__)

Advance = Callable[[], None]  # called after each step, to move a progress bar
Rows = NDArray[np.int64]  # row numbers of one batch


@dataclass(frozen=True)
class StepConfig:
    """What a step needs to know of the recipe.

    Attributes:
        steps: of the whole schedule.
        batch_size: sentences, over all ranks.
        learning_rate: peak, of the head.
        warmup_ratio: fraction of the steps in which the learning rate rises.
        weight_decay: of matrices; biases and normalisation weights do not decay.
        max_grad_norm: gradients with a larger norm are scaled down to it; 0: none are.
        layer_decay: factor of the learning rate from one layer to the layer below.
        r_drop: weight of R-Drop's divergence; 0: one pass a sentence.
        sift: weight of SiFT's divergence; 0: no pass under noise.
        precision: what the model computes in, bf16 or fp32; weights are fp32.
        adam_beta1: decay of AdamW's mean of the gradients.
        adam_beta2: decay of its mean of the squared gradients.
        adam_eps: added to the root of the latter.
        token_loss: weight of the loss of marked tokens, where the data has such marks.
    """

    steps: int
    batch_size: int
    learning_rate: float
    warmup_ratio: float
    weight_decay: float
    max_grad_norm: float
    layer_decay: float = 1.0
    r_drop: float = 0.0
    sift: float = 0.0
    precision: str = "fp32"
    adam_beta1: float = USUAL_CONSTANTS.beta1
    adam_beta2: float = USUAL_CONSTANTS.beta2
    adam_eps: float = USUAL_CONSTANTS.eps
    token_loss: float = 0.0

    @property
    def adam(self) -> AdamConstants:
        """What the optimiser takes of it."""
        return AdamConstants(self.adam_beta1, self.adam_beta2, self.adam_eps)


class StepOutputs(NamedTuple):
    """Each step's loss [steps] and number of sentences that were classified correctly [steps]."""

    losses: torch.Tensor
    correct: torch.Tensor


def learning_rate_factor(step: int, total: int, warmup: int) -> float:
    """Return the learning rate of a step, counted from 0, as a fraction of the peak: linear rise, then fall to 0."""
    if step < warmup:
        return (step + 1) / warmup
    return max(0.0, (total - step) / max(1, total - warmup))


def learning_rates(config: StepConfig) -> list[float]:
    """Return the learning rate of every step."""
    warmup = math.ceil(config.steps * config.warmup_ratio)
    return [config.learning_rate * learning_rate_factor(step, config.steps, warmup) for step in range(config.steps)]


class EagerStep:
    """Runs steps operator by operator, in fp32 or under bf16 autocast; the weights are fp32.

    `micro_batches` is the number of pieces that a batch is currently split into.
    """

    def __init__(
        self, model: nn.Module, data: TokenDataset, config: StepConfig, group: ProcessGroup | None = None
    ) -> None:
        """Create the optimiser; the model's parameters become views of one flat tensor."""
        self._model, self._data, self._group = model, data, group
        self._device = next(model.parameters()).device.type
        self._bf16 = config.precision == "bf16"
        self.flat = FlatParameters(model, config.weight_decay, config.layer_decay, torch.float32)
        self.optimizer = TorchAdamW(self.flat, config.max_grad_norm, group, config.adam)
        self._rates = learning_rates(config)
        self._config, self._batch_size = config, config.batch_size
        self.micro_batches = 1

    def run(self, batches: list[Rows], first: int, advance: Advance) -> StepOutputs:
        """Train on batches, the first of which is step `first` of the schedule.

        A batch that does not fit in memory is split into twice as many micro-batches, and so are all later ones. In a
        process group a rank does that alone, while the others wait for its gradients; from the next epoch on all use
        the largest number.

        Raises:
            torch.OutOfMemoryError: if a single sentence does not fit.
        """
        self._model.train()
        losses, corrects = [], []
        for step, rows in enumerate(batches, start=first):
            loss, correct = self._backward_within_memory(shard(rows, self._group), len(rows))
            self.optimizer.step(self._rates[step])
            losses.append(loss)
            corrects.append(correct)
            advance()
        if self._group:
            self.micro_batches = self._group.all_reduce_max(self.micro_batches)
        return sum_over_ranks(StepOutputs(torch.stack(losses), torch.stack(corrects)), self._group)

    def _backward_within_memory(self, rows: Rows, total: int) -> tuple[torch.Tensor, torch.Tensor]:
        while True:
            try:
                return self._backward(rows, total)
            except torch.OutOfMemoryError:
                if self.micro_batches >= len(rows):
                    raise
            self._model.zero_grad(set_to_none=True)  # gradients of micro-batches that did fit
            self.micro_batches = double_micro_batches(self.micro_batches, self._batch_size)

    def _backward(self, rows: Rows, total: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Compute the gradients of this rank's rows of a batch of `total`.

        Returns:
            Loss [] and number of correct predictions [].
        """
        if len(rows) == 0:  # a short batch has fewer rows than there are ranks
            return torch.zeros_like(self.flat.master[0]), torch.zeros_like(self.flat.master[0], dtype=torch.int64)
        losses, corrects = [], []
        for micro_batch in np.array_split(rows, min(self.micro_batches, len(rows))):
            inputs, targets = self._data.batch(micro_batch)
            marks = self._data.gather_marks(*self._data.place(micro_batch))
            with torch.autocast(self._device, torch.bfloat16, enabled=self._bf16):
                output = run_passes(self._model, inputs, self._config)
            loss, correct = step_loss(output, targets, marks, total, self._config)
            loss.backward()
            losses.append(loss.detach())
            corrects.append(correct)
        return torch.stack(losses).sum(), torch.stack(corrects).sum()


def step_loss(
    output: Any, targets: torch.Tensor, marks: torch.Tensor | None, total: torch.Tensor | int, config: StepConfig
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return (loss [], correct predictions []) of a batch.

    Args:
        output: of the model; with marks that of a `token_head.TokenHead`.
        targets: [B, 2], see `classification_loss`.
        marks: [B, S] of the tokens; None for no loss of them.
        total: sentences of the whole step.
        config: weights of the losses.
    """
    loss, correct = classification_loss(output.logits, targets, total, config.r_drop, config.sift)
    if marks is not None:
        loss = loss + config.token_loss * token_loss(output.token_logits, marks, total)
    return loss, correct


def run_passes(model: nn.Module, inputs: Inputs, config: StepConfig) -> Any:
    """Return a model's output for a batch's inputs [B, ...], as `step_loss` takes it.

    Every sentence passes once, with R-Drop twice with different dropout, with SiFT once more under noise, all at once.
    """
    passes = 2 if config.r_drop else 1
    if not config.sift:
        return model(**repeat(inputs, passes))
    with perturbed(model, find_noise(model, inputs)):
        return model(**repeat(inputs, passes + 1))


def double_micro_batches(micro_batches: int, batch_size: int) -> int:
    """Return twice the number of micro-batches, at most one per sentence, and log it."""
    micro_batches = min(2 * micro_batches, batch_size)
    log.warning(
        "out of memory: batches of %d are split into %d micro-batches whose gradients are accumulated",
        batch_size, micro_batches,
    )  # fmt: skip
    return micro_batches


def shard(rows: Rows, group: ProcessGroup | None) -> Rows:
    """Return this rank's rows of a batch; neighbours, which are of similar length, go to different ranks."""
    return rows if group is None else rows[group.rank :: group.size]


def rows_per_rank(batch_size: int, group: ProcessGroup | None) -> int:
    """Return the largest number of rows of a batch that a rank takes."""
    return batch_size if group is None else -(-batch_size // group.size)


def sum_over_ranks(outputs: StepOutputs, group: ProcessGroup | None) -> StepOutputs:
    """Return losses and correct predictions of all ranks together."""
    if group is None:
        return outputs
    return StepOutputs(group.all_reduce(outputs.losses), group.all_reduce(outputs.correct))
