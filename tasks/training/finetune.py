"""The training run: a pretrained encoder and labelled sentences in, a classifier out.

Source of the recipe: Devlin et al. 2018, https://arxiv.org/abs/1810.04805, appendix A.3. Unlike the book's notebook:
weight decay reaches the optimiser, batches are padded to their own longest sentence, the epoch with the best
validation MCC is kept, and one seed gives one result on one device.
"""

import math
import time
from pathlib import Path
from typing import NotRequired, TypedDict, Unpack

from tokenizers import Tokenizer
from transformers import PreTrainedModel

from tasks.core.files import atomic_directory, json_digest, read_json, sha256_of, write_json
from tasks.data.snapshots import count_rows
from tasks.inference.tokenization import load_tokenizer
from tasks.training.checkpoints import delete_checkpoints
from tasks.training.device import cpu_supports_bf16, device_name, resolve_device
from tasks.training.launcher import check_processes, launch
from tasks.training.soup import (
    SeedRun,
    SelectedModel,
    TrainingJob,
    average_or_best,
    load_seed_run,
    run_corruption_stage,
    train_distributed,
    train_seed,
    train_seed_run,
    train_shard,
    validation_mcc,
)
from tasks.training.train_step import StepConfig
from tasks.training.trainer import EpochRecord, OnEpoch


class SeedSummary(TypedDict):
    """How one of several seeds did."""

    seed: int
    best_epoch: int
    validation_mcc: float
    curve: list[float]


class TrainingResult(TypedDict):
    """What a training run leaves: the model's folder, and how it went.

    `seed`, `best_epoch`, `epochs` and `step_losses` are those of the seed that did best; `kept` says whether it is that
    seed's model or the mean of all ("soup"), whose validation MCC is `soup_mcc` (None where there was one seed only).
    """

    model: str
    device: str
    precision: str
    selected: str
    soup_mcc: float | None
    seeds: list[SeedSummary]
    seed: int
    best_epoch: int
    epochs: list[EpochRecord]
    step_losses: list[float | None]
    seconds: float


class FinetuneOptions(TypedDict):
    """How to fine-tune.

    - epochs: passes over the training rows.
    - batch_size: sentences a step.
    - learning_rate: AdamW's peak.
    - warmup_ratio: share of the steps before the peak.
    - weight_decay: AdamW's, for matrices.
    - layer_decay: share of the learning rate that a layer gets of the one above it; 1 for all alike.
    - max_length: tokens a sentence is cut off at.
    - max_grad_norm: L2 norm that gradients are clipped to.
    - seed: of the head, dropout and batch order.
    - restarts: further seeds that are tried where one learned nothing.
    - checkpoint_seconds: least time between two checkpoints; they are written between epochs.
    - device: auto, cuda or cpu.
    - seeds: how many are trained from one start [1]; of several the mean of their weights is kept, if it is good.
    - processes: that train on this host, one a GPU [1]: several seeds are shared out, of one seed the batches are.
    - patience: epochs without a better validation MCC after which training ends; 0 for never [0].
    - corruptions: corrupted copies of each acceptable sentence that a first stage tells from the original [0].
    - text: snapshot of further sentences for that stage [none].
    - text_corruptions: the same of each of those [1].
    - label_smoothing: share of a label that is spread over both classes [0].
    - r_drop: weight of the difference between two passes with other places dropped; 0 for one pass [0].
    - precision: fp32, bf16, or auto [auto]: bf16 on a GPU, and on a CPU that has instructions for it.
    """

    epochs: int
    batch_size: int
    learning_rate: float
    warmup_ratio: float
    weight_decay: float
    layer_decay: float
    max_length: int
    max_grad_norm: float
    seed: int
    restarts: int
    checkpoint_seconds: float
    device: str
    seeds: NotRequired[int]
    processes: NotRequired[int]
    patience: NotRequired[int]
    corruptions: NotRequired[int]
    text: NotRequired[str]
    text_corruptions: NotRequired[int]
    label_smoothing: NotRequired[float]
    r_drop: NotRequired[float]
    precision: NotRequired[str]


