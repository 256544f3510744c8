"""The members of a training run: one model for each seed, all from one start, and what is made of them.

folder/rehearsed/           the encoder after the stage on spoiled sentences, from which every member starts
folder/seed-N/epoch-0003/   checkpoints of member N
folder/seed-N/finished/     member N, trained
"""

import logging
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypedDict

import pandas as pd
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from transformers import PreTrainedModel

from tasks.core.errors import VerdictError
from tasks.core.files import atomic_directory, read_checksummed, read_json, sha256_of, write_checksummed
from tasks.data.snapshots import read_snapshot
from tasks.inference.tokenization import load_tokenizer
from tasks.training.corruption import with_corruptions
from tasks.training.model import encode_rows, load_classifier
from tasks.training.process_group import ProcessGroup
from tasks.training.train_step import StepConfig
from tasks.training.trainer import CheckpointConfig, EpochRecord, OnEpoch, TrainingHistory, train_epochs, validate

SEED_STRIDE = 1_000  # between the seeds of restarts, so that they meet no seed that somebody chose next
WEIGHTS_FILE, SEED_RUN_FILE = "model.safetensors", "member.json"

log = logging.getLogger(__name__)


class TrainingJob(NamedTuple):
    """What all members of a run share: plain values, so that another process can take them.

    `run` names everything that decides a member's course; what lies in `folder` and names another run is not used.
    """

    train: str
    validation: str
    encoder: str
    folder: str
    run: str
    recipe: StepConfig
    epochs: int
    patience: int
    corruptions: int
    text: str
    text_corruptions: int
    label_smoothing: float
    max_length: int
    seed: int
    restarts: int
    checkpoint_seconds: float
    device: str


class SeedRun(TypedDict):
    """How a member was trained; `seed` is the one that learned."""

    seed: int
    best_epoch: int
    collapsed: bool
    epochs: list[EpochRecord]
    step_losses: list[float | None]


class SavedSeedRun(NamedTuple):
    """A member on disk: the record, and the file with its best epoch's weights."""

    run: SeedRun
    weights: str


class SelectedModel(NamedTuple):
    """The model that a run ends with, what it is ("seed 7" or "soup"), the best member, the soup's validation MCC."""

    model: PreTrainedModel
    selected: str
    best: SeedRun
    soup_mcc: float | None = None


def run_corruption_stage(job: TrainingJob) -> str:
    """Return the folder of what members start from: the encoder, or what spoiled sentences have made of it."""
    copies = {"train": job.corruptions, "text": job.text_corruptions if job.text else 0}
    if not any(copies.values()):
        return job.encoder
    target = Path(job.folder) / "rehearsed"
    if _finished(target, job.run):
        return str(target)
    parts = {"train": read_snapshot(job.train)} | ({"text": read_snapshot(job.text)} if job.text else {})
    known = [sentence for part in parts.values() for sentence in part["sentence"]]
    wanted = [with_corruptions(parts[name], count, job.seed, known) for name, count in copies.items() if count]
    rows = pd.concat(wanted, ignore_index=True)
    if rows["label"].nunique() < 2:
        log.warning("no sentence could be spoiled; training starts without a first stage")
        return job.encoder
    log.info("first stage: %d sentences, %d of them spoiled", len(rows), (rows["label"] == 0).sum())
    tokenizer = load_tokenizer(job.encoder, job.max_length)
    recipe = job.recipe._replace(steps=math.ceil(len(rows) / job.recipe.batch_size), r_drop=0.0)
    torch.manual_seed(job.seed)
    model = load_classifier(job.encoder).to(job.device)
    course = train_epochs(
        model,
        encode_rows(rows, tokenizer, model, job.device),
        encode_rows(read_snapshot(job.validation), tokenizer, model, job.device),
        recipe,
        epochs=1,
        seed=job.seed,
    )
    ended = course.epochs[-1]
    if ended["train_loss"] is None or ended["validation_loss"] is None:  # the last step may be the one that diverged
        log.warning("the first stage ended in a loss that is no number; training starts without it")
        return job.encoder
    with atomic_directory(target) as scratch:
        model.save_pretrained(scratch)
        _write_record(scratch, job.run)
    return str(target)


def train_seed_run(
    job: TrainingJob, start: str, seed: int, on_epoch: OnEpoch | None = None, team: ProcessGroup | None = None
) -> tuple[PreTrainedModel, SeedRun]:
    """Train until a seed learns, `seed` first; return the best epoch's model and how it went.

    Args:
        job: what it shares with others.
        start: folder of the model that it starts from.
        seed: of dropout and batch order.
        on_epoch: told of each finished epoch.
        team: processes that train it together; each of them calls this.
    """
    tokenizer = load_tokenizer(job.encoder, job.max_length)
    for attempt in range(job.restarts + 1):
        used = seed + attempt * SEED_STRIDE
        head_seed = job.seed + attempt * SEED_STRIDE
        model, course = _train_once(job, start, used, head_seed, tokenizer, on_epoch, team)
        if not course.collapsed:
            break
        left = "another one is tried" if attempt < job.restarts else "no further one is tried"
        log.warning("seed %d learned nothing; %s", used, left)
    return model, SeedRun(
        seed=used,
        best_epoch=course.best_epoch,
        collapsed=course.collapsed,
        epochs=course.epochs,
        step_losses=course.step_losses,
    )


