"""Fused layers for the training step of an encoder on a GPU: linear layers, shared QKV product, dropout + add + norm.

`fuse` replaces modules of a Hugging Face model in place, by assigning `module.__class__`: parameters, names, hooks and
references from parent modules stay, nothing is copied, and `unfuse` undoes it by assigning the former class. What a
fused module needs beside its parameters is a `FusedState` in `module.__dict__`, where nn.Module does not look for
parameters or submodules. A fused layer writes its parameters' gradients directly into the flat gradient tensor that the
optimiser reads; it finds its place there as a view in `parameter.__dict__` (see `flat_parameters.claim_grad_views`),
because a Parameter is all that layers and optimiser have in common. Both are for training in one process only: a fused
model must not be copied or saved. Modules of unknown classes are left alone; fused modules compute the same values.

Shapes: B sentences of S tokens, M = B * S rows; linear layers from K to N features.
"""

from collections.abc import Sequence
from types import ModuleType
from typing import Any, cast

import torch
from torch import nn
from torch.nn import functional

from tasks.training.flat_parameters import as_interleaved, as_stacked, claim_grad_views
from tasks.training.fused_attention import ATTENTION_NAME, can_fuse_attention, register_attention
from tasks.training.fused_state import STATE, DropoutRng, FusedState, next_power_of_two, state_of

# Classes of self-attentions, and the names of their query, key and value layers.
PROJECTIONS = {
    "BertSelfAttention": ("query", "key", "value"),
    "ElectraSelfAttention": ("query", "key", "value"),
    "RobertaSelfAttention": ("query", "key", "value"),
    "DistilBertSelfAttention": ("q_lin", "k_lin", "v_lin"),
    "MPNetSelfAttention": ("q", "k", "v"),
}
# Block sizes that were fastest on an H200 at the shapes of BERT-base with 370 tokens a batch.
NORM_ROWS = 2  # rows that one program of the backward kernel of dropout + add + norm takes
SUM_COLUMNS = 16  # columns that one program of the column sum takes
SUM_ROWS = 512  # rows that it reads at once, at most


def fuse(model: nn.Module, rng: DropoutRng, kernels: ModuleType | None) -> None:
    """Replace modules of known classes by fused ones, in place; `unfuse` undoes it.

    Args:
        model: a transformers model, or any other, of which only plain linear layers are replaced.
        rng: seeds of dropout; each module that drops gets a stream of its own.
        kernels: tasks.training.triton_kernels; None: torch's operators compute, and attention is torch's.
    """
    for module in model.modules():
        if projections := _projections_of(module):
            shared = QkvProjection(projections, kernels)
            for position, layer in enumerate(projections):
                _swap_class(layer, FusedProjection, FusedState(nn.Linear, kernels, rng, projection=(shared, position)))
        if type(module) is nn.Linear:
            _swap_class(module, FusedLinear, FusedState(nn.Linear, kernels, rng))
        elif _is_residual(module):
            _swap_class(module, FusedResidual, FusedState(type(module), kernels, rng, rng.new_stream()))
    if can_fuse_attention(getattr(model, "config", None)):
        for module in model.modules():
            if type(module).__name__ in PROJECTIONS:
                module.__dict__[STATE] = FusedState(type(module), kernels, rng, rng.new_stream())  # keeps its class
        register_attention()
        cast(Any, model).set_attn_implementation(ATTENTION_NAME)


def unfuse(model: nn.Module) -> None:
    """Give a model its own modules back; one that is not fused stays as it is."""
    for module in model.modules():
        if state := module.__dict__.pop(STATE, None):
            cast(Any, module).__class__ = state.original
    config: Any = getattr(model, "config", None)
    if config is not None and config._attn_implementation == ATTENTION_NAME:
        cast(Any, model).set_attn_implementation("sdpa")


class FusedLinear(nn.Linear):
    """A linear layer; its bias gradient is one small kernel, and its gradients go straight to the flat tensor."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return x W^T + b, [..., N], for x [..., K]."""
        if not torch.is_grad_enabled() or self.bias is None:
            return functional.linear(x, self.weight, self.bias)
        return StackedLinear.apply(x, 1, state_of(self).kernels, self.weight, self.bias)


