"""Trains one model per seed, all from one start, and selects the mean of their weights ("soup") or the best seed.

Below the job's checkpoint folder:

corruption-stage/           the encoder after the corruption stage, from which every seed starts
seed-N/epoch-0003/          checkpoints of seed N
seed-N/finished/            the trained model of seed N

Each names the fingerprint of its job; what belongs to another job, or is damaged, is trained again.
"""

import functools
import inspect
import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypedDict

import pandas as pd
import torch
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

from tasks.core.errors import VerdictError
from tasks.core.files import atomic_directory, read_checksummed, read_json, sha256_of, write_checksummed
from tasks.data.snapshots import read_snapshot
from tasks.inference.tokenization import load_tokenizer
from tasks.training.corruption import with_corruptions
from tasks.training.dataset import TokenDataset, encode_rows
from tasks.training.model import load_classifier, pad_token_id
from tasks.training.process_group import ProcessGroup
from tasks.training.recipe import TrainingRecipe
from tasks.training.train_step import StepConfig
from tasks.training.trainer import CheckpointConfig, EpochRecord, OnEpoch, TrainingHistory, train_epochs, validate

SEED_STRIDE = 1_000  # restart k of a seed uses seed + k * 1,000: no other of the at most 100 seeds has that number
WEIGHTS_FILE, RECORD_FILE = "model.safetensors", "record.json"

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainingJob:
    """What all seeds of a run share: plain values, which are pickled to worker processes."""

    recipe: TrainingRecipe
    train: str
    """Snapshot of the training rows."""
    validation: str
    """Snapshot of the rows that select the epoch."""
    text: str
    """Snapshot of further sentences for the corruption stage; empty for none."""
    folder: str
    """Folder of checkpoints."""
    fingerprint: str
    """Digest of everything that decides a seed's weights."""


class TokenizedData:
    """The rows of a job as tokens on its device, made at first use: all seeds and restarts of a process share them."""

    def __init__(self, job: TrainingJob) -> None:
        self._job = job

    @functools.cached_property
    def train(self) -> TokenDataset:
        """The training rows, with smoothed labels."""
        return self.encode(read_snapshot(self._job.train), self._job.recipe.label_smoothing)

    @functools.cached_property
    def validation(self) -> TokenDataset:
        """The validation rows."""
        return self.encode(read_snapshot(self._job.validation))

    def encode(self, rows: pd.DataFrame, label_smoothing: float = 0.0) -> TokenDataset:
        """Tokenise rows, which are not kept here."""
        tokenizer, pad_id = self._encoding
        return encode_rows(rows, tokenizer, pad_id, self._job.recipe.device, label_smoothing)

    @functools.cached_property
    def _encoding(self) -> tuple[Any, int]:
        recipe = self._job.recipe
        return load_tokenizer(recipe.encoder, recipe.max_length), pad_token_id(recipe.encoder)


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


class SelectedModel(NamedTuple):
    """The model that a run ends with.

    `averaged`: the mean of all seeds' weights, otherwise the weights of `best`, the best seed. `soup_mcc` is the
    validation MCC of the mean, None with one seed.
    """

    model: PreTrainedModel
    averaged: bool
    best: SeedRun
    soup_mcc: float | None = None


def run_corruption_stage(job: TrainingJob, data: TokenizedData) -> str:
    """Train the encoder to tell sentences from corrupted copies, if the recipe has such a stage.

    Returns:
        Folder of the model that every seed starts from: the encoder's where there is no such stage, it has nothing to
        train on, or its loss is NaN or Inf.
    """
    recipe = job.recipe
    if not any(_copies(job)):
        return recipe.encoder
    target = Path(job.folder) / "corruption-stage"
    if _is_finished(target, job.fingerprint):
        return str(target)
    rows = _corruption_rows(job)
    if rows["label"].nunique() < 2:
        log.warning("no sentence could be corrupted; training starts without the corruption stage")
        return recipe.encoder
    log.info("corruption stage: %d sentences, %d of them corrupted", len(rows), (rows["label"] == 0).sum())
    torch.manual_seed(recipe.seed)
    model = load_classifier(recipe.encoder).to(recipe.device)
    config = _step_config(recipe.model_copy(update={"r_drop": 0.0}), len(rows), epochs=1)
    history = train_epochs(model, data.encode(rows), data.validation, config, epochs=1, seed=recipe.seed)
    last = history.epochs[-1]
    if last["train_loss"] is None or last["validation_loss"] is None:  # the last step may be the one that diverged
        log.warning("the corruption stage ended with a NaN or Inf loss; training starts without it")
        return recipe.encoder
    with atomic_directory(target) as scratch:
        model.save_pretrained(scratch)
        _write_record(scratch, job.fingerprint)
    return str(target)


