"""What tests of the launcher run in other processes, which start by importing this: torch, but not transformers."""

import logging
import os
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tiny import Words, toy_encoded, toy_recipe

from tasks.core.errors import UsageError
from tasks.training.process_group import ProcessGroup
from tasks.training.train_step import EagerStep
from tasks.training.trainer import CheckpointConfig, TrainingHistory, train_epochs

EPOCHS, ROWS = 3, 57  # so that the last batch of an epoch has one row
STEPS = EPOCHS * 8
SEED = 5
Weights = dict[str, torch.Tensor]


def train(
    group: ProcessGroup | None, dropout: float = 0.0, checkpoints: CheckpointConfig | None = None, epochs: int = EPOCHS
) -> tuple[TrainingHistory, Weights]:
    """Train a tiny model; ranks start from other weights, those of rank 0 must win."""
    model = Words(seed=group.rank if group else 0, dropout=dropout)
    recipe = toy_recipe(steps=STEPS, max_grad_norm=0.5, learning_rate=3e-2)
    history = train_epochs(
        model, toy_encoded(ROWS, seed=1), toy_encoded(31, seed=2), recipe,
        epochs=epochs, seed=SEED, checkpoints=checkpoints, on_epoch=group.notify_parent if group else None, group=group,
    )  # fmt: skip
    return timeless(history), {name: tensor.detach().clone() for name, tensor in model.named_parameters()}


def train_with_little_memory(group: ProcessGroup | None, little: int) -> tuple[list[float], int]:
    """Train steps where rank `little` has memory for two rows at a time; return the losses and the parts."""

    def refuse(model: Words, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> None:
        if group and group.rank == little and len(input_ids) > 2:
            raise torch.OutOfMemoryError("too much")

    model = Words(refuse)
    stepper = EagerStep(model, toy_encoded(16), toy_recipe(steps=3), group)
    return stepper.run([np.arange(16)] * 3, 0, lambda: None).losses.tolist(), stepper.micro_batches


def do_everything(group: ProcessGroup, folder: str) -> dict[str, Any]:
    """Return what was exchanged and trained, and what this process listens on, after notifying the parent."""
    total = group.all_reduce(torch.tensor([1.0, group.rank])).tolist()
    exchanged = [*total, group.broadcast_object(group.rank + 5), group.all_reduce_max(group.rank + 7)]
    group.notify_parent("now")
    addresses = listening()
    held = CheckpointConfig(folder, "run", 0.0)
    train(group, 0.2, held, epochs=EPOCHS - 1)
    draws = []
    for epoch in (1, 1, 2):
        group.seed(SEED, epoch)
        draws.append(float(torch.rand(())))
    return {
        "exchanged": exchanged,
        "listening": addresses,
        "plain": train(group),
        "dropout": train(group, 0.2),
        "resumed": train(group, 0.2, held),
        "little memory": train_with_little_memory(group, little=1),
        "draws": draws,
    }


def say(group: ProcessGroup, words: str) -> str:
    """Log something and notify the parent."""
    logging.getLogger("tasks.training.launcher").info("rank %d logs %s", group.rank, words)
    group.notify_parent(f"{words} {group.rank}")
    return words


def fail(group: ProcessGroup, folder: str, rank: int, how: str) -> None:
    """Let one rank end while the others wait for it."""
    (Path(folder) / str(group.rank)).write_text(str(os.getpid()))
    group.all_reduce(torch.zeros(1))
    if group.rank == rank and how == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if group.rank == rank and how == "exit":
        os._exit(3)
    if group.rank == rank:
        raise {"raise": ValueError("too tall\nfar too tall"), "usage": UsageError("x 3 is odd; expected 2")}[how]
    group.all_reduce(torch.zeros(1))


def hang(group: ProcessGroup, folder: str) -> None:
    """Wait for a rank that never comes."""
    (Path(folder) / str(group.rank)).write_text(str(os.getpid()))
    if group.rank == 0:
        time.sleep(600)
    group.all_reduce(torch.zeros(1))


def timeless(history: TrainingHistory) -> TrainingHistory:
    """Leave out what two runs cannot share."""
    return history._replace(epochs=[record | {"seconds": 0.0} for record in history.epochs])  # type: ignore[misc]


def listening() -> list[str]:
    """Return the addresses, in the kernel's hexadecimal, that this process listens on."""
    sockets = {str(path.readlink()) for path in Path("/proc/self/fd").iterdir() if path.is_symlink()}
    found = []
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/self/net/{table}").read_text().splitlines()[1:]:
            parts = line.split()
            if parts[3] == "0A" and f"socket:[{parts[9]}]" in sockets:
                found.append(parts[1].partition(":")[0])
    return found
