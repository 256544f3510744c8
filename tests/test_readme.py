"""The README and the pages beside the code tell the truth about commands, files and settings; their programs run."""

import importlib
import re
import shutil
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlflow
import pytest
import typer
from http_server import running_server
from settings_page import page_with, settings_table

from flows.cli import app as cli
from tasks.core.settings_loader import profile_names, valid_keys
from tasks.registry import register
from tasks.registry import tracking as runs
from tasks.registry.store import MlflowStore
from tasks.serving.champion import Champion

ROOT = Path(__file__).parents[1]
PATHS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(ROOT.glob("tasks/**/README.md"))]
PATHS += [ROOT / folder / "README.md" for folder in ("flows", "findings", "infra", "mlflow", "tests/benchmarks")]
PAGES = {path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8") for path in PATHS}
CODE = ("flows", "tasks", "infra", "findings", "tests")  # not .venv
PROGRAMS = [
    pytest.param(program, id=f"{page}-{number}")
    for page, text in PAGES.items()
    for number, program in enumerate(re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL))
]


def names_in(pattern: str, *pages: str) -> set[str]:
    """Return what a pattern finds in some pages, or in all; something must be found."""
    found = {name for page in pages or PAGES for name in re.findall(pattern, PAGES[page], re.MULTILINE)}
    assert found
    return found


def test_every_package_has_a_page_and_the_readme_leads_to_it() -> None:
    packages = {path.parent for path in ROOT.glob("tasks/*/__init__.py")}
    assert len(packages) == 10
    assert {package for package in packages if not (package / "README.md").is_file()} == set()
    linked = names_in(r"\]\((tasks/[a-z]+)/README\.md\)", "README.md") | names_in(
        r"\]\(([a-z]+)/README\.md\)", "tasks/README.md"
    )
    assert {package.name for package in packages} <= {name.rpartition("/")[2] for name in linked}


def test_the_readme_and_the_architecture_list_the_packages_of_tasks_in_the_order_of_their_imports() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    layers = project["tool"]["importlinter"]["contracts"][0]["layers"]
    above = [layer.replace("tasks.", "").split(" | ") for layer in layers if layer != "flows"]
    packages = [name for layer in reversed(above) for name in layer]
    assert set(packages) == {path.parent.name for path in ROOT.glob("tasks/*/__init__.py")}
    listed = re.findall(
        r"in (\w+) packages, each importing only those before it: ([a-z,\s]+)\ntests/", PAGES["README.md"]
    )
    assert [(count, re.split(r",\s+", names)) for count, names in listed] == [("ten", packages)]
    assert len(packages) == 10
    assert re.findall(r"^\| \[([a-z]+)\]\(", PAGES["tasks/README.md"], re.MULTILINE) == packages


def test_every_module_stands_in_the_page_of_its_package() -> None:
    for package in (*(path.parent for path in ROOT.glob("tasks/*/__init__.py")), ROOT / "flows"):
        modules = {
            path.relative_to(package).as_posix() for path in package.rglob("*.py") if "templates" not in path.parts
        }
        listed = names_in(r"`([a-z0-9_/]+\.py)`", f"{package.relative_to(ROOT).as_posix()}/README.md")
        assert {name for name in modules if not name.endswith("__init__.py")} - listed == set()


def test_the_readme_is_short() -> None:
    assert len(PAGES["README.md"].splitlines()) <= 200


def test_every_command_that_a_page_names_exists_and_the_readme_names_all() -> None:
    commands = typer.main.get_command(cli.app).commands  # type: ignore[attr-defined]
    assert names_in(r"^\s*(?:\$ )?(?:\.venv/bin/)?verdict ([a-z][a-z-]+)") <= set(commands)
    assert {f"`verdict {name}`" for name in commands} <= names_in(r"`verdict [a-z-]+`", "README.md")


