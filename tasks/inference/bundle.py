"""The bundle: the folder that downstream systems load, with checksums of all its files.

    bundle.json       manifest: schema version, labels, lengths, origin, metrics, SHA-256 of every other file
    model.onnx        fp32 graph; token ids in, logits [batch, 2] out; labels and origin in its metadata
    model.cuda.onnx   fp16 graph with fused operators; absent if its outputs differed from torch's
    model.cpu.onnx    graph with int8 weights; absent if its outputs differed from torch's
    tokenizer.json    tokenizer of the library `tokenizers`
    data.json         profile of the training data: labels, lengths, sources, words; reference for drift
    card.md           model card
    report.html       evaluation report

The bundle's digest covers what determines its predictions (graphs, tokenizer, labels, lengths), not the documents:
bundles with equal digests give equal predictions.
"""

from pathlib import Path
from typing import Any, TypedDict

from ..core.errors import VerdictError
from ..core.files import json_digest, read_json, sha256_of, write_json

MODEL_NAME = "acceptability"  # of the registered model
CHAMPION = "champion"  # the alias that downstream systems follow
CHAMPION_URI = f"models:/{MODEL_NAME}@{CHAMPION}"
SCHEMA_VERSION = 1
MANIFEST = "bundle.json"
FP32_MODEL = "model.onnx"
TOKENIZER = "tokenizer.json"
PROFILE = "data.json"
VARIANTS = {"fp32": FP32_MODEL, "fp16": "model.cuda.onnx", "int8": "model.cpu.onnx"}
VERSION_DIGITS = 12  # hex digits of the digest that name the version of a bundle outside of a registry
DEVICE_VARIANT = {"cuda": "fp16", "cpu": "int8"}  # preferred on each device; fp32 if a bundle lacks it


class Origin(TypedDict):
    """Provenance, labels and input length (in tokens) of a model."""

    labels: list[str]
    max_length: int
    encoder: str
    dataset: str
    git_commit: str


class ModelInfo(Origin):
    """Provenance of a model and what inference needs to know; `pad_id` is the padding token's id."""

    pad_id: int


class Manifest(ModelInfo):
    """Content of bundle.json; `files` maps names to hex SHA-256, `metrics` holds one entry per variant.

    `onnxruntime` is the version of ONNX Runtime that the graphs were compared with torch on.
    """

    schema_version: int
    digest: str
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
    files = {
        path.name: known.get(path.name) or sha256_of(path) for path in sorted(folder.iterdir()) if path.name != MANIFEST
    }
    manifest = Manifest(
        **info,
        schema_version=SCHEMA_VERSION,
        digest=_digest(files, info),
        onnxruntime=onnxruntime.__version__,
        files=files,
        metrics=metrics,
    )
    write_json(folder / MANIFEST, manifest)
    return manifest


def verify(folder: Path) -> Manifest:
    """Check every file of a bundle against its manifest and return the manifest.

    Raises:
        VerdictError: if it is no bundle, has another schema version, or a file is missing, altered or not listed.
    """
    if not (folder / MANIFEST).is_file():
        raise VerdictError(f"{folder} is no bundle: it holds no {MANIFEST}; expected a folder that `verdict` wrote")
    manifest: Manifest = read_json(folder / MANIFEST)
    try:
        return _verify(folder, manifest)
    except (AttributeError, KeyError, TypeError) as error:
        raise VerdictError(f"bundle {folder}: {MANIFEST} lacks {error}; fetch it again from the registry") from error


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


def _verify(folder: Path, manifest: Manifest) -> Manifest:
    """Compare a folder with its manifest, which may be any JSON value."""
    schema = manifest.get("schema_version")
    if schema != SCHEMA_VERSION:
        raise VerdictError(
            f"bundle {folder}: {MANIFEST} has schema version {schema}, this program reads {SCHEMA_VERSION}; "
            "use the program that wrote it, or a newer one"
        )
    present = {path.name for path in folder.iterdir()} - {MANIFEST}
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
    if manifest["digest"] != _digest(listed, manifest):
        raise VerdictError(f"bundle {folder}: {MANIFEST} contradicts its own digest; fetch it again from the registry")
    return manifest


def _digest(files: dict[str, str], info: ModelInfo) -> str:
    model = {name: digest for name, digest in files.items() if name.endswith(".onnx") or name == TOKENIZER}
    return json_digest([model, info["labels"], info["max_length"], info["pad_id"]])
