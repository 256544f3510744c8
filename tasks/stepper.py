"""Training steps: forward, backward, clipping, AdamW, learning-rate schedule.

On a GPU the whole step is captured as one CUDA graph for each length of a batch: everything that a step needs (the
order of the sentences, the rate, counters) lies on the device, so that a step is one call and nothing waits for the
host. Where a model cannot be captured, and on a CPU, the same step runs call by call.
"""

import logging
import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from tasks.adamw import KernelAdamW, LibraryAdamW
from tasks.capture import make_capturable
from tasks.encoded import Encoded
from tasks.flat import FlatParameters
from tasks.fused import Dice, fuse, unfuse

IGNORED = -100  # label of the rows that fill up a batch; torch's cross entropy leaves it out
WARMUPS = 2  # passes before a capture, in which libraries make their plans
PAUSE = 64  # steps between two waits for the device, so that the progress bar is not ahead of it

log = logging.getLogger(__name__)

Advance = Callable[[], None]
Rows = NDArray[np.int64]


class Recipe(NamedTuple):
    """How a model is trained; steps of the schedule, then the settings of the same names."""

    steps: int
    batch_size: int
    learning_rate: float
    warmup_ratio: float
    weight_decay: float
    max_grad_norm: float
    layer_decay: float = 1.0


class Passed(NamedTuple):
    """What an epoch gave: each step's loss [steps] and the number of sentences that it got right [steps]."""

    losses: torch.Tensor
    correct: torch.Tensor


def learning_rate_factor(step: int, total: int, warmup: int) -> float:
    """Return the share of the peak learning rate for a step, from 0: linear rise, then linear fall to 0."""
    if step < warmup:
        return (step + 1) / warmup
    return max(0.0, (total - step) / max(1, total - warmup))


def learning_rates(recipe: Recipe) -> list[float]:
    """Return the learning rate of every step."""
    warmup = math.ceil(recipe.steps * recipe.warmup_ratio)
    return [recipe.learning_rate * learning_rate_factor(step, recipe.steps, warmup) for step in range(recipe.steps)]


