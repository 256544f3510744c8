"""A finished job of the same inputs is found before anything slow is imported; where anything differs it is not."""

import dataclasses
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock
from outcomes import make_outcome
from registered import make_champion_store

from flows.cli import run
from flows.jobs import unchanged
from flows.jobs.unchanged import digest_inputs, find_unchanged, hash_files, record_inputs
from flows.outcome import RetrainOutcome
from tasks.core.files import home_id, read_json, write_json
from tasks.core.settings import Settings
from tasks.core.settings_loader import load_settings
from tasks.registry import audit_log
from tasks.registry.store import locate_store
from tasks.registry.tracking import close_run, open_run
from tasks.training.pretrained import locate_encoder

ROOT = Path(__file__).parents[2]

Choose = Callable[..., Settings]


@pytest.fixture
def known_code(monkeypatch: pytest.MonkeyPatch) -> None:
    """A checkout with changes is never taken for a known state; these tests are of one without."""
    monkeypatch.setattr(unchanged, "git_commit", lambda: "a" * 40)


@pytest.fixture
def data(toy_data: Path, tmp_path: Path) -> Path:
    return shutil.copytree(toy_data, tmp_path / "data")


@pytest.fixture
def choose(data: Path, tiny_encoder: Path, known_code: None) -> Choose:
    def resolve(**changes: Any) -> Settings:
        flags = {"data.path": str(data), "finetune.encoder": str(tiny_encoder), "finetune.device": "cpu"}
        return load_settings(
            "sample", flags | {key.replace("__", "."): value for key, value in changes.items()}
        ).settings

    return resolve


@pytest.fixture
def home(choose: Choose, empty_store: Path, exported: Any, tmp_path: Path) -> Path:
    """A folder of stores with a finished job of these settings."""
    home = tmp_path / "stores"
    home.mkdir()
    make_champion_store(home, empty_store, exported)
    finish(home, choose(), make_outcome(version="1", digest=exported["digest"], decision="PROMOTE"))
    return home


def finish(home: Path, settings: Settings, outcome: RetrainOutcome) -> Path:
    folder = home / "runs" / "0123456789abcdef"
    files = hash_files(settings.data, str(home))
    encoder = locate_encoder(settings.finetune.encoder)
    digest = digest_inputs(settings, files, encoder)
    taught = settings.finetune.model_copy(update={"teacher": "models:/acceptability@champion"})
    assert digest_inputs(settings.model_copy(update={"finetune": taught}), files, encoder) is None
    write_json(folder / "result.json", outcome.to_json())
    record_inputs(folder, digest, files)
    return folder


def test_the_outcome_of_an_equal_job_is_returned(home: Path, choose: Choose) -> None:
    found = find_unchanged(choose(), str(home))
    assert found is not None
    assert found.unchanged
    assert (found.version, found.decision) == ("1", "PROMOTE")
    assert found.report == str(home / "runs" / "0123456789abcdef" / "report.html")
    assert found.store == f"sqlite:///{home}/mlflow.db"
    # None of these decides what a job comes to.
    for changes in ({"judge__wait_hours": 3.0}, {"finetune__checkpoint_seconds": 7}, {"watch__retrain_on": "never"}):
        assert find_unchanged(choose(**changes), str(home)) is not None, changes


def test_other_settings_or_bytes_are_left_to_the_flow(home: Path, choose: Choose, data: Path, tmp_path: Path) -> None:
    for changes in (
        {"finetune__seed": 1}, {"judge__threshold": 0.1}, {"data__columns": "text=a"}, {"finetune__device": "auto"},
        {"finetune__encoder": "an/unknown-model"}, {"data__path": "hf:nyu-mll/glue/cola"},
        {"data__path": str(tmp_path / "missing")}, {"finetune__encoder": str(tmp_path)}, {"finetune__teacher": "1"},
    ):  # fmt: skip
        assert find_unchanged(choose(**changes), str(home)) is None, changes
    assert find_unchanged(choose(), str(home)) is not None
    holdout = data / "out_of_domain_dev.tsv"
    before = holdout.read_bytes()
    holdout.write_bytes(before + before[: before.index(b"\n") + 1])
    assert find_unchanged(choose(), str(home)) is None
    holdout.write_bytes(before)
    assert find_unchanged(choose(), str(home)) is not None