def fine_tune(
    train: str,
    validation: str,
    encoder: str,
    folder: str,
    *,
    on_epoch: OnEpoch | None = None,
    **settings: Unpack[FinetuneOptions],
) -> TrainingResult:
    """Fine-tune an encoder and write the model to `folder`, whole or not at all.

    A run that was killed goes on from its last checkpoint, in `folder`-checkpoints; on a CPU it ends with the same bits
    as one that was not. A seed that learned nothing (one class only, or a loss that is no number) makes room for
    another.

    Args:
        train: snapshot of the training rows.
        validation: snapshot of the rows that choose the epoch.
        encoder: folder of the pretrained encoder.
        folder: receives config.json, model.safetensors, tokenizer.json and training.json.
        on_epoch: told of each finished epoch.
        settings: see `Settings`.

    Raises:
        WrongUsage: if the encoder's folder is no model that can classify sentences, or there are fewer GPUs than
            processes.
        VerdictError: if cuda is wanted and not there, or a process ended before its time.
    """
    started = time.perf_counter()
    tokenizer = load_tokenizer(encoder, settings["max_length"])
    job = make_job(train, validation, encoder, f"{folder}-checkpoints", settings)
    choice, members = _train_all(job, settings.get("seeds", 1), settings.get("processes", 1), on_epoch)
    training = TrainingResult(
        model=folder,
        device=device_name(job.device),
        precision=job.recipe.precision,
        selected=choice.selected,
        soup_mcc=choice.soup_mcc,
        seeds=[_summary(member) for member in members],
        seed=choice.best["seed"],
        best_epoch=choice.best["best_epoch"],
        epochs=choice.best["epochs"],
        step_losses=choice.best["step_losses"],
        seconds=round(time.perf_counter() - started, 2),
    )
    _save(choice.model, tokenizer, training)
    delete_checkpoints(job.folder)
    return training


def make_job(train: str, validation: str, encoder: str, folder: str, settings: FinetuneOptions) -> TrainingJob:
    """Collect what all members share, and name it."""
    device = resolve_device(settings["device"])
    check_processes(settings.get("processes", 1), device)
    recipe = StepConfig(
        steps=settings["epochs"] * math.ceil(count_rows(train) / settings["batch_size"]),
        batch_size=settings["batch_size"],
        learning_rate=settings["learning_rate"],
        warmup_ratio=settings["warmup_ratio"],
        weight_decay=settings["weight_decay"],
        max_grad_norm=settings["max_grad_norm"],
        layer_decay=settings["layer_decay"],
        r_drop=settings.get("r_drop", 0.0),
        precision=_precision(settings.get("precision", "auto"), device),
    )
    job = TrainingJob(
        train=train,
        validation=validation,
        encoder=encoder,
        folder=folder,
        run="",
        recipe=recipe,
        epochs=settings["epochs"],
        patience=settings.get("patience", 0),
        corruptions=settings.get("corruptions", 0),
        text=settings.get("text", ""),
        text_corruptions=settings.get("text_corruptions", 1),
        label_smoothing=settings.get("label_smoothing", 0.0),
        max_length=settings["max_length"],
        seed=settings["seed"],
        restarts=settings["restarts"],
        checkpoint_seconds=settings["checkpoint_seconds"],
        device=device,
    )
    decisive: list[object] = [sha256_of(Path(path)) for path in (train, validation, job.text) if path]
    decisive += [encoder, list(recipe), job.max_length, device]
    decisive += [job.seed, job.patience, job.corruptions, job.label_smoothing]
    decisive += [job.text_corruptions] if job.text else []
    if settings.get("seeds", 1) == 1:
        decisive.append(settings.get("processes", 1))  # each draws its own dropout
    return job._replace(run=json_digest(decisive))


def _precision(wanted: str, device: str) -> str:
    if wanted != "auto":
        return wanted
    return "bf16" if device == "cuda" or cpu_supports_bf16() else "fp32"


def _train_all(
    job: TrainingJob, seeds: int, processes: int, on_epoch: OnEpoch | None
) -> tuple[SelectedModel, list[SeedRun]]:
    """Train the members, in one process or several; return what is kept of them, and their records."""
    start = run_corruption_stage(job)
    if seeds == processes == 1:
        model, member = train_seed_run(job, start, job.seed, on_epoch)
        return SelectedModel(model, f"seed {member['seed']}", member), [member]
    wanted = list(range(job.seed, job.seed + seeds))
    if processes == 1:
        for seed in wanted:
            train_seed(job, start, seed, on_epoch)
    elif seeds == 1:
        launch(train_distributed, processes, job, start, job.seed, device=job.device, on_message=on_epoch)
    else:
        launch(
            train_shard,
            min(processes, seeds),
            job,
            start,
            wanted,
            device=job.device,
            on_message=on_epoch,
            together=False,
        )
    kept = [load_seed_run(job, seed) for seed in wanted]
    return average_or_best(job, start, kept), [each.run for each in kept]


def _summary(member: SeedRun) -> SeedSummary:
    return SeedSummary(
        seed=member["seed"],
        best_epoch=member["best_epoch"],
        validation_mcc=validation_mcc(member),
        curve=[epoch["validation_mcc"] for epoch in member["epochs"]],
    )


def _save(model: PreTrainedModel, tokenizer: Tokenizer, training: TrainingResult) -> None:
    with atomic_directory(Path(training["model"])) as scratch:
        model.save_pretrained(scratch)
        tokenizer.save(str(scratch / "tokenizer.json"))
        write_json(scratch / "training.json", training)


def load_training(folder: str) -> TrainingResult | None:
    """Return the training that a finished folder records, or None; an unfinished one does not exist."""
    path = Path(folder) / "training.json"
    return read_json(path) if path.is_file() else None
