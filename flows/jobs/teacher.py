"""The teacher of a training: the model whose answers it learns, found and checked before the job is named."""

import logging
from pathlib import Path

from flows.commands.predict import FoundModel, find_model
from tasks.core.files import read_json
from tasks.inference.bundle import PROFILE
from tasks.training.teacher import read_teacher

log = logging.getLogger("tasks.retrain")


def locate_teacher(address: str, rows: str, home: str) -> FoundModel:
    """Return the model that `finetune.teacher` names.

    A teacher that learned other training rows may have read sentences of this holdout: that is logged.

    Args:
        address: bundle's folder, registry address, version number or hf:ORG/NAME.
        rows: digest of the training rows of the job.
        home: folder of the stores.

    Raises:
        UsageError: if it is no model, or one with other labels.
        VerdictError: if there is no such version, or its files are not those registered.
    """
    found = find_model(address, home)
    read_teacher(found.bundle)
    learned = _learned_rows(Path(found.bundle))
    if learned != rows:
        log.warning(
            "finetune.teacher %s learned other training rows (%.8s, not %.8s); if sentences of this holdout were among "
            "them, the MCC will be too high",
            address, learned or "unknown", rows,
        )  # fmt: skip
    return found


def _learned_rows(bundle: Path) -> str:
    """Return the digest of the rows that a bundle's model was trained on; empty where it holds no profile of them."""
    profile = bundle / PROFILE
    return str(read_json(profile)["dataset"]) if profile.is_file() else ""
