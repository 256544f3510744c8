"""Fused pieces of an encoder's step on a GPU: linear layers, attention on short sentences, dropout + add + normalise.

They take the place of a Hugging Face model's own pieces while it trains and compute the same; a model that has other
pieces keeps them. Random numbers for dropout come from a counter on the device, so that each replay of a captured
graph drops others.

Shapes: B sentences of S tokens, M = B * S; linear layers from K to N.
"""

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import nn
from torch.nn import functional

from tasks.training.flat_parameters import claim_grad_views

ATTENTION_NAME = "verdict_short"  # the name that transformers knows our attention by
MAX_ATTENTION_TOKENS = 64  # tokens that one program of the attention kernel takes
STRIDE = 4096  # between the numbers of two steps; no model drops in so many places
HEAD_WIDTHS = (32, 64, 128)
FUSED_MODELS = ("bert", "electra", "roberta", "distilbert")  # whose attention transformers lets us replace
# Classes of self-attentions, and what their linear layers for query, key and value are named.
PROJECTIONS = {
    "BertSelfAttention": ("query", "key", "value"),
    "ElectraSelfAttention": ("query", "key", "value"),
    "RobertaSelfAttention": ("query", "key", "value"),
    "DistilBertSelfAttention": ("q_lin", "k_lin", "v_lin"),
    "MPNetSelfAttention": ("q", "k", "v"),
}
# Sizes that were fastest on an H200 at the shapes of BERT-base with 370 tokens a batch.
ROWS_PER_PROGRAM = 2
SUM_COLUMNS = 16
SUM_ROWS = 512  # at the most


class DropoutRng:
    """Seeds of the dropout in a step: a counter on the device, and a salt for each place that drops."""

    def __init__(self, device: torch.device) -> None:
        self.seed = torch.zeros((), dtype=torch.int32, device=device)
        self._base = torch.initial_seed()
        self._salts = 0

    def seek(self, step: int) -> None:
        """Take up the numbers of a step of the schedule, so that a run that goes on draws what it would have drawn."""
        self.seed.fill_((self._base + step * STRIDE) % 2**31)

    def new_stream(self) -> int:
        """Return a number that no other place has; a step's counter moves further than all of them."""
        self._salts += 1
        return self._salts

    def advance(self) -> None:
        """Move on to the next step's numbers."""
        self.seed += STRIDE


def fuse(model: nn.Module, dice: DropoutRng) -> None:
    """Replace what can be replaced in a model, in place; `unfuse` undoes it."""
    for module in model.modules():
        if parts := _projections_of(module):
            shared = QkvProjection(parts)
            for place, part in enumerate(parts):
                part.__dict__["fused"] = (shared, place)
                cast(Any, part).__class__ = FusedProjection
        if type(module) is nn.Linear:
            module.__class__ = FusedLinear
        elif _is_residual(module):
            module.__dict__["fused"] = (type(module), dice, dice.new_stream())
            module.__class__ = FusedResidual
    if _fits(getattr(model, "config", None)):
        _register(dice)
        cast(Any, model).set_attn_implementation(ATTENTION_NAME)


def unfuse(model: nn.Module) -> None:
    """Give a model its own pieces back."""
    for module in model.modules():
        if type(module) in (FusedLinear, FusedProjection):
            cast(Any, module).__class__ = nn.Linear
            module.__dict__.pop("fused", None)
        elif type(module) is FusedResidual:
            module.__class__ = module.__dict__.pop("fused")[0]
    config: Any = getattr(model, "config", None)
    if config is not None and config._attn_implementation == ATTENTION_NAME:
        cast(Any, model).set_attn_implementation("sdpa")


class FusedLinear(nn.Linear):
    """A linear layer whose bias gradient is one small kernel."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return x W^T + b."""
        if not torch.is_grad_enabled() or self.bias is None:
            return functional.linear(x, self.weight, self.bias)
        return _Linear.apply(x, 1, self.weight, self.bias)


