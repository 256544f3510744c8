"""Fine-tuning: a pretrained encoder and labelled sentences in, a sentence classifier out.

Source of the recipe: Devlin et al. 2018, https://arxiv.org/abs/1810.04805, appendix A.3. Unlike the book's notebook:
weight decay reaches the optimiser, batches are padded to their own longest sentence, the epoch with the best
validation MCC is kept, and one seed gives one result on one device.
"""

import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TypedDict

from tokenizers import Tokenizer
from transformers import PreTrainedModel

from tasks.cluster.calls import CallCluster, run_calls
from tasks.core.errors import VerdictError
from tasks.core.files import atomic_directory, read_json, sha256_of, write_json
from tasks.core.progress import progress_bar
from tasks.inference.tokenization import load_tokenizer
from tasks.training.checkpoints import delete_checkpoints, describe_resumption
from tasks.training.corruption_stage import run_corruption_stage
from tasks.training.device import device_name
from tasks.training.kernel_compiler import compile_for_training
from tasks.training.launcher import check_processes, launch
from tasks.training.pretrained import encoder_digest
from tasks.training.recipe import TrainingRecipe
from tasks.training.seed_runs import (
    SeedRun,
    load_seed_run,
    train_distributed,
    train_seed_on_ray,
    train_seed_run,
    train_seeds,
    train_shard,
    validation_mcc,
)
from tasks.training.soup import SelectedModel, average_or_best
from tasks.training.teacher import read_teacher, write_answers
from tasks.training.token_check import check_saved, lost_capitals, sample_sentences
from tasks.training.trainer import EpochRecord, OnEpoch
from tasks.training.training_job import Teacher, TokenizedData, TrainingJob

TRAINING_SCHEMA = 1  # of training.json
TRAINING_FILE = "training.json"
UNUSED_WORDS = 0.05  # share of a vocabulary above which it is said that no sentence gives these words

log = logging.getLogger(__name__)


class SeedSummary(TypedDict):
    """Result of one of several seeds; `curve` is the validation MCC of each epoch."""

    seed: int
    best_epoch: int
    validation_mcc: float
    curve: list[float]


class TrainingResult(TypedDict):
    """The content of training.json: how a training run went. It names no paths, so that a job folder can be moved.

    `seed`, `best_epoch`, `epochs` and `step_losses` are those of the best seed. `averaged` says whether the model is
    the mean of all seeds' weights or that seed's; `soup_mcc` is the mean's validation MCC, None with one seed.
    """

    schema_version: int
    device: str
    precision: str
    averaged: bool
    soup_mcc: float | None
    seeds: list[SeedSummary]
    seed: int
    best_epoch: int
    epochs: list[EpochRecord]
    step_losses: list[float | None]
    seconds: float


def fine_tune(
    train: str,
    validation: str,
    recipe: TrainingRecipe,
    folder: str,
    *,
    text: str = "",
    teacher: Teacher | None = None,
    holdouts: Sequence[str] = (),
    on_epoch: OnEpoch | None = None,
) -> TrainingResult:
    """Fine-tune an encoder and write the model to `folder` atomically.

    An interrupted run resumes from its last checkpoint, in `folder`-checkpoints; on a CPU the result is bit for bit
    that of an uninterrupted one. A seed that learned nothing (one class only, or a NaN or Inf loss) is replaced by
    another.

    Args:
        train: snapshot of the training rows.
        validation: snapshot of the rows that select the epoch.
        recipe: how to train, and the folder of the encoder.
        folder: receives config.json, model.safetensors, tokenizer.json and training.json.
        text: snapshot of further sentences for the corruption stage and the teacher; empty for none.
        teacher: the model that the recipe's setting names; None for none.
        holdouts: snapshots of sentences that no corrupted copy may be.
        on_epoch: called after each epoch.

    Raises:
        UsageError: if the encoder's folder is no model that can classify sentences, the teacher has other labels, or
            there are fewer GPUs than processes.
        VerdictError: if a worker process failed, or the teacher is damaged, not the one that was found, or answers NaN.
    """
    started = time.perf_counter()
    job = make_job(train, validation, recipe, f"{folder}-checkpoints", text, teacher, holdouts)
    tokenizer = load_tokenizer(recipe.encoder, recipe.max_length)
    _check_tokenizer(tokenizer, train, recipe.max_length)
    try:
        selected, seed_runs = _train_all(job, on_epoch)
    except BaseException as error:
        if not isinstance(error, Exception):  # KeyboardInterrupt, or what Prefect raises for SIGTERM
            log.warning("training was stopped; %s", describe_resumption(job.folder))
        raise
    result = TrainingResult(
        schema_version=TRAINING_SCHEMA,
        device=device_name(recipe.device),
        precision=recipe.precision,
        averaged=selected.averaged,
        soup_mcc=selected.soup_mcc,
        seeds=[_summary(seed_run) for seed_run in seed_runs],
        seed=selected.best["seed"],
        best_epoch=selected.best["best_epoch"],
        epochs=selected.best["epochs"],
        step_losses=selected.best["step_losses"],
        seconds=round(time.perf_counter() - started, 2),
    )
    _save(Path(folder), selected.model, tokenizer, result)
    delete_checkpoints(job.folder)
    return result