def _copies(job: TrainingJob) -> tuple[int, int]:
    """Return how many corrupted copies there shall be of each sentence of the training rows and of the text."""
    return job.recipe.corruptions, job.recipe.text_corruptions if job.text else 0


def _corruption_rows(job: TrainingJob) -> pd.DataFrame:
    """Return original (label 1) and corrupted sentences (label 0); none of the latter occurs in the data."""
    parts = [read_snapshot(path) for path in (job.train, job.text) if path]
    known = [sentence for part in parts for sentence in part["sentence"]]
    copies = _copies(job)[: len(parts)]
    corrupted = [
        with_corruptions(part, count, job.recipe.seed, known)
        for part, count in zip(parts, copies, strict=True)
        if count
    ]
    return pd.concat(corrupted, ignore_index=True)


def _step_config(recipe: TrainingRecipe, rows: int, epochs: int) -> StepConfig:
    """Return what the training step takes from the recipe, for a schedule over so many rows and epochs."""
    shared = {name: getattr(recipe, name) for name in inspect.signature(StepConfig).parameters if name != "steps"}
    return StepConfig(steps=epochs * math.ceil(rows / recipe.batch_size), **shared)


def train_seed_run(
    job: TrainingJob,
    data: TokenizedData,
    start: str,
    seed: int,
    on_epoch: OnEpoch | None = None,
    group: ProcessGroup | None = None,
) -> tuple[PreTrainedModel, SeedRun]:
    """Train with `seed`, and with further seeds while nothing is learned; return the best epoch's model and its record.

    Args:
        job: what all seeds share.
        data: its rows.
        start: folder of the model to start from.
        seed: of dropout and batch order.
        on_epoch: called after each epoch.
        group: processes that train it together; each of them calls this.
    """
    restarts = job.recipe.restarts
    for attempt in range(restarts + 1):
        used = seed + attempt * SEED_STRIDE
        head_seed = job.recipe.seed + attempt * SEED_STRIDE
        model, history = _train_once(job, data, start, used, head_seed, on_epoch, group)
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
) -> tuple[PreTrainedModel, TrainingHistory]:
    recipe = job.recipe
    torch.manual_seed(head_seed)  # only models that started from one head can be averaged
    model = load_classifier(start).to(recipe.device)
    if seed != head_seed:
        torch.manual_seed(seed)
    history = train_epochs(
        model,
        data.train,
        data.validation,
        _step_config(recipe, data.train.count, recipe.epochs),
        epochs=recipe.epochs,
        seed=seed,
        patience=recipe.patience,
        # Each seed has its own folder, so that a run that is killed in a restart resumes there.
        checkpoints=CheckpointConfig(f"{job.folder}/seed-{seed}", job.fingerprint, recipe.checkpoint_seconds),
        on_epoch=on_epoch,
        group=group,
    )
    return model, history


def train_seed(
    job: TrainingJob,
    data: TokenizedData,
    start: str,
    seed: int,
    on_epoch: OnEpoch | None = None,
    group: ProcessGroup | None = None,
) -> None:
    """Train a seed as `train_seed_run` does and save it, unless it is saved already; in a group rank 0 saves it."""
    target = _seed_folder(job, seed)
    if _is_finished(target, job.fingerprint):
        return
    model, seed_run = train_seed_run(job, data, start, seed, on_epoch, group)
    if group and group.rank:
        return
    with atomic_directory(target) as scratch:
        save_file({name: tensor.cpu().clone() for name, tensor in model.state_dict().items()}, scratch / WEIGHTS_FILE)
        _write_record(scratch, job.fingerprint, seed_run=seed_run)


