"""Predictions with a registered model or a bundle; imports MLflow only where the store is no local database."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from flows.services.server_watch import reach_store
from tasks.core.addresses import HUB_PREFIX
from tasks.core.errors import UsageError, VerdictError
from tasks.inference.bundle import MODEL_NAME, check_folder, check_signature, digest_version, read_manifest
from tasks.inference.classifier import Classifier, bundle_errors
from tasks.registry.code_digest import (
    BUNDLE_DIGEST_TAG,
    BUNDLE_PATH,
    MANIFEST_DIGEST_TAG,
    WRAPPING_DIGEST_TAG,
    check_registered,
    check_version_signature,
)
from tasks.registry.sqlite_lookup import check_local_version, find_local_version
from tasks.registry.store import MlflowStore, locate_store, split_address

if TYPE_CHECKING:
    from tasks.core.settings import Settings

EXAMPLE = 'verdict predict "The child has eaten the apple."'


class FoundModel(NamedTuple):
    """A model's version (`sha256:...` for the folder of a bundle), its bundle's folder, and the digest of its manifest.

    The bundle has to be loaded with that digest as `expected`; its files were not verified yet.
    """

    version: str
    bundle: str
    manifest_digest: str


def predict(sentences: list[str], model: str, device: str, home: str) -> list[dict[str, Any]]:
    """Classify sentences with a model; every prediction carries its version.

    Raises:
        UsageError: if a sentence is empty.
        VerdictError: if there is no such model, or its files are damaged or not those registered.
    """
    for number, sentence in enumerate(sentences, 1):
        if not sentence.strip():
            raise UsageError(f"sentence {number} is empty; expected text: {EXAMPLE}")
    version, bundle, manifest_digest = find_model(model, home)
    classifier = Classifier.from_bundle(bundle, device, spin=False, expected=manifest_digest)
    with bundle_errors(bundle, "it cannot answer"):
        return [{**answer, "version": version} for answer in classifier.predict(sentences)]


def check_model(model: str, home: str) -> None:
    """Check what takes no time before something slow starts: that a model may exist.

    Raises:
        VerdictError: if it certainly does not.
    """
    if model.startswith(HUB_PREFIX):
        from tasks.registry.hub_bundles import parse_address

        parse_address(model)
    elif Path(model).is_dir() and not model.isdecimal():
        check_folder(Path(model))
    else:
        check_local_version(locate_store(home), _address(model))


@contextlib.contextmanager
def teacher_errors() -> Iterator[None]:
    """Let an error of the block say that it is about the teacher's setting."""
    try:
        yield
    except VerdictError as error:
        raise type(error)(f"finetune.teacher: {error}") from error


def check_teacher(settings: "Settings", home: str) -> None:
    """Check what takes no time before something slow starts: that the teacher that settings name may exist.

    Raises:
        VerdictError: if it certainly does not, or would have to be downloaded against `data.offline`.
    """
    teacher = settings.finetune.teacher
    if settings.data.offline and teacher.startswith(HUB_PREFIX):
        raise UsageError(
            f"finetune.teacher: {teacher} is asked of the hub, and data.offline is on; expected a registered version "
            "or a bundle's folder, such as: verdict verify VERSION --copy-to DIR"
        )
    with teacher_errors():
        check_model(teacher, home)


def find_model(model: str, home: str) -> FoundModel:
    """Return where a model is; the code of a registered version is compared with what the registry holds.

    Args:
        model: registry address, version number, a bundle's folder, or hf:ORG/NAME[@REVISION].
        home: folder of the stores.

    Raises:
        UsageError: if it is none of these, or a folder without a bundle.
        VerdictError: if there is no such version, or its code, manifest or signature are not those registered.
    """
    model = fetch_from_hub(model, home)
    address = _address(model)
    if address == model and Path(model).is_dir():
        check_folder(Path(model))
        manifest = read_manifest(Path(model))
        check_signature(Path(model))
        return FoundModel(digest_version(manifest), model, manifest["manifest_digest"])
    store = reach_store(home)
    check_local_version(store, address)
    if found := find_local_version(store, *split_address(address)):
        version, folder, tags = found
    else:
        version, folder, tags = _fetch_model(store, address)
    manifest = read_manifest(folder / BUNDLE_PATH)
    check_registered(folder, version, manifest, tags)
    check_version_signature(folder, version)
    return FoundModel(version, str(folder / BUNDLE_PATH), manifest["manifest_digest"])


def fetch_from_hub(model: str, home: str) -> str:
    """Return the folder of a model of the Hugging Face hub, after its download; any other model as it is."""
    if not model.startswith(HUB_PREFIX):
        return model
    from tasks.registry.hub_bundles import pull_bundle

    return pull_bundle(model, str(Path(home) / "cache" / "hub"))


def _address(model: str) -> str:
    return f"models:/{MODEL_NAME}/{model}" if model.isdecimal() else model


def _fetch_model(store: MlflowStore, address: str) -> tuple[str, Path, dict[str, str]]:
    """Return a version's number, the folder of its files after a download, and its digests by their tags."""
    from tasks.registry.lookup import resolve_version  # imports MLflow, which takes seconds

    found = resolve_version(store, address, fetch=True)
    tags = {
        BUNDLE_DIGEST_TAG: found["digest"],
        MANIFEST_DIGEST_TAG: found["manifest_digest"],
        WRAPPING_DIGEST_TAG: found["wrapping_digest"],
    }
    return found["version"], Path(found["bundle"]).parents[1], tags
