"""The code that a registered version carries: what it is, and that it answers beside any other code of the process."""

import ast
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import mlflow
import mlflow.pyfunc
import pytest
from toy import SIGN

from tasks.registry import mlflow_flavor, register, tracking
from tasks.registry.mlflow_flavor import CODE_ROOT, LOADER, copy_runtime, runtime_files
from tasks.registry.store import MlflowStore

BAD = f"the cat {SIGN} sees the dog"


@pytest.fixture(scope="module")
def store(empty_store: Path, exported: Any, tmp_path_factory: pytest.TempPathFactory) -> MlflowStore:
    """A store with two versions of one bundle: the code of version 2 writes labels in upper case."""
    folder = tmp_path_factory.mktemp("flavor")
    shutil.copy(empty_store, folder / "mlflow.db")
    held = MlflowStore(uri=f"sqlite:///{folder}/mlflow.db", artifacts=str(folder / "artifacts"))
    run = tracking.open_run(held, "a" * 16, {}, {})
    assert register.register_bundle(held, run, exported["bundle"], exported["digest"], {}, "") == "1"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mlflow_flavor, "CODE_ROOT", altered_code(folder / "altered"))
        assert register.register_bundle(held, run, exported["bundle"], "another digest", {}, "") == "2"
    return held


def altered_code(root: Path) -> Path:
    """Copy the code into `root` and change a module that the loader imports."""
    for name in runtime_files(CODE_ROOT):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(CODE_ROOT / name, root / name)
    module = root / "inference" / "classifier.py"
    text = module.read_text(encoding="utf-8")
    old = "label=labels[label]"
    assert text.count(old) == 1
    module.write_text(text.replace(old, f"{old}.upper()"), encoding="utf-8")
    return root


def imports_of(name: str) -> tuple[set[str], set[str]]:
    """Return what a module of tasks/ imports: files of tasks/, and the names of absolute imports."""
    files, absolute = set(), set()
    for node in ast.walk(ast.parse((CODE_ROOT / name).read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            absolute |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level:
            package = Path(name).parents[node.level - 1]
            files.add(f"{(package / str(node.module).replace('.', '/')).as_posix()}.py")
        elif isinstance(node, ast.ImportFrom):
            absolute.add(str(node.module))
    return files, absolute


def test_the_runtime_is_what_the_loader_imports_and_imports_itself_relatively() -> None:
    found: set[str] = set()
    to_do = {LOADER.replace(".", "/") + ".py"}
    while to_do:
        name = to_do.pop()
        found.add(name)
        files, absolute = imports_of(name)
        assert {module for module in absolute if module.split(".")[0] in ("tasks", "flows")} == set()
        to_do |= files - found
    packages = {f"{Path(name).parent.as_posix()}/__init__.py" for name in found}
    assert sorted(found | packages | {"__init__.py"}) == runtime_files(CODE_ROOT)


def test_the_name_of_the_package_follows_names_and_contents(tmp_path: Path) -> None:
    first = copy_runtime(CODE_ROOT, tmp_path / "first")
    again = copy_runtime(first, tmp_path / "again")  # a package is laid out like tasks/
    assert first.name == again.name
    assert len(first.name) == len("verdict_runtime_") + 8
    other = copy_runtime(altered_code(tmp_path / "altered"), tmp_path)
    (first / "inference" / "runner.py").rename(first / "inference" / "runner_2.py")
    renamed = copy_runtime(first, tmp_path)
    assert len({again.name, other.name, renamed.name}) == 3


FOREIGN = {
    "a module": {"tasks.py": "SECRET = 1\n"},  # as invoke and Celery name theirs
    "a package": {"tasks/__init__.py": "SECRET = 1\n", "tasks/inference/__init__.py": "", "tasks/core/__init__.py": ""},
}
LOAD_BOTH = """
import os, sys, mlflow, mlflow.pyfunc

def load_both():
    import tasks
    mlflow.set_tracking_uri(sys.argv[1])
    models = [mlflow.pyfunc.load_model(f"models:/acceptability/{number}") for number in "12"]
    print(*[value for model in models for value in model.predict([sys.argv[2]]).iloc[0][["label", "version"]]])
    print("torch" in sys.modules, "transformers" in sys.modules)
    print(len({name.split(".")[0] for name in sys.modules if name.startswith("verdict_runtime_")}))
    print(tasks.SECRET, sorted(name for name in sys.modules if name.startswith("tasks.")), flush=True)

for folder in sys.argv[3:]:
    child = os.fork()  # importing MLflow takes seconds
    if not child:
        os.chdir(folder)
        sys.path.insert(0, folder)
        load_both()
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
"""


def test_two_versions_answer_with_their_own_code_in_a_process_that_has_another_tasks(
    store: MlflowStore, tmp_path: Path
) -> None:
    for kind, files in FOREIGN.items():
        for name, text in files.items():
            (tmp_path / kind / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / kind / name).write_text(text)
    command = [sys.executable, "-c", LOAD_BOTH, store["uri"], BAD, *(str(tmp_path / kind) for kind in FOREIGN)]
    env = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHONPATH", "MLFLOW_", "VERDICT_"))}
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["unacceptable 1 UNACCEPTABLE 2", "False False", "2", "1 []"] * len(FOREIGN)


def test_versions_answer_with_their_own_code_beside_the_product(
    store: MlflowStore, monkeypatch: pytest.MonkeyPatch, own_mlflow_address: None
) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))  # loading a model adds its code's folder
    mlflow.set_tracking_uri(store["uri"])
    mlflow.set_registry_uri(store["uri"])
    models = [mlflow.pyfunc.load_model(f"models:/acceptability/{number}") for number in (2, 1)]
    assert [model.predict([BAD])["label"].tolist() for model in models] == [["UNACCEPTABLE"], ["unacceptable"]]


def test_a_model_answers_from_its_own_files_without_heavy_libraries(store: MlflowStore, tmp_path: Path) -> None:
    mlflow.set_tracking_uri(store["uri"])
    fetched = Path(mlflow.artifacts.download_artifacts("models:/acceptability/1", dst_path=str(tmp_path)))
    (package,) = (fetched / "code").iterdir()
    script = (
        f"import sys; sys.path.insert(0, 'code'); import {package.name}.{LOADER} as loader;"
        "print(loader._load_pyfunc('data/bundle', {'device': 'cpu'}).predict([sys.argv[1]])['label'][0]);"
        "print(*sorted({name.split('.')[0] for name in sys.modules}))"
    )
    command = [sys.executable, "-c", script, BAD]
    done = subprocess.run(command, cwd=fetched, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    label, modules = done.stdout.splitlines()
    assert label == "unacceptable"
    assert not {"tasks", "torch", "transformers", "prefect", "mlflow", "onnx"} & set(modules.split())