def train_shard(group: ProcessGroup, job: TrainingJob, start: str, seeds: Sequence[int]) -> None:
    """Train this rank's share of the seeds, each in one process; called by `launch`."""
    data = TokenizedData(job)
    for seed in seeds[group.rank :: group.size]:
        train_seed(job, data, start, seed, group.notify_parent)


def train_distributed(group: ProcessGroup, job: TrainingJob, start: str, seed: int) -> None:
    """Train one seed with all processes; called by `launch`."""
    train_seed(job, TokenizedData(job), start, seed, group.notify_parent, group)


def load_seed_run(job: TrainingJob, seed: int) -> SavedSeedRun:
    """Return what `train_seed` saved."""
    target = _seed_folder(job, seed)
    return SavedSeedRun(read_json(target / RECORD_FILE)["seed_run"], str(target / WEIGHTS_FILE))


def _seed_folder(job: TrainingJob, seed: int) -> Path:
    return Path(job.folder) / f"seed-{seed}" / "finished"


def average_or_best(job: TrainingJob, data: TokenizedData, start: str, saved: Sequence[SavedSeedRun]) -> SelectedModel:
    """Return the mean of the seeds' weights, or the best seed where there is only one or the mean is worse than all.

    If the mean's validation MCC is below that of every seed, the weights lie in different basins of the loss. The mean
    is not compared with the best seed: a seed's MCC is the maximum over its epochs, which is biased upwards. Seeds
    that learned nothing are left out; one remaining seed is not averaged.
    Source: Wortsman et al. 2022, https://arxiv.org/abs/2203.05482 ("uniform soup").
    """
    learned = [each for each in saved if not each.run["collapsed"]] or saved
    best = max(learned, key=lambda each: validation_mcc(each.run))
    model = load_classifier(start)
    _load_mean(model, [each.weights for each in learned])
    if len(saved) == 1:
        return SelectedModel(model, averaged=False, best=best.run)
    collapsed = sum(each.run["collapsed"] for each in saved)
    if collapsed:
        log.warning("%d of %d seeds learned nothing", collapsed, len(saved))
    model.to(job.recipe.device)
    soup_mcc = float(validate(model, data.validation)["validation_mcc"] or 0)
    single = [validation_mcc(each.run) for each in learned]
    log.info(
        "mean of %d seeds: validation MCC %.3f; of single seeds %.3f to %.3f",
        len(learned), soup_mcc, min(single), max(single),
    )  # fmt: skip
    if len(learned) > 1 and not best.run["collapsed"] and soup_mcc >= min(single):
        return SelectedModel(model, averaged=True, best=best.run, soup_mcc=soup_mcc)
    _load_mean(model, [best.weights])
    return SelectedModel(model, averaged=False, best=best.run, soup_mcc=soup_mcc)


def validation_mcc(seed_run: SeedRun) -> float:
    """Return a seed's best validation MCC."""
    return seed_run["epochs"][seed_run["best_epoch"] - 1]["validation_mcc"]


def _load_mean(model: PreTrainedModel, files: Sequence[str]) -> None:
    """Load the mean of the weights in files into a model; integer tensors are taken from the first file."""
    mean: dict[str, torch.Tensor] = {}
    for number, file in enumerate(files, start=1):
        for name, tensor in load_file(file).items():
            if name in mean and tensor.is_floating_point():
                mean[name] += (tensor - mean[name]) / number
            else:
                mean.setdefault(name, tensor)
    model.load_state_dict(mean)


def _write_record(folder: Path, fingerprint: str, **more: Any) -> None:
    """Write the fingerprint of the job and the digest of the weights beside them."""
    content = {"fingerprint": fingerprint, "sha256": sha256_of(folder / WEIGHTS_FILE), **more}
    write_checksummed(folder / RECORD_FILE, content)


def _is_finished(folder: Path, fingerprint: str) -> bool:
    """Return whether a folder holds an intact model of this job; a damaged one is logged."""
    if not (folder / RECORD_FILE).is_file():
        return False
    try:
        record = read_checksummed(folder / RECORD_FILE)
        if record["fingerprint"] != fingerprint:
            return False
        if sha256_of(folder / WEIGHTS_FILE) != record["sha256"]:
            raise VerdictError(f"{WEIGHTS_FILE} is not what was written")
    except (OSError, VerdictError) as error:
        log.warning("%s is ignored: %s", folder, error)
        return False
    return True
