"""A process group as one of its processes sees it: rank, size, and how tensors and values are exchanged."""

from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
import torch
from torch import distributed

Value = TypeVar("Value")
OnMessage = Callable[[Any], Any]


class ProcessGroup:
    """One of several processes that train together.

    Every rank must call the same collectives in the same order. Single-process training passes None instead.
    """

    def __init__(self, rank: int, size: int, device: str, on_message: OnMessage | None = None) -> None:
        """Describe a process of torch's default process group, which exists already.

        Args:
            rank: of this process, from 0.
            size: number of processes.
            device: cuda or cpu; where tensors are exchanged.
            on_message: passes a message to the process that launched this one.
        """
        self.rank, self.size = rank, size
        self._device, self._on_message = device, on_message

    def all_reduce(self, tensor: torch.Tensor) -> torch.Tensor:
        """Sum the tensors of all ranks, in place; every rank gets the same bits."""
        distributed.all_reduce(tensor)
        return tensor

    def broadcast(self, tensor: torch.Tensor) -> None:
        """Overwrite the tensor of every rank with that of rank 0."""
        distributed.broadcast(tensor, src=0)

    def broadcast_object(self, value: Value) -> Value:
        """Return the value of rank 0, which is pickled."""
        values = [value]
        distributed.broadcast_object_list(values, src=0)
        return values[0]

    def all_reduce_max(self, value: int) -> int:
        """Return the largest value of all ranks."""
        largest = torch.tensor(value, device=self._device)
        distributed.all_reduce(largest, op=distributed.ReduceOp.MAX)
        return int(largest)

    def seed(self, seed: int, epoch: int) -> None:
        """Seed torch's generators by seed, epoch and rank, so that a resumed run draws the same numbers."""
        torch.manual_seed(int(np.random.SeedSequence([seed, epoch, self.rank]).generate_state(1)[0]))

    def notify_parent(self, message: Any) -> Any:
        """Pass a message to the `on_message` of the launching process, and return what it returned."""
        return self._on_message(message) if self._on_message else None
