"""AdamW on flat parameters: gradient clipping, moments, weight decay, and the bf16 copies.

Source: Loshchilov and Hutter 2019, https://arxiv.org/abs/1711.05101, algorithm 2, with bias correction. `TorchAdamW` is
torch's fused AdamW. `TritonAdamW` is one kernel that reads each gradient, weight and moment once and writes each once;
its learning rate and step count are tensors on the device, so that it can be part of a CUDA graph. Both keep the same
state, so that a run can be resumed with the other one.

Shape letters: P elements of the flat parameters.
"""

from types import ModuleType
from typing import Any, NamedTuple

import torch

from tasks.training.flat_parameters import FlatParameters
from tasks.training.process_group import ProcessGroup

ADAMW_BLOCK = 1024  # elements that one program of the kernel updates
MIN_NORM = 1e-6  # added to the gradient norm before dividing by it, as torch.nn.utils.clip_grad_norm_ does


class AdamConstants(NamedTuple):
    """Decay of the mean of the gradients and of their squares, and what is added to the root of the latter."""

    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8


USUAL_CONSTANTS = AdamConstants()


class TorchAdamW:
    """torch's fused AdamW, one parameter for each segment; learning rates are set on the host."""

    def __init__(
        self,
        flat: FlatParameters,
        max_grad_norm: float,
        group: ProcessGroup | None = None,
        constants: AdamConstants = USUAL_CONSTANTS,
    ) -> None:
        """Create the optimiser.

        Args:
            flat: what it updates.
            max_grad_norm: gradients with a larger norm are scaled down to it; 0: none are.
            group: ranks whose gradients each step sums first.
            constants: of the moments.
        """
        self._flat, self._max_grad_norm, self._group = flat, max_grad_norm, group
        self._flat_params = [torch.nn.Parameter(flat.master[part.start : part.end]) for part in flat.segments]
        for parameter, part in zip(self._flat_params, flat.segments, strict=True):
            parameter.grad = flat.grads[part.start : part.end]
        groups: list[dict[str, Any]] = [
            {"params": [parameter], "weight_decay": part.weight_decay}
            for parameter, part in zip(self._flat_params, flat.segments, strict=True)
        ]
        betas = (constants.beta1, constants.beta2)
        self._optimizer = torch.optim.AdamW(groups, lr=0.0, betas=betas, eps=constants.eps, fused=True)

    def step(self, learning_rate: float) -> None:
        """Update the weights by the gradients of the model's parameters, and clear these."""
        self._flat.collect_gradients()
        if self._group:
            self._group.all_reduce(self._flat.grads)
        if self._max_grad_norm:
            torch.nn.utils.clip_grad_norm_(self._flat_params, self._max_grad_norm)
        for group, part in zip(self._optimizer.param_groups, self._flat.segments, strict=True):
            group["lr"] = learning_rate * part.scale
        self._optimizer.step()
        self._flat.sync_compute()

    def state(self) -> dict[str, torch.Tensor]:
        """Return moments [P] and step count [], for a checkpoint."""
        states = [self._optimizer.state[parameter] for parameter in self._flat_params]
        if not any(states):
            zeros = torch.zeros_like(self._flat.master)
            return {"exp_avg": zeros, "exp_avg_sq": zeros.clone(), "step": torch.zeros(())}
        return {
            "exp_avg": torch.cat([state["exp_avg"] for state in states]),
            "exp_avg_sq": torch.cat([state["exp_avg_sq"] for state in states]),
            "step": states[0]["step"].clone(),
        }

    def load(self, state: dict[str, torch.Tensor]) -> None:
        """Resume from what `state` of either class returned, on any device."""
        for parameter, part in zip(self._flat_params, self._flat.segments, strict=True):
            found = {"step": state["step"]}
            found |= {name: state[name][part.start : part.end] for name in ("exp_avg", "exp_avg_sq")}
            self._optimizer.state[parameter] = {
                name: tensor.to(parameter.device, torch.float32, copy=True) for name, tensor in found.items()
            }


class TritonAdamW:
    """The Triton kernel, launched once for each segment."""

    def __init__(
        self,
        flat: FlatParameters,
        max_grad_norm: float,
        kernels: ModuleType,
        group: ProcessGroup | None = None,
        constants: AdamConstants = USUAL_CONSTANTS,
    ) -> None:
        """Allocate the moments.

        Args:
            flat: what it updates.
            max_grad_norm: gradients with a larger norm are scaled down to it; 0: none are.
            kernels: tasks.training.triton_kernels; imported by the caller, as Triton is not installed everywhere.
            group: ranks whose gradients each step sums first.
            constants: of the moments; numbers for the kernel, which is compiled once for all of them.
        """
        self._flat, self._max_grad_norm, self._kernels, self._group = flat, max_grad_norm, kernels, group
        self._exp_avg, self._exp_avg_sq = torch.zeros_like(flat.master), torch.zeros_like(flat.master)
        self._steps = torch.zeros((), dtype=torch.float64, device=flat.master.device)
        self._unclipped = torch.ones((), device=flat.master.device)
        self._constants = constants

    def step(self, learning_rate: torch.Tensor) -> None:
        """Update the weights by the gradients of the model's parameters; `learning_rate` [] is read on the device."""
        flat = self._flat
        flat.collect_gradients()
        if self._group:
            self._group.all_reduce(flat.grads)  # NCCL's sums can be part of a CUDA graph
        self._steps += 1
        beta1, beta2, eps = self._constants
        bias1, bias2 = ((1 - beta**self._steps).float() for beta in (beta1, beta2))
        clip_factor = self._clip_factor()
        for part in flat.segments:
            count = part.end - part.start
            own = slice(part.start, part.end)
            self._kernels.adamw_kernel[(-(-count // ADAMW_BLOCK),)](
                flat.master[own],
                flat.compute[own],
                flat.grads[own],
                self._exp_avg[own],
                self._exp_avg_sq[own],
                learning_rate,
                clip_factor,
                bias1,
                bias2,
                count,
                part.scale,
                part.weight_decay,
                beta1,
                beta2,
                eps,
                BLOCK=ADAMW_BLOCK,
            )

    def _clip_factor(self) -> torch.Tensor:
        """Return what the gradients are multiplied by, []."""
        if not self._max_grad_norm:
            return self._unclipped
        norm = torch.linalg.vector_norm(self._flat.grads, dtype=torch.float32)
        return (self._max_grad_norm / (norm + MIN_NORM)).clamp(max=1.0)

    def state(self) -> dict[str, torch.Tensor]:
        """Return moments [P] and step count [], for a checkpoint; these are the tensors themselves, not copies."""
        return {"exp_avg": self._exp_avg, "exp_avg_sq": self._exp_avg_sq, "step": self._steps}

    def load(self, state: dict[str, torch.Tensor]) -> None:
        """Resume from what `state` of either class returned; in place, as captured graphs hold these addresses."""
        self._exp_avg.copy_(state["exp_avg"])
        self._exp_avg_sq.copy_(state["exp_avg_sq"])
        self._steps.copy_(state["step"])
