"""What the stages of a training run share: the job, its rows as tokens, and the models that it saved.

A saved model's folder names the fingerprint of its job; what belongs to another job, or is damaged, is trained again.
"""

import functools
import logging
import math
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
from transformers import PreTrainedModel

from tasks.core.errors import VerdictError
from tasks.core.files import read_checksummed, sha256_of, write_checksummed
from tasks.data.snapshots import read_snapshot
from tasks.data.token_limit import usable_positions
from tasks.inference.tokenization import load_tokenizer
from tasks.training.dataset import TokenDataset, encode_rows
from tasks.training.kernel_compiler import KernelCompilation
from tasks.training.model import LoadedWeights, load_with_report, pad_token_id
from tasks.training.recipe import TrainingRecipe
from tasks.training.train_step import StepConfig

WEIGHTS_FILE, RECORD_FILE = "model.safetensors", "record.json"
TEACHER_FOLDER, ANSWERS_FILE = "teacher", "answers.parquet"

log = logging.getLogger(__name__)


class Teacher(NamedTuple):
    """A model whose answers a training learns: folder of its bundle, and digest of the manifest, empty for any."""

    bundle: str
    digest: str = ""


@dataclass(frozen=True)
class TrainingJob:
    """What all seeds of a run share: plain values, which are pickled to worker processes."""

    recipe: TrainingRecipe
    train: str
    """Snapshot of the training rows."""
    validation: str
    """Snapshot of the rows that select the epoch."""
    text: str
    """Snapshot of further sentences for the corruption stage and the teacher; empty for none."""
    folder: str
    """Folder of checkpoints."""
    fingerprint: str
    """Digest of everything that decides a seed's weights."""
    teacher: Teacher | None = None
    """The model that `recipe.teacher` names."""
    holdouts: tuple[str, ...] = ()
    """Snapshots of the holdouts; nothing of them is trained on, not even as a corrupted copy."""


class TokenizedData:
    """The rows of a job as tokens on its device, made at first use: all seeds and restarts of a process share them."""

    def __init__(self, job: TrainingJob, kernels: KernelCompilation | None = None) -> None:
        """Create it without reading anything.

        Args:
            job: whose rows they are.
            kernels: that are being compiled for the training.
        """
        self._job, self._kernels = job, kernels

    def wait_for_kernels(self) -> None:
        """Wait until the kernels of the training step are compiled."""
        kernels, self._kernels = self._kernels, None
        if kernels:
            kernels.wait()

    @functools.cached_property
    def train(self) -> TokenDataset:
        """The training rows, with smoothed labels; with a teacher all sentences that it answered."""
        job = self._job
        if job.teacher:
            return self.encode(read_snapshot(str(Path(job.folder) / TEACHER_FOLDER / ANSWERS_FILE)))
        return self.encode(read_snapshot(job.train), job.recipe.label_smoothing)

    @functools.cached_property
    def validation(self) -> TokenDataset:
        """The validation rows."""
        return self.encode(read_snapshot(self._job.validation))

    def encode(self, rows: pd.DataFrame, label_smoothing: float = 0.0) -> TokenDataset:
        """Tokenise rows, which are not kept here."""
        tokenizer, pad_id, positions = self._encoding
        return encode_rows(rows, tokenizer, pad_id, self._job.recipe.device, label_smoothing, positions)

    @functools.cached_property
    def _encoding(self) -> tuple[Any, int, int | None]:
        recipe, folder = self._job.recipe, self._job.recipe.encoder
        return load_tokenizer(folder, recipe.max_length), pad_token_id(folder), usable_positions(folder)


def load_start(job: TrainingJob, folder: str) -> PreTrainedModel:
    """Load the model that a stage starts from, on the job's device; what its weights are is logged once.

    Raises:
        UsageError: if the folder holds no such model, or too few of the encoder's weights.
    """
    model, weights = load_with_report(folder)
    weights.check(folder, job.recipe.allow_new_weights)
    _log_weights(job.folder, weights)
    return model.to(job.recipe.device)


@functools.lru_cache(16)
def _log_weights(run: str, weights: LoadedWeights) -> None:
    """Log what a model's weights are, once for each run, however many seeds it has."""
    log.log(logging.DEBUG if weights.loaded == weights.total else logging.WARNING, "%s", weights.describe())


def step_config(recipe: TrainingRecipe, rows: int, epochs: int) -> StepConfig:
    """Return what the training step takes from the recipe, for a schedule over so many rows and epochs."""
    shared = {field.name: getattr(recipe, field.name) for field in fields(StepConfig) if field.name != "steps"}
    return StepConfig(steps=epochs * math.ceil(rows / recipe.batch_size), **shared)


def write_record(folder: Path, fingerprint: str, file: str = WEIGHTS_FILE, **more: Any) -> None:
    """Write the fingerprint of the job and the digest of a file, the weights, beside it."""
    content = {"fingerprint": fingerprint, "sha256": sha256_of(folder / file), **more}
    write_checksummed(folder / RECORD_FILE, content)


def is_finished(folder: Path, fingerprint: str, file: str = WEIGHTS_FILE) -> bool:
    """Return whether a folder holds an intact file, the weights, of this job; a damaged one is logged."""
    if not (folder / RECORD_FILE).is_file():
        return False
    try:
        record = read_checksummed(folder / RECORD_FILE)
        if record["fingerprint"] != fingerprint:
            return False
        if sha256_of(folder / file) != record["sha256"]:
            raise VerdictError(f"{file} is not what was written")
    except (OSError, VerdictError) as error:
        log.warning("%s is ignored: %s", folder, error)
        return False
    return True
