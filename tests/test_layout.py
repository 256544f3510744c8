"""The house's rules, checked."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = sorted([*ROOT.glob("flows/**/*.py"), *ROOT.glob("tasks/**/*.py")])
assert len(SOURCES) > 100


def imports_of(path: Path) -> set[str]:
    """Return the top-level names that a file imports, anywhere in it."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module.split(".")[0])
    return names


def loaded_by(statement: str) -> set[str]:
    """Return the top-level modules that a fresh interpreter has after a statement."""
    script = f"{statement}; import sys; print(*{{name.split('.')[0] for name in sys.modules}})"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_import_mlflow_is_the_installed_library() -> None:
    script = "import mlflow; print(mlflow.__file__)"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert "site-packages" in done.stdout


def test_the_mlflow_folder_holds_no_python() -> None:
    assert (ROOT / "mlflow").is_dir()
    assert list((ROOT / "mlflow").rglob("*.py")) == []


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_only_the_registry_imports_mlflow_and_only_flows_import_prefect(path: Path) -> None:
    names = imports_of(path)
    folders = path.relative_to(ROOT).parts
    assert "mlflow" not in names or folders[:2] == ("tasks", "registry")
    assert "prefect" not in names or folders[0] == "flows"


def test_predict_needs_no_training_library() -> None:
    assert not loaded_by("import tasks.inference.classifier") & {"torch", "transformers", "prefect", "mlflow", "pandas"}


@pytest.mark.parametrize(
    "module", ["training.finetune", "export.bundle_export", "inference.classifier", "evaluation.evidence"]
)
def test_what_runs_on_a_gpu_machine_needs_no_orchestration(module: str) -> None:
    heavy = {"prefect", "mlflow", "great_expectations", "pydantic_settings"}
    assert not loaded_by(f"import tasks.{module}") & heavy


def test_the_command_imports_nothing_heavy_before_it_knows_what_to_do() -> None:
    heavy = {"torch", "transformers", "prefect", "mlflow", "pandas", "numpy", "pydantic", "great_expectations"}
    assert not loaded_by("import flows.cli.app") & heavy


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_files_functions_and_signatures_keep_the_house_style(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert ast.get_docstring(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            assert node.returns is not None, f"{node.name} has no return type"
            documented = ast.get_docstring(node, clean=False) or ""
            code = node.end_lineno - node.lineno - documented.count("\n")  # type: ignore[operator]
            assert code <= 50, f"{node.name} is longer than a screen"


def test_no_file_is_named_like_an_installed_library() -> None:
    assert not {path.stem for path in SOURCES} & (
        sys.stdlib_module_names | {"evaluate", "datasets", "mlflow", "prefect"}
    )