class StackedLinear(torch.autograd.Function):
    """x times `count` weight matrices as one product: x [..., K] -> `count` tensors [..., N].

    `parameters` are the weights [N, K], then their biases [N], if they have any; adjacent in memory if count > 1.
    """

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, count: int, kernels: ModuleType | None, *parameters: torch.Tensor
    ) -> torch.Tensor | tuple[torch.Tensor, ...]:
        """Multiply once."""
        ctx.weights, ctx.biases, ctx.kernels = parameters[:count], parameters[count:], kernels
        weight, bias = (as_stacked(tensors) if tensors else None for tensors in (ctx.weights, ctx.biases))
        ctx.save_for_backward(x, weight)
        outputs = functional.linear(x, cast(torch.Tensor, weight), bias)
        return outputs if count == 1 else outputs.chunk(count, -1)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """Write gradients of parameters to the flat tensor where they can be claimed; return the others."""
        x, weight = ctx.saved_tensors
        flat = as_interleaved(grad_outputs)  # [M, count * N]
        if flat is None:
            flat = torch.cat([gradient.reshape(-1, gradient.shape[-1]) for gradient in grad_outputs], 1)
        if not any(ctx.needs_input_grad[3:]):  # of weights that are frozen in this pass
            return (flat @ weight).view(x.shape), *[None] * (len(ctx.needs_input_grad) - 1)
        view = _claim_stacked(ctx.weights)
        grad_weights = torch.mm(flat.t(), x.reshape(-1, x.shape[-1]), out=view)
        unwritten = _unwritten_grads(grad_weights, view, len(ctx.weights))
        if ctx.biases:
            view = _claim_stacked(ctx.biases)
            grad_biases = column_sum(flat, weight.dtype, ctx.kernels, out=view)
            unwritten += _unwritten_grads(grad_biases, view, len(ctx.biases))
        return (flat @ weight).view(x.shape), None, None, *unwritten


class FusedProjection(FusedLinear):
    """A query, key or value layer; it takes its share of the common product where there is one."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return x W^T + b, [..., N], for x [..., K]."""
        shared, position = cast(Any, state_of(self).projection)
        share = shared.take(position, x)
        return super().forward(x) if share is None else share