class _Linear(torch.autograd.Function):
    """One product of x and `count` weights; the parameters are those, then their biases, if they have any."""

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, count: int, *parameters: torch.Tensor
    ) -> torch.Tensor | tuple[torch.Tensor, ...]:
        ctx.weights, ctx.biases = parameters[:count], parameters[count:]
        weight, bias = (_as_stacked(parts) if parts else None for parts in (ctx.weights, ctx.biases))
        ctx.save_for_backward(x, weight)
        made = functional.linear(x, cast(torch.Tensor, weight), bias)
        return made if count == 1 else made.chunk(count, -1)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        flat = _as_interleaved(gradients)
        if flat is None:
            flat = torch.cat([gradient.reshape(-1, gradient.shape[-1]) for gradient in gradients], 1)
        # Written where the optimiser reads them, gradients are moved no more.
        place = _take_stacked(ctx.weights)
        to_weights = torch.mm(flat.t(), x.reshape(-1, x.shape[-1]), out=place)
        left = _unwritten_grads(to_weights, place, len(ctx.weights))
        if ctx.biases:
            place = _take_stacked(ctx.biases)
            left += _unwritten_grads(column_sum(flat, weight.dtype, out=place), place, len(ctx.biases))
        return (flat @ weight).view(x.shape), None, *left


class FusedProjection(FusedLinear):
    """A query, key or value layer; it takes its share of one product where that can be made."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return x W^T + b."""
        shared, place = self.__dict__["fused"]
        share = shared.take(place, x)
        return super().forward(x) if share is None else share


