"""The bundle: the folder that downstream systems load, with checksums of all its files.

    bundle.json       manifest: schema version, labels, lengths, origin, metrics, SHA-256 of every other file
    model.onnx        fp32 graph; token ids in, logits [batch, 2] out; labels and origin in its metadata
    model.cuda.onnx   fp16 graph with fused operators; absent if its outputs differed from torch's
    model.cpu.onnx    graph with int8 weights; absent if its outputs differed from torch's
    tokenizer.json    tokenizer of the library `tokenizers`
    data.json         profile of the training data: labels, lengths, sources, words (reference for drift);
                      digests of holdouts
    card.md           model card
    report.html       evaluation report
    signature.json    where there is a key: who vouches for the manifest, and with it for every file (core/signing.py)

A manifest has two digests. `digest` covers what determines predictions (graphs, tokenizer, labels, lengths, decision
threshold): bundles with equal ones give equal predictions, whatever their documents say. `manifest_digest` covers the
whole manifest, and with the checksums in it every file: the registry holds it, and whoever loads a registered bundle
compares it.
"""

import os
import re
from pathlib import Path
from typing import Any, NotRequired, TypedDict

from ..core.errors import UsageError, VerdictError
from ..core.files import json_digest, read_json, sha256_of, write_json
from ..core.signing import SIGNATURE, Signer, check_files, require_signer, sign_files
from .decision import DEFAULT_THRESHOLD, threshold_of

DEFAULT_MODEL_NAME = "acceptability"
MODEL_VARIABLE = "VERDICT_MODEL_NAME"
MODEL_NAME = os.environ.get(MODEL_VARIABLE) or DEFAULT_MODEL_NAME  # of the registered model
CHAMPION = "champion"  # the alias that downstream systems follow
CHALLENGER = "challenger"  # that of a version which is compared with it
CHAMPION_URI = f"models:/{MODEL_NAME}@{CHAMPION}"
BUNDLE_SCHEMA = 2
MANIFEST = "bundle.json"
FP32_MODEL = "model.onnx"
TOKENIZER = "tokenizer.json"
PROFILE = "data.json"
REPORT_FILE = "report.html"
CARD_FILE = "card.md"
VARIANTS = {"fp32": FP32_MODEL, "fp16": "model.cuda.onnx", "int8": "model.cpu.onnx"}
MAX_LENGTH = 1_000_000  # tokens of a sentence, more than any encoder reads
MAX_TOKEN_ID = 2**31 - 1
VERSION_DIGITS = 12  # hex digits of the digest that name the version of a bundle outside of a registry
DEVICE_VARIANT = {"cuda": "fp16", "cpu": "int8"}  # preferred on each device; fp32 if a bundle lacks it


def check_model_name() -> None:
    """Raise UsageError unless MODEL_NAME can be the name of a registered model and part of other names."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}", MODEL_NAME):
        raise UsageError(f"{MODEL_VARIABLE} {MODEL_NAME[:80]!r} is refused; expected 1 to 64 letters, digits, - and _")


def scoped(name: str) -> str:
    """Return the name of something that each registered model has of its own; a model's name holds no dot."""
    return name if MODEL_NAME == DEFAULT_MODEL_NAME else f"{name}.{MODEL_NAME}"


class Origin(TypedDict):
    """Provenance, labels and input length (in tokens) of a model."""

    labels: list[str]
    max_length: int
    encoder: str
    dataset: str
    git_commit: str


class ModelInfo(Origin):
    """Provenance of a model and what inference needs to know; `pad_id` is the padding token's id.

    `decision_threshold` is the probability above which a sentence is acceptable; absent where it is 0.5.
    """

    pad_id: int
    decision_threshold: NotRequired[float]


class Manifest(ModelInfo):
    """Content of bundle.json; `files` maps names to hex SHA-256, `metrics` holds one entry per variant.

    `onnxruntime` is the version of ONNX Runtime that the graphs were compared with torch on.
    """

    schema_version: int
    digest: str
    manifest_digest: str
    onnxruntime: str
    files: dict[str, str]
    metrics: dict[str, dict[str, Any]]


