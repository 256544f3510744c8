"""A model's parameters as views of one tensor, so that an optimiser step is a few kernels instead of hundreds.

The optimiser updates fp32 master weights. Where the model computes in bf16, its parameters are bf16 copies that each
step writes again: the forward pass casts nothing, and small updates are not rounded away. Gradients are collected in
one tensor too, for the norm, the all-reduce and the optimiser. Parameters with the same weight decay and the same
factor of the learning rate are neighbours and form a `Segment`; query, key and value weights of a layer are adjacent
then, which `fused_layers` uses.

Shape letters: P elements of all parameters, each padded to a multiple of ALIGNMENT.
"""

import logging
import re
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import nn

ALIGNMENT = 64  # elements; matrix kernels are faster if each parameter starts at such a multiple
# Keys in `parameter.__dict__`: the parameter's view of the flat gradients, and whether this step has written it.
_GRAD_VIEW, _GRAD_WRITTEN = "flat_grad_view", "flat_grad_written"
# BERT's layer.0, GPT-2's h.0, MPT's blocks.0 and T5's block.0, which holds layers of its own.
_LAYER = re.compile(r"\b(?:layers?|h|blocks?)\.(\d+)\.")
# With relative positions, and the token embeddings of GPT-2 and T5.
_EMBEDDINGS = re.compile(r"embed|relative_attention_bias|\b(?:wte|wpe|shared)\.")

log = logging.getLogger(__name__)


class Segment(NamedTuple):
    """A range of the flat parameters that shares weight decay and `scale`, a factor of the learning rate."""

    start: int
    end: int
    weight_decay: float
    scale: float


class FlatParameters:
    """The trained parameters of a model as one tensor; the model's own become views of `compute`.

    Attributes:
        master: fp32 weights [P] that the optimiser updates.
        compute: weights [P] in the type that the model computes in; `master` itself in fp32.
        grads: gradients [P], in the type of `compute`.
        parameters: the model's trained parameters, in the order of the flat tensors.
        segments: ranges of equal hyperparameters, in order, without gaps.
    """

    def __init__(self, model: nn.Module, weight_decay: float, layer_decay: float, dtype: torch.dtype) -> None:
        """Copy the parameters into flat tensors.

        Args:
            model: on its device, in fp32; its parameters are replaced by views of type `dtype`.
            weight_decay: of matrices; biases and normalisation weights do not decay.
            layer_decay: factor of the learning rate from one layer to the layer below; 1 for equal rates.
            dtype: that the model computes in.
        """
        scales = layer_scales(model, layer_decay)
        self._frozen: list[tuple[nn.Parameter, torch.Tensor]] = []
        groups: dict[tuple[float, float], list[nn.Parameter]] = {}
        for name, parameter in model.named_parameters():
            if not parameter.requires_grad:
                self._frozen.append((parameter, parameter.data))
                parameter.data = parameter.data.to(dtype)
                continue
            decay = weight_decay if parameter.ndim >= 2 else 0.0
            groups.setdefault((decay, scales[name]), []).append(parameter)
        total = sum(_aligned(parameter.numel()) for group in groups.values() for parameter in group)
        device = next(model.parameters()).device
        self.master = torch.zeros(total, device=device)
        self.compute = self.master if dtype == torch.float32 else torch.zeros(total, dtype=dtype, device=device)
        self.grads = torch.zeros(total, dtype=dtype, device=device)
        self.parameters: list[nn.Parameter] = []
        self.segments: list[Segment] = []
        self._grad_views: list[torch.Tensor] = []
        offset = 0
        for (decay, scale), group in groups.items():
            start = offset
            for parameter in group:
                self._adopt(parameter, offset)
                offset += _aligned(parameter.numel())
            self.segments.append(Segment(start, offset, decay, scale))

    def _adopt(self, parameter: nn.Parameter, offset: int) -> None:
        """Copy a parameter to `offset` of the flat tensors and make it a view of the compute weights."""
        own = slice(offset, offset + parameter.numel())
        self.master[own].copy_(parameter.data.flatten())
        self.compute[own].copy_(self.master[own])
        parameter.data = self.compute[own].view(parameter.shape)
        self.parameters.append(parameter)
        self._grad_views.append(self.grads[own].view(parameter.shape))
        parameter.__dict__[_GRAD_VIEW] = self._grad_views[-1]

    def collect_gradients(self) -> None:
        """Move the parameters' gradients into `grads`; a parameter without one counts as zero.

        Gradients that fused layers have written there already (see `claim_grad_views`) stay.
        """
        copied: list[tuple[torch.Tensor, torch.Tensor]] = []
        for view, parameter in zip(self._grad_views, self.parameters, strict=True):
            written = parameter.__dict__.pop(_GRAD_WRITTEN, False)
            if parameter.grad is None and not written:
                view.zero_()
            elif parameter.grad is not None and written:
                view += parameter.grad  # the parameter was used again in this step, and autograd added that up
            elif parameter.grad is not None:
                copied.append((view, parameter.grad))
            parameter.grad = None
        if copied:  # torch raises for empty lists
            torch._foreach_copy_([view for view, _ in copied], [grad for _, grad in copied])

    def restore_fp32(self) -> None:
        """Make the parameters views of the fp32 master weights; frozen ones get their original weights back."""
        for parameter, weights in self._frozen:
            parameter.data = weights
        for parameter, view in zip(self.parameters, self._grad_views, strict=True):
            start = view.storage_offset()
            parameter.data = self.master[start : start + parameter.numel()].view(parameter.shape)
            parameter.grad = None
            parameter.__dict__.pop(_GRAD_VIEW, None)

    def sync_compute(self) -> None:
        """Copy the master weights to the compute weights."""
        if self.compute is not self.master:
            self.compute.copy_(self.master)


