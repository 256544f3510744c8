"""Attention on short sentences as one Triton kernel, registered with transformers under a name of its own.

torch's scaled_dot_product_attention is made for long sequences; sentences of CoLA have about ten tokens. Here one
program computes all scores of one head of one sentence in registers. Other cases (long sentences, no mask, no
gradients, no kernels) go to torch.

Shapes: B sentences of S tokens, H heads of width W.
"""

from typing import Any

import torch
from torch import nn
from torch.nn import functional

from tasks.training.flat_parameters import as_interleaved
from tasks.training.fused_state import STATE, FusedState, next_power_of_two

ATTENTION_NAME = "verdict_short"  # in transformers' table of attention functions
MAX_ATTENTION_TOKENS = 64  # scores of S x S tokens must fit in the registers of one program
MIN_DOT = 16  # smallest size of a matrix product in Triton
HEAD_WIDTHS = (32, 64, 128)  # powers of two, for the kernel's blocks
FUSED_MODELS = ("bert", "electra", "roberta", "distilbert")  # transformers lets us replace their attention function


def register_attention() -> None:
    """Add the attention function to transformers' tables; it keeps no state there (see `attend`)."""
    from transformers import AttentionInterface, AttentionMaskInterface

    AttentionInterface.register(ATTENTION_NAME, attend)
    AttentionMaskInterface.register(ATTENTION_NAME, keep_mask)


def can_fuse_attention(config: Any) -> bool:
    """Return whether a model with this transformers configuration can use `attend`."""
    if config is None or config.model_type not in FUSED_MODELS or config._attn_implementation != "sdpa":
        return False
    return config.hidden_size // config.num_attention_heads in HEAD_WIDTHS


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
    """Compute dropout(softmax(scaling * Q K^T + mask)) V; the signature is that of transformers' AttentionInterface.

    Args:
        module: the self-attention that calls; its `FusedState` holds kernels and stream of dropout.
        query: [B, H, S, W]; so are key and value.
        key: see query.
        value: see query.
        attention_mask: [B, S], 0 for padding; None: no padding.
        scaling: of the scores; None: 1 / sqrt(W).
        dropout: probability that a weight is dropped.

    Returns:
        [B, S, H, W], and no attention weights.
    """
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    state: FusedState | None = module.__dict__.get(STATE)
    kernels = state.kernels if state and query.shape[2] <= MAX_ATTENTION_TOKENS else None
    if state is None or kernels is None or not torch.is_grad_enabled() or attention_mask is None:
        visible = None if attention_mask is None else attention_mask[:, None, None, :].bool()
        mixed = functional.scaled_dot_product_attention(query, key, value, visible, dropout, scale=scaling)
        return mixed.transpose(1, 2).contiguous(), None
    tensors = (tensor.transpose(1, 2) for tensor in (query, key, value))
    mixed = ShortAttention.apply(*tensors, attention_mask, state.rng.seed, state.stream, dropout, scaling, kernels)
    return mixed, None


def keep_mask(*_: Any, attention_mask: torch.Tensor | None = None, **__: Any) -> torch.Tensor | None:
    """Return the mask [B, S] as it is, in place of transformers' expansion to [B, 1, S, S]."""
    return attention_mask


class ShortAttention(torch.autograd.Function):
    """The kernel and its gradient: (query, key, value [B, S, H, W], mask [B, S], seed [], ...) -> [B, S, H, W]."""

    @staticmethod
    def forward(
        ctx: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        mask: torch.Tensor,
        seed: torch.Tensor,
        stream: int,
        dropout_p: float,
        scaling: float,
        kernels: Any,
    ) -> torch.Tensor:
        """Launch the kernel; arguments that are not contiguous and not chunks of one matrix are copied."""
        batch, length, heads, width = query.shape
        # Elements from one token to the next: shares of one product lie side by side in rows of 3 * H * W.
        row_stride = 3 * heads * width
        if as_interleaved([tensor.flatten(2) for tensor in (query, key, value)]) is None:
            query, key, value = query.contiguous(), key.contiguous(), value.contiguous()
            row_stride = heads * width
        mixed = query.new_empty(query.shape)
        kernels.attention_kernel[(batch * heads,)](
            query, key, value, mask, seed, stream, dropout_p, scaling, heads, length, row_stride, mixed,
            LENGTH=max(MIN_DOT, next_power_of_two(length)), WIDTH=width,
        )  # fmt: skip
        ctx.save_for_backward(query, key, value, mask, seed)
        ctx.stream, ctx.dropout_p, ctx.scaling, ctx.row_stride = stream, dropout_p, scaling, row_stride
        ctx.kernels = kernels
        return mixed

    @staticmethod
    def backward(ctx: Any, grad_mixed: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """Launch the backward kernel."""
        query, key, value, mask, seed = ctx.saved_tensors
        batch, length, heads, width = query.shape
        # Gradients have the strides of the tensors that they belong to: side by side they are one matrix for the
        # backward pass of the shared product.
        if ctx.row_stride == heads * width:
            gradients = query.new_empty(3, batch, length, heads, width).unbind(0)
        else:
            gradients = query.new_empty(batch, length, 3, heads, width).unbind(2)
        ctx.kernels.attention_backward_kernel[(batch * heads,)](
            query, key, value, mask, grad_mixed.contiguous(), seed, ctx.stream, ctx.dropout_p, ctx.scaling, heads,
            length, ctx.row_stride, *gradients, LENGTH=max(MIN_DOT, next_power_of_two(length)), WIDTH=width,
        )  # fmt: skip
        return *gradients, None, None, None, None, None, None
