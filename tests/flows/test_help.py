"""Help, examples, exit codes and completion of the command line."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer
from command_line import call

from flows.cli import app

ROOT = Path(__file__).parents[2]
GROUP: Any = typer.main.get_command(app.app)
EXAMPLES = {
    function.__name__.replace("_", "-"): example
    for members in app.COMMANDS.values()
    for function, example in members.items()
}


def test_every_command_stands_in_a_group_of_the_help_within_80_columns(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = call(capsys, "-h")
    assert code == 0
    assert set(EXAMPLES) == set(GROUP.commands)
    for group in app.COMMANDS:
        assert f"\n{group}:\n" in out
    for name in EXAMPLES:
        assert re.search(rf"^  {name} +\w", out, re.MULTILINE), name
    assert max(map(len, out.splitlines())) <= 80


@pytest.mark.parametrize("name", EXAMPLES)
def test_the_example_of_a_command_is_one_that_it_takes(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = call(capsys, name, "-h")
    assert code == 0
    assert f"Example:\n    {EXAMPLES[name].splitlines()[0]}\n" in out
    assert max(map(len, out.splitlines())) <= 80
    for line in EXAMPLES[name].splitlines():
        words = shlex.split(line[line.index("verdict ") :].removesuffix(')"'))
        assert words[1] == name
        GROUP.commands[name].make_context(name, words[2:])  # raises UsageError


def test_the_pages_tell_the_exit_codes_of_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    page, shown = (ROOT / "flows" / "README.md").read_text(encoding="utf-8"), call(capsys, "--help")[1]
    for code, meaning in app.EXIT_CODES.items():
        assert f"| {code} | {meaning} |\n" in page
        assert f"{code:>5}  {meaning}\n" in shown


@pytest.fixture
def path(tmp_path: Path) -> str:
    """A PATH with this `verdict`."""
    program = tmp_path / "bin" / "verdict"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m flows.cli.app "$@"\n')
    program.chmod(0o755)
    return f"{program.parent}:{os.environ['PATH']}"


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("verdict stat", ["status"]),
        ("verdict retrain --dr", ["--dry-run"]),
        ("verdict retrain --set finetune.epo", ["finetune.epochs="]),
        ("verdict check --profile cola", ["cola", "cola-small"]),
        ("verdict settings watch.request", ["watch.request_log", "watch.request_hours"]),
    ],
)
def test_bash_completes_commands_options_profiles_and_settings(typed: str, offered: list[str], path: str) -> None:
    script = (
        'source <(verdict completion bash)\nread -ra COMP_WORDS <<< "$1"\nCOMP_CWORD=$((${#COMP_WORDS[@]} - 1))\n'
        '_verdict_completion verdict\nprintf "%s\\n" "${COMPREPLY[@]}"\n'
    )
    done = subprocess.run(
        ["bash", "-c", script, "bash", typed],
        cwd=ROOT, env=os.environ | {"PATH": path}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert (done.stdout.split(), done.stderr) == (offered, "")


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_what_the_scripts_of_other_shells_call_is_answered(
    shell: str, path: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code, script, _ = call(capsys, "completion", shell)
    assert code == 0
    asked = {"_VERDICT_COMPLETE": f"complete_{shell}", "_TYPER_COMPLETE_ARGS": "verdict stat"}
    asked |= {"_TYPER_COMPLETE_FISH_ACTION": "get-args"} if shell == "fish" else {}
    assert all(name in script for name in asked)
    done = subprocess.run(
        ["verdict"], cwd=ROOT, env=os.environ | asked | {"PATH": path}, capture_output=True, text=True, check=True
    )
    assert "status" in done.stdout
    assert "Show champion" in done.stdout