class QkvProjection:
    """Query, key and value of one attention: made as one product when the query is asked for, then handed out."""

    def __init__(self, parts: Sequence[nn.Linear]) -> None:
        self._parts = parts
        self._input: torch.Tensor | None = None
        self._made: dict[int, torch.Tensor] = {}  # what has not been handed out, by place

    def take(self, place: int, x: torch.Tensor) -> torch.Tensor | None:
        """Return what part `place` makes of x [..., K]; None where it has to compute for itself."""
        if place == 0:
            self._input, self._made = x, dict(enumerate(self._project(x)))
        elif x is not self._input:
            self._made = {}
        share = self._made.pop(place, None)
        if not self._made:
            self._input = None  # nothing is kept alive between two passes
        return share

    def _project(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return all parts' outputs; none where their parameters do not lie one after the other."""
        weights, biases = [part.weight for part in self._parts], [part.bias for part in self._parts]
        if not torch.is_grad_enabled() or _as_stacked(weights) is None or _as_stacked(biases) is None:
            return ()
        return _Linear.apply(x, len(weights), *weights, *biases)


def column_sum(values: torch.Tensor, dtype: torch.dtype, out: torch.Tensor | None = None) -> torch.Tensor:
    """Return the sums of the columns of values [M, N], contiguous, as [N]."""
    if not _has_kernels(values):
        return torch.sum(values, 0, dtype=dtype, out=out)
    rows, columns = values.shape
    sums = torch.empty(columns, dtype=dtype, device=values.device) if out is None else out
    grid = (-(-columns // SUM_COLUMNS),)
    size = min(SUM_ROWS, max(32, _power_of_two(rows)))
    warps = 8 if size * SUM_COLUMNS >= 4096 else 1
    _kernels().column_sum_kernel[grid](values, sums, rows, columns, ROWS=size, COLUMNS=SUM_COLUMNS, num_warps=warps)
    return sums


class FusedResidual(nn.Module):
    """The end of a BERT block: LayerNorm(dropout(dense(x)) + input); what follows the product is one kernel."""

    def forward(self, hidden_states: torch.Tensor, input_tensor: torch.Tensor) -> torch.Tensor:
        """Return the block's output."""
        parts = cast(Any, self)  # dense, dropout and LayerNorm of the module whose place this takes
        dense, norm = parts.dense, parts.LayerNorm
        if not torch.is_grad_enabled() or not _has_kernels(hidden_states):
            return norm(parts.dropout(dense(hidden_states)) + input_tensor)
        branch = _Linear.apply(hidden_states, 1, dense.weight)
        _, dice, salt = self.__dict__["fused"]
        dropped = parts.dropout.p if self.training else 0.0
        parameters = dense.bias, norm.weight, norm.bias
        return _DropoutAddNorm.apply(branch, input_tensor, *parameters, dice.seed, salt, dropped, norm.eps)


class _DropoutAddNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        branch: torch.Tensor,
        residual: torch.Tensor,
        offset: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor,
        seed: torch.Tensor,
        salt: int,
        dropped: float,
        epsilon: float,
    ) -> torch.Tensor:
        branch, residual = branch.contiguous(), residual.contiguous()
        width = branch.shape[-1]
        rows = branch.numel() // width
        sums, normed = torch.empty_like(branch), torch.empty_like(branch)
        means, scales = (torch.empty(rows, device=branch.device) for _ in range(2))
        _kernels().dropout_add_norm_kernel[(rows,)](
            branch, residual, offset, weight, bias, seed, salt, dropped, epsilon, width, sums, means, scales, normed,
            WIDTH=_power_of_two(width),
        )  # fmt: skip
        ctx.save_for_backward(sums, means, scales, weight, seed)
        ctx.parameters, ctx.salt, ctx.dropped = (offset, weight, bias), salt, dropped
        return normed

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        sums, means, scales, weight, seed = ctx.saved_tensors
        gradient = gradient.contiguous()
        width, rows = gradient.shape[-1], len(means)
        programs = -(-rows // ROWS_PER_PROGRAM)
        to_branch, to_residual = torch.empty_like(gradient), torch.empty_like(gradient)
        partial = torch.empty(programs, 3 * width, device=gradient.device)
        _kernels().dropout_add_norm_backward_kernel[(programs,)](
            gradient, sums, means, scales, weight, seed, ctx.salt, ctx.dropped, rows, width,
            to_branch, to_residual, partial, ROWS=ROWS_PER_PROGRAM, WIDTH=_power_of_two(width),
        )  # fmt: skip
        place = _take_stacked(ctx.parameters)
        shares = column_sum(partial, weight.dtype, out=place)
        return to_branch, to_residual, *_unwritten_grads(shares, place, 3), None, None, None, None


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        mask: torch.Tensor,
        seed: torch.Tensor,
        salt: int,
        dropped: float,
        scaling: float,
    ) -> torch.Tensor:
        batch, length, heads, width = query.shape
        row = 3 * heads * width  # elements from one token to the next
        if _as_interleaved([part.flatten(2) for part in (query, key, value)]) is None:
            query, key, value = query.contiguous(), key.contiguous(), value.contiguous()
            row = heads * width
        mixed = query.new_empty(query.shape)
        _kernels().attention_kernel[(batch * heads,)](
            query, key, value, mask, seed, salt, dropped, scaling, heads, length, row, mixed,
            LENGTH=max(16, _power_of_two(length)), WIDTH=width,
        )  # fmt: skip
        ctx.save_for_backward(query, key, value, mask, seed)
        ctx.salt, ctx.dropped, ctx.scaling, ctx.row = salt, dropped, scaling, row
        return mixed

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        query, key, value, mask, seed = ctx.saved_tensors
        batch, length, heads, width = query.shape
        # Gradients lie as what they are of.
        if ctx.row == heads * width:
            into = query.new_empty(3, batch, length, heads, width).unbind(0)
        else:
            into = query.new_empty(batch, length, 3, heads, width).unbind(2)
        _kernels().attention_backward_kernel[(batch * heads,)](
            query, key, value, mask, gradient.contiguous(), seed, ctx.salt, ctx.dropped, ctx.scaling, heads, length,
            ctx.row, *into, LENGTH=max(16, _power_of_two(length)), WIDTH=width,
        )  # fmt: skip
        return *into, None, None, None, None, None


def _register(dice: DropoutRng) -> None:
    """Make our attention known to transformers; where it does not fit, torch's own answers."""
    from transformers import AttentionInterface, AttentionMaskInterface

    salts: dict[int, int] = {}

    def attend(
        module: nn.Module,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None,
        scaling: float | None = None,
        dropout: float = 0.0,
        **_: Any,
    ) -> tuple[torch.Tensor, None]:
        """Attend; queries, keys and values are [B, heads, S, width], the mask [B, S]."""
        scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
        fits = query.shape[2] <= MAX_ATTENTION_TOKENS and _has_kernels(query)
        if not fits or not torch.is_grad_enabled() or attention_mask is None:
            seen = None if attention_mask is None else attention_mask[:, None, None, :].bool()
            mixed = functional.scaled_dot_product_attention(query, key, value, seen, dropout, scale=scaling)
            return mixed.transpose(1, 2).contiguous(), None
        salt = salts.get(id(module)) or salts.setdefault(id(module), dice.new_stream())
        parts = (part.transpose(1, 2) for part in (query, key, value))
        return _Attention.apply(*parts, attention_mask, dice.seed, salt, dropout, scaling), None

    def keep_mask(*_: Any, attention_mask: torch.Tensor | None = None, **__: Any) -> torch.Tensor | None:
        return attention_mask

    AttentionInterface.register(ATTENTION_NAME, attend)
    AttentionMaskInterface.register(ATTENTION_NAME, keep_mask)


def _projections_of(module: nn.Module) -> list[nn.Linear]:
    """Return query, key and value of a self-attention that is known by its class's name; nothing of other modules."""
    parts = [getattr(module, name, None) for name in PROJECTIONS.get(type(module).__name__, ())]
    return cast(list[nn.Linear], parts) if all(type(part) is nn.Linear for part in parts) else []


def _is_residual(module: nn.Module) -> bool:
    """Tell whether a module is the end of a BERT-like block, by its class's name and its parts."""
    name = type(module).__name__
    parts = (("dense", nn.Linear), ("dropout", nn.Dropout), ("LayerNorm", nn.LayerNorm))
    known = name.startswith(("Bert", "Electra", "Roberta")) and name.endswith("Output")
    return known and all(type(getattr(module, part, None)) in (kind, FusedLinear) for part, kind in parts)


def _fits(config: Any) -> bool:
    """Tell whether a model's attention can be ours: where transformers lets it, with heads of a width that fits."""
    if config is None or config.model_type not in FUSED_MODELS or config._attn_implementation != "sdpa":
        return False
    return config.hidden_size // config.num_attention_heads in HEAD_WIDTHS


def _as_stacked(parts: Sequence[torch.Tensor]) -> torch.Tensor | None:
    """Return parts [N, ...] that lie one after the other in memory as one [parts * N, ...]; None for others."""
    first = parts[0]
    if len(parts) == 1:
        return first.detach()
    if first is None or not first.is_contiguous() or not _is_interleaved(parts, first.numel()):
        return None
    return first.detach().as_strided((len(parts) * len(first), *first.shape[1:]), first.stride())


def _as_interleaved(parts: Sequence[torch.Tensor]) -> torch.Tensor | None:
    """Return parts [..., N] that lie side by side in memory as one [M, parts * N]; None for others."""
    matrices = [part.reshape(-1, part.shape[-1]) for part in parts]
    rows, width = matrices[0].shape
    row = len(parts) * width
    if matrices[0].stride() != (row, 1) or not _is_interleaved(matrices, width):
        return None
    return matrices[0].as_strided((rows, row), (row, 1))


def _is_interleaved(parts: Sequence[torch.Tensor], step: int) -> bool:
    """Tell whether parts are alike and each lies `step` elements after the one before, in the same memory."""
    first = parts[0]
    return all(
        part is not None
        and part.untyped_storage().data_ptr() == first.untyped_storage().data_ptr()
        and part.storage_offset() == first.storage_offset() + place * step
        and (part.shape, part.stride(), part.dtype) == (first.shape, first.stride(), first.dtype)
        for place, part in enumerate(parts)
    )


def _take_stacked(parameters: Sequence[torch.Tensor]) -> torch.Tensor | None:
    """Take the places of gradients (see `take_places`) as one; None where they are not to be written as one."""
    places = None if _as_stacked(parameters) is None else claim_grad_views(*parameters)
    return None if places is None else _as_stacked(places)


def _unwritten_grads(
    gradients: torch.Tensor, place: torch.Tensor | None, count: int
) -> tuple[torch.Tensor | None, ...]:
    """Return what is left to autograd of `count` stacked gradients: all, or nothing if they were written in place."""
    return gradients.chunk(count) if place is None else (None,) * count


def _has_kernels(tensor: torch.Tensor) -> bool:
    """Tell whether our kernels run where a tensor lies."""
    return tensor.is_cuda


def _kernels() -> Any:
    """Import the kernels where they are needed: machines without a GPU have no Triton."""
    from tasks.training import triton_kernels as kernels

    return kernels


def _power_of_two(count: int) -> int:
    return 1 << (count - 1).bit_length()
