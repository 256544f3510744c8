"""One training step as a CUDA graph, and the choice between it and the eager step.

A step of a small encoder is a few hundred short kernels; launching them one by one from Python takes longer than they
run. `CudaGraphStep` records forward, backward, clipping and AdamW once for each padded length of a batch and replays
the recording: one call from the host per step. A recording has fixed addresses and fixed host values, so whatever
changes from step to step (row numbers, learning rate, step count, seed of dropout) lies in tensors on the device.

`make_train_step` tries the variants of a capture from the fastest to the most general, and returns an `EagerStep` where
none works, in fp32, and on a CPU.
"""

import logging
import math
from dataclasses import dataclass
from itertools import product
from typing import ClassVar

import numpy as np
import torch
from torch import nn

from tasks.core.errors import first_line
from tasks.training.adamw import TritonAdamW
from tasks.training.cuda_graphs import (
    CudaRecorder,
    Graph,
    GraphRecorder,
    cudnn_attention_disabled,
    patch_for_cuda_graphs,
)
from tasks.training.dataset import TokenDataset
from tasks.training.flat_parameters import FlatParameters
from tasks.training.fused_layers import fuse, unfuse
from tasks.training.fused_state import DropoutRng
from tasks.training.process_group import ProcessGroup
from tasks.training.train_step import (
    Advance,
    EagerStep,
    Rows,
    StepConfig,
    StepOutputs,
    double_micro_batches,
    learning_rates,
    rows_per_rank,
    run_passes,
    shard,
    step_loss,
    sum_over_ranks,
)

WARMUP_PASSES = 2  # before a capture: libraries choose algorithms and allocate workspaces, which a capture forbids
# In errors that are no OutOfMemoryError. Wider than core.errors.MEMORY_MESSAGES, as no error of a capture quotes a
# sentence; and without those of the host's memory, which smaller batches do not save.
OUT_OF_MEMORY_MESSAGES = ("out of memory", "CUBLAS_STATUS_ALLOC_FAILED")
SYNC_EVERY = 64  # steps between two synchronisations, so that the progress bar is not ahead of the device

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class CaptureVariant:
    """One way of capturing a step.

    Attributes:
        fused: replace modules of known encoders by fused ones.
        full_mask: pass the model its mask as it is added to the scores, [B, 1, S, S]; some models build theirs from
            values on the host, which cannot be captured.
        micro_batches: number of pieces that a batch is split into to save memory; their gradients are accumulated.
    """

    fused: bool = True
    full_mask: bool = False
    micro_batches: int = 1


