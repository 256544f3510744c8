"""Saves a bundle as an MLflow model with two flavors: `python_function` from sentences, `onnx` from token ids.

The model carries the code that loads it, so whoever loads it needs no copy of this repository:

    MLmodel                            flavors, signature, loader_module
    data/bundle/                       the bundle
    signature.json                     where there is a key: who vouches for all of this
    code/verdict_runtime_<8 hex>/      tasks/inference and the modules of tasks/core that it imports

MLflow prepends code/ to sys.path and imports loader_module, so a module that is loaded already under the same name is
used instead. Hence the package is named by the digest of its files, and its modules import one another relatively: it
cannot be mistaken for a `tasks` of the process, nor for the code of another version.

The signature names no input: with one unnamed string input MLflow passes on the first column of a data frame, whatever
that is, and with a named one it rejects lists. `tasks.inference.pyfunc` picks the column and rejects what is ambiguous.
"""

import contextlib
import importlib.metadata
import shutil
import sys
import tempfile
from pathlib import Path

import mlflow
import mlflow.pyfunc
from mlflow.models import Model, ModelSignature
from mlflow.types import ColSpec, Schema

from tasks.core.files import json_digest, sha256_of
from tasks.core.signing import sign_files
from tasks.inference.bundle import FP32_MODEL, MODEL_NAME, VERSION_DIGITS, read_manifest
from tasks.registry.code_digest import BUNDLE_DIGEST_TAG, MANIFEST_DIGEST_TAG, list_signed

CODE_ROOT = Path(__file__).parents[1]
# What tasks/inference imports besides itself.
RUNTIME_CORE = tuple(
    f"core/{name}.py" for name in ("__init__", "errors", "files", "printable", "signing", "timestamps")
)
LOADER = "inference.pyfunc"  # the module with `_load_pyfunc`
SERVING_PACKAGES = ("onnxruntime-gpu", "onnxruntime", "tokenizers", "numpy", "pandas")
MODEL_OUTPUTS = Schema(
    [
        ColSpec("string", "label"),
        ColSpec("double", "probability"),
        ColSpec("boolean", "truncated"),
        ColSpec("string", "version"),
    ]
)
INPUT_EXAMPLE = ["The cat sat on the mat."]


def log_model(experiment: str, run_id: str, bundle: str, digest: str) -> str:
    """Log a bundle as an MLflow model of a run and return the model's id."""
    # Without an experiment set, MLflow puts models into its default one, with files under the working directory.
    mlflow.set_experiment(experiment_id=experiment)
    info = Model.log(
        artifact_path=None,
        name=f"{MODEL_NAME}-{digest[:VERSION_DIGITS]}",  # as a bundle is called outside of the registry
        flavor=sys.modules[__name__],  # MLflow calls its save_model
        run_id=run_id,
        tags={BUNDLE_DIGEST_TAG: digest, MANIFEST_DIGEST_TAG: read_manifest(Path(bundle))["manifest_digest"]},
        bundle=bundle,
    )
    return info.model_id


def save_model(path: str, mlflow_model: Model, bundle: str) -> None:
    """Write an MLflow model with two flavors around one bundle; `Model.log` calls this.

    `mlflow.pyfunc.load_model` gives a model from sentences to labels, `mlflow.onnx.load_model` the fp32 graph.
    """
    with tempfile.TemporaryDirectory() as scratch:
        data = shutil.copytree(bundle, Path(scratch) / "bundle")
        code = copy_runtime(CODE_ROOT, Path(scratch))
        mlflow.pyfunc.save_model(
            path,
            mlflow_model=mlflow_model,
            loader_module=f"{code.name}.{LOADER}",
            data_path=str(data),
            code_paths=[str(code)],
            pip_requirements=_serving_requirements(),
            # MLflow lets a caller change only the keys given here.
            model_config={"device": "auto", "manifest_digest": read_manifest(data)["manifest_digest"]},
            signature=ModelSignature(outputs=MODEL_OUTPUTS),
            input_example=INPUT_EXAMPLE,
        )
    mlflow_model.add_flavor(
        "onnx",
        onnx_version=importlib.metadata.version("onnx"),
        data=f"data/bundle/{FP32_MODEL}",
        providers=["CUDAExecutionProvider", "CPUExecutionProvider"],
        code="code",
    )
    mlflow_model.save(str(Path(path) / "MLmodel"))
    _prevent_caches(Path(path) / "code")
    sign_files(Path(path), list_signed(Path(path)))


def _prevent_caches(code: Path) -> None:
    """Put a file where Python would keep bytecode: it executes what it finds there, which no digest could cover."""
    for folder in {module.parent for module in code.rglob("*.py")}:
        (folder / "__pycache__").write_bytes(b"")


def copy_runtime(root: Path, folder: Path) -> Path:
    """Copy the code that loads a bundle from `root`, as tasks/ holds it, into a new package below `folder`.

    Returns:
        The package's path. Its name depends only on the relative names and the contents of its files.
    """
    files = runtime_files(root)
    digest = json_digest({name: sha256_of(root / name) for name in files})
    package = folder / f"verdict_runtime_{digest[:8]}"
    for name in files:
        target = package / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(root / name, target)
    return package


def runtime_files(root: Path) -> list[str]:
    """Return the files of the code that loads a bundle, relative to `root`, sorted."""
    inference = [path.relative_to(root).as_posix() for path in (root / "inference").glob("*.py")]
    return sorted(["__init__.py", *RUNTIME_CORE, *inference])


def _serving_requirements() -> list[str]:
    """Pin the serving packages that are installed, with one of the two ONNX Runtime packages among them."""
    pins = []
    for package in SERVING_PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            pins.append(f"{package}=={importlib.metadata.version(package)}")
    return pins