def _check_tokenizer(tokenizer: Tokenizer, train: str, max_length: int) -> None:
    """Check that what is saved of a tokenizer gives sentences the tokens that they are trained with.

    Raises:
        UsageError: if not.
    """
    check_saved(tokenizer, max_length, sample_sentences(train))
    words = lost_capitals(tokenizer)
    if words > UNUSED_WORDS * tokenizer.get_vocab_size():
        log.warning(
            "the tokenizer lower-cases, and %d words of its vocabulary have capitals; if the encoder knows them, "
            'write "do_lower_case": false to tokenizer_config.json',
            words,
        )


def make_job(
    train: str,
    validation: str,
    recipe: TrainingRecipe,
    folder: str,
    text: str = "",
    teacher: Teacher | None = None,
    holdouts: Sequence[str] = (),
) -> TrainingJob:
    """Collect what all seeds share, with the fingerprint that ties checkpoints to it.

    Raises:
        UsageError: if there are fewer GPUs than processes, the encoder's folder lacks files, or the teacher has other
            labels.
        VerdictError: if the teacher is damaged, or not the one that was found.
    """
    check_processes(recipe.processes, recipe.device)
    data = [sha256_of(Path(path)) if path else "" for path in (train, validation, text, *holdouts)]
    taught_by = read_teacher(teacher)["manifest_digest"] if teacher else ""
    fingerprint = recipe.fingerprint(*data, encoder_digest(recipe.encoder), taught_by)
    return TrainingJob(recipe, train, validation, text, folder, fingerprint, teacher, tuple(holdouts))


def _train_all(job: TrainingJob, on_epoch: OnEpoch | None) -> tuple[SelectedModel, list[SeedRun]]:
    """Train all seeds, in one process or several; return the selected model and every seed's record."""
    recipe = job.recipe
    data = TokenizedData(job, compile_for_training(recipe))
    if job.teacher:
        write_answers(job, job.teacher)
    start = run_corruption_stage(job, data)
    if recipe.seeds == recipe.processes == 1:
        model, seed_run = train_seed_run(job, data, start, recipe.seed, on_epoch)
        return SelectedModel(model, averaged=False, best=seed_run), [seed_run]
    seeds = list(range(recipe.seed, recipe.seed + recipe.seeds))
    if recipe.processes > 1 or (recipe.ray and recipe.seeds > 1):
        data.wait_for_kernels()  # once, not in every process
        _train_elsewhere(job, start, seeds, on_epoch)
    else:
        train_seeds(job, data, start, seeds, on_epoch)
    saved = [load_seed_run(job, seed) for seed in seeds]
    return average_or_best(job, data, start, saved), [each.run for each in saved]


def _train_elsewhere(job: TrainingJob, start: str, seeds: list[int], on_epoch: OnEpoch | None) -> None:
    """Train one seed on all GPUs, or several seeds, each on one, here or on a cluster; a bar counts epochs."""
    recipe = job.recipe
    with progress_bar("epochs", recipe.epochs * recipe.seeds) as advance:

        def report(epoch: EpochRecord) -> None:
            advance()
            if on_epoch:
                on_epoch(epoch)

        if recipe.seeds == 1:
            launch(train_distributed, recipe.processes, job, start, *seeds, device=recipe.device, on_message=report)
        elif recipe.ray:
            _train_on_ray(job, start, seeds, report)
        else:
            processes, device = min(recipe.processes, recipe.seeds), recipe.device
            launch(train_shard, processes, job, start, seeds, device=device, on_message=report, synchronised=False)


def _train_on_ray(job: TrainingJob, start: str, seeds: list[int], report: OnEpoch) -> None:
    """Train each seed as a task of a Ray cluster, whose machines see the job's folder."""
    cluster = CallCluster(job.recipe.ray, gpus=1 if job.recipe.device == "cuda" else 0)
    for _, result in run_calls(train_seed_on_ray, [(job, start, seed) for seed in seeds], cluster, report):
        if isinstance(result, VerdictError):
            raise result


def _summary(seed_run: SeedRun) -> SeedSummary:
    return SeedSummary(
        seed=seed_run["seed"],
        best_epoch=seed_run["best_epoch"],
        validation_mcc=validation_mcc(seed_run),
        curve=[epoch["validation_mcc"] for epoch in seed_run["epochs"]],
    )


def _save(folder: Path, model: PreTrainedModel, tokenizer: Tokenizer, result: TrainingResult) -> None:
    with atomic_directory(folder) as scratch:
        model.save_pretrained(scratch)
        tokenizer.save(str(scratch / "tokenizer.json"))
        write_json(scratch / TRAINING_FILE, result)


def load_training(folder: str) -> TrainingResult | None:
    """Return the record of a finished training in `folder`.

    Returns:
        None where there is none, or where another version of this program wrote it: the model is trained again.
    """
    path = Path(folder) / TRAINING_FILE
    if not path.is_file():
        return None
    record = read_json(path)
    version = record.get("schema_version") if isinstance(record, dict) else None
    if version != TRAINING_SCHEMA:
        log.warning("%s has schema version %s, expected %s; the model is trained again", path, version, TRAINING_SCHEMA)
        return None
    result: TrainingResult = record
    return result
