"""Fused pieces of an encoder's step on a GPU: linear layers, attention on short sentences, dropout + add + normalise.

They take the place of a Hugging Face model's own pieces while it trains and compute the same; a model that has other
pieces keeps them. Random numbers for dropout come from a counter on the device, so that each replay of a captured
graph drops others.
"""

from typing import Any, cast

import torch
from torch import nn
from torch.nn import functional

from tasks.flat import take_places

ATTENTION = "verdict_short"  # the name that transformers knows our attention by
LONGEST = 64  # tokens that one program of the attention kernel takes
STRIDE = 4096  # between the numbers of two steps; no model drops in so many places
HEAD_WIDTHS = (32, 64, 128)
SHORT_MODELS = ("bert", "electra", "roberta", "distilbert")  # whose attention transformers lets us replace
# Sizes that were fastest on an H200 at the shapes of BERT-base with 370 tokens a batch.
ROWS_A_PROGRAM = 2
SUM_COLUMNS = 16
SUM_ROWS = 512  # at the most


class Dice:
    """Seeds of the dropout in a step: a counter on the device, and a salt for each place that drops."""

    def __init__(self, device: torch.device) -> None:
        self.seed = torch.zeros((), dtype=torch.int32, device=device)
        self._base = torch.initial_seed()
        self._salts = 0

    def set(self, step: int) -> None:
        """Take up the numbers of a step of the schedule, so that a run that goes on draws what it would have drawn."""
        self.seed.fill_((self._base + step * STRIDE) % 2**31)

    def salt(self) -> int:
        """Return a number that no other place has; a step's counter moves further than all of them."""
        self._salts += 1
        return self._salts

    def roll(self) -> None:
        """Move on to the next step's numbers."""
        self.seed += STRIDE


def fuse(model: nn.Module, dice: Dice) -> None:
    """Replace what can be replaced in a model, in place; `unfuse` undoes it."""
    for module in model.modules():
        if type(module) is nn.Linear:
            module.__class__ = FusedLinear
        elif _is_residual(module):
            module.__dict__["fused"] = (type(module), dice, dice.salt())
            module.__class__ = FusedResidual
    if _fits(getattr(model, "config", None)):
        _register(dice)
        cast(Any, model).set_attn_implementation(ATTENTION)


def unfuse(model: nn.Module) -> None:
    """Give a model its own pieces back."""
    for module in model.modules():
        if type(module) is FusedLinear:
            cast(Any, module).__class__ = nn.Linear
        elif type(module) is FusedResidual:
            module.__class__ = module.__dict__.pop("fused")[0]
    config: Any = getattr(model, "config", None)
    if config is not None and config._attn_implementation == ATTENTION:
        cast(Any, model).set_attn_implementation("sdpa")


