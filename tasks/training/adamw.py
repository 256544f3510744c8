"""AdamW on flat parameters: clipping, moments, decay, and the bf16 copies in one pass over memory.

Source: Loshchilov and Hutter 2019, https://arxiv.org/abs/1711.05101, algorithm 2, with bias correction. On a GPU a
Triton kernel reads each gradient, weight and moment once and writes each once; elsewhere it is torch's fused AdamW.
"""

from typing import Any

import torch

from tasks.training.flat_parameters import FlatParameters
from tasks.training.process_group import ProcessGroup

BETA1, BETA2, EPSILON = 0.9, 0.999, 1e-8
ADAMW_BLOCK = 1024  # elements a program of the kernel works on
TINY_NORM = 1e-6  # keeps the clipping factor finite, as in torch


class TorchAdamW:
    """torch's fused AdamW over the segments; rates are set on the host."""

    def __init__(self, flat: FlatParameters, max_grad_norm: float, team: ProcessGroup | None = None) -> None:
        """Make the moments; with a team, each step adds up everybody's gradients first."""
        self._flat, self._max_grad_norm, self._team = flat, max_grad_norm, team
        self._stretches = [torch.nn.Parameter(flat.master[part.start : part.end]) for part in flat.segments]
        for parameter, part in zip(self._stretches, flat.segments, strict=True):
            parameter.grad = flat.grads[part.start : part.end]
        groups: list[dict[str, Any]] = [
            {"params": [parameter], "weight_decay": part.weight_decay}
            for parameter, part in zip(self._stretches, flat.segments, strict=True)
        ]
        self._optimizer = torch.optim.AdamW(groups, lr=0.0, betas=(BETA1, BETA2), eps=EPSILON, fused=True)

    def step(self, learning_rate: float) -> None:
        """Apply the gradients of the model's parameters."""
        self._flat.collect_gradients()
        if self._team:
            self._team.all_reduce(self._flat.grads)
        torch.nn.utils.clip_grad_norm_(self._stretches, self._max_grad_norm)
        for group, part in zip(self._optimizer.param_groups, self._flat.segments, strict=True):
            group["lr"] = learning_rate * part.scale
        self._optimizer.step()
        self._flat.sync_compute()

    def state(self) -> dict[str, torch.Tensor]:
        """Return moments [P] and step count [], to be kept in a checkpoint."""
        states = [self._optimizer.state[parameter] for parameter in self._stretches]
        if not any(states):
            zeros = torch.zeros_like(self._flat.master)
            return {"exp_avg": zeros, "exp_avg_sq": zeros.clone(), "step": torch.zeros(())}
        return {
            "exp_avg": torch.cat([state["exp_avg"] for state in states]),
            "exp_avg_sq": torch.cat([state["exp_avg_sq"] for state in states]),
            "step": states[0]["step"].clone(),
        }

    def load(self, state: dict[str, torch.Tensor]) -> None:
        """Go on from what `state` returned, on whichever device and by whichever of the two it was."""
        for parameter, part in zip(self._stretches, self._flat.segments, strict=True):
            found = {"step": state["step"]}
            found |= {name: state[name][part.start : part.end] for name in ("exp_avg", "exp_avg_sq")}
            self._optimizer.state[parameter] = {
                name: tensor.to(parameter.device, torch.float32, copy=True) for name, tensor in found.items()
            }


class TritonAdamW:
    """The Triton kernel; the rate and the step count are tensors, so that a captured graph can be replayed."""

    def __init__(self, flat: FlatParameters, max_grad_norm: float, team: ProcessGroup | None = None) -> None:
        """Make the moments and compile the kernel; with a team, each step adds up everybody's gradients first.

        Raises:
            ImportError: where Triton is not installed.
        """
        from tasks.training.triton_kernels import adamw_kernel

        self._kernel = adamw_kernel
        self._flat, self._max_grad_norm, self._team = flat, max_grad_norm, team
        self._exp_avg, self._exp_avg_sq = torch.zeros_like(flat.master), torch.zeros_like(flat.master)
        self._steps = torch.zeros((), dtype=torch.float64, device=flat.master.device)

    def step(self, learning_rate: torch.Tensor) -> None:
        """Apply the gradients of the model's parameters; `learning_rate` [] is read on the device."""
        flat = self._flat
        flat.collect_gradients()
        if self._team:
            self._team.all_reduce(flat.grads)  # captured with the step, NCCL allows that
        self._steps += 1
        norm = torch.linalg.vector_norm(flat.grads, dtype=torch.float32)
        factor = (self._max_grad_norm / (norm + TINY_NORM)).clamp(max=1.0)
        bias1, bias2 = ((1 - beta**self._steps).float() for beta in (BETA1, BETA2))
        for part in flat.segments:
            count = part.end - part.start
            stretch = slice(part.start, part.end)
            self._kernel[(-(-count // ADAMW_BLOCK),)](
                flat.master[stretch],
                flat.compute[stretch],
                flat.grads[stretch],
                self._exp_avg[stretch],
                self._exp_avg_sq[stretch],
                learning_rate,
                factor,
                bias1,
                bias2,
                count,
                part.scale,
                part.weight_decay,
                BETA1,
                BETA2,
                EPSILON,
                BLOCK=ADAMW_BLOCK,
            )

    def state(self) -> dict[str, torch.Tensor]:
        """Return moments [P] and step count [], to be kept in a checkpoint."""
        return {"exp_avg": self._exp_avg, "exp_avg_sq": self._exp_avg_sq, "step": self._steps}

    def load(self, state: dict[str, torch.Tensor]) -> None:
        """Go on from what `state` returned; in place, because captured graphs hold these addresses."""
        self._exp_avg.copy_(state["exp_avg"])
        self._exp_avg_sq.copy_(state["exp_avg_sq"])
        self._steps.copy_(state["step"])