def write_manifest(
    folder: Path, info: ModelInfo, metrics: dict[str, dict[str, Any]], known: dict[str, str] | None = None
) -> Manifest:
    """Write bundle.json with the checksums of all other files in the folder; call it when they are complete.

    Args:
        folder: of the bundle.
        info: what inference needs to know.
        metrics: one entry per variant.
        known: SHA-256 of files, by name, that was computed of what was written to them.
    """
    from .onnx_runtime import onnxruntime  # takes longer to import than everything else here, and only writing needs it

    known = known or {}
    (folder / SIGNATURE).unlink(missing_ok=True)  # of the manifest before
    files = {
        path.name: known.get(path.name) or sha256_of(path) for path in sorted(folder.iterdir()) if path.name != MANIFEST
    }
    manifest = Manifest(
        **info,
        schema_version=BUNDLE_SCHEMA,
        digest=_digest(files, info),
        manifest_digest="",
        onnxruntime=onnxruntime.__version__,
        files=files,
        metrics=metrics,
    )
    manifest["manifest_digest"] = _manifest_digest(manifest)
    write_json(folder / MANIFEST, manifest)
    return manifest


def verify(folder: Path, expected: str = "") -> Manifest:
    """Check every file of a bundle against its manifest and return the manifest.

    Args:
        folder: of the bundle.
        expected: `manifest_digest` of the bundle that it has to be; empty: any.

    Raises:
        VerdictError: as `read_manifest`, or if a file is missing, altered or not listed.
    """
    manifest = read_manifest(folder, expected)
    present = {path.name for path in folder.iterdir()} - {MANIFEST, SIGNATURE}
    listed = manifest["files"]
    for name in sorted(present | set(listed) | {FP32_MODEL, TOKENIZER}):
        if name not in present:
            raise VerdictError(f"bundle {folder} lacks {name}; fetch it again from the registry")
        # An unlisted file could be external data that a graph loads.
        if name not in listed:
            raise VerdictError(f"bundle {folder} holds {name}, which {MANIFEST} does not list; fetch it again")
        if not (folder / name).is_file() or sha256_of(folder / name) != listed[name]:
            raise VerdictError(
                f"bundle {folder}: {name} does not match its SHA-256 in {MANIFEST}; fetch it again from the registry"
            )
    return manifest


def read_manifest(folder: Path, expected: str = "") -> Manifest:
    """Read and check the manifest of a bundle, not its files; arguments as for `verify`.

    Raises:
        VerdictError: if it is no bundle, has another schema version, contradicts its digests or the expected one, or
            states what no model can have.
    """
    _require_manifest(folder)
    manifest: Manifest = read_json(folder / MANIFEST, "fetch the bundle again")
    _check_manifest(folder, manifest)
    if expected and manifest["manifest_digest"] != expected:
        held, registered = (digest[:VERSION_DIGITS] for digest in (manifest["manifest_digest"], expected))
        raise VerdictError(f"bundle {folder}: its manifest is {held}, expected was {registered}; fetch it again")
    return manifest


def sign_bundle(folder: Path) -> None:
    """Sign the manifest of a complete bundle, where there is a key."""
    sign_files(folder, {MANIFEST: sha256_of(folder / MANIFEST)})


def check_signature(folder: Path) -> Signer | None:
    """Return who signed the manifest of a bundle; None if nobody did.

    Raises:
        VerdictError: if there is no manifest, or the signature is not of this one or not that of the key that it names,
            or a trusted one is required.
    """
    what = f"bundle {folder}"
    _require_manifest(folder)
    signer = check_files(folder, {MANIFEST: sha256_of(folder / MANIFEST)}, what)
    require_signer(signer, what)
    return signer


def check_folder(folder: Path) -> None:
    """Raise UsageError if a folder that a person named is no bundle."""
    try:
        _require_manifest(folder)
    except VerdictError as error:
        raise UsageError(str(error)) from error


