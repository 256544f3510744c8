"""A bundle as a model repository for NVIDIA's Triton Inference Server: sentences in; label, probability, truncated out.

    DIR/verdict.json              marks the folder as written by this program
    DIR/requirements.txt          packages that Triton's Python needs
    DIR/acceptability/            the ensemble that clients call; it runs the three models below in order
    DIR/acceptability_tokenise/   Python backend: text to the graph's inputs and truncated
    DIR/acceptability_graph/      ONNX Runtime backend on GPUs: the fused fp16 graph, or fp32
    DIR/acceptability_answer/     Python backend: logits to label and probability

Each has one version folder, named like the registered version, which Triton returns as the model version. The ensemble
requires that very version of the others and is moved to its path last: an interrupted export leaves no ensemble, never
one of models from two exports.
"""

import importlib.metadata
import json
import shlex
import shutil
import tempfile
from pathlib import Path
from typing import Any, NamedTuple, TypedDict

import onnx
from google.protobuf.text_encoding import CEscape

from tasks.core.errors import UsageError, VerdictError
from tasks.core.files import atomic_write, read_json, remove_stale, write_json, write_text
from tasks.inference.bundle import (
    MANIFEST,
    MODEL_NAME,
    TOKENIZER,
    VARIANTS,
    Manifest,
    digest_version,
    serving_variant,
    verify,
)
from tasks.inference.classifier import bundle_errors
from tasks.inference.decision import threshold_of
from tasks.inference.external_data import reject_external_data
from tasks.reporting.templating import render

OWNER_FILE, OWNER = "verdict.json", "verdict export-triton"
REQUIREMENTS = "requirements.txt"
LABELS_FILE = "labels.txt"
TRITON_TEMPLATES = Path(__file__).with_name("templates") / "triton"
IMAGE = "nvcr.io/nvidia/tritonserver:26.05-py3"
ONNX_TYPES = {1: "TYPE_FP32", 6: "TYPE_INT32", 7: "TYPE_INT64", 10: "TYPE_FP16"}  # by ONNX's number of the element type
TOKENIZER_OUTPUTS = ("input_ids", "attention_mask", "token_type_ids")  # by the tokenising step


class TritonTuning(NamedTuple):
    """How Triton serves."""

    instances: int = 2
    """of each model, for each GPU"""
    max_batch: int = 64
    """sentences"""
    max_queue_delay_us: int = 500
    """that a request may wait for others before the graph runs"""


class TensorSpec(NamedTuple):
    """An input or output in a model's configuration; `dims` are without the batch axis."""

    name: str
    data_type: str
    dims: list[int]


class TritonModel(NamedTuple):
    """A model of the repository: its configuration, and its files by their name in the version folder."""

    name: str
    backend: str
    instance_kind: str
    inputs: list[TensorSpec]
    outputs: list[TensorSpec]
    parameters: dict[str, str]
    files: dict[str, Path]


class Repository(TypedDict):
    """What was written; `version` names the folder in each model, `variant` is the exported graph."""

    repository: str
    models: list[str]
    version: str
    digest: str
    variant: str
    next: str


def export_repository(
    bundle: str, folder: str, version: str | None, tuning: TritonTuning | None = None, manifest_digest: str = ""
) -> Repository:
    """Write a bundle as a model repository; replace an earlier export, leave other models in the folder alone.

    Args:
        bundle: the bundle's folder.
        folder: of the repository; new, empty, or written by this function.
        version: the registered one, None for a bundle that is not registered.
        tuning: how Triton serves.
        manifest_digest: of the bundle that it has to be; empty: any.

    Raises:
        UsageError: if the folder holds something else.
        VerdictError: if the bundle is damaged, its graph takes other inputs than tokens, or the folder is not writable.
    """
    check_folder(folder)
    source, target = Path(bundle), Path(folder).resolve()
    manifest = verify(source, manifest_digest)
    variant = serving_variant(manifest, "cuda")
    reject_external_data(source / VARIANTS[variant])
    steps = _models(source, manifest, variant)
    number = version if version and version.isdecimal() else "1"
    origin = {
        "version": version or digest_version(manifest),
        "digest": manifest["digest"],
        "variant": variant,
    }
    try:
        _write(target, steps, number, origin, tuning or TritonTuning())
    except OSError as error:
        raise VerdictError(
            f"{target} cannot be written ({error.strerror or error}); name another folder: {OWNER} DIR"
        ) from error
    return Repository(
        repository=str(target),
        models=[step.name for step in steps],
        version=number,
        digest=manifest["digest"],
        variant=variant,
        next=docker_command(target),
    )


