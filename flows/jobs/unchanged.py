"""Finds in seconds a finished job of the same inputs, before Prefect, MLflow and torch are imported.

A job is named by its data's digest, which only parsing tells. Beside its result a finished job therefore keeps a digest
of what decides that name and can be had without parsing: the bytes of its files, settings, encoder, code and libraries.
Where anything differs or cannot be said quickly, the flow decides, as it would without this module.
"""

import contextlib
import dataclasses
import logging
import os
from pathlib import Path
from typing import NamedTuple

from flows.outcome import RESULT_FILE, RetrainOutcome
from tasks.core.addresses import HUB_PREFIX
from tasks.core.errors import VerdictError
from tasks.core.files import home_id, json_digest, read_json, sha256_of, write_json
from tasks.core.folder_locks import is_locked, shared
from tasks.core.provenance import git_commit, library_versions
from tasks.core.settings import DataSettings, Settings
from tasks.inference.bundle import MODEL_NAME, REPORT_FILE
from tasks.registry.sqlite_lookup import find_local_digest, find_running_jobs
from tasks.registry.store import MlflowStore, locate_store
from tasks.training.pretrained import PACKAGED, Encoder, locate_encoder

INPUTS_FILE = "inputs.json"
SCHEMA_VERSION = 1  # of inputs.json
LOCATION_SETTINGS = {"path", "train", "holdout", "text", "offline"}  # of data: where files lie decides no result


class DataFiles(NamedTuple):
    """The files that a job reads its data from, as they were when they were hashed."""

    names: dict[str, list[list[str]]]
    """By role: name and SHA-256 of each file."""
    states: dict[str, tuple[int, ...]]
    """By path: device, inode, size and time of the last change."""

    def are_unchanged(self) -> bool:
        """Return whether no file was changed or replaced since."""
        return all(_state(Path(path)) == state for path, state in self.states.items())


def recipe_of(settings: Settings) -> dict[str, object]:
    """Return the settings that decide a job's result, beside data, encoder, teacher and device."""
    recipe: dict[str, object] = settings.model_dump(
        mode="json",
        exclude={
            "data": {*LOCATION_SETTINGS, "columns", "labels"},
            "finetune": {"encoder", "device", "checkpoint_seconds", "allow_new_weights", "ray", "teacher"},
            # The policy's numbers are part of it, its file's path is not. Waiting changes no result.
            "judge": {"policy", "wait_for_person", "wait_hours"},
            "watch": True,
        },
    )
    return recipe


def hash_files(data: DataSettings, home: str) -> DataFiles | None:
    """Hash the files behind the addresses of data; None where that takes a network, or there are no such files."""
    if any(address.startswith(HUB_PREFIX) for address in (*data.path, data.train, data.holdout)):
        return None
    from tasks.data.sources import locate_sources, locate_text

    try:
        sources = locate_sources(data.path, data.train, data.holdout, home, offline=True)
        paths = {"train": sources["train"], "holdout": sources["holdout"], "secondary": sources["secondary"]}
        paths["text"] = list(filter(None, [locate_text(data.text, home, offline=True)]))
        states = {path: _state(Path(path)) for role in paths.values() for path in role}
        return DataFiles(
            {role: [[Path(path).name, sha256_of(Path(path))] for path in found] for role, found in paths.items()},
            states,
        )
    except (VerdictError, OSError):  # the flow reports it
        return None


def digest_inputs(settings: Settings, files: DataFiles | None, encoder: Encoder) -> str | None:
    """Digest what a job with these settings, files and encoder depends on; None where code or files are not known.

    None with a teacher as well: an address in a registry says nothing about which model it is.
    """
    commit = git_commit()
    if files is None or commit.endswith("-dirty") or settings.finetune.teacher:
        return None
    from tasks.inference.sessions import has_gpu

    tables = settings.data.model_dump(mode="json", include={"columns", "labels"})
    device = [settings.finetune.device, has_gpu(), os.environ.get("CUDA_VISIBLE_DEVICES")]
    encoded = [encoder["name"], encoder["digest"]]
    return json_digest([recipe_of(settings), tables, files.names, encoded, device, commit, library_versions()])


def record_inputs(folder: Path, digest: str | None, files: DataFiles | None) -> None:
    """Keep the digest of a finished job's inputs beside its result, unless a file was changed while the job read it."""
    if digest and files and files.are_unchanged():
        write_json(folder / INPUTS_FILE, {"schema_version": SCHEMA_VERSION, "digest": digest})


def find_unchanged(settings: Settings, home: str) -> RetrainOutcome | None:
    """Return the outcome of a finished job of the same inputs whose version is still registered; None where none is."""
    store = locate_store(home)
    recorded = {path.parent: _recorded(path) for path in Path(home, "runs").glob(f"*/{INPUTS_FILE}")}
    if not recorded or _has_dead_runs(store, home):
        return None
    digest = _digest_now(settings, home)
    for folder, known in recorded.items():
        if digest and known == digest and (outcome := _load(folder, store)):
            return outcome
    return None


def _digest_now(settings: Settings, home: str) -> str | None:
    """Digest the inputs as they are now; what is worth a warning is not logged here, because the flow logs it."""
    encoder, before = settings.finetune.encoder, logging.root.manager.disable
    if settings.finetune.teacher or (encoder != PACKAGED and not Path(encoder).is_dir()):
        return None
    logging.disable(logging.CRITICAL)
    try:
        files = hash_files(settings.data, home)
        return digest_inputs(settings, files, locate_encoder(encoder, offline=True)) if files else None
    except (VerdictError, OSError):  # the flow reports it
        return None
    finally:
        logging.disable(before)


def load_result(folder: Path, store: MlflowStore) -> RetrainOutcome | None:
    """Return what a finished job came to; None where there is none. Whether its version exists is not checked."""
    path = folder / RESULT_FILE
    outcome = RetrainOutcome.from_json(read_json(path)) if path.is_file() else None
    # The stores may have been moved since.
    return outcome and dataclasses.replace(outcome, report=report_path(folder), store=store["uri"], unchanged=True)


def report_path(folder: Path) -> str:
    """Return the path of a job's report."""
    return str(folder / REPORT_FILE)


def _has_dead_runs(store: MlflowStore, home: str) -> bool:
    """Return whether a killed process left a run in status RUNNING, which the flow ends."""
    jobs = find_running_jobs(store, home_id(home))
    return jobs is None or any(not is_locked(Path(home, "runs", job)) for job in jobs)


def _load(folder: Path, store: MlflowStore) -> RetrainOutcome | None:
    """Load a finished job, unless another process works on it: it may be starting over."""
    with contextlib.suppress(VerdictError, OSError), shared(folder) as free:
        outcome = load_result(folder, store) if free else None
        registered = outcome and find_local_digest(store, MODEL_NAME, outcome.digest) == outcome.version
        return outcome if registered else None
    return None


def _recorded(path: Path) -> str | None:
    """Return the digest of an inputs.json; None where it cannot be read or has another form."""
    with contextlib.suppress(VerdictError, OSError, AttributeError):
        document = read_json(path)
        return document.get("digest") if document.get("schema_version") == SCHEMA_VERSION else None
    return None


def _state(path: Path) -> tuple[int, ...]:
    """Return what changes when a file is changed or replaced."""
    try:
        status = path.stat()
    except OSError:
        return ()
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns
