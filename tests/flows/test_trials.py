"""What the command answers to wrong, missing and right arguments: each row of trials.md is run in this process.

TRIALS=FILE python -m pytest tests/flows/test_trials.py writes the same table with the whole first line of each answer.
"""

import os
import shlex
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from command_line import call
from registered import make_champion_store
from toy import facts
from trials import Trial, follows, read_trials, shown, write_files

from tasks.inference.bundle import write_manifest

TRIALS = read_trials()


@pytest.fixture(scope="module")
def champion_home(empty_store: Path, exported: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A champion with a report."""
    folder = tmp_path_factory.mktemp("trials") / "stores"
    folder.mkdir()
    bundle = Path(shutil.copytree(exported["bundle"], folder / "bundle"))
    (bundle / "report.html").write_text("<!doctype html><title>a report</title>")
    digest = write_manifest(bundle, facts(max_length=16), {})["digest"]
    return make_champion_store(folder, empty_store, {"bundle": str(bundle), "digest": digest})


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to work in, with no server configured."""
    write_files(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("VERDICT_HOME", str(tmp_path / "stores"))
    for variable in ("PREFECT_API_URL", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(variable, raising=False)
    return tmp_path


@pytest.fixture(scope="module", autouse=True)
def no_prefect_server() -> Iterator[None]:
    """Other tests may have one up."""
    from prefect.settings import PREFECT_API_URL, temporary_settings

    with temporary_settings(restore_defaults={PREFECT_API_URL}):
        yield


def test_there_are_trials_of_every_command() -> None:
    import typer

    from flows.cli import app

    commands = set(typer.main.get_command(app.app).commands)  # type: ignore[attr-defined]
    assert commands <= {trial.command.split()[0] for trial in TRIALS if trial.command}
    assert len(TRIALS) >= 90
    assert len(set(TRIALS)) == len(TRIALS)


@pytest.mark.parametrize("trial", TRIALS, ids=lambda trial: f"{trial.stores}: {trial.command}")
def test_a_command_answers_as_the_table_says(
    trial: Trial,
    workplace: Path,
    champion_home: Path,
    empty_store: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if trial.stores == "empty":
        (workplace / "stores").mkdir()
        shutil.copy(empty_store, workplace / "stores" / "mlflow.db")
    elif trial.stores == "champion":
        monkeypatch.setenv("VERDICT_HOME", str(champion_home))
    monkeypatch.setattr(sys, "argv", ["verdict"])  # what is run without arguments
    code, out, err = call(capsys, *shlex.split(trial.command))
    if path := os.environ.get("TRIALS"):
        with Path(path).open("a", encoding="utf-8") as stream:
            command = f"verdict {trial.command}".strip()
            stream.write(f"| {trial.stores} | `{command}` | {code} | {shown(code, out, err, workplace)} |\n")
        return
    assert code == trial.code, out + err
    assert follows(trial.message, out + err), out + err
    assert "Traceback" not in err
    if code == 2 and trial.stores == "none":
        assert not (workplace / "stores").exists()