def claim_grad_views(*parameters: torch.Tensor) -> list[torch.Tensor] | None:
    """Return the views of the flat gradients that belong to parameters, and mark them as written in this step.

    The caller's backward pass overwrites them. None if one of the parameters is not laid out, or was claimed before in
    this step: then the gradients must go to autograd, which adds them up.
    """
    if any(_GRAD_VIEW not in each.__dict__ or each.__dict__.get(_GRAD_WRITTEN) for each in parameters):
        return None
    for each in parameters:
        each.__dict__[_GRAD_WRITTEN] = True
    return [each.__dict__[_GRAD_VIEW] for each in parameters]


def layer_scales(model: nn.Module, layer_decay: float) -> dict[str, float]:
    """Return the factor of the learning rate for each parameter by name.

    The head learns at the full rate, the top layer at `layer_decay` of it, the next at its square, and so on; the
    embeddings count as the layer below the first. Source: Howard and Ruder 2018, https://arxiv.org/abs/1801.06146, 3.2.
    """
    names = [name for name, _ in model.named_parameters()]
    numbers = {name: int(found[1]) for name in names if (found := _LAYER.search(name))}
    layers = max(numbers.values(), default=-1) + 1
    if not layers and layer_decay != 1:
        log.warning(
            "finetune.layer_decay lowers the learning rate of the embeddings alone: %s has no layers that are known by "
            "their numbers",
            type(model).__name__,
        )

    def depth(name: str) -> int:
        if name in numbers:
            return layers - numbers[name]
        return layers + 1 if _EMBEDDINGS.search(name) else 0

    return {name: layer_decay ** depth(name) for name in names}


def as_stacked(tensors: Sequence[torch.Tensor]) -> torch.Tensor | None:
    """Return tensors [N, ...] that are adjacent in memory as one view [count * N, ...]; None for others."""
    first = tensors[0]
    if len(tensors) == 1:
        return first.detach()
    if first is None or not first.is_contiguous() or not _have_distance(tensors, first.numel()):
        return None
    return first.detach().as_strided((len(tensors) * len(first), *first.shape[1:]), first.stride())


def as_interleaved(tensors: Sequence[torch.Tensor]) -> torch.Tensor | None:
    """Return tensors [..., N] whose rows alternate in memory, as chunks of one matrix do, as that matrix.

    [M, count * N], a view; None for tensors that lie otherwise.
    """
    matrices = [tensor.reshape(-1, tensor.shape[-1]) for tensor in tensors]
    rows, width = matrices[0].shape
    row = len(tensors) * width
    if matrices[0].stride() != (row, 1) or not _have_distance(matrices, width):
        return None
    return matrices[0].as_strided((rows, row), (row, 1))


def _have_distance(tensors: Sequence[torch.Tensor], distance: int) -> bool:
    """Return whether tensors of one shape start `distance` elements apart, in order, in the same storage."""
    first = tensors[0]
    return all(
        tensor is not None
        and tensor.untyped_storage().data_ptr() == first.untyped_storage().data_ptr()
        and tensor.storage_offset() == first.storage_offset() + position * distance
        and (tensor.shape, tensor.stride(), tensor.dtype) == (first.shape, first.stride(), first.dtype)
        for position, tensor in enumerate(tensors)
    )


def _aligned(count: int) -> int:
    return -(-count // ALIGNMENT) * ALIGNMENT