def loss_of(logits: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return (loss [], correct predictions []) of logits [B, 2] in fp32; rows labelled `IGNORED` do not count."""
    loss = nn.functional.cross_entropy(logits.float(), labels, ignore_index=IGNORED)
    return loss, (logits.detach().argmax(-1) == labels).sum()


class EagerStepper:
    """Trains call by call; on a GPU in bf16 autocast."""

    def __init__(self, model: nn.Module, data: Encoded, recipe: Recipe) -> None:
        """Prepare the optimiser; the model's parameters become views of flat ones."""
        self._model, self._data = model, data
        self._autocast = next(model.parameters()).device.type == "cuda"
        self.flat = FlatParameters(model, recipe.weight_decay, recipe.layer_decay, torch.float32)
        self.optimizer = LibraryAdamW(self.flat, recipe.max_grad_norm)
        self._rates = learning_rates(recipe)

    def run(self, batches: list[Rows], first: int, advance: Advance) -> Passed:
        """Train on batches of row numbers, the first of which is step `first` of the schedule."""
        self._model.train()
        losses, corrects = [], []
        for step, rows in enumerate(batches, start=first):
            batch = self._data.batch(rows)
            labels = batch.pop("labels")
            with torch.autocast("cuda", torch.bfloat16, enabled=self._autocast):
                logits = self._model(**batch).logits
            loss, correct = loss_of(logits, labels)
            loss.backward()
            self.optimizer.step(self._rates[step])
            losses.append(loss.detach())
            corrects.append(correct)
            advance()
        return Passed(torch.stack(losses), torch.stack(corrects))


class CapturedStepper:
    """Trains by replaying CUDA graphs, in bf16 with fp32 master weights."""

    def __init__(
        self, model: nn.Module, data: Encoded, recipe: Recipe, *, fused: bool = True, whole_mask: bool = False
    ) -> None:
        """Prepare the optimiser and what the graphs read and write.

        Args:
            model: on a GPU; its parameters become views of flat ones.
            data: what it trains on.
            recipe: how.
            fused: replace the model's pieces by fused ones where they are known.
            whole_mask: hand the model its mask as it is added to the scores, [B, 1, S, S]; some models build theirs
                from numbers of the host, which cannot be captured.

        Raises:
            ImportError: where Triton is not installed.
        """
        self._model, self._data, self._recipe, self._whole_mask = model, data, recipe, whole_mask
        device = next(model.parameters()).device
        self._dice = Dice(device)
        if fused:
            fuse(model, self._dice)
        self.flat = FlatParameters(model, recipe.weight_decay, recipe.layer_decay, torch.bfloat16)
        self.optimizer = KernelAdamW(self.flat, recipe.max_grad_norm)
        self._rates = torch.tensor(learning_rates(recipe), device=device)
        per_epoch = math.ceil(data.count / recipe.batch_size)
        # Row numbers of an epoch's batches; `data.count` names the row that fills up the last one.
        self._order = torch.full((per_epoch, recipe.batch_size), data.count, device=device)
        self._losses = torch.zeros(per_epoch, device=device)
        self._corrects = torch.zeros(per_epoch, dtype=torch.int64, device=device)
        self._step = torch.zeros(1, dtype=torch.int64, device=device)  # of the epoch
        self._total = torch.zeros(1, dtype=torch.int64, device=device)  # of the schedule
        self._graphs: dict[int, torch.cuda.CUDAGraph] = {}
        self._pool = torch.cuda.graph_pool_handle()

    def run(self, batches: list[Rows], first: int, advance: Advance) -> Passed:
        """Train on batches of row numbers, the first of which is step `first` of the schedule."""
        self._model.train()
        order = np.full(self._order.shape, self._data.count)
        for step, rows in enumerate(batches):
            order[step, : len(rows)] = rows
        self._order.copy_(torch.from_numpy(order))
        self._step.zero_()
        self._total.fill_(first)
        self._dice.set(first)
        for step, rows in enumerate(batches):
            self._graph(self._data.bucket(rows)).replay()
            advance()
            if step % PAUSE == PAUSE - 1:
                torch.cuda.synchronize()
        return Passed(self._losses[: len(batches)].clone(), self._corrects[: len(batches)].clone())

    def prepare(self) -> None:
        """Capture every length that the data has.

        Raises:
            RuntimeError: where the model does something that cannot be captured.
        """
        self._model.train()
        for length in self._data.buckets():
            self._graph(length)

    def _graph(self, length: int) -> torch.cuda.CUDAGraph:
        if length not in self._graphs:
            self._graphs[length] = self._capture(length)
        return self._graphs[length]

    def _capture(self, length: int) -> torch.cuda.CUDAGraph:
        """Record a step on batches of `length` tokens; recording changes no weights."""
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(WARMUPS):
                self._backward(length)
                self.flat.collect_gradients()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):
            loss, correct = self._backward(length)
            self.optimizer.step(self._rates.index_select(0, self._total).squeeze(0))
            self._losses.index_copy_(0, self._step, loss.detach().unsqueeze(0))
            self._corrects.index_copy_(0, self._step, correct.unsqueeze(0))
            self._step += 1
            self._total += 1
            self._dice.roll()
        return graph

    def _backward(self, length: int) -> tuple[torch.Tensor, torch.Tensor]:
        rows = self._order.index_select(0, self._step).squeeze(0)
        batch = self._data.gather(rows, length)
        labels = batch.pop("labels")
        if self._whole_mask:
            hidden = (batch["attention_mask"] == 0)[:, None, None, :].expand(-1, 1, length, -1)
            zeros = torch.zeros(hidden.shape, dtype=self.flat.compute.dtype, device=hidden.device)
            batch["attention_mask"] = zeros.masked_fill(hidden, torch.finfo(zeros.dtype).min)
        loss, correct = loss_of(self._model(**batch).logits, labels)
        loss.backward()
        return loss, correct


def make_stepper(model: nn.Module, data: Encoded, recipe: Recipe) -> EagerStepper | CapturedStepper:
    """Return the fastest stepper that works for this model here; a fallback is told once."""
    if next(model.parameters()).device.type != "cuda":
        return EagerStepper(model, data, recipe)
    before = {name: parameter.data.clone() for name, parameter in model.named_parameters()}
    # cuDNN's attention makes a plan for each new shape, which takes longer than an epoch of short sentences.
    torch.backends.cuda.enable_cudnn_sdp(False)
    make_capturable(model)
    reason = ""
    for whole_mask in (False, True):
        for fused in (True, False):
            try:
                captured = CapturedStepper(model, data, recipe, fused=fused, whole_mask=whole_mask)
                captured.prepare()
                return captured
            except Exception as error:  # whatever a model, a driver or a compiler says: training has another way
                reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
                unfuse(model)
                for name, parameter in model.named_parameters():
                    parameter.data, parameter.grad = before[name].clone(), None
    log.warning("the training step cannot be captured (%s); it runs call by call, several times as slow", reason)
    return EagerStepper(model, data, recipe)
