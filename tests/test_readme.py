"""The README tells the truth about commands, files and targets."""

import re
from pathlib import Path

import pytest
import typer

from flows import cli
from tasks.settings import profile_names, valid_keys

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


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
    for path in (ROOT / folder).glob("*.py"):
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
