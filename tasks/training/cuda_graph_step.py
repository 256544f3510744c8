"""Makes models fit for capture: what a model makes on the host in each forward pass is made on the device instead."""

from types import MethodType
from typing import Any, cast

import torch
from torch import nn


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