def docker_command(repository: Path) -> str:
    """Return the command that serves a repository with NVIDIA's image on loopback addresses."""
    start = f"pip install --quiet -r /models/{REQUIREMENTS} && exec tritonserver --model-repository /models"
    ports = " ".join(f"-p 127.0.0.1:{port}:{port}" for port in (8000, 8001, 8002))  # HTTP, gRPC, metrics
    return (
        f"docker run --rm --gpus all --shm-size 1g {ports} -e PIP_BREAK_SYSTEM_PACKAGES=1 "
        "-e ORT_DISABLE_TELEMETRY=1 "
        f"-v {shlex.quote(f'{repository}:/models:ro')} {IMAGE} sh -c {shlex.quote(start)}"
    )


def check_folder(folder: str) -> None:
    """Check that a folder may be written to.

    Raises:
        UsageError: if it exists, is not empty and was not written by this program.
    """
    target = Path(folder)
    if target.exists() and not target.is_dir():
        raise UsageError(f"{target} is a file; expected a new folder, or one that `{OWNER}` wrote")
    if target.is_dir() and any(target.iterdir()) and not _is_ours(target):
        raise UsageError(
            f"{target} holds files, but no {OWNER_FILE} of `{OWNER}`; expected a new folder, or one that it wrote"
        )


def _is_ours(target: Path) -> bool:
    try:
        owner = read_json(target / OWNER_FILE)
    except VerdictError:
        return False
    return isinstance(owner, dict) and owner.get("written_by") == OWNER


def _models(bundle: Path, manifest: Manifest, variant: str) -> list[TritonModel]:
    """Return the ensemble and then its models in the order in which it runs them."""
    graph = bundle / VARIANTS[variant]
    tokens, logits = graph_tensors(graph)
    text, label, probability, truncated = (
        TensorSpec(name, kind, [1])
        for name, kind in (
            ("text", "TYPE_STRING"),
            ("label", "TYPE_STRING"),
            ("probability", "TYPE_FP32"),
            ("truncated", "TYPE_BOOL"),
        )
    )
    answer = [label, probability]
    truncation = {"max_length": str(manifest["max_length"]), "pad_id": str(manifest["pad_id"])}
    labels = {"labels": json.dumps(manifest["labels"], ensure_ascii=False)}
    tokenise = {"model.py": TRITON_TEMPLATES / "tokenise.py", TOKENIZER: bundle / TOKENIZER}
    # Triton requires a version folder, and object stores such as S3 have no empty folders: it gets the manifest.
    ensemble = TritonModel(MODEL_NAME, "", "", [text], [*answer, truncated], labels, {MANIFEST: bundle / MANIFEST})
    return [
        ensemble,
        TritonModel(f"{MODEL_NAME}_tokenise", "python", "KIND_CPU", [text], [*tokens, truncated], truncation, tokenise),
        TritonModel(f"{MODEL_NAME}_graph", "onnxruntime", "KIND_GPU", tokens, [logits], labels, {"model.onnx": graph}),
        TritonModel(
            f"{MODEL_NAME}_answer",
            "python",
            "KIND_CPU",
            [logits],
            answer,
            labels | {"decision_threshold": str(threshold_of(manifest))},
            {"model.py": TRITON_TEMPLATES / "answer.py"},
        ),
    ]


