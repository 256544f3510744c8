"""What the registry holds of a version's files, and the comparison of the files with it.

Three tags cover every file: the bundle's two digests (tasks/inference/bundle.py), and one of the files around it, which
are MLflow's own and the code that consumers execute.
"""

from collections.abc import Mapping
from pathlib import Path

from tasks.core.errors import VerdictError
from tasks.core.files import json_digest, sha256_of
from tasks.core.signing import SIGNATURE, Signer, check_files, require_signer
from tasks.inference.bundle import MANIFEST, VERSION_DIGITS, Manifest

BUNDLE_DIGEST_TAG, MANIFEST_DIGEST_TAG, WRAPPING_DIGEST_TAG = "bundle_digest", "manifest_digest", "wrapping_digest"
BUNDLE_PATH = "data/bundle"  # in the folder of a version's files
IGNORED_FILES = {"registered_model_meta"}  # MLflow adds it to a model that it downloads
REMEDY = "delete it in MLflow and train it again: verdict retrain --force"  # of a damaged version


def digest_wrapping(model: Path) -> str:
    """Return the hex SHA-256 over names and contents of all files in a model's folder but its bundle's."""
    return json_digest(_digests_around(model))


def list_signed(model: Path) -> dict[str, str]:
    """Return the SHA-256 of each file that a version's signature covers: all around its bundle, and the manifest."""
    digests = {name: digest for name, digest in _digests_around(model).items() if name != SIGNATURE}
    return digests | {f"{BUNDLE_PATH}/{MANIFEST}": sha256_of(model / BUNDLE_PATH / MANIFEST)}


def check_version_signature(model: Path, version: str) -> Signer | None:
    """Return who signed a version's files, code included; None if nobody did.

    Raises:
        VerdictError: if the signature is of other files, or not that of the key that it names, or a trusted one is
            required.
    """
    signer = check_files(model, list_signed(model), f"version {version}")
    require_signer(signer, f"version {version}")
    return signer


def _digests_around(model: Path) -> dict[str, str]:
    """Return the SHA-256 of each file in a model's folder but its bundle's, by its path there."""
    found: dict[str, str] = {}
    for path in sorted(model.rglob("*")):
        name = path.relative_to(model).as_posix()
        if name.startswith(f"{BUNDLE_PATH}/") or name in IGNORED_FILES:
            continue
        if path.is_file():
            found[name] = sha256_of(path)
        elif not path.is_dir() or path.is_symlink():  # a link to a folder may lead to other code
            found[name] = "no file"
    return found


def check_registered(model: Path, version: str, manifest: Manifest, tags: Mapping[str, str]) -> None:
    """Compare a version's files with the digests in its tags; `verify` compares those of the bundle with the manifest.

    Raises:
        VerdictError: if one differs.
    """
    for tag, held in (
        (BUNDLE_DIGEST_TAG, manifest["digest"]),
        (MANIFEST_DIGEST_TAG, manifest["manifest_digest"]),
        (WRAPPING_DIGEST_TAG, digest_wrapping(model) if tags.get(WRAPPING_DIGEST_TAG) else ""),
    ):
        registered = tags.get(tag, "")
        if registered and held != registered:
            what = {WRAPPING_DIGEST_TAG: "files around its bundle", MANIFEST_DIGEST_TAG: "manifest"}.get(tag, "bundle")
            raise VerdictError(
                f"version {version} holds {what} {held[:VERSION_DIGITS]}, registered was "
                f"{registered[:VERSION_DIGITS]}; {REMEDY}"
            )