class FusedLinear(nn.Linear):
    """A linear layer whose bias gradient is one small kernel."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return x W^T + b."""
        if not torch.is_grad_enabled() or self.bias is None:
            return functional.linear(x, self.weight, self.bias)
        return _Linear.apply(x, self.weight, self.bias)


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(x, weight)
        ctx.weight, ctx.bias = weight, bias
        return functional.linear(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
        x, weight = ctx.saved_tensors
        flat = gradient.reshape(-1, gradient.shape[-1]).contiguous()
        inputs = x.reshape(-1, x.shape[-1])
        places = take_places(ctx.weight, ctx.bias)
        if places is None:
            return gradient @ weight, flat.t() @ inputs, column_sum(flat, weight.dtype)
        # Written where the optimiser reads them, gradients are moved no more.
        torch.mm(flat.t(), inputs, out=places[0])
        column_sum(flat, weight.dtype, out=places[1])
        return gradient @ weight, None, None


def column_sum(values: torch.Tensor, dtype: torch.dtype, out: torch.Tensor | None = None) -> torch.Tensor:
    """Return the sums of the columns of values [M, N], contiguous, as [N]."""
    rows, columns = values.shape
    sums = torch.empty(columns, dtype=dtype, device=values.device) if out is None else out
    grid = (-(-columns // SUM_COLUMNS),)
    size = min(SUM_ROWS, max(32, _power_of_two(rows)))
    warps = 8 if size * SUM_COLUMNS >= 4096 else 1
    _kernels().column_sum_kernel[grid](values, sums, rows, columns, ROWS=size, COLUMNS=SUM_COLUMNS, num_warps=warps)
    return sums


class FusedResidual(nn.Module):
    """The end of a BERT block: LayerNorm(dropout(dense(x)) + input) with everything after `dense` in one kernel."""

    def forward(self, hidden_states: torch.Tensor, input_tensor: torch.Tensor) -> torch.Tensor:
        """Return the block's output."""
        parts = cast(Any, self)  # dense, dropout and LayerNorm of the module whose place this takes
        branch, norm = parts.dense(hidden_states), parts.LayerNorm
        if not torch.is_grad_enabled():
            return norm(branch + input_tensor)
        _, dice, salt = self.__dict__["fused"]
        dropped = parts.dropout.p if self.training else 0.0
        return _DropoutAddNorm.apply(branch, input_tensor, norm.weight, norm.bias, dice.seed, salt, dropped, norm.eps)


class _DropoutAddNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        branch: torch.Tensor,
        residual: torch.Tensor,
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
            branch, residual, weight, bias, seed, salt, dropped, epsilon, width, sums, means, scales, normed,
            WIDTH=_power_of_two(width),
        )  # fmt: skip
        ctx.save_for_backward(sums, means, scales, weight, seed)
        ctx.salt, ctx.dropped = salt, dropped
        return normed

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        sums, means, scales, weight, seed = ctx.saved_tensors
        gradient = gradient.contiguous()
        width, rows = gradient.shape[-1], len(means)
        programs = -(-rows // ROWS_A_PROGRAM)
        to_branch, to_residual = torch.empty_like(gradient), torch.empty_like(gradient)
        partial = torch.empty(programs, 2 * width, device=gradient.device)
        _kernels().dropout_add_norm_backward_kernel[(programs,)](
            gradient, sums, means, scales, weight, seed, ctx.salt, ctx.dropped, rows, width,
            to_branch, to_residual, partial, ROWS=ROWS_A_PROGRAM, WIDTH=_power_of_two(width),
        )  # fmt: skip
        shares = column_sum(partial, weight.dtype)
        return to_branch, to_residual, shares[:width], shares[width:], None, None, None, None


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
        query, key, value = query.contiguous(), key.contiguous(), value.contiguous()
        batch, length, heads, width = query.shape
        mixed = torch.empty_like(query)
        _kernels().attention_kernel[(batch * heads,)](
            query, key, value, mask, seed, salt, dropped, scaling, heads, length, mixed,
            LENGTH=max(16, _power_of_two(length)), WIDTH=width,
        )  # fmt: skip
        ctx.save_for_backward(query, key, value, mask, seed)
        ctx.salt, ctx.dropped, ctx.scaling = salt, dropped, scaling
        return mixed

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        query, key, value, mask, seed = ctx.saved_tensors
        batch, length, heads, width = query.shape
        into = [torch.empty_like(query) for _ in range(3)]
        _kernels().attention_backward_kernel[(batch * heads,)](
            query, key, value, mask, gradient.contiguous(), seed, ctx.salt, ctx.dropped, ctx.scaling, heads, length,
            *into, LENGTH=max(16, _power_of_two(length)), WIDTH=width,
        )  # fmt: skip
        return *into, None, None, None, None, None


def _register(dice: Dice) -> None:
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
        if query.shape[2] > LONGEST or not torch.is_grad_enabled() or attention_mask is None:
            seen = None if attention_mask is None else attention_mask[:, None, None, :].bool()
            mixed = functional.scaled_dot_product_attention(query, key, value, seen, dropout, scale=scaling)
            return mixed.transpose(1, 2).contiguous(), None
        salt = salts.get(id(module)) or salts.setdefault(id(module), dice.salt())
        parts = (part.transpose(1, 2) for part in (query, key, value))
        return _Attention.apply(*parts, attention_mask, dice.seed, salt, dropout, scaling), None

    def keep_mask(*_: Any, attention_mask: torch.Tensor | None = None, **__: Any) -> torch.Tensor | None:
        return attention_mask

    AttentionInterface.register(ATTENTION, attend)
    AttentionMaskInterface.register(ATTENTION, keep_mask)


def _is_residual(module: nn.Module) -> bool:
    """Tell whether a module is the end of a BERT-like block, by its class's name and its parts."""
    name = type(module).__name__
    parts = (("dense", nn.Linear), ("dropout", nn.Dropout), ("LayerNorm", nn.LayerNorm))
    known = name.startswith(("Bert", "Electra", "Roberta")) and name.endswith("Output")
    return known and all(type(getattr(module, part, None)) in (kind, FusedLinear) for part, kind in parts)


def _fits(config: Any) -> bool:
    """Tell whether a model's attention can be ours: where transformers lets it, with heads of a width that fits."""
    if config is None or config.model_type not in SHORT_MODELS or config._attn_implementation != "sdpa":
        return False
    return config.hidden_size // config.num_attention_heads in HEAD_WIDTHS


def _kernels() -> Any:
    """Import the kernels where they are needed: machines without a GPU have no Triton."""
    from tasks import kernels

    return kernels


def _power_of_two(count: int) -> int:
    return 1 << (count - 1).bit_length()