def test_other_code_or_libraries_are_left_to_the_flow(
    home: Path, choose: Choose, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes: tuple[tuple[str, Any], ...] = (
        ("git_commit", lambda: "b" * 40),
        ("git_commit", lambda: f"{'a' * 40}-dirty"),
        ("library_versions", lambda: {"torch": "1.0"}),
    )
    for name, function in changes:
        with monkeypatch.context() as patch:
            patch.setattr(unchanged, name, function)
            assert find_unchanged(choose(), str(home)) is None
    assert find_unchanged(choose(), str(home)) is not None


def test_a_job_that_is_not_finished_registered_and_free_is_left_to_the_flow(
    home: Path, choose: Choose, exported: Any
) -> None:
    folder = home / "runs" / "0123456789abcdef"
    result = read_json(folder / "result.json")
    with FileLock(folder / "lock"):
        assert find_unchanged(choose(), str(home)) is None
    for other in (result | {"version": "2"}, result | {"digest": "0" * 64}, result | {"schema_version": 0}):
        write_json(folder / "result.json", other)
        assert find_unchanged(choose(), str(home)) is None
    (folder / "result.json").unlink()
    assert find_unchanged(choose(), str(home)) is None
    write_json(folder / "result.json", result)
    assert find_unchanged(choose(), str(home)) is not None
    for content in ("[]", "{}", '{"schema_version": 0}', "{"):
        (folder / "inputs.json").write_text(content)
        assert find_unchanged(choose(), str(home)) is None, content


def test_a_run_of_a_killed_process_is_left_to_the_flow_which_ends_it(home: Path, choose: Choose) -> None:
    store, other = locate_store(str(home)), home / "runs" / ("c" * 16)
    run = open_run(store, other.name, {}, {"home": home_id(str(home))})
    assert find_unchanged(choose(), str(home)) is None
    other.mkdir()
    with FileLock(other / "lock"):  # a live process
        assert find_unchanged(choose(), str(home)) is not None
    assert find_unchanged(choose(), str(home)) is None
    close_run(store, run, "KILLED")
    assert find_unchanged(choose(), str(home)) is not None
    change = audit_log.begin(store, [], kind="promote", version="1", to="1", reason="killed")
    assert find_unchanged(choose(), str(home)) is None
    audit_log.finish(store, change, "withdrawn")
    assert find_unchanged(choose(), str(home)) is not None


def test_files_that_change_while_a_job_reads_them_are_not_recorded(choose: Choose, data: Path, tmp_path: Path) -> None:
    settings, folder = choose(), tmp_path / "job"
    files = hash_files(settings.data, str(tmp_path))
    assert files is not None
    digest = digest_inputs(settings, files, locate_encoder(settings.finetune.encoder))
    train = data / "in_domain_train.tsv"
    shutil.copyfile(train, tmp_path / "copy")
    (tmp_path / "copy").replace(train)  # the same bytes, another file
    record_inputs(folder, digest, files)
    assert not folder.exists()


def test_the_sample_can_be_found_again(known_code: None, tmp_path: Path) -> None:
    settings = load_settings("sample").settings
    first, second = (hash_files(settings.data, str(tmp_path)) for _ in range(2))
    assert first is not None
    assert first == second
    assert first.are_unchanged()


def is_heading(line: str) -> bool:
    return line.split() == ["step", "seconds"]


def test_the_command_needs_neither_prefect_nor_mlflow_nor_torch(
    home: Path, data: Path, tiny_encoder: Path, choose: Choose
) -> None:
    program = (
        "import sys; from flows.jobs import unchanged; unchanged.git_commit = lambda: 'a' * 40\n"
        "from flows.cli.app import main\n"
        "try:\n    main(sys.argv[1:])\nexcept SystemExit as ended:\n    assert ended.code == 0\n"
        "print('imported', *sys.modules)"
    )
    arguments = ["retrain", "--data", str(data), "--encoder", str(tiny_encoder), "--device", "cpu", "--timings"]
    environment = {name: value for name, value in os.environ.items() if name != "PREFECT_API_URL"}
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        env=environment | {"VERDICT_HOME": str(home)}, cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.startswith("nothing changed: version 1 ")
    assert "version  acceptability 1" in done.stdout
    assert "\nnothing to do; to run it all the same: --force\n" in done.stdout
    table = done.stdout.splitlines()
    named = [line.rpartition(" ")[0].strip() for line in table[table.index(next(filter(is_heading, table))) + 1 :]]
    assert named[:4] == ["interpreter, settings", "compare inputs", "first predictions", "whole process"]
    imported = set(done.stdout.splitlines()[-1].split())
    assert not imported & {"prefect", "mlflow", "torch", "transformers", "great_expectations", "pandas", "matplotlib"}
    assert not (home / "prefect.db").exists()


def test_force_and_an_external_server_run_the_flow(home: Path, choose: Choose, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    found = run._find_unchanged(choose(), str(home))
    assert found is not None
    assert list(found.seconds) == ["compare inputs", "total"]
    assert dataclasses.replace(found, seconds={}) == dataclasses.replace(
        find_unchanged(choose(), str(home)) or found, seconds={}
    )
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:4200/api")
    assert run._find_unchanged(choose(), str(home)) is None
