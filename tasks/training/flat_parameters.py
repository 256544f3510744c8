"""A model's parameters in one piece of memory, so that an optimiser step is a few kernels instead of hundreds.

The optimiser works on fp32 master weights. Where the model computes in bf16, its parameters are bf16 copies that each
step writes anew: nothing is cast in the forward pass, and small updates are not rounded away.
"""

import re
from typing import NamedTuple

import torch
from torch import nn

ALIGNMENT = 64  # elements; matrix kernels want each parameter at such an address
_GRAD_VIEW, _GRAD_WRITTEN = "flat_place", "flat_written"  # notes on parameters, for fused layers
_LAYER = re.compile(r"\blayers?\.(\d+)\.")


class Segment(NamedTuple):
    """A stretch of the flat parameters that shares its weight decay and its share of the learning rate."""

    start: int
    end: int
    weight_decay: float
    scale: float


class FlatParameters:
    """Trained parameters of a model as one tensor [P]; the model's own become views of `compute`."""

    def __init__(self, model: nn.Module, weight_decay: float, layer_decay: float, dtype: torch.dtype) -> None:
        """Lay out the parameters.

        Args:
            model: on its device, in fp32; its parameters are replaced by views of the given type.
            weight_decay: of matrices; biases and normalisation weights do not decay.
            layer_decay: share of the learning rate that each layer gets of the one above it; 1 for all alike.
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
        place = 0
        for (decay, scale), group in groups.items():
            start = place
            for parameter in group:
                self._adopt(parameter, place)
                place += _aligned(parameter.numel())
            self.segments.append(Segment(start, place, decay, scale))

    def _adopt(self, parameter: nn.Parameter, place: int) -> None:
        """Copy a parameter to its place and make it a view of the compute weights."""
        stretch = slice(place, place + parameter.numel())
        self.master[stretch].copy_(parameter.data.flatten())
        self.compute[stretch].copy_(self.master[stretch])
        parameter.data = self.compute[stretch].view(parameter.shape)
        self.parameters.append(parameter)
        self._grad_views.append(self.grads[stretch].view(parameter.shape))
        parameter.__dict__[_GRAD_VIEW] = self._grad_views[-1]

    def collect_gradients(self) -> None:
        """Bring the parameters' gradients into `grads`; a parameter without one counts as zero.

        Those that fused layers have written there already stay.
        """
        copied: list[tuple[torch.Tensor, torch.Tensor]] = []
        for view, parameter in zip(self._grad_views, self.parameters, strict=True):
            written = parameter.__dict__.pop(_GRAD_WRITTEN, False)
            if parameter.grad is None and not written:
                view.zero_()
            elif parameter.grad is not None and written:
                view += parameter.grad  # used a second time, outside of a fused layer
            elif parameter.grad is not None:
                copied.append((view, parameter.grad))
            parameter.grad = None
        if copied:  # torch refuses empty lists
            torch._foreach_copy_([view for view, _ in copied], [grad for _, grad in copied])

    def restore_fp32(self) -> None:
        """Give the parameters fp32 weights again: views of the master weights; frozen ones get their own back."""
        for parameter, weights in self._frozen:
            parameter.data = weights
        for parameter, view in zip(self.parameters, self._grad_views, strict=True):
            start = view.storage_offset()
            parameter.data = self.master[start : start + parameter.numel()].view(parameter.shape)
            parameter.grad = None
            parameter.__dict__.pop(_GRAD_VIEW, None)

    def sync_compute(self) -> None:
        """Write the compute weights anew from the master weights."""
        if self.compute is not self.master:
            self.compute.copy_(self.master)


def claim_grad_views(*parameters: torch.Tensor) -> list[torch.Tensor] | None:
    """Return where the gradients of parameters are to be written, and note that they are.

    None where one of them has no such place, or has been written in this step: then autograd adds them up.
    """
    if any(_GRAD_VIEW not in each.__dict__ or each.__dict__.get(_GRAD_WRITTEN) for each in parameters):
        return None
    for each in parameters:
        each.__dict__[_GRAD_WRITTEN] = True
    return [each.__dict__[_GRAD_VIEW] for each in parameters]


def layer_scales(model: nn.Module, layer_decay: float) -> dict[str, float]:
    """Return the share of the learning rate for each parameter by name.

    The head learns at the full rate, the top layer at `layer_decay` of it, the next at its square, and so on; the
    embeddings stand below the first layer. Source: Howard and Ruder 2018, https://arxiv.org/abs/1801.06146, 3.2.
    """
    names = [name for name, _ in model.named_parameters()]
    numbers = {name: int(found[1]) for name in names if (found := _LAYER.search(name))}
    layers = max(numbers.values(), default=-1) + 1

    def depth(name: str) -> int:
        if name in numbers:
            return layers - numbers[name]
        return layers + 1 if "embedding" in name or "relative_attention_bias" in name else 0

    return {name: layer_decay ** depth(name) for name in names}


def _aligned(count: int) -> int:
    return -(-count // ALIGNMENT) * ALIGNMENT
