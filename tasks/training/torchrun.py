"""Training over hosts: what a process does that torchrun started as one of several ranks.

    torchrun --nnodes 2 --nproc-per-node 1 --rdzv-backend c10d --rdzv-endpoint HOST:29400 --no-python \\
        verdict retrain --set finetune.processes=2

Rank 0 runs the command; the others wait until it fine-tunes, and take part. All of them see one VERDICT_HOME, where
checkpoints are, so that ranks that torchrun starts again resume.
"""

import atexit
import datetime
import os
import pickle
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import distributed

from tasks.core.errors import UsageError, VerdictError, first_line
from tasks.training.process_group import OnMessage, ProcessGroup

BACKENDS = {"cuda": "nccl", "cpu": "gloo"}
RANK_TIMEOUT = datetime.timedelta(days=7)  # until rank 0 fine-tunes: it reads data and trains a first stage before

Result = TypeVar("Result")


class Ranks:
    """The ranks that torchrun started, as one of them sees them; the training's process group is made at once."""

    def __init__(self, device: str) -> None:
        """Meet the other ranks, by the variables that torchrun set.

        Args:
            device: cuda or cpu; with cuda each rank uses the GPU of its local rank.

        Raises:
            VerdictError: if they do not reach each other.
        """
        local_rank = int(os.environ["LOCAL_RANK"])
        if device == "cuda":
            torch.cuda.set_device(local_rank)
        store, self.rank, self.size = next(distributed.rendezvous("env://"))
        try:
            distributed.init_process_group(
                BACKENDS[device],
                store=distributed.PrefixStore("training", store),
                rank=self.rank,
                world_size=self.size,
                device_id=torch.device("cuda", local_rank) if device == "cuda" else None,
            )
        except RuntimeError as error:  # a host whose own name is a loopback address tells the others that one
            raise VerdictError(
                f"the ranks of torchrun do not reach each other ({first_line(error, 200)}); expected on each host "
                f"{BACKENDS[device].upper()}_SOCKET_IFNAME=INTERFACE, the network interface that the others see"
            ) from error
        self._store, self._device, self._works = distributed.PrefixStore("work", store), device, 0

    def lead(self, function: Callable[..., Result], arguments: tuple[Any, ...], on_message: OnMessage | None) -> Result:
        """Call `function(group, *arguments)` on all ranks; return the result of this one, once all have ended."""
        self._works += 1
        self._store.set(f"work {self._works}", pickle.dumps((function, arguments)))  # type: ignore[arg-type]
        result = function(ProcessGroup(0, self.size, self._device, on_message), *arguments)
        self._store.wait([f"done {self._works} {rank}" for rank in range(1, self.size)], RANK_TIMEOUT)
        return result

    def follow(self) -> None:
        """Take part in what rank 0 calls, until it ends."""
        while True:
            self._works += 1
            self._store.wait([f"work {self._works}"], RANK_TIMEOUT)
            function, arguments = pickle.loads(self._store.get(f"work {self._works}"))
            if function is None:
                break
            function(ProcessGroup(self.rank, self.size, self._device), *arguments)
            self._store.set(f"done {self._works} {self.rank}", "")
        distributed.destroy_process_group()

    def release(self) -> None:
        """End the other ranks' waiting."""
        self._store.set(f"work {self._works + 1}", pickle.dumps((None, ())))  # type: ignore[arg-type]
        distributed.destroy_process_group()


_joined: Ranks | None = None


def joined() -> Ranks | None:
    """Return the ranks that this process has joined as rank 0; None where torchrun did not start it."""
    return _joined


def join(device: str, processes: int) -> bool:
    """Join the ranks that torchrun started; as rank 0 return True, as another one take part, then return False.

    Args:
        device: cuda or cpu.
        processes: the setting `finetune.processes`, which decides a training's result.

    Raises:
        UsageError: if torchrun started another number.
        VerdictError: if the ranks do not reach each other.
    """
    global _joined
    size = int(os.environ["WORLD_SIZE"])
    if processes != size:
        raise UsageError(
            f"finetune.processes = {processes}, but torchrun started {size}; expected --set finetune.processes={size}"
        )
    ranks = Ranks(device)
    if ranks.rank:
        ranks.follow()
        return False
    _joined = ranks
    atexit.register(ranks.release)
    return True
