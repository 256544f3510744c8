"""The deliverable: a folder that downstream systems load, and that proves itself.

    bundle.json       what it is: schema version, labels, lengths, origin, metrics, SHA-256 of every other file
    model.onnx        fp32 graph; token ids in, logits [batch, 2] out; labels and origin in its metadata
    model.cuda.onnx   the same fused, in fp16; absent where it did not answer like torch
    model.cpu.onnx    the same with weights in int8; absent where it did not answer like torch
    tokenizer.json    turns sentences into token ids
    data.json         profile of the training data: labels, lengths, sources, words; what new data is compared with
    card.md           model card
    report.html       how it was judged

The bundle's digest covers what decides its answers (graphs, tokeniser, labels, lengths), not the documents: two bundles
with one digest answer alike.
"""

from pathlib import Path
from typing import Any, TypedDict

from ..core.errors import VerdictError
from ..core.files import json_digest, read_json, sha256_of, write_json

SCHEMA_VERSION = 1
MANIFEST = "bundle.json"
FP32_MODEL = "model.onnx"
TOKENIZER = "tokenizer.json"
PROFILE = "data.json"
VARIANTS = {"fp32": FP32_MODEL, "fp16": "model.cuda.onnx", "int8": "model.cpu.onnx"}
DEVICE_VARIANT = {"cuda": "fp16", "cpu": "int8"}  # by device; fp32 where a bundle does not hold it


class Origin(TypedDict):
    """Where a model comes from and what it answers."""

    labels: list[str]
    max_length: int
    encoder: str
    dataset: str
    git_commit: str


class ModelInfo(Origin):
    """The same, with the token id that fills short sentences."""

    pad_id: int


class Manifest(ModelInfo):
    """The content of bundle.json; `metrics` holds one entry a variant."""

    schema_version: int
    digest: str
    files: dict[str, str]
    metrics: dict[str, dict[str, Any]]


def write_manifest(folder: Path, facts: ModelInfo, metrics: dict[str, dict[str, Any]]) -> Manifest:
    """Write bundle.json, last of all files, over everything else in the folder."""
    files = {path.name: sha256_of(path) for path in sorted(folder.iterdir()) if path.name != MANIFEST}
    manifest = Manifest(
        **facts, schema_version=SCHEMA_VERSION, digest=_digest(files, facts), files=files, metrics=metrics
    )
    write_json(folder / MANIFEST, manifest)
    return manifest


def verify(folder: Path) -> Manifest:
    """Check a bundle file by file and return its manifest.

    Raises:
        VerdictError: if it is no bundle, is of a newer schema, or a file is missing, altered or not listed.
    """
    if not (folder / MANIFEST).is_file():
        raise VerdictError(f"{folder} is no bundle: it holds no {MANIFEST}; expected a folder that `verdict` wrote")
    manifest: Manifest = read_json(folder / MANIFEST)
    try:
        return _verify(folder, manifest)
    except (AttributeError, KeyError, TypeError) as error:
        raise VerdictError(f"bundle {folder}: {MANIFEST} lacks {error}; fetch it again from the registry") from error


def variants_of(manifest: Manifest) -> list[str]:
    """Return the variants that a bundle holds; older bundles hold fp32 alone."""
    return [variant for variant, name in VARIANTS.items() if name in manifest["files"]]


def serving_variant(manifest: Manifest, device: str) -> str:
    """Return the variant that serves on cuda or cpu: the fast one for it where the bundle holds it, else fp32."""
    fast = DEVICE_VARIANT[device]
    return fast if fast in variants_of(manifest) else "fp32"


def _verify(folder: Path, manifest: Manifest) -> Manifest:
    """Compare a folder with its manifest, which may be any JSON at all."""
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
        # An unlisted file could be external data that a graph loads unseen.
        if name not in listed:
            raise VerdictError(f"bundle {folder} holds {name}, which {MANIFEST} does not list; fetch it again")
        if not (folder / name).is_file() or sha256_of(folder / name) != listed[name]:
            raise VerdictError(
                f"bundle {folder}: {name} is not the file that was sealed; fetch it again from the registry"
            )
    if manifest["digest"] != _digest(listed, manifest):
        raise VerdictError(f"bundle {folder}: {MANIFEST} contradicts its own digest; fetch it again from the registry")
    return manifest


def _digest(files: dict[str, str], facts: ModelInfo) -> str:
    answering = {name: digest for name, digest in files.items() if name.endswith(".onnx") or name == TOKENIZER}
    return json_digest([answering, facts["labels"], facts["max_length"], facts["pad_id"]])
