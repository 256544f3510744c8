"""Each extra holds what its commands import, and a command without its extra names it.

What an installation would lack is hidden from a new interpreter: all distributions that its extras do not require.
"""

import importlib.metadata
import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from registered import make_champion_store

from flows.extras import COMMANDS_OF_EXTRA, explain_missing

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
RUNTIMES = {"onnxruntime", "onnxruntime-gpu"}
RUN = """
import json, sys
hidden = set(json.loads(sys.argv[1]))
class Hiding:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in hidden:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Hiding())
from flows.cli.app import main
for words in json.loads(sys.argv[2]):
    try:
        main(words)
    except SystemExit as ended:
        print(f"{words[0]}: exit {ended.code}", file=sys.stderr)
if "gradio" not in hidden:
    import tasks.serving.server, tasks.serving.demo_page, tasks.serving.feedback, gradio
if "prefect" not in hidden:
    import flows.jobs.score, flows.services.deploy
"""


def required(extras: list[str]) -> set[str]:
    """Return the distributions that an installation with some extras holds, by their normalised names."""
    own = PROJECT["optional-dependencies"]
    todo = [Requirement(text) for text in PROJECT["dependencies"]]
    todo += [Requirement(text) for extra in extras for text in own[extra]]
    held: set[str] = set()
    seen: set[str] = set()
    while todo:
        wanted = todo.pop()
        name = canonicalize_name(wanted.name)
        if name == PROJECT["name"]:
            todo += [Requirement(text) for extra in wanted.extras for text in own[extra]]
        if str(wanted) in seen or name == PROJECT["name"]:
            continue
        seen.add(str(wanted))
        held.add(name)
        try:
            needs = importlib.metadata.requires(name) or []
        except importlib.metadata.PackageNotFoundError:
            continue
        for each in map(Requirement, needs):
            if each.marker is None or any(each.marker.evaluate({"extra": extra}) for extra in ("", *wanted.extras)):
                todo.append(each)
    return held


def hidden_from(extras: list[str]) -> list[str]:
    """Return the modules that such an installation lacks."""
    held = required(extras) | RUNTIMES | {PROJECT["name"]}
    modules = importlib.metadata.packages_distributions()
    return sorted(name for name, by in modules.items() if not {canonicalize_name(each) for each in by} & held)


def run(extras: list[str], home: Path, commands: list[list[str]]) -> subprocess.CompletedProcess[str]:
    arguments = [json.dumps(hidden_from(extras)), json.dumps(commands)]
    environment = {**os.environ, "VERDICT_HOME": str(home), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", RUN, *arguments]
    return subprocess.run(command, cwd=home, env=environment, capture_output=True, text=True)


def exits(done: subprocess.CompletedProcess[str]) -> list[str]:
    return [line for line in done.stderr.splitlines() if ": exit " in line]


@pytest.fixture
def home(empty_store: Path, exported: Any, tmp_path: Path) -> Path:
    return make_champion_store(tmp_path, empty_store, exported)


def test_the_base_predicts_and_explains_and_names_the_extra_of_other_commands(home: Path) -> None:
    hidden = set(hidden_from([]))
    assert {"torch", "prefect", "pandas", "gradio", "sqlalchemy", "onnx"} <= hidden
    words = [["predict", "the cat sees the dog"], ["settings", "finetune.epochs"], ["retrain"], ["serve"], ["prune"]]
    done = run([], home, words)
    codes = ["predict: exit 0", "settings: exit 0", "retrain: exit 1", "serve: exit 1", "prune: exit 1"]
    assert exits(done) == codes, done.stderr
    for extra in ("train", "serve", "schedule"):
        assert (
            f"expected the extra '{extra}': pip install 'verdict-mlops[{extra}]' (in a clone: make install)"
            in done.stderr
        )
    assert "Traceback" not in done.stderr


def test_the_extra_serve_works_without_mlflows_server_and_torch(home: Path) -> None:
    assert {"torch", "prefect", "transformers", "matplotlib", "great_expectations"} <= set(hidden_from(["serve"]))
    done = run(["serve"], home, [["export-triton", "repository"], ["check"]])
    assert exits(done) == ["export-triton: exit 0", "check: exit 1"], done.stderr
    assert done.returncode == 0, done.stderr
    assert "expected the extra 'train'" in done.stderr


def test_the_extra_schedule_reviews_and_operates_without_torch(home: Path) -> None:
    assert {"torch", "transformers", "onnx", "great_expectations", "gradio"} <= set(hidden_from(["schedule"]))
    words = [["status"], ["doctor"], ["retrain", "--dry-run"]]
    done = run(["schedule"], home, words)
    assert exits(done) == ["status: exit 0", "doctor: exit 0", "retrain: exit 1"], done.stderr
    assert done.returncode == 0, done.stderr
    assert "not checked: torch is not installed" in done.stdout


def test_a_missing_runtime_names_both_packages() -> None:
    line = explain_missing("onnxruntime", "predict")
    assert "expected the extra 'cpu', or 'gpu' with an NVIDIA GPU: pip install 'verdict-mlops[cpu]'" in line


def test_a_missing_ray_names_its_extra_whatever_the_command() -> None:
    line = explain_missing("ray", "score")
    assert "needs the package ray, which is not installed; expected the extra 'ray': pip install" in line


def test_every_extra_with_commands_exists_and_all_of_them_are_in_all() -> None:
    extras = PROJECT["optional-dependencies"]
    assert set(COMMANDS_OF_EXTRA) <= set(extras)
    assert set(COMMANDS_OF_EXTRA) == Requirement(extras["all"][0]).extras


def test_the_page_and_make_install_say_the_sizes_that_were_measured() -> None:
    path = ROOT / "tests" / "benchmarks" / "results" / "install-size.json"
    sizes = {
        extras: each["gb"] for extras, each in json.loads(path.read_text(encoding="utf-8"))["installations"].items()
    }
    page, makefile = ((ROOT / name).read_text(encoding="utf-8") for name in ("infra/README.md", "Makefile"))
    assert [extras for extras, size in sizes.items() if f"| {size:.2f} GB |" not in page] == []
    assert all(f"{sizes[extras]:.1f} GB on disk" in makefile for extras in ("all,cpu", "all,gpu"))
    assert sizes["all,cpu"] < 2.5
