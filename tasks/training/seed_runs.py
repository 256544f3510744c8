"""Trains one model per seed, all from one start, and saves each; in one process or shared out among several.

Below the job's checkpoint folder:

seed-N/epoch-0003/          checkpoints of seed N
seed-N/finished/            the trained model of seed N
"""

import contextlib
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, TypedDict

import torch
from safetensors.torch import save_file
from transformers import PreTrainedModel

from tasks.core.files import atomic_directory, read_json
from tasks.training.process_group import ProcessGroup
from tasks.training.recipe import TrainingRecipe
from tasks.training.side_by_side import Lane, train_side_by_side
from tasks.training.trainer import CheckpointConfig, EpochRecord, OnEpoch, TrainingHistory, train_epochs
from tasks.training.training_job import (
    RECORD_FILE,
    WEIGHTS_FILE,
    TokenizedData,
    TrainingJob,
    is_finished,
    load_start,
    step_config,
    write_record,
)

SEED_STRIDE = 1_000  # restart k of a seed uses seed + k * 1,000: no other of the at most 100 seeds has that number

log = logging.getLogger(__name__)


class SeedRun(TypedDict):
    """How a seed's training went; `seed` is the one that learned, after restarts."""

    seed: int
    best_epoch: int
    collapsed: bool
    epochs: list[EpochRecord]
    step_losses: list[float | None]


class SavedSeedRun(NamedTuple):
    """A seed's training on disk: the record, and the file with its best epoch's weights."""

    run: SeedRun
    weights: str


def train_seed_run(
    job: TrainingJob,
    data: TokenizedData,
    start: str,
    seed: int,
    on_epoch: OnEpoch | None = None,
    group: ProcessGroup | None = None,
    lane: Lane | None = None,
) -> tuple[PreTrainedModel, SeedRun]:
    """Train with `seed`, and with further seeds while nothing is learned; return the best epoch's model and its record.

    Args:
        job: what all seeds share.
        data: its rows.
        start: folder of the model to start from.
        seed: of dropout and batch order.
        on_epoch: called after each epoch.
        group: processes that train it together; each of them calls this.
        lane: where other seeds are trained in this process at the same time.
    """
    restarts = job.recipe.restarts
    for attempt in range(restarts + 1):
        used = seed + attempt * SEED_STRIDE
        # Only models that started from one head can be averaged, so that restarts of several seeds keep it.
        head_seed = job.recipe.seed + (attempt * SEED_STRIDE if job.recipe.seeds == 1 else 0)
        model, history = _train_once(job, data, start, used, head_seed, on_epoch, group, lane)
        if not history.collapsed:
            break
        next_step = "another one is tried" if attempt < restarts else "no further one is tried"
        log.warning("seed %d learned nothing; %s", used, next_step)
    return model, SeedRun(
        seed=used,
        best_epoch=history.best_epoch,
        collapsed=history.collapsed,
        epochs=history.epochs,
        step_losses=history.step_losses,
    )


def _train_once(
    job: TrainingJob,
    data: TokenizedData,
    start: str,
    seed: int,
    head_seed: int,
    on_epoch: OnEpoch | None,
    group: ProcessGroup | None,
    lane: Lane | None,
) -> tuple[PreTrainedModel, TrainingHistory]:
    recipe = job.recipe
    with lane.exclusive() if lane else contextlib.nullcontext():
        torch.manual_seed(head_seed)
        model = load_start(job, start)
        if seed != head_seed:
            torch.manual_seed(seed)
    train, validation = data.train, data.validation
    data.wait_for_kernels()
    history = train_epochs(
        model,
        train,
        validation,
        step_config(recipe, train.count, recipe.epochs),
        epochs=recipe.epochs,
        seed=seed,
        patience=recipe.patience,
        # Each seed has its own folder, so that a run that is killed in a restart resumes there.
        checkpoints=CheckpointConfig(f"{job.folder}/seed-{seed}", job.fingerprint, recipe.checkpoint_seconds),
        on_epoch=on_epoch,
        group=group,
        lane=lane,
    )
    return model, history


def train_seed(
    job: TrainingJob,
    data: TokenizedData,
    start: str,
    seed: int,
    on_epoch: OnEpoch | None = None,
    group: ProcessGroup | None = None,
    lane: Lane | None = None,
) -> None:
    """Train a seed as `train_seed_run` does and save it, unless it is saved already; in a group rank 0 saves it."""
    target = _seed_folder(job, seed)
    if is_finished(target, job.fingerprint):
        return
    model, seed_run = train_seed_run(job, data, start, seed, on_epoch, group, lane)
    if group and group.rank:
        return
    with atomic_directory(target) as scratch:
        save_file({name: tensor.cpu().clone() for name, tensor in model.state_dict().items()}, scratch / WEIGHTS_FILE)
        write_record(scratch, job.fingerprint, seed_run=seed_run)


def train_seeds(
    job: TrainingJob, data: TokenizedData, start: str, seeds: Sequence[int], on_epoch: OnEpoch | None = None
) -> None:
    """Train all seeds in this process and save them: side by side where the step is captured, else one by one."""
    unfinished = [seed for seed in seeds if not is_finished(_seed_folder(job, seed), job.fingerprint)]
    if len(unfinished) < 2 or not trains_side_by_side(job.recipe):
        for seed in unfinished:
            train_seed(job, data, start, seed, on_epoch)
        return
    steps = step_config(job.recipe, data.train.count, job.recipe.epochs).steps
    data.validation  # noqa: B018 (tokenised here, before threads share it)

    def train(seed: int, lane: Lane) -> None:
        train_seed(job, data, start, seed, lane.report, lane=lane)

    train_side_by_side(train, unfinished, job.recipe.device, steps=steps * len(unfinished), on_report=on_epoch)


def trains_side_by_side(recipe: TrainingRecipe) -> bool:
    """Return whether several seeds are trained at the same time in one process: where their steps are captured."""
    return recipe.device == "cuda" and recipe.precision == "bf16"


def train_shard(group: ProcessGroup, job: TrainingJob, start: str, seeds: Sequence[int]) -> None:
    """Train this rank's share of the seeds, each in one process; called by `launch`."""
    data = TokenizedData(job)
    train_seeds(job, data, start, seeds[group.rank :: group.size], group.notify_parent)


def train_seed_on_ray(job: TrainingJob, start: str, seed: int, on_epoch: OnEpoch) -> None:
    """Train one seed; called by `run_calls` on a machine that sees the job's folder."""
    train_seed(job, TokenizedData(job), start, seed, on_epoch)


def train_distributed(group: ProcessGroup, job: TrainingJob, start: str, seed: int) -> None:
    """Train one seed with all processes; called by `launch`."""
    train_seed(job, TokenizedData(job), start, seed, group.notify_parent, group)


def load_seed_run(job: TrainingJob, seed: int) -> SavedSeedRun:
    """Return what `train_seed` saved."""
    target = _seed_folder(job, seed)
    return SavedSeedRun(read_json(target / RECORD_FILE)["seed_run"], str(target / WEIGHTS_FILE))


def _seed_folder(job: TrainingJob, seed: int) -> Path:
    return Path(job.folder) / f"seed-{seed}" / "finished"


def validation_mcc(seed_run: SeedRun) -> float:
    """Return a seed's best validation MCC."""
    return seed_run["epochs"][seed_run["best_epoch"] - 1]["validation_mcc"]
