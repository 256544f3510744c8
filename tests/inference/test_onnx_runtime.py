"""What ONNX Runtime leaves on the machine of someone who only wants answers: nothing."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import onnx
from onnx import TensorProto, helper

BUNDLE = "from tasks.inference.classifier import Classifier; print(Classifier.from_bundle({0!r}, 'cpu').predict(['a']))"
PYFUNC = """
import sys
from tasks.registry.mlflow_flavor import copy_runtime
from pathlib import Path
import importlib
package = copy_runtime(Path("tasks"), Path({1!r}))
sys.path.insert(0, str(package.parent))
loader = importlib.import_module(f"{{package.name}}.inference.pyfunc")
print(loader._load_pyfunc({0!r}))
"""
WITHOUT_US = (
    "import onnxruntime; onnxruntime.InferenceSession({0!r}, providers=['CPUExecutionProvider']); print(onnxruntime)"
)


def files_left_at_home(program: str, folder: Path) -> list[str]:
    """Run a program in an empty home folder and return the files that lie there afterwards.

    Of other variables it gets none, as ONNX Runtime keeps quiet where one of a dozen says that it runs in CI; MLflow's
    telemetry is MLflow's user's to switch off.
    """
    home = folder / "home"
    home.mkdir()
    environment = {"HOME": str(home), "PATH": os.environ["PATH"], "MLFLOW_DISABLE_TELEMETRY": "true"}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
    return sorted(path.name for path in home.rglob("*") if path.is_file())


def test_a_bundle_answers_without_leaving_a_file(exported: Any, tmp_path: Path) -> None:
    assert files_left_at_home(BUNDLE.format(exported["bundle"]), tmp_path) == []


def test_the_code_of_a_registered_version_answers_without_leaving_a_file(exported: Any, tmp_path: Path) -> None:
    assert files_left_at_home(PYFUNC.format(exported["bundle"], str(tmp_path / "runtime")), tmp_path) == []


def test_onnx_runtime_itself_would_leave_a_device_id(tmp_path: Path) -> None:
    """Without it the other tests could not fail; if this one fails, onnx_runtime.py may be needed no more."""
    value = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in "xy"]
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "graph", value[:1], value[1:])
    path = tmp_path / "model.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)
    assert "deviceid" in files_left_at_home(WITHOUT_US.format(str(path)), tmp_path)