class CudaGraphStep:
    """Runs steps by replaying CUDA graphs; computes in bf16, with fp32 master weights."""

    def __init__(
        self,
        model: nn.Module,
        data: TokenDataset,
        config: StepConfig,
        variant: CaptureVariant,
        recorder: GraphRecorder,
        group: ProcessGroup | None = None,
        dtype: torch.dtype = torch.bfloat16,
    ) -> None:
        """Create the optimiser and the tensors that the graphs read and write.

        Args:
            model: on its device, in fp32; its parameters become views of one flat tensor.
            data: training sentences, on the same device.
            config: schedule, sizes, and settings of the optimiser.
            variant: how the step is captured.
            recorder: records graphs.
            group: ranks that capture and replay the same steps, in which their gradients are summed.
            dtype: that the model computes in.

        Raises:
            ImportError: if Triton is not installed.
        """
        self._model, self._data, self._config, self._variant = model, data, config, variant
        self._recorder, self._group = recorder, group
        device = next(model.parameters()).device
        kernels = recorder.load_kernels()
        self._rng = DropoutRng(device)
        if variant.fused:
            fuse(model, self._rng, kernels)
        self.flat = FlatParameters(model, config.weight_decay, config.layer_decay, dtype)
        self.optimizer = TritonAdamW(self.flat, config.max_grad_norm, kernels, group, config.adam)
        self._rates = torch.tensor(learning_rates(config), device=device)
        steps = math.ceil(data.count / config.batch_size)  # of an epoch
        # Row numbers of an epoch's batches; `data.count` is the index of an extra, empty row that pads.
        self._rows = torch.full((steps, rows_per_rank(config.batch_size, group)), data.count, device=device)
        self._sizes = torch.ones(steps, dtype=torch.int64, device=device)  # sentences of a batch over all ranks
        self._losses = torch.zeros(steps, device=device)
        self._corrects = torch.zeros(steps, dtype=torch.int64, device=device)
        self._epoch_step = torch.zeros(1, dtype=torch.int64, device=device)
        self._schedule_step = torch.zeros(1, dtype=torch.int64, device=device)
        self._graphs: dict[int, Graph] = {}  # by padded length

    @property
    def micro_batches(self) -> int:
        """Number of pieces that a batch is split into."""
        return self._variant.micro_batches

    def run(self, batches: list[Rows], first: int, advance: Advance) -> StepOutputs:
        """Train on batches, the first of which is step `first` of the schedule."""
        self._model.train()
        padded = np.full(self._rows.shape, self._data.count)
        for step, rows in enumerate(batches):
            own = shard(rows, self._group)
            padded[step, : len(own)] = own
        self._rows.copy_(torch.from_numpy(padded))
        self._sizes[: len(batches)].copy_(torch.tensor([len(rows) for rows in batches]))
        self._epoch_step.zero_()
        self._schedule_step.fill_(first)
        self._rng.seek(first)
        for step, rows in enumerate(batches):
            self._graph(self._data.bucket(rows)).replay()
            advance()
            if step % SYNC_EVERY == SYNC_EVERY - 1:
                self._recorder.synchronize()
        outputs = StepOutputs(self._losses[: len(batches)].clone(), self._corrects[: len(batches)].clone())
        return sum_over_ranks(outputs, self._group)

    def prepare(self) -> None:
        """Capture every padded length that batches of the data can have.

        Raises:
            RuntimeError: if the model does something that cannot be captured.
        """
        self._model.train()
        for length in self._data.buckets():
            self._graph(length)

    def _graph(self, length: int) -> Graph:
        if length not in self._graphs:
            self._graphs[length] = self._capture(length)
        return self._graphs[length]

    def _capture(self, length: int) -> Graph:
        """Record a step on batches of `length` tokens; neither warm-up nor recording changes weights."""

        def warm_up() -> None:
            for _ in range(WARMUP_PASSES):
                self._backward(length)
                self.flat.collect_gradients()

        def step() -> None:
            loss, correct = self._backward(length)
            self.optimizer.step(self._rates.index_select(0, self._schedule_step).squeeze(0))
            self._losses.index_copy_(0, self._epoch_step, loss.unsqueeze(0))
            self._corrects.index_copy_(0, self._epoch_step, correct.unsqueeze(0))
            self._epoch_step += 1
            self._schedule_step += 1
            self._rng.advance()

        self._recorder.warm_up(warm_up)
        return self._recorder.record(step)

    def _backward(self, length: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Compute the gradients of the current step's rows, padded to `length`.

        Returns:
            Loss [] and number of correct predictions [].
        """
        rows = self._rows.index_select(0, self._epoch_step).squeeze(0)
        total = self._sizes.index_select(0, self._epoch_step).squeeze(0)
        losses, corrects = [], []
        for micro_batch in rows.chunk(self.micro_batches):
            inputs, targets = self._data.gather(micro_batch, length)
            if self._variant.full_mask:
                inputs["attention_mask"] = self._additive_mask(inputs["attention_mask"])
            marks = self._data.gather_marks(micro_batch, length)
            output = run_passes(self._model, inputs, self._config)
            loss, correct = step_loss(output, targets, marks, total, self._config)
            loss.backward()
            losses.append(loss.detach())
            corrects.append(correct)
        if len(losses) == 1:
            return losses[0], corrects[0]
        return torch.stack(losses).sum(), torch.stack(corrects).sum()

    def _additive_mask(self, mask: torch.Tensor) -> torch.Tensor:
        """Return a mask [B, S] of ones and zeros as what is added to the scores, [B, 1, S, S]."""
        hidden = (mask == 0)[:, None, None, :].expand(-1, 1, mask.shape[1], -1)
        zeros = torch.zeros(hidden.shape, dtype=self.flat.compute.dtype, device=hidden.device)
        return zeros.masked_fill(hidden, torch.finfo(zeros.dtype).min)


@dataclass(frozen=True)
class Captured:
    """Every length of the data is captured."""

    step: CudaGraphStep
    severity: ClassVar[int] = 0
    """All ranks follow the one whose outcome has the highest severity."""


@dataclass(frozen=True)
class OutOfMemory:
    """Memory ended, and micro-batches can still be made smaller."""

    reason: str
    severity: ClassVar[int] = 1


@dataclass(frozen=True)
class Failed:
    """This variant cannot be captured."""

    reason: str
    severity: ClassVar[int] = 2


Outcome = Captured | OutOfMemory | Failed


def make_train_step(
    model: nn.Module,
    data: TokenDataset,
    config: StepConfig,
    group: ProcessGroup | None = None,
    *,
    shares_memory: bool = False,
) -> EagerStep | CudaGraphStep:
    """Return the fastest step that works for a model on its device; all ranks of a process group get the same kind.

    Raises:
        torch.OutOfMemoryError: see `capture_or_eager`.
    """
    device = next(model.parameters()).device.type
    if device == "cuda" and config.precision == "bf16":
        return capture_or_eager(model, data, config, CudaRecorder(), group, shares_memory=shares_memory)
    if device == "cuda":
        log.info("in fp32 the training step is not captured as a CUDA graph and runs several times slower")
    return EagerStep(model, data, config, group)


@cudnn_attention_disabled()
def capture_or_eager(
    model: nn.Module,
    data: TokenDataset,
    config: StepConfig,
    recorder: GraphRecorder,
    group: ProcessGroup | None = None,
    *,
    shares_memory: bool = False,
) -> EagerStep | CudaGraphStep:
    """Try every variant of a capture, the fastest first; where none works, say why and return an eager step.

    A variant that runs out of memory is tried again with twice as many micro-batches. After a failed attempt the model
    has its own modules and initial weights again.

    Raises:
        torch.OutOfMemoryError: with `shares_memory`, where memory ended: it may suffice when others have ended.
    """
    initial = {name: parameter.data.clone() for name, parameter in model.named_parameters()}
    patch_for_cuda_graphs(model)
    if group:
        _warm_up_all_reduce(model, group, recorder)
    micro_batches, reason = 1, ""
    for full_mask, fused in product((False, True), (True, False)):
        while True:
            variant = CaptureVariant(fused, full_mask, micro_batches)
            outcome = _agree(try_capture(model, data, config, variant, recorder, group), group)
            if isinstance(outcome, Captured):
                return outcome.step
            reason = outcome.reason
            _restore(model, initial)
            recorder.release_memory()
            if isinstance(outcome, Failed):
                break
            if shares_memory:
                raise torch.OutOfMemoryError(reason)
            micro_batches = double_micro_batches(micro_batches, config.batch_size)
    log.warning("the training step cannot be captured as a CUDA graph (%s); it runs several times slower", reason)
    return EagerStep(model, data, config, group)


def try_capture(
    model: nn.Module,
    data: TokenDataset,
    config: StepConfig,
    variant: CaptureVariant,
    recorder: GraphRecorder,
    group: ProcessGroup | None = None,
) -> Outcome:
    """Capture every length of the data; whatever a model, a driver or a compiler raises is an outcome, not an error."""
    try:
        step = CudaGraphStep(model, data, config, variant, recorder, group)
        step.prepare()
    except Exception as error:
        can_shrink = variant.micro_batches < rows_per_rank(config.batch_size, group)
        kind = OutOfMemory if can_shrink and ran_out_of_memory(error) else Failed
        return kind(first_line(error))
    return Captured(step)


def ran_out_of_memory(error: BaseException | None) -> bool:
    """Return whether an error is for lack of memory, or was raised while such an error was handled.

    Leaving a capture that ran out of memory raises an error of its own, whose context is the first one.
    """
    while error is not None:
        if isinstance(error, torch.OutOfMemoryError) or any(words in str(error) for words in OUT_OF_MEMORY_MESSAGES):
            return True
        error = error.__context__
    return False


def _agree(outcome: Outcome, group: ProcessGroup | None) -> Outcome:
    """Return the worst outcome of all ranks: none of them replays graphs unless all can."""
    worst = group.all_reduce_max(outcome.severity) if group else outcome.severity
    if worst == outcome.severity:
        return outcome
    if worst == OutOfMemory.severity:
        return OutOfMemory("another rank ran out of memory")
    return Failed("it failed on another rank")


def _warm_up_all_reduce(model: nn.Module, group: ProcessGroup, recorder: GraphRecorder) -> None:
    """Let NCCL set up for sums of the gradients' size, which it cannot do in a capture."""
    count = sum(parameter.numel() for parameter in model.parameters())
    group.all_reduce(torch.zeros(count, dtype=torch.bfloat16, device=next(model.parameters()).device))
    recorder.synchronize()


def _restore(model: nn.Module, initial: dict[str, torch.Tensor]) -> None:
    """Give a model its own modules and initial weights again."""
    unfuse(model)
    for name, parameter in model.named_parameters():
        parameter.data, parameter.grad = initial[name].clone(), None
