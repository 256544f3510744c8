"""Says whose files a version or a folder holds: what fits together, who signed what, and what nothing covers."""

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TypedDict

from flows.commands.predict import fetch_from_hub
from flows.services.server_watch import reach_store
from tasks.core.errors import UsageError
from tasks.core.signing import describe_signer
from tasks.inference.bundle import VERSION_DIGITS, check_signature
from tasks.inference.bundle import verify as verify_bundle
from tasks.registry import audit_log, lookup, verification
from tasks.registry.code_digest import BUNDLE_PATH, check_version_signature

NEVER_COVERED = (
    "the number: which version the champion is, and whose files bear its number; verdict status compares the records",
    "whether a recorded move took effect, and what MLflow's pages say: descriptions, tags, metrics, files of the run",
    "the data and the encoder, which the manifest names by digest: they are not among these files",
)
EVERYTHING, BUNDLE = "all files, code included", "the bundle"
UNREGISTERED = "that this folder is the registered one: a version is compared with the registry by its number"
CODE = "the code of a registered version: this is the folder of a bundle, which holds none"


class Verified(TypedDict):
    """What was checked; `files` and `records` say who signed what, `not_covered` what no signature vouches for."""

    what: str
    digest: str
    manifest_digest: str
    files: dict[str, str]
    records: list[str]
    not_covered: list[str]
    copy: str | None


def verify(target: str, copy_to: str, home: str) -> Verified:
    """Check a version or a folder; nothing of it is executed.

    Args:
        target: version number, the folder of a bundle or of a version's files, or hf:ORG/NAME[@REVISION].
        copy_to: new folder for a copy, which is checked instead: originals may be exchanged later; empty: none.
        home: folder of the stores.

    Raises:
        UsageError: if the target is neither, or the folder exists.
        VerdictError: if files are missing, altered or not those registered, a signature is wrong, or one is required
            and missing.
    """
    if copy_to and Path(copy_to).exists():
        raise UsageError(f"{copy_to} exists; expected a new folder for --copy-to")
    if not target.isdecimal():
        return _verify_folder(fetch_from_hub(target, home), copy_to)
    store = reach_store(home)
    lookup.check_numbers(store, target)
    tags = lookup.read_tags(store, target)
    with verification.open_model(store, target) as model, _copied(model, copy_to) as folder:
        found = verification.verify_files(folder, target, tags)
        return Verified(
            what=f"version {target}",
            digest=found.manifest["digest"],
            manifest_digest=found.manifest["manifest_digest"],
            files={EVERYTHING: describe_signer(found.signer), BUNDLE: describe_signer(check_signature(found.bundle))},
            records=[
                _describe(change, found.manifest["digest"])
                for change in audit_log.read_changes(store)
                if change["version"] == target
            ],
            not_covered=list(NEVER_COVERED),
            copy=copy_to or None,
        )


def _verify_folder(target: str, copy_to: str) -> Verified:
    """Check the folder of a bundle, or that of a version's files."""
    if not Path(target).is_dir():
        raise UsageError(f"{target} is no version number and no folder; expected one that `verdict status` shows")
    is_model = (Path(target) / BUNDLE_PATH).is_dir()
    with _copied(Path(target), copy_to) as folder:
        bundle = folder / BUNDLE_PATH if is_model else folder
        manifest, signer = verify_bundle(bundle), check_signature(bundle)
        everything = {EVERYTHING: describe_signer(check_version_signature(folder, target))} if is_model else {}
    return Verified(
        what=target,
        digest=manifest["digest"],
        manifest_digest=manifest["manifest_digest"],
        files=everything | {BUNDLE: describe_signer(signer)},
        records=[],
        not_covered=[*([] if is_model else [CODE]), UNREGISTERED, *NEVER_COVERED],
        copy=copy_to or None,
    )


def _describe(change: audit_log.AliasChange, digest: str) -> str:
    """Describe a record of a version whose bundle has a digest now."""
    other = f", of another bundle ({change['bundle'][:VERSION_DIGITS]})" if change["bundle"] not in ("", digest) else ""
    return f"record {change['number']}, {change['kind']} by {change['actor']}: {change['signed_by']}{other}"


@contextlib.contextmanager
def _copied(source: Path, target: str) -> Iterator[Path]:
    """Yield the folder to check: a copy, where one is wanted, which is removed if the check fails."""
    if not target:
        yield source
        return
    Path(target).mkdir(parents=True)
    try:  # what links lead to is copied, too, which may change later
        shutil.copytree(source, target, ignore_dangling_symlinks=True, dirs_exist_ok=True)
        yield Path(target)
    except BaseException:
        shutil.rmtree(target, ignore_errors=True)
        raise
