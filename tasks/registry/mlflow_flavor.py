"""How a bundle becomes an MLflow model: sentences in through python_function, token ids in through onnx.

The model carries the code that answers, so whoever loads it needs no copy of this repository. Its signature names no
input on purpose: with one unnamed text input MLflow hands over the first column of a data frame, whatever that is, and
with a named one it refuses lists. `tasks.inference.pyfunc` says which column it takes, and refuses what is ambiguous.
"""

import ast
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

from tasks.inference.bundle import FP32_MODEL

CODE_ROOT = Path(__file__).parents[1]
LOADER = "inference.pyfunc"  # the module that MLflow asks for the model
SERVING_PACKAGES = ("onnxruntime-gpu", "onnxruntime", "tokenizers", "numpy", "pandas")
MODEL_OUTPUTS = Schema([ColSpec("string", "label"), ColSpec("double", "probability"), ColSpec("string", "version")])
INPUT_EXAMPLE = ["The cat sat on the mat."]


def log_model(experiment: str, run_id: str, bundle: str, digest: str) -> str:
    """Store a bundle with a run as an MLflow model and return the model's id."""
    # Without an experiment set, MLflow puts models into its default one, with files under the working directory.
    mlflow.set_experiment(experiment_id=experiment)
    info = Model.log(
        artifact_path=None,
        name="model",
        flavor=sys.modules[__name__],  # MLflow calls its save_model
        run_id=run_id,
        tags={"bundle_digest": digest},
        bundle=bundle,
    )
    return info.model_id


def save_model(path: str, mlflow_model: Model, bundle: str) -> None:
    """Write an MLflow model with two flavours around one bundle; `Model.log` calls this.

    `mlflow.pyfunc.load_model` gives a model from sentences to labels, `mlflow.onnx.load_model` the fp32 graph.
    """
    with tempfile.TemporaryDirectory() as scratch:
        code, data = Path(scratch) / CODE_ROOT.name, Path(scratch) / "bundle"
        shutil.copytree(bundle, data)
        for name in serving_modules():
            target = code / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(CODE_ROOT / name, target)
        mlflow.pyfunc.save_model(
            path,
            mlflow_model=mlflow_model,
            loader_module=f"{CODE_ROOT.name}.{LOADER}",
            data_path=str(data),
            code_paths=[str(code)],
            pip_requirements=_serving_requirements(),
            model_config={"device": "auto"},  # MLflow lets a caller change only what stands here
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


def serving_modules() -> list[str]:
    """Return the files of this package that answering needs: the loader and whatever its imports lead to."""
    found, left = {"__init__.py"}, [LOADER]
    while left:
        name = left.pop().replace(".", "/") + ".py"
        if name in found:
            continue
        found |= {name, f"{name.partition('/')[0]}/__init__.py"}
        for node in ast.walk(ast.parse((CODE_ROOT / name).read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(f"{CODE_ROOT.name}."):
                left.append(str(node.module).partition(".")[2])
    return sorted(found)


def _serving_requirements() -> list[str]:
    """Pin what is installed here; one of the two ONNX Runtime packages is."""
    pins = []
    for package in SERVING_PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            pins.append(f"{package}=={importlib.metadata.version(package)}")
    return pins