def graph_tensors(path: Path) -> tuple[list[TensorSpec], TensorSpec]:
    """Return the inputs of an ONNX graph and its logits.

    Raises:
        VerdictError: if it cannot be read, or its inputs or outputs are not those that the other models have.
    """
    with bundle_errors(path.parent, f"{path.name} cannot be read"):
        graph = onnx.load(path, load_external_data=False).graph
    inputs, outputs = ([_tensor(value) for value in values] for values in (graph.input, graph.output))
    unknown = [tensor.name for tensor in inputs if tensor.name not in TOKENIZER_OUTPUTS or tensor.dims != [-1]]
    if unknown or [tensor.name for tensor in outputs] != ["logits"] or len(outputs[0].dims) != 1:
        raise VerdictError(
            f"{path.name} takes {[*map(str, inputs)]} and gives {[*map(str, outputs)]}; "
            f"expected {', '.join(TOKENIZER_OUTPUTS)} in [N, S] and logits in [N, L]"
        )
    return inputs, outputs[0]


def _tensor(value: onnx.ValueInfoProto) -> TensorSpec:
    """Describe a graph's input or output without the batch axis; an axis of any length is -1."""
    kind = value.type.tensor_type
    dims = [axis.dim_value if axis.HasField("dim_value") else -1 for axis in kind.shape.dim]
    return TensorSpec(value.name, ONNX_TYPES.get(kind.elem_type, "TYPE_INVALID"), dims[1:])


def _write(target: Path, steps: list[TritonModel], number: str, origin: dict[str, str], tuning: TritonTuning) -> None:
    """Write every model to a scratch folder, then swap them in: remove the old ensemble first, add the new one last."""
    target.mkdir(parents=True, exist_ok=True)
    write_json(target / OWNER_FILE, {"written_by": OWNER, "schema_version": 1})
    write_text(target / REQUIREMENTS, f"tokenizers=={importlib.metadata.version('tokenizers')}\n")
    # Outside of the repository, where Triton finds no models, but on its device, for renames: in a mount point inside.
    parent, prefix = target if target.is_mount() else target.parent, f".verdict-{target.name}."
    remove_stale(parent, prefix)
    with tempfile.TemporaryDirectory(prefix=prefix, dir=parent, ignore_cleanup_errors=True) as scratch:
        new, old = Path(scratch) / "new", Path(scratch) / "old"
        old.mkdir()
        for step in steps:
            _write_model(new / step.name, step, steps[1:], number, origin, tuning)
        for step in steps:
            if (target / step.name).exists():
                (target / step.name).rename(old / step.name)
        for step in reversed(steps):
            (new / step.name).rename(target / step.name)


def _write_model(
    folder: Path, step: TritonModel, parts: list[TritonModel], number: str, origin: dict[str, str], tuning: TritonTuning
) -> None:
    """Write one model: its configuration, its files, and the labels where it returns logits."""
    (folder / number).mkdir(parents=True)
    for name, path in step.files.items():
        with atomic_write(folder / number / name) as temporary:
            shutil.copyfile(path, temporary)
    returns_logits = step.backend == "onnxruntime"
    content: dict[str, Any] = {
        **step._asdict(),
        "steps": [] if step.backend else parts,
        "version": number,
        "labels_file": LABELS_FILE if returns_logits else "",
        "instances": tuning.instances,
        "max_batch": tuning.max_batch,
        # Only the graph waits for more requests, so that the delay applies once.
        "delay": tuning.max_queue_delay_us if returns_logits else 0,
        "parameters": {key: f'"{CEscape(value, True)}"' for key, value in (origin | step.parameters).items()},
    }
    write_text(folder / "config.pbtxt", render("step.pbtxt.j2", TRITON_TEMPLATES, **content))
    if returns_logits:
        write_text(folder / LABELS_FILE, "".join(f"{label}\n" for label in json.loads(step.parameters["labels"])))
