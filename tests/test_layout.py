"""Rules of the code base that no linter knows: what is imported when, unique names, short functions.

Which package may import which is checked by import-linter (`make lint`); here a test shows that it refuses.
"""

import ast
import collections
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = {
    path.relative_to(ROOT).as_posix(): ast.parse(path.read_text(encoding="utf-8"))
    for folder in ("flows", "tasks")
    for path in sorted((ROOT / folder).rglob("*.py"))
}
# Triton's Python backend looks for this class in every model.py.
SHARED_CLASSES = {"TritonPythonModel"}

ORCHESTRATION = {"prefect", "mlflow", "great_expectations", "pydantic_settings"}
TRAINING = {"torch", "transformers", "prefect", "mlflow", "pandas"}
# What each import must not bring, in the order in which one interpreter imports them.
HEAVY = {
    "flows.cli.app": TRAINING | ORCHESTRATION | {"numpy", "pydantic"},
    "tasks.inference.classifier": TRAINING,
    "tasks.evaluation.evidence": ORCHESTRATION,
    "tasks.export.bundle_export": ORCHESTRATION,
    "tasks.training.finetune": ORCHESTRATION,
}


@pytest.fixture(scope="module")
def loaded() -> dict[str, set[str]]:
    """The top-level modules that a fresh interpreter has after each import of HEAVY; one, as torch takes seconds."""
    script = (
        f"import importlib, sys\nfor module in {list(HEAVY)}:\n"
        "    importlib.import_module(module)\n    print(*{name.split('.')[0] for name in sys.modules})"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    return dict(zip(HEAVY, (set(line.split()) for line in done.stdout.splitlines()), strict=True))


def lint_imports(folder: Path) -> subprocess.CompletedProcess[str]:
    command = [Path(sys.executable).with_name("lint-imports"), "--no-cache"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, env={"PYTHONPATH": str(folder)})


def test_the_source_tree_is_found() -> None:
    assert len(SOURCES) > 100


def test_import_mlflow_is_the_installed_library() -> None:
    script = "import importlib.util; print(importlib.util.find_spec('mlflow').origin)"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert "site-packages" in done.stdout


def test_the_mlflow_folder_holds_no_python() -> None:
    assert (ROOT / "mlflow").is_dir()
    assert list((ROOT / "mlflow").rglob("*.py")) == []


def test_imports_against_the_direction_turn_the_linter_red(tmp_path: Path) -> None:
    for name in ("flows", "tasks"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    for module, line in (
        ("tasks/core/files.py", "import tasks.data.sources"),
        ("flows/services/stack.py", "import flows.jobs.watch"),
        ("tasks/serving/server.py", "import mlflow"),
        ("tasks/registry/tracking.py", "import prefect"),
    ):
        with (tmp_path / module).open("a", encoding="utf-8") as stream:
            stream.write(f"{line}\n")
    done = lint_imports(tmp_path)
    assert done.returncode == 1
    for imported in (
        "tasks.core.files -> tasks.data.sources",
        "flows.services.stack -> flows.jobs.watch",
        "tasks.serving.server -> mlflow",
        "tasks.registry.tracking -> prefect",
    ):
        assert imported in done.stdout


def test_the_command_answering_and_training_import_nothing_heavy_that_they_do_not_need(
    loaded: dict[str, set[str]],
) -> None:
    """Answering needs no training library, and what runs on a GPU machine no orchestration."""
    for module, heavy in HEAVY.items():
        assert module.partition(".")[0] in loaded[module]
        assert not loaded[module] & heavy, module


def test_modules_are_documented_and_packages_hold_no_code() -> None:
    for path, tree in SOURCES.items():
        assert ast.get_docstring(tree), f"{path} has no docstring"
        assert len(tree.body) == 1 or not path.endswith("__init__.py"), f"{path} holds code"


def test_functions_have_return_types_and_fit_a_screen() -> None:
    for path, tree in SOURCES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                assert node.returns is not None, f"{path}: {node.name} has no return type"
                documented = ast.get_docstring(node, clean=False) or ""
                code = (node.end_lineno or 0) - node.lineno - documented.count("\n")
                assert code <= 50, f"{path}: {node.name} is longer than a screen"


def test_nothing_loads_code_that_a_model_folder_brings() -> None:
    """Where trust_remote_code is not False, transformers asks on the terminal whether to run it."""
    calls = 0
    for path, tree in SOURCES.items():
        for node in ast.walk(tree):
            if (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Attribute)
                and node.func.attr == "from_pretrained"
            ):
                given = {argument.arg: ast.unparse(argument.value) for argument in node.keywords}
                assert given.get("trust_remote_code") == "False", f"{path}:{node.lineno}"
                calls += 1
    assert calls > 3


def test_a_class_name_stands_for_one_class() -> None:
    found = collections.defaultdict(list)
    for path, tree in SOURCES.items():
        for node in tree.body:
            if isinstance(node, ast.ClassDef):
                found[node.name].append(path)
    assert {name: paths for name, paths in found.items() if len(paths) > 1 and name not in SHARED_CLASSES} == {}


def constants(tree: ast.Module) -> Iterator[tuple[str, str]]:
    """Yield the names in capitals that a module assigns, each with the text of its value."""
    for node in tree.body:
        if isinstance(node, ast.Assign):
            for target in node.targets:
                pairs = [(target, node.value)]
                if isinstance(target, ast.Tuple) and isinstance(node.value, ast.Tuple):
                    pairs = list(zip(target.elts, node.value.elts, strict=True))
                for name, value in pairs:
                    if isinstance(name, ast.Name) and name.id.isupper():
                        yield name.id, ast.unparse(value)
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.target.id.isupper():
            yield node.target.id, ast.unparse(node.value) if node.value else ""


def test_a_constant_s_name_stands_for_one_value() -> None:
    found = collections.defaultdict(set)
    for tree in SOURCES.values():
        for name, value in constants(tree):
            found[name].add(value)
    assert {name: values for name, values in found.items() if len(values) > 1} == {}


def texts(*folders: str) -> list[Path]:
    """Return the files of folders that people read, but for sentences of English."""
    kinds = {".py", ".j2", ".js", ".html", ".md", ".yaml", ".toml"}
    paths = [path for folder in folders for path in sorted((ROOT / folder).rglob("*"))]
    return [path for path in paths if path.suffix in kinds and path.name != "sample_grammar.toml"]


def found_in(paths: list[Path], words: re.Pattern[str]) -> list[str]:
    return [f"{path}: {match[0]}" for path in paths for match in words.finditer(path.read_text(encoding="utf-8"))]


def test_the_words_of_an_earlier_private_vocabulary_are_gone() -> None:
    private = re.compile(
        r"\b(reign\w*|crown\w*|spoil\w*|told|dice|crowds?|clerk|desk|goes on|is no number)\b", re.IGNORECASE
    )
    paths = texts("flows", "tasks", "infra", "mlflow")
    assert len(paths) > 150
    assert found_in(paths, private) == []
    # In tests one word only, also as a part of a name.
    tests = [path for path in texts("tests") if path != Path(__file__)]
    assert len(tests) > 150
    assert found_in(tests, re.compile(r"(?<![a-z])told(?![a-z])", re.IGNORECASE)) == []


def test_no_file_is_named_like_an_installed_library() -> None:
    # Prefect puts the folder of a flow's file on sys.path, where flows/evaluate.py would be `import evaluate`.
    stems = {Path(path).stem for path in SOURCES}
    assert not stems & (sys.stdlib_module_names | {"evaluate", "datasets", "mlflow", "prefect"})