def _train_once(
    job: TrainingJob,
    start: str,
    seed: int,
    head_seed: int,
    tokenizer: Tokenizer,
    on_epoch: OnEpoch | None,
    team: ProcessGroup | None,
) -> tuple[PreTrainedModel, TrainingHistory]:
    torch.manual_seed(head_seed)  # members with one head can be averaged
    model = load_classifier(start).to(job.device)
    if seed != head_seed:
        torch.manual_seed(seed)
    train = encode_rows(read_snapshot(job.train), tokenizer, model, job.device, job.label_smoothing)
    validation = encode_rows(read_snapshot(job.validation), tokenizer, model, job.device)
    # Each seed has its own folder, so that a run that is killed in its second try goes on with that.
    places = CheckpointConfig(f"{job.folder}/seed-{seed}", job.run, job.checkpoint_seconds)
    course = train_epochs(
        model, train, validation, job.recipe, epochs=job.epochs, seed=seed, patience=job.patience, places=places,
        on_epoch=on_epoch, team=team,
    )  # fmt: skip
    return model, course


def train_seed(
    job: TrainingJob, start: str, seed: int, on_epoch: OnEpoch | None = None, team: ProcessGroup | None = None
) -> None:
    """Train a member as `train_member` does and write it to disk, which rank 0 does in a team.

    One that lies there is not trained again.
    """
    target = _seed_folder(job, seed)
    if _finished(target, job.run):
        return
    model, member = train_seed_run(job, start, seed, on_epoch, team)
    if team and team.rank:
        return
    with atomic_directory(target) as scratch:
        save_file({name: tensor.cpu().clone() for name, tensor in model.state_dict().items()}, scratch / WEIGHTS_FILE)
        _write_record(scratch, job.run, member=member)


def train_shard(team: ProcessGroup, job: TrainingJob, start: str, seeds: Sequence[int]) -> None:
    """Train this process's share of the members, each alone; to be called by `launch`."""
    for seed in seeds[team.rank :: team.size]:
        train_seed(job, start, seed, team.notify_parent)


def train_distributed(team: ProcessGroup, job: TrainingJob, start: str, seed: int) -> None:
    """Train one member with all processes; to be called by `launch`."""
    train_seed(job, start, seed, team.notify_parent, team)


def load_seed_run(job: TrainingJob, seed: int) -> SavedSeedRun:
    """Return a member that `keep_member` has left."""
    target = _seed_folder(job, seed)
    return SavedSeedRun(read_json(target / SEED_RUN_FILE)["member"], str(target / WEIGHTS_FILE))


def _seed_folder(job: TrainingJob, seed: int) -> Path:
    return Path(job.folder) / f"seed-{seed}" / "finished"


def average_or_best(job: TrainingJob, start: str, members: Sequence[SavedSeedRun]) -> SelectedModel:
    """Return the mean of the members' weights, or the best member where there is one only or their mean is no good.

    The mean is no good where its validation MCC is below that of every member: then their weights do not lie in one
    valley. It is not compared with the best of them: a member's figure is the largest of its epochs', which flatters.
    Members that learned nothing are left out, and of one that is left there is no mean.
    Source: Wortsman et al. 2022, https://arxiv.org/abs/2203.05482 ("uniform soup").
    """
    learned = [each for each in members if not each.run["collapsed"]] or members
    best = max(learned, key=lambda each: validation_mcc(each.run))
    model = load_classifier(start)
    _load_mean(model, [each.weights for each in learned])
    if len(members) == 1:
        return SelectedModel(model, f"seed {best.run['seed']}", best.run)
    collapsed = sum(each.run["collapsed"] for each in members)
    if collapsed:
        log.warning("%d of %d members learned nothing", collapsed, len(members))
    model.to(job.device)
    tokenizer = load_tokenizer(job.encoder, job.max_length)
    validation = encode_rows(read_snapshot(job.validation), tokenizer, model, job.device)
    soup_mcc = float(validate(model, validation)["validation_mcc"] or 0)
    alone = [validation_mcc(each.run) for each in learned]
    log.info(
        "mean of %d members: validation MCC %.3f; alone %.3f to %.3f", len(learned), soup_mcc, min(alone), max(alone)
    )
    if len(learned) > 1 and not best.run["collapsed"] and soup_mcc >= min(alone):
        return SelectedModel(model, "soup", best.run, soup_mcc)
    _load_mean(model, [best.weights])
    return SelectedModel(model, f"seed {best.run['seed']}", best.run, soup_mcc)


def validation_mcc(member: SeedRun) -> float:
    """Return a member's best validation MCC."""
    return member["epochs"][member["best_epoch"] - 1]["validation_mcc"]


def _load_mean(model: PreTrainedModel, files: Sequence[str]) -> None:
    """Give a model the mean of the weights in files."""
    mean: dict[str, torch.Tensor] = {}
    for number, file in enumerate(files, start=1):
        for name, tensor in load_file(file).items():
            if name in mean and tensor.is_floating_point():
                mean[name] += (tensor - mean[name]) / number
            else:
                mean.setdefault(name, tensor)
    model.load_state_dict(mean)


def _write_record(folder: Path, run: str, **more: Any) -> None:
    """Say whose a piece is and what its weights are."""
    write_checksummed(folder / SEED_RUN_FILE, {"run": run, "sha256": sha256_of(folder / WEIGHTS_FILE), **more})


def _finished(folder: Path, run: str) -> bool:
    """Tell whether a piece is there, whole and this run's; a damaged one is told and made again."""
    if not (folder / SEED_RUN_FILE).is_file():
        return False
    try:
        held = read_checksummed(folder / SEED_RUN_FILE)
        if held["run"] != run:
            return False
        if sha256_of(folder / WEIGHTS_FILE) != held["sha256"]:
            raise VerdictError(f"{WEIGHTS_FILE} is not what was written")
    except (OSError, VerdictError) as error:
        log.warning("%s is passed over: %s", folder, error)
        return False
    return True
