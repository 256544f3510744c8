"""One training step: forward, backward, clipping, AdamW, learning-rate schedule."""

import math

import torch
from torch import nn

Batch = dict[str, torch.Tensor]


def learning_rate_factor(step: int, total: int, warmup: int) -> float:
    """Return the share of the peak learning rate for a step, from 0: linear rise, then linear fall to 0."""
    if step < warmup:
        return (step + 1) / warmup
    return max(0.0, (total - step) / max(1, total - warmup))


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict]:
    """Split parameters into a group that decays (matrices) and one that does not (biases, normalisation weights)."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return [
        {"params": [parameter for parameter in trained if parameter.ndim >= 2], "weight_decay": weight_decay},
        {"params": [parameter for parameter in trained if parameter.ndim < 2], "weight_decay": 0.0},
    ]


class Stepper:
    """Applies training steps to a model; nothing in a step waits for the device."""

    def __init__(
        self,
        model: nn.Module,
        *,
        steps: int,
        learning_rate: float,
        warmup_ratio: float,
        weight_decay: float,
        max_grad_norm: float,
    ) -> None:
        """Prepare the optimiser.

        Args:
            model: takes `labels` and returns an object with `loss` and `logits`.
            steps: number of steps that the schedule spans.
            learning_rate: its peak.
            warmup_ratio: share of the steps before the peak.
            weight_decay: AdamW's, for matrices.
            max_grad_norm: L2 norm that gradients are clipped to.
        """
        self._model = model
        self._max_grad_norm = max_grad_norm
        self._device_type = next(model.parameters()).device.type
        warmup = math.ceil(steps * warmup_ratio)
        self._optimizer = torch.optim.AdamW(parameter_groups(model, weight_decay), lr=learning_rate, fused=True)
        self._schedule = torch.optim.lr_scheduler.LambdaLR(
            self._optimizer, lambda step: learning_rate_factor(step, steps, warmup)
        )

    def step(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """Train on one batch; return (loss [], correct predictions []) on the device."""
        with torch.autocast(self._device_type, torch.bfloat16, enabled=self._device_type == "cuda"):
            output = self._model(**batch)
        output.loss.backward()
        nn.utils.clip_grad_norm_(self._model.parameters(), self._max_grad_norm)
        self._optimizer.step()
        self._schedule.step()
        self._optimizer.zero_grad(set_to_none=True)
        correct = (output.logits.detach().argmax(-1) == batch["labels"]).sum()
        return output.loss.detach().float(), correct
