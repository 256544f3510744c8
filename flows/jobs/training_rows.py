"""The rows that a training gets: split from the data that was read, without what a holdout holds."""

import logging
from pathlib import Path
from typing import NamedTuple

from flows.steps import Timer, timed_task
from tasks.core.settings import Settings
from tasks.data.folds import Fold, split_folds
from tasks.data.ingestion import Dataset
from tasks.data.splitting import Group, Split, drop_labelled, split_snapshot
from tasks.data.validation_group import choose_group

log = logging.getLogger("tasks.split")

split = timed_task("split", split_snapshot)
divide = timed_task("split", split_folds)


class TrainingRows(NamedTuple):
    """Snapshots for a training, and how many rows went where."""

    train: str
    validation: str
    text: str
    """Snapshot of further sentences, or empty."""
    text_counts: dict[str, int]
    """Of the further sentences: kept, and left out because they are labelled; empty without them."""
    split: Split
    holdouts: list[str]
    """Snapshots of which nothing may be trained on."""


def holdouts_of(data: Dataset) -> list[str]:
    """Return the snapshots of the holdouts."""
    return [snapshot["path"] for snapshot in (data["holdout"], data["secondary"]) if snapshot]


def split_rows(timer: Timer, data: Dataset, settings: Settings, folder: Path) -> TrainingRows:
    """Set validation rows apart, and drop labelled sentences from the further ones.

    Args:
        timer: of the flow run.
        data: snapshots of what was read.
        settings: whose seed, share and group decide the split.
        folder: receives the snapshots.
    """
    share, seed = settings.data.validation_share, settings.finetune.seed
    group, path = _choose_group(data, settings), data["train"]["path"]
    holdouts = holdouts_of(data)
    train, validation, counts = split(timer, path, holdouts, str(folder), share, seed, group)
    return TrainingRows(train, validation, *_further_text(data, Fold(train, validation), folder), counts, holdouts)


def split_into_folds(
    timer: Timer, data: Dataset, settings: Settings, folder: Path, count: int
) -> tuple[list[Fold], str]:
    """Divide the rows into folds of about equal size, or set validation rows apart where it is one.

    What validation keeps together is what it keeps together in a run; but where that is for us to choose, and sources
    make no such folds, sentences.

    Args:
        timer: of the flow run.
        data: snapshots of what was read.
        settings: whose seed and group decide the folds.
        folder: receives the snapshots.
        count: of the folds.

    Returns:
        The folds, and the snapshot of further sentences, or an empty text.
    """
    if count == 1:
        rows = split_rows(timer, data, settings, folder)
        return [Fold(rows.train, rows.validation)], rows.text
    group, path = _choose_group(data, settings), data["train"]["path"]
    groups: list[Group] = [group, "sentence"] if settings.data.group == "auto" and group == "source" else [group]
    folds = divide(timer, path, holdouts_of(data), str(folder / "folds"), count, settings.finetune.seed, groups)
    text, _ = _further_text(data, folds[0], folder)
    return folds, text


def _choose_group(data: Dataset, settings: Settings) -> Group:
    """Return what validation keeps together, and log why."""
    path, holdout, share = data["train"]["path"], data["holdout"]["path"], settings.data.validation_share
    group, reason = choose_group(settings.data.group, path, holdout, share, settings.finetune.seed)
    log.info("validation keeps %s together: %s", "sources" if group == "source" else "equal sentences", reason)
    return group


def _further_text(data: Dataset, rows: Fold, folder: Path) -> tuple[str, dict[str, int]]:
    """Return the snapshot of the further sentences without labelled ones, and counts; both empty without them."""
    if not data["text"]:
        return "", {}
    text, left_out = drop_labelled(data["text"]["path"], [*rows, *holdouts_of(data)], str(folder))
    return text, {"text": data["text"]["kept"] - left_out, "text_left_out": left_out}
