"""A HOLD inside the flow: the run of a deployment is suspended, and a person's answer starts it again."""

import contextlib
import datetime
import json
import shutil
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from filelock import FileLock
from job_cache import JobCache
from outcomes import make_outcome
from registry_store import add_version, aliases, changes_of, new_store
from toy import flow_settings

from flows.jobs import approval
from flows.jobs.approval import carry_out_answers, wait_for_approval
from flows.jobs.deployments import answers_carried_out
from tasks.core.files import write_json
from tasks.core.settings_loader import load_settings
from tasks.registry import lookup, promotion, register, tracking
from tasks.registry.mlflow_client import connect, experiment_of
from tasks.registry.store import MlflowStore, locate_store


@pytest.fixture
def held(
    prefect_server: str,
    empty_store: Path,
    tmp_path: Path,
    toy_data: Path,
    tiny_encoder: Path,
    exported: Any,
    job_cache: JobCache,
    copied_pictures: None,
) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Stores with a champion that a candidate equals, and what a deployment starts the flow with."""
    store = new_store(empty_store, tmp_path)
    run = tracking.open_run(store, "a" * 16, {}, {})
    champion = register.register_bundle(store, run, exported["bundle"], exported["digest"], {"verdict": "PROMOTE"}, "")
    tracking.close_run(store, run, "FINISHED")
    promotion.promote(store, champion, kind="promote", expected=None, reason="first")
    toy = flow_settings(shutil.copytree(toy_data, tmp_path / "data"), tiny_encoder) | {
        "judge.threshold": 0.0,
        "judge.variant_difference": 1.0,
        "judge.reject_confidence": 0.999,
        "judge.wait_for_person": True,
        "judge.wait_hours": 2.0,
    }
    resolved = load_settings("sample", toy, {})
    parameters = {
        "settings": resolved.settings.model_dump(mode="json"),
        "origins": resolved.origins,
        "home": str(tmp_path),
    }
    with job_cache.resumed(tmp_path, resolved):
        yield tmp_path, parameters


@pytest.fixture
def prefect(prefect_server: str) -> Iterator[Any]:
    from prefect.client.orchestration import get_client

    with get_client(sync_client=True) as client:
        yield client


def deploy(prefect: Any, parameters: dict[str, Any], **more: Any) -> UUID:
    """Start a run of a deployment; return its id."""
    from flows.jobs.retrain import retrain

    flow = prefect.create_flow(retrain)
    deployment = prefect.create_deployment(
        flow_id=flow, name="test", entrypoint="flows/jobs/retrain.py:retrain", path=".", **more
    )
    return prefect.create_flow_run_from_deployment(deployment, parameters=parameters).id  # type: ignore[no-any-return]


def execute(prefect: Any, run_id: UUID, parameters: dict[str, Any]) -> Any:
    """What a worker does in the process that it starts for a run; return the run as Prefect knows it then."""
    from prefect.exceptions import Pause
    from prefect.flow_engine import run_flow
    from prefect.states import Pending

    from flows.jobs.retrain import retrain

    prefect.set_flow_run_state(run_id, Pending())
    with contextlib.suppress(Pause):  # the process ends here
        run_flow(retrain, flow_run=prefect.read_flow_run(run_id), parameters=parameters, return_type="state")
    return prefect.read_flow_run(run_id)


def jobs(store: MlflowStore) -> list[Any]:
    with connect(store) as client:
        return list(
            client.search_runs([experiment_of(client, store)], "tags.job LIKE '%' and params.`data.path` != ''")
        )


def test_a_hold_suspends_the_run_and_the_answer_of_a_person_is_carried_out(
    held: tuple[Path, dict[str, Any]], prefect: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from prefect.flow_runs import resume_flow_run

    home, parameters = held
    store = locate_store(str(home))
    run_id = deploy(prefect, parameters)
    suspended = execute(prefect, run_id, parameters)
    assert suspended.state.name == "Suspended"
    left = suspended.state.state_details.pause_timeout - datetime.datetime.now(datetime.UTC)
    assert datetime.timedelta(hours=1.9) < left <= datetime.timedelta(hours=2)
    # Everything is finished and nothing is held: the record of the job says so, and its lock is free.
    assert aliases(store) == {"champion": "1", "challenger": "2"}
    (result,) = (json.loads(path.read_text()) for path in home.glob("runs/*/result.json"))
    assert (result["decision"], result["version"]) == ("HOLD", "2")
    assert [job.info.status for job in jobs(store)] == ["FINISHED"]
    with pytest.raises(RuntimeError, match="'maybe' is not one of"):
        resume_flow_run(run_id, run_input={"decision": "maybe", "reason": "x"})
    with pytest.raises(RuntimeError, match="Cannot resume this run"):
        resume_flow_run(run_id, run_input={"decision": "approve"})
    shutil.rmtree(home / "data")  # days went by: what started the run may be gone
    resume_flow_run(run_id, run_input={"decision": "approve", "reason": "reads better", "name": "ada"})
    finished = execute(prefect, run_id, parameters)
    assert finished.state.is_completed()
    assert suspended.name.startswith("acceptability 2 HOLD, data ")  # the data's folder and digest
    assert finished.name == suspended.name.replace("HOLD", "approved")
    assert aliases(store) == {"champion": "2"}
    entries, _ = promotion.history(store)
    assert changes_of(entries) == [("promote", None, "1"), ("approve", "1", "2")]
    assert (entries[-1]["actor"], entries[-1]["reason"]) == ("ada", "reads better")
    outcome = finished.state.result()
    assert outcome["decided"]["kind"] == "approve"
    assert len(jobs(store)) == 1  # nothing ran twice
    assert list((home / "waiting").iterdir()) == []


def test_a_rejection_is_carried_out_too(prefect: Any, empty_store: Path, tmp_path: Path) -> None:
    from prefect.flow_runs import resume_flow_run

    store = new_store(empty_store, tmp_path)
    held = add_version(store, tmp_path, "a", verdict="HOLD")
    promotion.set_challenger(store, held)
    parameters = {"settings": {}, "origins": {}, "home": str(tmp_path)}
    run_id = deploy(prefect, parameters)
    # A run that finds its outcome goes straight to the question.
    write_json(tmp_path / "waiting" / f"{run_id}.json", make_outcome(version=held).to_json())
    assert execute(prefect, run_id, parameters).state.name == "Suspended"
    resume_flow_run(run_id, run_input={"decision": "reject", "reason": "reads worse"})
    assert execute(prefect, run_id, parameters).state.is_completed()
    assert aliases(store) == {}
    assert lookup.read_tags(store, held)["verdict"] == "REJECT"


@pytest.mark.parametrize("verdict", ["HOLD", "REJECT"])
def test_an_answer_given_while_another_run_has_the_place_is_carried_out_at_its_end_or_refused_with_a_reason(
    prefect: Any, empty_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, verdict: str
) -> None:
    from prefect.client.schemas.objects import ConcurrencyOptions
    from prefect.flow_runs import resume_flow_run
    from prefect.states import Pending, Running

    store = new_store(empty_store, tmp_path)
    held = add_version(store, tmp_path, "a", verdict=verdict)
    parameters = {"settings": {}, "origins": {}, "home": str(tmp_path)}
    one = {"concurrency_limit": 1, "concurrency_options": ConcurrencyOptions(collision_strategy="CANCEL_NEW")}
    run_id, other = deploy(prefect, parameters, **one), deploy(prefect, parameters, **one)
    path = tmp_path / "waiting" / f"{run_id}.json"
    write_json(path, make_outcome(version=held).to_json())
    assert execute(prefect, run_id, parameters).state.name == "Suspended"
    prefect.set_flow_run_state(other, Pending())
    prefect.set_flow_run_state(other, Running())
    assert carry_out_answers(str(tmp_path)) == []  # it still waits
    resume_flow_run(run_id, run_input={"decision": "reject", "reason": "reads worse", "name": "ada"})
    prefect.set_flow_run_state(run_id, Pending())  # what a worker does before it starts a process
    assert prefect.read_flow_run(run_id).state.is_cancelled()
    monkeypatch.setenv("VERDICT_HOME", str(tmp_path))
    with answers_carried_out():
        assert not path.exists()
    changes = promotion.history(store)[1]
    assert [(change["kind"], change["actor"]) for change in changes] == [("reject", "ada")] * (verdict == "HOLD")


def test_a_run_that_ended_without_an_answer_waits_no_longer(prefect: Any, empty_store: Path, tmp_path: Path) -> None:
    from prefect.states import Failed

    store = new_store(empty_store, tmp_path)
    held = add_version(store, tmp_path, "a", verdict="HOLD")
    parameters = {"settings": {}, "origins": {}, "home": str(tmp_path)}
    run_id = deploy(prefect, parameters)
    path = tmp_path / "waiting" / f"{run_id}.json"
    write_json(path, make_outcome(version=held).to_json())
    assert execute(prefect, run_id, parameters).state.name == "Suspended"
    write_json(path.with_stem(str(uuid.uuid4())), make_outcome(version=held).to_json())  # a run of another server
    assert carry_out_answers(str(tmp_path)) == []
    assert path.exists()
    prefect.set_flow_run_state(run_id, Failed(message="the time is over"), force=True)
    assert carry_out_answers(str(tmp_path)) == []
    assert not path.exists()
    assert len(list(path.parent.iterdir())) == 1
    assert lookup.read_tags(store, held)["verdict"] == "HOLD"


@pytest.fixture
def answered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file of a run that ended with the answer of a person; nothing of Prefect and MLflow is behind it."""
    path = tmp_path / "waiting" / f"{uuid.uuid4()}.json"
    write_json(path, make_outcome(version="2").to_json())
    answer = approval.ApprovalForm(decision="approve", reason="reads better", name="ada")
    monkeypatch.setattr(approval, "_read_ended", lambda run_id: run_id)
    monkeypatch.setattr(approval, "_answer_of", lambda run: answer)
    return path


