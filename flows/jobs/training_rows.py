"""The rows that a training gets: split from the data that was read, without what a holdout holds."""

import logging
from pathlib import Path
from typing import NamedTuple

from flows.steps import Timer, timed_task
from tasks.core.settings import Settings
from tasks.data.ingestion import Dataset
from tasks.data.splitting import Split, drop_labelled, split_snapshot
from tasks.data.validation_group import choose_group

log = logging.getLogger(__name__)

split = timed_task("split", split_snapshot)


class TrainingRows(NamedTuple):
    """Snapshots for a training, and how many rows went where."""

    train: str
    validation: str
    text: str
    """Snapshot of further sentences, or empty."""
    split: Split
    text_counts: dict[str, int]
    """Of the further sentences: kept, and left out because they are labelled; empty without them."""


def split_rows(timer: Timer, data: Dataset, settings: Settings, folder: Path) -> TrainingRows:
    """Set validation rows apart, and drop labelled sentences from the further ones.

    Args:
        timer: of the flow run.
        data: snapshots of what was read.
        settings: whose seed, share and group decide the split.
        folder: receives the snapshots.
    """
    holdouts = [snapshot["path"] for snapshot in (data["holdout"], data["secondary"]) if snapshot]
    path, share, seed = data["train"]["path"], settings.data.validation_share, settings.finetune.seed
    group, reason = choose_group(settings.data.group, path, data["holdout"]["path"], share, seed)
    log.info("validation keeps %s together: %s", "sources" if group == "source" else "equal sentences", reason)
    train, validation, counts = split(timer, path, holdouts, str(folder), share, seed, group)
    if not data["text"]:
        return TrainingRows(train, validation, "", counts, {})
    text, left_out = drop_labelled(data["text"]["path"], [train, validation, *holdouts], str(folder))
    return TrainingRows(
        train, validation, text, counts, {"text": data["text"]["kept"] - left_out, "text_left_out": left_out}
    )
