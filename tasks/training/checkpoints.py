"""Checkpoints of a training run: whole or absent, verified when they are read, the last two kept.

epoch-0003/state.safetensors    weights, moments, best weights, random states
epoch-0003/state.json           figures so far, the run they belong to, SHA-256 of the other file and of this content
"""

import logging
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from tasks.core.errors import VerdictError
from tasks.core.files import atomic_directory, read_checksummed, sha256_of, write_checksummed

MAX_KEPT = 2
TENSORS_FILE, STATE_FILE = "state.safetensors", "state.json"

log = logging.getLogger(__name__)


class Checkpoint(NamedTuple):
    """Everything that a run needs to go on after an epoch."""

    epoch: int
    tensors: dict[str, torch.Tensor]
    record: dict[str, Any]


def save_checkpoint(folder: str, run: str, checkpoint: Checkpoint) -> None:
    """Keep a checkpoint, and the one before it; where it cannot be written, a line says so and the last one stays.

    Args:
        folder: of the run's checkpoints.
        run: digest of what decides the run's course; a checkpoint of another run is never used.
        checkpoint: what to keep.
    """
    target = Path(folder) / f"epoch-{checkpoint.epoch:04}"
    try:
        with atomic_directory(target) as scratch:
            tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in checkpoint.tensors.items()}
            save_file(tensors, scratch / TENSORS_FILE)
            content = {"run": run, "sha256": sha256_of(scratch / TENSORS_FILE), "record": checkpoint.record}
            write_checksummed(scratch / STATE_FILE, content)
    except (OSError, SafetensorError) as error:
        log.warning("checkpoint %s cannot be written (%s); training goes on without it", target, error)
        return
    found = _newest_first(folder)
    kept = [path for path in found if path <= target][:MAX_KEPT]  # later ones are of a course that was left
    for old in set(found).difference(kept):
        shutil.rmtree(old, ignore_errors=True)


def load_checkpoint(folder: str, run: str) -> Checkpoint | None:
    """Return the newest checkpoint of this run that is whole; None where there is none.

    A damaged one, or one of another run, is told and passed over, and the one before it is taken.
    """
    for path in _newest_first(folder):
        try:
            return _read(path, run)
        except (OSError, VerdictError, ValueError, KeyError) as error:
            log.warning("checkpoint %s is passed over: %s", path, error)
    return None


def _read(path: Path, run: str) -> Checkpoint:
    """Read a checkpoint.

    Raises:
        VerdictError: if it is not what was written, or belongs to another run.
    """
    held = read_checksummed(path / STATE_FILE)
    if held["run"] != run:
        raise VerdictError("it belongs to another run")
    if sha256_of(path / TENSORS_FILE) != held["sha256"]:
        raise VerdictError(f"{TENSORS_FILE} is not what was written")
    return Checkpoint(int(path.name.partition("-")[2]), load_file(path / TENSORS_FILE), held["record"])


def delete_checkpoints(folder: str) -> None:
    """Remove all checkpoints of a finished run."""
    shutil.rmtree(folder, ignore_errors=True)


def _newest_first(folder: str) -> list[Path]:
    return sorted(Path(folder).glob("epoch-[0-9]*"), reverse=True)
