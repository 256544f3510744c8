"""The README tells the truth about commands, files and targets, and its programs run."""

import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlflow
import pytest
import typer
from serving import serving

from flows.cli import app as cli
from tasks.core.settings_loader import profile_names, valid_keys
from tasks.registry import register
from tasks.registry import tracking as runs
from tasks.registry.mlflow_client import MlflowStore
from tasks.serving.champion import Champion

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PROGRAMS = re.findall(r"^```python\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


def test_every_command_that_the_readme_names_exists() -> None:
    commands = typer.main.get_command(cli.app).commands  # type: ignore[attr-defined]
    named = set(re.findall(r"^\s*(?:\$ )?(?:\.venv/bin/)?verdict ([a-z-]+)", README, re.MULTILINE))
    assert named
    assert named <= set(commands)
    assert {f"`verdict {name}`" for name in commands} <= set(re.findall(r"`verdict [a-z-]+`", README))


def test_every_make_target_that_the_readme_names_exists() -> None:
    targets = set(re.findall(r"^([a-z-]+):.*##", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = set(re.findall(r"make ([a-z-]+)", README))
    assert named
    assert named <= targets


@pytest.mark.parametrize("folder", ["flows", "tasks"])
def test_the_file_tree_names_every_module(folder: str) -> None:
    for path in (ROOT / folder).rglob("*.py"):
        if path.name != "__init__.py":
            assert re.search(rf"\b{re.escape(path.name)}\b", README), f"{path} is missing in the README"


def test_every_file_that_the_readme_links_exists() -> None:
    links = re.findall(r"\]\((?!http)([^)#]+)\)", README)
    assert links
    for link in links:
        assert (ROOT / link).exists(), link


def test_the_profiles_and_settings_that_the_readme_names_exist() -> None:
    assert set(re.findall(r"--profile ([a-z-]+)", README)) <= set(profile_names())
    assert set(re.findall(r"--set ([a-z_.]+)=", README)) <= set(valid_keys())


@pytest.fixture(scope="module")
def workplace(empty_store: Path, exported: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, str]]:
    """A folder with what the README's programs speak of, and the address of a server that answers."""
    folder = tmp_path_factory.mktemp("readme")
    shutil.copytree(exported["bundle"], folder / "path" / "of" / "bundle")
    (folder / ".verdict").mkdir()
    shutil.copy(empty_store, folder / ".verdict" / "mlflow.db")
    uri, artifacts = f"sqlite:///{folder}/.verdict/mlflow.db", str(folder / ".verdict" / "artifacts")
    store = MlflowStore(uri=uri, artifacts=artifacts)
    run = runs.open_run(store, "a" * 16, {}, {})
    version = register.register_bundle(store, run, exported["bundle"], exported["digest"], {}, "a bundle")
    mlflow.MlflowClient(uri, registry_uri=uri).set_registered_model_alias("acceptability", "champion", version)
    with Champion.open(exported["bundle"], device="cpu") as champion, serving(champion) as client:
        yield folder, str(client.base_url).rstrip("/")


@pytest.mark.parametrize("program", PROGRAMS, ids=range(len(PROGRAMS)))
def test_the_programs_of_the_readme_run(
    workplace: tuple[Path, str], program: str, monkeypatch: pytest.MonkeyPatch, own_mlflow_address: None
) -> None:
    folder, server = workplace
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "path", list(sys.path))  # MLflow adds the folder of a model's code
    monkeypatch.delenv("VERDICT_HOME", raising=False)
    exec(compile(program.replace("http://127.0.0.1:8080", server), "README.md", "exec"), {})
