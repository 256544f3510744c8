"""Training steps that are captured as CUDA graphs, one for each length of a batch, and the choice of a step.

Everything that a step needs (the order of the sentences, the rate, counters) lies on the device, so that a step is one
call and nothing waits for the host. Where a model cannot be captured, and on a CPU, the same step runs call by call.
"""

import logging
import math
from types import MethodType
from typing import Any, cast

import numpy as np
import torch
from torch import nn

from tasks.core.errors import first_line
from tasks.training.adamw import TritonAdamW
from tasks.training.dataset import TokenDataset
from tasks.training.flat_parameters import FlatParameters
from tasks.training.fused_layers import DropoutRng, fuse, unfuse
from tasks.training.losses import classification_loss
from tasks.training.process_group import ProcessGroup
from tasks.training.train_step import (
    Advance,
    EagerStep,
    Rows,
    StepConfig,
    StepOutputs,
    accumulate,
    duplicate_for_r_drop,
    halve_micro_batches,
    learning_rates,
    rows_per_rank,
    shard,
    uses_bf16,
)

WARMUP_STEPS = 2  # passes before a capture, in which libraries make their plans
OUT_OF_MEMORY_MESSAGES = ("out of memory", "CUBLAS_STATUS_ALLOC_FAILED")  # of libraries, in errors of other kinds
CAPTURED, OUT_OF_MEMORY, FAILED = range(3)  # how an attempt to capture ends; the worst of a team's counts for all
SYNC_EVERY = 64  # steps between two waits for the device, so that the progress bar is not ahead of it

log = logging.getLogger(__name__)


class CudaGraphStep:
    """Trains by replaying CUDA graphs, in bf16 with fp32 master weights."""

    def __init__(
        self,
        model: nn.Module,
        data: TokenDataset,
        recipe: StepConfig,
        *,
        fused: bool = True,
        whole_mask: bool = False,
        parts: int = 1,
        team: ProcessGroup | None = None,
    ) -> None:
        """Prepare the optimiser and what the graphs read and write.

        Args:
            model: on a GPU; its parameters become views of flat ones.
            data: what it trains on.
            recipe: how.
            fused: replace the model's pieces by fused ones where they are known.
            whole_mask: hand the model its mask as it is added to the scores, [B, 1, S, S]; some models build theirs
                from numbers of the host, which cannot be captured.
            parts: that a batch is taken in, one after the other, to save memory; their gradients add up to the batch's.
            team: whose processes capture and replay the same steps, in which their gradients are added up.

        Raises:
            ImportError: where Triton is not installed.
        """
        self._model, self._data, self._recipe, self._whole_mask, self.parts = model, data, recipe, whole_mask, parts
        self._team = team
        device = next(model.parameters()).device
        self._dice = DropoutRng(device)
        if fused:
            fuse(model, self._dice)
        self.flat = FlatParameters(model, recipe.weight_decay, recipe.layer_decay, torch.bfloat16)
        self.optimizer = TritonAdamW(self.flat, recipe.max_grad_norm, team)
        self._rates = torch.tensor(learning_rates(recipe), device=device)
        per_epoch = math.ceil(data.count / recipe.batch_size)
        # Row numbers of an epoch's batches; `data.count` names the row that fills up the last one.
        self._order = torch.full((per_epoch, rows_per_rank(recipe.batch_size, team)), data.count, device=device)
        self._sizes = torch.ones(per_epoch, dtype=torch.int64, device=device)  # sentences of the whole batches
        self._losses = torch.zeros(per_epoch, device=device)
        self._corrects = torch.zeros(per_epoch, dtype=torch.int64, device=device)
        self._step = torch.zeros(1, dtype=torch.int64, device=device)  # of the epoch
        self._total = torch.zeros(1, dtype=torch.int64, device=device)  # of the schedule
        self._graphs: dict[int, torch.cuda.CUDAGraph] = {}
        self._pool = torch.cuda.graph_pool_handle()

    def run(self, batches: list[Rows], first: int, advance: Advance) -> StepOutputs:
        """Train on batches of row numbers, the first of which is step `first` of the schedule."""
        self._model.train()
        order = np.full(self._order.shape, self._data.count)
        for step, rows in enumerate(batches):
            mine = shard(rows, self._team)
            order[step, : len(mine)] = mine
        self._order.copy_(torch.from_numpy(order))
        self._sizes[: len(batches)].copy_(torch.tensor([len(rows) for rows in batches]))
        self._step.zero_()
        self._total.fill_(first)
        self._dice.seek(first)
        for step, rows in enumerate(batches):
            self._graph(self._data.bucket(rows)).replay()
            advance()
            if step % SYNC_EVERY == SYNC_EVERY - 1:
                torch.cuda.synchronize()
        passed = StepOutputs(self._losses[: len(batches)].clone(), self._corrects[: len(batches)].clone())
        return accumulate(passed, self._team)

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
            for _ in range(WARMUP_STEPS):
                self._backward(length)
                self.flat.collect_gradients()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        mode = "thread_local" if self._team else "global"  # threads of NCCL's must not spoil the capture
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode=mode):
            loss, correct = self._backward(length)
            self.optimizer.step(self._rates.index_select(0, self._total).squeeze(0))
            self._losses.index_copy_(0, self._step, loss.unsqueeze(0))
            self._corrects.index_copy_(0, self._step, correct.unsqueeze(0))
            self._step += 1
            self._total += 1
            self._dice.advance()
        return graph

    def _backward(self, length: int) -> tuple[torch.Tensor, torch.Tensor]:
        rows = self._order.index_select(0, self._step).squeeze(0)
        total = self._sizes.index_select(0, self._step).squeeze(0)
        losses, corrects = [], []
        for part in rows.chunk(self.parts):
            inputs, targets = self._data.gather(part, length)
            inputs = duplicate_for_r_drop(inputs, self._recipe.r_drop)
            if self._whole_mask:
                inputs["attention_mask"] = self._added_mask(inputs["attention_mask"])
            loss, correct = classification_loss(self._model(**inputs).logits, targets, total, self._recipe.r_drop)
            loss.backward()
            losses.append(loss.detach())
            corrects.append(correct)
        if self.parts == 1:
            return losses[0], corrects[0]
        return torch.stack(losses).sum(), torch.stack(corrects).sum()

    def _added_mask(self, mask: torch.Tensor) -> torch.Tensor:
        """Return a mask [B, S] as what is added to the scores, [B, 1, S, S]."""
        hidden = (mask == 0)[:, None, None, :].expand(-1, 1, mask.shape[1], -1)
        zeros = torch.zeros(hidden.shape, dtype=self.flat.compute.dtype, device=hidden.device)
        return zeros.masked_fill(hidden, torch.finfo(zeros.dtype).min)


