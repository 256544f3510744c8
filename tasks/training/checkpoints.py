"""Checkpoints of a training run: written atomically, verified when they are read, the last two kept.

epoch-0003/state.safetensors    weights, AdamW's moments, best weights, states of random generators
epoch-0003/state.json           figures so far, the run's fingerprint, SHA-256 of the other file and of this content
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
    """Everything that a run needs to resume after an epoch."""

    epoch: int
    tensors: dict[str, torch.Tensor]
    record: dict[str, Any]


def save_checkpoint(folder: str, fingerprint: str, checkpoint: Checkpoint) -> None:
    """Write a checkpoint and keep the one before it; if writing fails, log a warning and keep the last ones.

    Args:
        folder: of the run's checkpoints.
        fingerprint: digest of what decides the run's weights; a checkpoint with another one is never used.
        checkpoint: what to write.
    """
    target = Path(folder) / f"epoch-{checkpoint.epoch:04}"
    try:
        with atomic_directory(target) as scratch:
            tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in checkpoint.tensors.items()}
            save_file(tensors, scratch / TENSORS_FILE)
            content = {
                "fingerprint": fingerprint,
                "sha256": sha256_of(scratch / TENSORS_FILE),
                "record": checkpoint.record,
            }
            write_checksummed(scratch / STATE_FILE, content)
    except (OSError, SafetensorError) as error:
        log.warning("checkpoint %s cannot be written (%s); training continues without it", target, error)
        return
    found = _newest_first(folder)
    kept = [path for path in found if path <= target][:MAX_KEPT]  # later ones are of a run that was started over
    for old in set(found).difference(kept):
        shutil.rmtree(old, ignore_errors=True)


def load_checkpoint(folder: str, fingerprint: str) -> Checkpoint | None:
    """Return the newest intact checkpoint with this fingerprint, None where there is none; others are logged."""
    for path in _newest_first(folder):
        try:
            return _read(path, fingerprint)
        except (OSError, VerdictError, ValueError, KeyError) as error:
            log.warning("checkpoint %s is ignored: %s", path, error)
    return None


def _read(path: Path, fingerprint: str) -> Checkpoint:
    """Read a checkpoint.

    Raises:
        VerdictError: if it is damaged, or has another fingerprint.
    """
    state = read_checksummed(path / STATE_FILE)
    if state["fingerprint"] != fingerprint:
        raise VerdictError("it belongs to another run")
    if sha256_of(path / TENSORS_FILE) != state["sha256"]:
        raise VerdictError(f"{TENSORS_FILE} is not what was written")
    return Checkpoint(int(path.name.partition("-")[2]), load_file(path / TENSORS_FILE), state["record"])


def describe_resumption(folder: str) -> str:
    """Return where the next run resumes a training that was stopped.

    Args:
        folder: with the checkpoints of each of its seeds.
    """
    seeds = [path for path in Path(folder).glob("seed-*") if _newest_first(str(path)) or (path / "finished").is_dir()]
    if not seeds:
        return "there is no checkpoint yet (finetune.checkpoint_seconds), the next run trains from epoch 1"
    if len(seeds) > 1:
        return f"the next run resumes with the checkpoints of {len(seeds)} seeds"
    newest = _newest_first(str(seeds[0]))
    after = f"epoch {int(newest[0].name.partition('-')[2])}" if newest else f"seed {seeds[0].name.partition('-')[2]}"
    return f"the next run resumes after {after}"


def delete_checkpoints(folder: str) -> None:
    """Remove the folder of a finished run's checkpoints."""
    shutil.rmtree(folder, ignore_errors=True)


def _newest_first(folder: str) -> list[Path]:
    return sorted(Path(folder).glob("epoch-[0-9]*"), reverse=True)