def test_every_make_target_that_a_page_names_exists() -> None:
    targets = set(re.findall(r"^([a-z-]+):.*##", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert names_in(r"(?:`|^|\$ )make ([a-z-]+)") <= targets


def test_every_file_that_a_page_links_exists() -> None:
    for page, text in PAGES.items():
        for link in re.findall(r"\]\((?!http|#)([^)#]+)[^)]*\)", text):
            assert ((ROOT / page).parent / link).exists(), f"{page}: {link}"


def test_every_module_that_a_page_of_a_package_names_exists() -> None:
    modules = [f"/{path.relative_to(ROOT).as_posix()}" for folder in CODE for path in (ROOT / folder).rglob("*.py")]
    named = [
        (page, name)
        for page, text in PAGES.items()
        if page.startswith("tasks/")
        for name in re.findall(r"`([a-z_/]+\.py)`", text)
    ]
    assert len(named) > 30
    for page, name in named:
        assert any(module.endswith(f"/{name}") for module in modules), f"{page}: {name}"


def test_the_places_where_to_change_something_exist() -> None:
    table = PAGES["tasks/README.md"].partition("## Where to change what")[2].partition("\n## ")[0]
    for row in table.splitlines()[4:]:
        if match := re.search(r"`([a-z_/]+)` > `([a-z_]+\.py)` > `([A-Za-z_.]+)`", row):
            folder, module, name = match.groups()
            package = folder.replace("/", ".") if folder.startswith("flows") else f"tasks.{folder}"
            found: Any = importlib.import_module(f"{package}.{module.removesuffix('.py')}")
            for part in name.split("."):
                found = (
                    getattr(found, "model_fields", {}).get(part)
                    or getattr(found, part, None)
                    or found.__annotations__[part]
                )
    assert len(table.splitlines()) > 8


def test_the_profiles_and_settings_that_a_page_names_exist() -> None:
    assert names_in(r"--profile ([a-z-]+)") <= set(profile_names())
    assert names_in(r"--set ([a-z0-9_.]+)=") | names_in(
        r"`((?:data|finetune|gate|judge|watch)\.(?!(?:py|json|html)\b)[a-z0-9_]+)"
    ) <= set(valid_keys())


def test_the_table_of_settings_is_that_of_the_schema() -> None:
    assert PAGES["tasks/core/README.md"] == page_with(settings_table()), "run: python tests/support/settings_page.py"


@pytest.fixture(scope="module")
def workplace(empty_store: Path, exported: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, str]]:
    """A folder with what the pages' programs read, and the address of a server that answers."""
    folder = tmp_path_factory.mktemp("readme")
    shutil.copytree(exported["bundle"], folder / "path" / "of" / "bundle")
    (folder / ".verdict").mkdir()
    shutil.copy(empty_store, folder / ".verdict" / "mlflow.db")
    uri, artifacts = f"sqlite:///{folder}/.verdict/mlflow.db", str(folder / ".verdict" / "artifacts")
    store = MlflowStore(uri=uri, artifacts=artifacts)
    run = runs.open_run(store, "a" * 16, {}, {})
    version = register.register_bundle(store, run, exported["bundle"], exported["digest"], {}, "a bundle")
    mlflow.MlflowClient(uri, registry_uri=uri).set_registered_model_alias("acceptability", "champion", version)
    with Champion.open(exported["bundle"], device="cpu") as champion, running_server(champion) as client:
        yield folder, str(client.base_url).rstrip("/")


@pytest.mark.parametrize("program", PROGRAMS)
def test_the_programs_of_the_pages_run(
    workplace: tuple[Path, str], program: str, monkeypatch: pytest.MonkeyPatch, own_mlflow_address: None
) -> None:
    folder, server = workplace
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "path", list(sys.path))  # MLflow adds the folder of a model's code
    monkeypatch.delenv("VERDICT_HOME", raising=False)
    exec(compile(program.replace("http://127.0.0.1:8080", server), "README.md", "exec"), {})
