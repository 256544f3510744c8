"""The teacher of a training: the model whose answers it learns, found and checked before the job is named."""

import logging
from pathlib import Path

from flows.commands.predict import FoundModel, check_teacher, find_model, teacher_errors
from tasks.core.files import read_json
from tasks.core.settings import Settings
from tasks.data.ingestion import Dataset, holdout_digests
from tasks.inference.bundle import PROFILE
from tasks.registry.store import split_address
from tasks.training.teacher import read_teacher
from tasks.training.training_job import Teacher

log = logging.getLogger("tasks.retrain")


def locate_teacher(settings: Settings, data: Dataset, home: str) -> FoundModel:
    """Return the model that `finetune.teacher` names.

    A teacher that other holdouts were kept from may have read sentences of these: that is logged.

    Args:
        settings: of the job.
        data: that it trains on.
        home: folder of the stores.

    Raises:
        UsageError: if it is no model, or one with other labels.
        VerdictError: if there is no such version, or its files are not those registered.
    """
    check_teacher(settings, home)
    address = settings.finetune.teacher
    with teacher_errors():
        found = find_model(address, home)
        manifest = read_teacher(Teacher(found.bundle, found.manifest_digest))
        unread = _unread_holdouts(Path(found.bundle))
    if manifest["dataset"] != data["digest"] and not unread.issuperset(holdout_digests(data)):
        log.warning(
            "finetune.teacher %s: nothing says that the teacher has not read sentences of this holdout; if it has, the "
            "MCC will be too high",
            address,
        )
    return found._replace(bundle=str(Path(found.bundle).absolute()))


def teacher_of(found: FoundModel | None) -> Teacher | None:
    """Return what a training takes of the model that was found, if one was."""
    return Teacher(found.bundle, found.manifest_digest) if found else None


def pinned_teacher(settings: Settings, found: FoundModel | None) -> dict[str, str]:
    """Return the setting as it stays when an alias of the registry moves; empty without a teacher."""
    address = settings.finetune.teacher
    if found and address.startswith("models:/"):
        name, _, _ = split_address(address)
        address = f"models:/{name}/{found.version}"
    return {"teacher": address} if found else {}


def _unread_holdouts(bundle: Path) -> set[str]:
    """Return the digests of the holdouts that a bundle's model was not trained on, as far as its profile says."""
    profile = bundle / PROFILE
    content = read_json(profile, "fetch the bundle again") if profile.is_file() else None
    return set(content.get("holdouts", [])) if isinstance(content, dict) else set()
