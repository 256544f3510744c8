"""What fused modules share: the counter of dropout's random numbers, the kernels, and a module's own state."""

from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
from torch import nn

STATE = "fused"  # key of a FusedState in a module's `__dict__`
SEEDS_PER_STEP = 4096  # distance of the seeds of two steps; models have fewer places that drop than that


class DropoutRng:
    """Seeds of dropout: a counter on the device plus one stream number for each module that drops activations.

    A captured graph replays the same kernels with the same arguments; the counter, which the graph itself advances,
    makes every replay drop other activations. Kernels draw from Philox with seed `counter + stream` and the element's
    index as offset, so that the backward pass computes the same mask again instead of reading it.
    """

    def __init__(self, device: torch.device) -> None:
        """Start at torch's initial seed; `seed` [] int32 is the counter, on the device."""
        self.seed = torch.zeros((), dtype=torch.int32, device=device)
        self._base = torch.initial_seed()
        self._streams = 0

    def seek(self, step: int) -> None:
        """Set the counter to `step` of the schedule, so that a resumed run drops the same activations."""
        self.seed.fill_((self._base + step * SEEDS_PER_STEP) % 2**31)

    def new_stream(self) -> int:
        """Return a stream number that no other module has, from 1."""
        self._streams += 1
        return self._streams

    def advance(self) -> None:
        """Move the counter to the next step."""
        self.seed += SEEDS_PER_STEP


@dataclass(frozen=True)
class FusedState:
    """What a fused module needs beside its parameters.

    Attributes:
        original: class that `unfuse` restores.
        kernels: module of Triton kernels; None where torch's own operators compute, as on a CPU.
        rng: seeds of dropout, shared by the modules of a model.
        stream: this module's stream of random numbers; 0 for modules without dropout.
        projection: the product that a query, key or value layer takes its share of, and which share.
    """

    original: type[nn.Module]
    kernels: ModuleType | None
    rng: DropoutRng
    stream: int = 0
    projection: tuple[Any, int] | None = None


def state_of(module: nn.Module) -> FusedState:
    """Return the state of a fused module."""
    state: FusedState = module.__dict__[STATE]
    return state


def next_power_of_two(count: int) -> int:
    """Return the smallest power of two that is at least `count`; Triton's blocks have such sizes."""
    return 1 << (count - 1).bit_length()
