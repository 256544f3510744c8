"""What a process that trains with others knows of them, and how they exchange tensors and values."""

from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
import torch
from torch import distributed

Broadcast = TypeVar("Broadcast")
OnMessage = Callable[[Any], None]


class ProcessGroup:
    """The processes that train one model together, as one of them sees them.

    What one of them exchanges, all must, in the same order. One process alone is no team: None stands for it.
    """

    def __init__(self, rank: int, size: int, device: str, tell: OnMessage | None = None) -> None:
        """Describe a process of an initialised process group.

        Args:
            rank: of this process, from 0.
            size: processes in the team.
            device: cuda or cpu; what they exchange tensors on.
            tell: takes a message to who launched them; None where nobody listens.
        """
        self.rank, self.size = rank, size
        self._device, self._tell = device, tell

    def all_reduce(self, tensor: torch.Tensor) -> torch.Tensor:
        """Add up everybody's tensors, in place; all get the same sum."""
        distributed.all_reduce(tensor)
        return tensor

    def broadcast(self, tensor: torch.Tensor) -> None:
        """Overwrite everybody's tensor with that of rank 0."""
        distributed.broadcast(tensor, src=0)

    def broadcast_object(self, value: Broadcast) -> Broadcast:
        """Return the value that rank 0 has."""
        held = [value]
        distributed.broadcast_object_list(held, src=0)
        return held[0]

    def all_reduce_max(self, value: int) -> int:
        """Return the largest value that anybody has."""
        held = torch.tensor(value, device=self._device)
        distributed.all_reduce(held, op=distributed.ReduceOp.MAX)
        return int(held)

    def seed(self, seed: int, epoch: int) -> None:
        """Seed torch's generators: each process and epoch draws others, a run that goes on draws the same."""
        torch.manual_seed(int(np.random.SeedSequence([seed, epoch, self.rank]).generate_state(1)[0]))

    def notify_parent(self, message: Any) -> None:
        """Hand a message to the `on_message` of who launched this process, and wait until it has returned."""
        if self._tell:
            self._tell(message)