def make_train_step(
    model: nn.Module, data: TokenDataset, recipe: StepConfig, team: ProcessGroup | None = None
) -> EagerStep | CudaGraphStep:
    """Return the fastest stepper that works for this model here, for all of a team alike; a fallback is told once."""
    device = next(model.parameters()).device.type
    if device == "cuda" and not uses_bf16(recipe.precision, device):
        log.info("in fp32 the training step runs call by call, several times as slow")
    if device != "cuda" or not uses_bf16(recipe.precision, device):
        return EagerStep(model, data, recipe, team)
    before = {name: parameter.data.clone() for name, parameter in model.named_parameters()}
    # cuDNN's attention makes a plan for each new shape, which takes longer than an epoch of short sentences.
    torch.backends.cuda.enable_cudnn_sdp(False)
    patch_for_cuda_graphs(model)
    if team:
        _connect(model, team)
    reason, parts = "another process failed", 1
    ways = [(fused, whole_mask) for whole_mask in (False, True) for fused in (True, False)]
    while ways:
        fused, whole_mask = ways[0]
        captured: CudaGraphStep | None = None
        try:
            captured = CudaGraphStep(model, data, recipe, fused=fused, whole_mask=whole_mask, parts=parts, team=team)
            captured.prepare()
            outcome = CAPTURED
        except Exception as error:  # whatever a model, a driver or a compiler says: training has another way
            reason = first_line(error)
            smaller = parts < rows_per_rank(recipe.batch_size, team)
            outcome = OUT_OF_MEMORY if smaller and ran_out_of_memory(error) else FAILED
        if team:
            outcome = team.all_reduce_max(outcome)  # nobody captures where one of them cannot
        if captured and outcome == CAPTURED:
            return captured
        captured = None
        _restore(model, before)
        if outcome == OUT_OF_MEMORY:
            parts = halve_micro_batches(parts, recipe.batch_size)
        else:
            del ways[0]
    log.warning("the training step cannot be captured (%s); it runs call by call, several times as slow", reason)
    return EagerStep(model, data, recipe, team)


def ran_out_of_memory(error: BaseException | None) -> bool:
    """Tell whether an error is for want of memory, or came while one was handled: a broken capture raises on top."""
    while error is not None:
        if isinstance(error, torch.OutOfMemoryError) or any(words in str(error) for words in OUT_OF_MEMORY_MESSAGES):
            return True
        error = error.__context__
    return False


def _connect(model: nn.Module, team: ProcessGroup) -> None:
    """Let NCCL prepare for sums of the gradients' size, which it could not do in a capture."""
    count = sum(parameter.numel() for parameter in model.parameters())
    team.all_reduce(torch.zeros(count, dtype=torch.bfloat16, device=next(model.parameters()).device))
    torch.cuda.synchronize()


def _restore(model: nn.Module, before: dict[str, torch.Tensor]) -> None:
    """Give a model back its own pieces and weights, and the device what a capture took."""
    unfuse(model)
    for name, parameter in model.named_parameters():
        parameter.data, parameter.grad = before[name].clone(), None
    torch.cuda.empty_cache()


def patch_for_cuda_graphs(model: nn.Module) -> None:
    """Replace parts that copy from the host; the model's answers stay the same."""
    for module in model.modules():
        if type(module).__name__ == "MPNetEncoder":  # of older transformers
            cast(Any, module).compute_position_bias = MethodType(_position_bias, module)


def _position_bias(
    self: Any, x: torch.Tensor, position_ids: torch.Tensor | None = None, num_buckets: int = 32
) -> torch.Tensor:
    """Return MPNet's relative position bias [B, heads, S, S].

    Source: Song et al. 2020, https://arxiv.org/abs/2004.09297; the buckets are those of T5.
    """
    batch, length = x.shape[:2]
    positions = torch.arange(length, device=x.device)[None, :] if position_ids is None else position_ids
    relative = positions[:, None, :] - positions[:, :, None]
    bias = self.relative_attention_bias(self.relative_position_bucket(relative, num_buckets=num_buckets))
    return bias.permute(0, 3, 1, 2).expand(batch, -1, length, length).contiguous()