class QkvProjection:
    """Query, key and value of one attention: computed as one product when the query layer runs, then handed out."""

    def __init__(self, layers: Sequence[nn.Linear], kernels: ModuleType | None) -> None:
        self._layers, self._kernels = layers, kernels
        self._input: torch.Tensor | None = None
        self._outputs: dict[int, torch.Tensor] = {}  # by position, until they are taken

    def take(self, position: int, x: torch.Tensor) -> torch.Tensor | None:
        """Return the output of layer `position` for x [..., K]; None if the layer must compute it itself."""
        if position == 0:
            self._input, self._outputs = x, dict(enumerate(self._project(x)))
        elif x is not self._input:
            self._outputs = {}
        share = self._outputs.pop(position, None)
        if not self._outputs:
            self._input = None  # keep no activation alive between two passes
        return share

    def _project(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return the outputs of all layers; () if their parameters are not adjacent in memory."""
        weights, biases = [layer.weight for layer in self._layers], [layer.bias for layer in self._layers]
        if not torch.is_grad_enabled() or as_stacked(weights) is None or as_stacked(biases) is None:
            return ()
        return StackedLinear.apply(x, len(weights), self._kernels, *weights, *biases)


def column_sum(
    values: torch.Tensor, dtype: torch.dtype, kernels: ModuleType | None, out: torch.Tensor | None = None
) -> torch.Tensor:
    """Return the sums over the rows of values [M, N], contiguous, as [N] of type `dtype`; added up in fp32."""
    if kernels is None:
        return torch.sum(values, 0, dtype=dtype, out=out)
    rows, columns = values.shape
    sums = torch.empty(columns, dtype=dtype, device=values.device) if out is None else out
    grid = (-(-columns // SUM_COLUMNS),)
    size = min(SUM_ROWS, max(32, next_power_of_two(rows)))
    warps = 8 if size * SUM_COLUMNS >= 4096 else 1
    kernels.column_sum_kernel[grid](values, sums, rows, columns, ROWS=size, COLUMNS=SUM_COLUMNS, num_warps=warps)
    return sums


class FusedResidual(nn.Module):
    """The end of a BERT block, LayerNorm(dropout(dense(x)) + input): one product, and one kernel for the rest."""

    def forward(self, hidden_states: torch.Tensor, input_tensor: torch.Tensor) -> torch.Tensor:
        """Return the block's output [B, S, N] for hidden_states [B, S, K] and input_tensor [B, S, N]."""
        block = cast(Any, self)  # has dense, dropout and LayerNorm of the module whose class was replaced
        dense, norm, state = block.dense, block.LayerNorm, state_of(self)
        if not torch.is_grad_enabled() or state.kernels is None:
            return norm(block.dropout(dense(hidden_states)) + input_tensor)
        branch = StackedLinear.apply(hidden_states, 1, state.kernels, dense.weight)
        dropout_p = block.dropout.p if self.training else 0.0
        return DropoutAddNorm.apply(
            branch, input_tensor, dense.bias, norm.weight, norm.bias, state.rng.seed, state.stream, dropout_p, norm.eps,
            state.kernels,
        )  # fmt: skip


class DropoutAddNorm(torch.autograd.Function):
    """LayerNorm(dropout(branch + offset) + residual) for branch and residual [..., N]; the others are [N]."""

    @staticmethod
    def forward(
        ctx: Any,
        branch: torch.Tensor,
        residual: torch.Tensor,
        offset: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor,
        seed: torch.Tensor,
        stream: int,
        dropout_p: float,
        epsilon: float,
        kernels: Any,
    ) -> torch.Tensor:
        """Launch the kernel, one program a row."""
        branch, residual = branch.contiguous(), residual.contiguous()
        width = branch.shape[-1]
        rows = branch.numel() // width
        sums, normed = torch.empty_like(branch), torch.empty_like(branch)
        means, scales = (torch.empty(rows, device=branch.device) for _ in range(2))
        kernels.dropout_add_norm_kernel[(rows,)](
            branch, residual, offset, weight, bias, seed, stream, dropout_p, epsilon, width, sums, means, scales,
            normed, WIDTH=next_power_of_two(width),
        )  # fmt: skip
        ctx.save_for_backward(sums, means, scales, weight, seed)
        ctx.parameters, ctx.stream, ctx.dropout_p, ctx.kernels = (offset, weight, bias), stream, dropout_p, kernels
        return normed

    @staticmethod
    def backward(ctx: Any, grad_normed: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """Launch the backward kernel, then add up the programs' shares of the parameters' gradients."""
        sums, means, scales, weight, seed = ctx.saved_tensors
        grad_normed = grad_normed.contiguous()
        width, rows = grad_normed.shape[-1], len(means)
        programs = -(-rows // NORM_ROWS)
        grad_branch, grad_residual = torch.empty_like(grad_normed), torch.empty_like(grad_normed)
        partial = torch.empty(programs, 3 * width, device=grad_normed.device)
        ctx.kernels.dropout_add_norm_backward_kernel[(programs,)](
            grad_normed, sums, means, scales, weight, seed, ctx.stream, ctx.dropout_p, rows, width,
            grad_branch, grad_residual, partial, ROWS=NORM_ROWS, WIDTH=next_power_of_two(width),
        )  # fmt: skip
        if not any(ctx.needs_input_grad[2:5]):
            return grad_branch, grad_residual, *[None] * (len(ctx.needs_input_grad) - 2)
        view = _claim_stacked(ctx.parameters)
        grad_parameters = column_sum(partial, weight.dtype, ctx.kernels, out=view)
        unwritten = _unwritten_grads(grad_parameters, view, 3)
        return grad_branch, grad_residual, *unwritten, None, None, None, None, None


def _swap_class(module: nn.Module, fused: type[nn.Module], state: FusedState) -> None:
    module.__dict__[STATE] = state
    cast(Any, module).__class__ = fused


def _projections_of(module: nn.Module) -> list[nn.Linear]:
    """Return the query, key and value layers of a self-attention of a known class; [] for other modules."""
    layers = [getattr(module, name, None) for name in PROJECTIONS.get(type(module).__name__, ())]
    return cast(list[nn.Linear], layers) if all(type(layer) is nn.Linear for layer in layers) else []


def _is_residual(module: nn.Module) -> bool:
    """Return whether a module is the end of a BERT-like block, by its class's name and its submodules."""
    name = type(module).__name__
    submodules = (("dense", nn.Linear), ("dropout", nn.Dropout), ("LayerNorm", nn.LayerNorm))
    known = name.startswith(("Bert", "Electra", "MPNet", "Roberta")) and name.endswith("Output")
    return known and all(type(getattr(module, part, None)) in (kind, FusedLinear) for part, kind in submodules)


def _claim_stacked(parameters: Sequence[torch.Tensor]) -> torch.Tensor | None:
    """Claim the gradient views of adjacent parameters as one tensor; None where they are not to be written as one."""
    views = None if as_stacked(parameters) is None else claim_grad_views(*parameters)
    return None if views is None else as_stacked(views)


def _unwritten_grads(gradients: torch.Tensor, view: torch.Tensor | None, count: int) -> tuple[torch.Tensor | None, ...]:
    """Return what autograd still has to add up of `count` stacked gradients: all, or none if written into `view`."""
    return gradients.chunk(count) if view is None else (None,) * count