def _require_manifest(folder: Path) -> None:
    if not (folder / MANIFEST).is_file():
        raise VerdictError(f"{folder} is no bundle: it holds no {MANIFEST}; expected a folder that `verdict` wrote")


def digest_version(manifest: Manifest) -> str:
    """Return the version of a bundle outside of a registry: sha256: and the first digits of its digest."""
    return f"sha256:{manifest['digest'][:VERSION_DIGITS]}"


def variants_of(manifest: Manifest) -> list[str]:
    """Return the names of the variants in a bundle."""
    return [variant for variant, name in VARIANTS.items() if name in manifest["files"]]


def serving_variant(manifest: Manifest, device: str) -> str:
    """Return the variant to load on cuda or cpu: the one made for that device if the bundle has it, else fp32."""
    fast = DEVICE_VARIANT[device]
    return fast if fast in variants_of(manifest) else "fp32"


def _check_manifest(folder: Path, manifest: Manifest) -> None:
    """Check schema version, digests and facts of a manifest, which may be any JSON value."""
    schema = manifest.get("schema_version") if isinstance(manifest, dict) else None
    if schema != BUNDLE_SCHEMA:
        raise VerdictError(
            f"bundle {folder}: {MANIFEST} has schema version {schema!r:.40}, this program reads {BUNDLE_SCHEMA}; "
            "use the program that wrote it, or a newer one"
        )
    if missing := sorted(Manifest.__required_keys__ - manifest.keys()):
        raise VerdictError(f"bundle {folder}: {MANIFEST} lacks {missing[0]}; fetch it again from the registry")
    files = manifest["files"]
    if not isinstance(files, dict) or not all(isinstance(digest, str) for digest in files.values()):
        raise VerdictError(f"bundle {folder}: {MANIFEST} lists no files; fetch it again from the registry")
    digests = manifest["digest"], manifest["manifest_digest"]
    if digests != (_digest(files, manifest), _manifest_digest(manifest)):
        raise VerdictError(f"bundle {folder}: {MANIFEST} contradicts its own digest; fetch it again from the registry")
    if fault := _impossible_fact(manifest):
        raise VerdictError(f"bundle {folder}: {MANIFEST} has {fault}; fetch it again from the registry")


def _impossible_fact(manifest: Manifest) -> str:
    """Return the fact of a manifest that no model can have, and what is expected; empty if there is none."""
    labels = manifest["labels"]
    named = isinstance(labels, list) and all(isinstance(label, str) and label for label in labels)
    if not named or len(labels) != 2 or labels[0] == labels[1]:
        return f"labels {labels!r:.80}, expected two different names"
    for name, least, most in (("max_length", 1, MAX_LENGTH), ("pad_id", 0, MAX_TOKEN_ID)):
        value: Any = manifest[name]  # type: ignore[literal-required]
        if type(value) is not int or not least <= value <= most:
            return f"{name} {value!r:.40}, expected a number from {least} to {most}"
    threshold = threshold_of(manifest)
    if type(threshold) is not float or not 0 < threshold < 1:  # also if it is NaN
        return f"decision_threshold {threshold!r:.40}, expected a number above 0 and below 1"
    for name in ("encoder", "dataset", "git_commit", "onnxruntime"):
        if not isinstance(manifest[name], str):  # type: ignore[literal-required]
            return f"{name} {manifest[name]!r:.40}, expected text"  # type: ignore[literal-required]
    if not isinstance(manifest["metrics"], dict):
        return f"metrics {manifest['metrics']!r:.40}, expected an object"
    return ""


def _digest(files: dict[str, str], info: ModelInfo) -> str:
    model = {name: digest for name, digest in files.items() if name.endswith(".onnx") or name == TOKENIZER}
    threshold = threshold_of(info)
    chosen = [threshold] if threshold != DEFAULT_THRESHOLD else []
    return json_digest([model, info["labels"], info["max_length"], info["pad_id"], *chosen])


def _manifest_digest(manifest: Manifest) -> str:
    return json_digest({key: value for key, value in manifest.items() if key != "manifest_digest"})