def test_two_runs_that_find_the_same_answer_carry_it_out_once(
    answered: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decided, others = [], []
    waits = threading.Event()

    class SeenLock(FileLock):
        def acquire(self, *arguments: Any, **options: Any) -> Any:
            if decided:
                waits.set()
            return super().acquire(*arguments, **options)

    def decide(version: str, answer: Any, home: str) -> None:
        decided.append(version)
        if len(decided) == 1:  # a run of another deployment comes while this one decides
            others.append(threading.Thread(target=carry_out_answers, args=(home,)))
            others[0].start()
            waits.wait(5)

    monkeypatch.setattr(approval, "FileLock", SeenLock, raising=False)
    monkeypatch.setattr(approval, "_decide", decide)
    assert carry_out_answers(str(tmp_path)) == ["approve of version 2 carried out"]
    others[0].join()
    assert decided == ["2"]


def test_an_answer_that_its_run_carries_out_meanwhile_stops_nobody(
    answered: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    text = answered.read_text()
    monkeypatch.setattr(approval, "_decide", lambda *_: answered.unlink())
    assert carry_out_answers(str(tmp_path)) == ["approve of version 2 carried out"]
    answered.write_text(text)
    monkeypatch.setattr(approval, "_read_ended", lambda run_id: answered.unlink() or run_id)
    caplog.clear()
    assert carry_out_answers(str(tmp_path)) == []
    assert caplog.messages == []


def test_a_damaged_file_of_a_waiting_run_fails_no_other_run(
    answered: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    answered.write_text("{")
    assert carry_out_answers(str(tmp_path)) == []
    assert "cannot be read as JSON" in caplog.text
    assert answered.exists()


def test_a_run_that_no_deployment_started_ends_with_its_hold(tmp_path: Path) -> None:
    outcome = make_outcome()
    assert wait_for_approval(outcome, 1.0, str(tmp_path)) == outcome
    assert list(tmp_path.iterdir()) == []
