"""A bundle as a model repository for NVIDIA's Triton: sentences in, label and probability out.

    DIR/verdict.json              says that the folder is ours
    DIR/requirements.txt          what Triton's Python needs
    DIR/acceptability/            the ensemble: what clients ask; the three below, one after the other
    DIR/acceptability_tokenise/   Python backend: text to what the graph takes
    DIR/acceptability_graph/      ONNX Runtime backend on GPUs: the fused fp16 graph, or fp32
    DIR/acceptability_answer/     Python backend: logits to label and probability

Each holds one version folder, named like the registered version, which every answer names as its model version. The
ensemble takes that very version of its parts and is put in place last: after an export that was stopped there is no
model, and never one of parts that do not belong together.
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
    """How Triton serves: instances of each step (a GPU), sentences a batch, and what the graph waits for company."""

    instances: int = 2
    max_batch: int = 64
    max_queue_delay_us: int = 500


class TensorSpec(NamedTuple):
    """An input or output as a configuration names it; `dims` leave out the batch."""

    name: str
    data_type: str
    dims: list[int]


class TritonModel(NamedTuple):
    """A model of the repository: its configuration, and its files by the name they get in the version folder."""

    name: str
    backend: str
    place: str
    inputs: list[TensorSpec]
    outputs: list[TensorSpec]
    parameters: dict[str, str]
    files: dict[str, Path]


class Repository(TypedDict):
    """What was written; `version` is the folder of each model, `variant` the graph that was taken."""

    repository: str
    models: list[str]
    version: str
    digest: str
    variant: str
    next: str


def export_repository(bundle: str, folder: str, version: str | None, tuning: TritonTuning | None = None) -> Repository:
    """Write a bundle as a model repository; an older one of ours is replaced, models of others beside it stay.

    Args:
        bundle: the bundle's folder.
        folder: of the repository: new, empty, or written by this function.
        version: the registered one; None for a bundle that is not registered.
        tuning: how Triton is to serve.

    Raises:
        WrongUsage: if the folder holds something else.
        VerdictError: if the bundle is damaged, its graph wants more than token ids, or the folder cannot be written.
    """
    check_folder(folder)
    source, target = Path(bundle), Path(folder).resolve()
    manifest = verify(source)
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
    """Return the command that serves a repository with NVIDIA's image, on loopback."""
    start = f"pip install --quiet -r /models/{REQUIREMENTS} && exec tritonserver --model-repository /models"
    ports = " ".join(f"-p 127.0.0.1:{port}:{port}" for port in (8000, 8001, 8002))  # HTTP, gRPC, metrics
    return (
        f"docker run --rm --gpus all --shm-size 1g {ports} -e PIP_BREAK_SYSTEM_PACKAGES=1 "
        f"-v {shlex.quote(f'{repository}:/models:ro')} {IMAGE} sh -c {shlex.quote(start)}"
    )


def check_folder(folder: str) -> None:
    """Leave alone what this program did not write.

    Raises:
        WrongUsage: if the folder is anything else than a repository of ours, empty or not there.
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
        mark = read_json(target / OWNER_FILE)
    except VerdictError:
        return False
    return isinstance(mark, dict) and mark.get("written_by") == OWNER


def _models(bundle: Path, manifest: Manifest, variant: str) -> list[TritonModel]:
    """Return the ensemble, which comes first, and its parts in the order of their work."""
    graph = bundle / VARIANTS[variant]
    taken, logits = graph_tensors(graph)
    text, label, probability = (
        TensorSpec(name, kind, [1])
        for name, kind in (("text", "TYPE_STRING"), ("label", "TYPE_STRING"), ("probability", "TYPE_FP32"))
    )
    cut = {"max_length": str(manifest["max_length"]), "pad_id": str(manifest["pad_id"])}
    labels = {"labels": json.dumps(manifest["labels"], ensure_ascii=False)}
    tokenise = {"model.py": TRITON_TEMPLATES / "tokenise.py", TOKENIZER: bundle / TOKENIZER}
    # A version folder has to exist, and stores such as S3 know no empty ones.
    door = TritonModel(MODEL_NAME, "", "", [text], [label, probability], labels, {MANIFEST: bundle / MANIFEST})
    return [
        door,
        TritonModel(f"{MODEL_NAME}_tokenise", "python", "KIND_CPU", [text], taken, cut, tokenise),
        TritonModel(f"{MODEL_NAME}_graph", "onnxruntime", "KIND_GPU", taken, [logits], labels, {"model.onnx": graph}),
        TritonModel(
            f"{MODEL_NAME}_answer",
            "python",
            "KIND_CPU",
            [logits],
            [label, probability],
            labels,
            {"model.py": TRITON_TEMPLATES / "answer.py"},
        ),
    ]


def graph_tensors(path: Path) -> tuple[list[TensorSpec], TensorSpec]:
    """Return the inputs of an ONNX graph and its logits.

    Raises:
        VerdictError: if it takes or gives something that the other steps do not know.
    """
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
    """Write every model aside, then put them in place: the old ensemble leaves first, the new one comes last."""
    target.mkdir(parents=True, exist_ok=True)
    write_json(target / OWNER_FILE, {"written_by": OWNER, "schema_version": 1})
    write_text(target / REQUIREMENTS, f"tokenizers=={importlib.metadata.version('tokenizers')}\n")
    # Beside the repository, where Triton looks for no models; a mount point has no such place on its own device.
    aside, prefix = target if target.is_mount() else target.parent, f".verdict-{target.name}."
    remove_stale(aside, prefix)
    with tempfile.TemporaryDirectory(prefix=prefix, dir=aside, ignore_cleanup_errors=True) as scratch:
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
    """Write one model: configuration, labels where it gives logits, and the version's files."""
    (folder / number).mkdir(parents=True)
    for name, path in step.files.items():
        with atomic_write(folder / number / name) as temporary:
            shutil.copyfile(path, temporary)
    gives_logits = step.backend == "onnxruntime"
    content: dict[str, Any] = {
        **step._asdict(),
        "steps": [] if step.backend else parts,
        "version": number,
        "labels_file": LABELS_FILE if gives_logits else "",
        "instances": tuning.instances,
        "max_batch": tuning.max_batch,
        # The steps before and after it wait for nothing, so that the delay counts once.
        "delay": tuning.max_queue_delay_us if gives_logits else 0,
        "parameters": {key: f'"{CEscape(value, True)}"' for key, value in (origin | step.parameters).items()},
    }
    write_text(folder / "config.pbtxt", render("step.pbtxt.j2", TRITON_TEMPLATES, **content))
    if gives_logits:
        write_text(folder / LABELS_FILE, "".join(f"{label}\n" for label in json.loads(step.parameters["labels"])))
