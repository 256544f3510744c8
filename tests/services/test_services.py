"""Retraining on a schedule over shared services, and what becomes of it when they die: all seen through HTTP alone."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from registry_store import add_version, is_complete
from stage import SECRETS, Clock, Stage

from tasks.data.snapshots import write_snapshot
from tasks.data.sources import locate_sources
from tasks.registry import audit_log, promotion, register, tracking
from tasks.registry.mlflow_client import NOTE
from tasks.registry.store import MlflowStore

pytestmark = [pytest.mark.services, pytest.mark.timeout(600)]
LONG = 50  # epochs of a run that something is done to while it trains
SHORT = 15  # where that takes no time
QUICK = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1"}


@pytest.fixture(scope="module")
def form(toy_data: Path, tiny_encoder: Path) -> Callable[..., dict[str, Any]]:
    """Return the parameters of a run that is over as fast as can be; another seed is another job."""

    def fill(seed: int, epochs: int = 2) -> dict[str, Any]:
        finetune = {"encoder": str(tiny_encoder), "epochs": epochs, "seed": seed, "device": "cpu"}
        finetune |= {"learning_rate": 3e-3, "batch_size": 16, "max_length": 16, "checkpoint_seconds": 0}
        return {
            "profile": "sample",
            "data": {"path": [str(toy_data)], "validation_share": 0.2},
            "finetune": finetune,
            "judge": {"resamples": 200, "threshold": -1},
        }

    return fill


def start(stage: Stage, form: dict[str, Any], **environ: str) -> str:
    """Ask for a run, as Prefect's page does; return its id."""
    held = stage.prefect("GET", "/deployments/name/retrain/retrain")
    variables = {"env": held["job_variables"]["env"] | environ}
    path = f"/deployments/{held['id']}/create_flow_run"
    return str(stage.prefect("POST", path, parameters=form, job_variables=variables)["id"])


def state(stage: Stage, run: str) -> dict[str, Any]:
    found: dict[str, Any] = stage.prefect("GET", f"/flow_runs/{run}")["state"]
    return found


def ended(stage: Stage, run: str, limit: float = 300) -> dict[str, Any]:
    final = ("COMPLETED", "FAILED", "CRASHED", "CANCELLED")
    found = stage.wait(lambda: (at := state(stage, run))["type"] in final and at, f"run {run} ends", limit)
    assert isinstance(found, dict)
    return found


def says(stage: Stage, run: str) -> str:
    """Return what a run said on Prefect's page."""
    chosen = {"flow_run_id": {"any_": [run]}}
    return "\n".join(line["message"] for line in stage.prefect("POST", "/logs/filter", logs=chosen))


def await_training(stage: Stage) -> None:
    """Return while a run trains, some epochs of it kept."""
    began = time.time()
    stage.wait(
        lambda: any(path.stat().st_mtime > began for path in stage.home.glob("runs/*/*checkpoint*/**/state.json")),
        "a run trains",
    )


def champion(stage: Stage) -> str | None:
    reply = stage.mlflow("reader", "GET", "registered-models/alias", name="acceptability", alias="champion")
    return reply.json()["model_version"]["version"] if reply.status_code == 200 else None


def versions(stage: Stage) -> list[dict[str, Any]]:
    found = stage.mlflow("reader", "GET", "model-versions/search", filter="name = 'acceptability'").json()
    return list(found.get("model_versions", []))


def statuses(stage: Stage) -> list[str]:
    """Return how the runs of MLflow stand, oldest first."""
    experiment = stage.mlflow("reader", "GET", "experiments/get-by-name", experiment_name="verdict").json()
    body = {"experiment_ids": [experiment["experiment"]["experiment_id"]], "order_by": ["attributes.start_time ASC"]}
    runs = stage.mlflow("reader", "POST", "runs/search", **body).json().get("runs", [])
    return [run["info"]["status"] for run in runs]


def test_prefect_asks_who_is_there_and_whence(stage: Stage) -> None:
    url = f"{stage.places.urls['prefect']}/api"
    operator = tuple(SECRETS["PREFECT_AUTH_STRING"].split(":"))
    assert httpx.get(f"{url}/deployments/name/retrain/retrain").status_code == 401
    assert httpx.get(f"{url}/deployments/name/retrain/retrain", auth=("operator", "wrong")).status_code == 401
    assert httpx.post(f"{url}/flows/filter", json={}, auth=operator).status_code == 403  # no token against forged forms
    evil = httpx.get(f"{url}/health", headers={"Origin": "http://evil.example"}, auth=operator)
    assert evil.headers.get("access-control-allow-origin") is None
    own = httpx.get(f"{url}/health", headers={"Origin": stage.places.urls["prefect"]}, auth=operator)
    assert own.headers["access-control-allow-origin"] == stage.places.urls["prefect"]
    settings = stage.prefect("GET", "/admin/settings")
    assert settings["server"]["analytics_enabled"] is False
    assert settings["server"]["concurrency"]["lease_storage"].endswith(".filesystem")


def test_mlflow_knows_no_default_password_and_strangers_read_nothing(stage: Stage) -> None:
    url = f"{stage.places.urls['mlflow']}/api/2.0/mlflow/experiments/get-by-name?experiment_name=verdict"
    assert httpx.get(url).status_code == 401
    for password in ("password", "password1234", "admin", ""):
        assert httpx.get(url, auth=("admin", password)).status_code == 401
    assert httpx.get(url, headers={"Host": "evil.example"}, auth=("reader", "x")).status_code in (401, 403)


def test_a_schedule_fires_and_ends_with_a_champion(
    stage: Stage, form: Callable[..., dict[str, Any]], clock: Clock
) -> None:
    assert champion(stage) is None
    held = stage.prefect("GET", "/deployments/name/retrain/retrain")
    schedule = {"schedule": {"cron": "* * * * *", "timezone": "UTC"}, "active": True, "parameters": form(1)}
    with clock("schedule to run"):
        [made] = _post_list(stage, f"/deployments/{held['id']}/schedules", [schedule])
        chosen = {
            "deployments": {"id": {"any_": [held["id"]]}},
            "flow_runs": {"state": {"type": {"any_": ["RUNNING"]}}},
        }
        [run] = stage.wait(lambda: stage.prefect("POST", "/flow_runs/filter", **chosen), "the schedule fires", 90)
    assert run["auto_scheduled"]
    stage.prefect("DELETE", f"/deployments/{held['id']}/schedules/{made['id']}")
    with clock("scheduled run"):
        end = ended(stage, run["id"])
    assert (end["name"], end["message"].partition(", MCC ")[0]) == ("Completed", "PROMOTE acceptability 1")
    assert champion(stage) == "1"
    assert statuses(stage) == ["FINISHED"]
    [version] = versions(stage)
    assert version["source"].startswith("models:/")
    assert "measure" in str(stage.prefect("POST", "/task_runs/filter", flow_runs={"id": {"any_": [run["id"]]}}))
    own = {"artifacts": {"flow_run_id": {"any_": [run["id"]]}}}
    pages = {each["key"]: each["data"] for each in stage.prefect("POST", "/artifacts/filter", **own)}
    assert {"data-gate", "fine-tuning", "verdict", "figures", "mlflow-run", "report"} <= pages.keys()
    assert f"/runs/{version['run_id']}?" in pages["mlflow-run"]


def test_a_reader_cannot_write(stage: Stage) -> None:
    name = "acceptability"
    alias = {"name": name, "alias": "champion", "version": "1"}
    tries = {
        "model-versions/create": ("POST", {"name": name, "source": versions(stage)[0]["source"]}),
        "registered-models/alias": ("POST", alias),
        "registered-models/rename": ("POST", {"name": name, "new_name": "mine"}),
        "registered-models/delete": ("DELETE", {"name": name}),
        "model-versions/set-tag": ("POST", {"name": name, "version": "1", "key": "verdict", "value": "PROMOTE"}),
        "users/create": ("POST", {"username": "friend", "password": "friend-of-reader-1"}),
    }
    for path, (method, body) in tries.items():
        assert stage.mlflow("reader", method, path, **body).status_code == 403, path
    assert stage.mlflow("retrain", "POST", "registered-models/alias", **alias).status_code == 200
    assert (champion(stage), len(versions(stage))) == ("1", 1)


def test_the_same_data_and_settings_end_at_once_as_nothing_new(
    stage: Stage, form: Callable[..., dict[str, Any]], clock: Clock
) -> None:
    with clock("nothing new"):
        end = ended(stage, start(stage, form(1)))
    assert (end["type"], end["name"]) == ("COMPLETED", "NothingNew")
    assert len(versions(stage)) == 1


def test_a_killed_worker_leaves_a_crashed_run_and_the_next_one_resumes_through_outages_of_the_stores(
    stage: Stage, form: Callable[..., dict[str, Any]], clock: Clock
) -> None:
    assert _expect_signs_within(stage, 40) == 90  # by default; shorter, so that the test does not wait that long
    run = start(stage, form(2, LONG))
    await_training(stage)
    with clock("worker and run killed, run marked crashed"):
        stage.kill("worker")
        stage.start("worker")
        end = ended(stage, run)
    assert end["type"] == "CRASHED"
    assert "no heartbeat" in end["message"]
    assert statuses(stage)[-1] == "RUNNING"

    _expect_signs_within(stage, 90)  # a sign may be lost while the database restarts, two are not
    again = start(stage, form(2, LONG))
    with clock("run resumed, PostgreSQL restarted under it, MLflow away for 30 s"):
        stage.wait(lambda: "resuming after epoch" in says(stage, again), "the next run resumes")
        stage.postgres.restart()
        stage.kill("mlflow")
        time.sleep(30)
        stage.start("mlflow")
        end = ended(stage, again)
    assert end["type"] == "COMPLETED", says(stage, again)
    assert len(versions(stage)) == 2
    assert set(statuses(stage)) == {"FINISHED"}  # the killed run is gone on with, not left behind
    slots = stage.prefect("GET", f"/deployments/{_deployment(stage)}")["global_concurrency_limit"]["active_slots"]
    assert slots == 0


def test_a_store_that_refuses_is_one_clear_failure_and_nothing_is_half_registered(
    stage: Stage, form: Callable[..., dict[str, Any]], clock: Clock
) -> None:
    before, reigns = versions(stage), champion(stage)
    run = start(stage, form(3, SHORT), **QUICK)
    await_training(stage)
    with clock("run, store away"):
        stage.store.kill()
        end = ended(stage, run, 300)
    assert end["type"] == "FAILED"
    assert "MLflow store" in end["message"]
    assert len(end["message"].splitlines()) == 1
    assert (versions(stage), champion(stage)) == (before, reigns)
    assert statuses(stage)[-1] == "FAILED"
    stage.store.start()
    with clock("run after the store came back"):
        end = ended(stage, start(stage, form(3, SHORT)))
    assert end["type"] == "COMPLETED", end["message"]
    assert len(versions(stage)) == len(before) + 1


def test_the_longest_of_everything_fits_into_postgresql(stage: Stage, tmp_path: Path, toy_data: Path) -> None:
    """SQLite stores text of any length; PostgreSQL refuses what is too long for a column, after an alias has moved."""
    at = ["--username=postgres", f"--host={stage.postgres.folder}", f"--port={stage.postgres.port}"]
    stage.postgres.run("psql", "--quiet", *at, "--command=create database limits")
    address = f"postgresql://postgres@/limits?host={stage.postgres.folder}&port={stage.postgres.port}"
    store = MlflowStore(uri=address, artifacts=str(tmp_path / "artifacts"))
    reason, text = audit_log.check_reason("<" * audit_log.MAX_REASON_CHARS), "é" * 20_000
    run = tracking.open_run(store, "a" * 16, {"data.path": text}, {"dataset": text})
    tracking.tag_run(store, run, {NOTE: text})
    split = write_snapshot(locate_sources([str(toy_data)], "", "", str(tmp_path))["train"], str(tmp_path))["path"]
    tracking.log_dataset(store, run, "train", "train", "e" * 64, split, text)
    versions = [add_version(store, tmp_path, name, verdict="HOLD") for name in "abc"]
    for version in versions:
        register.tag_version(store, version, {"changed": text})
        register.prepend_description(store, version, text)
    first, second, third = versions
    who = "n" * 500
    promotion.promote(store, first, kind="approve", expected=None, reason=reason, actor=who)
    promotion.promote(store, second, kind="approve", expected=first, reason=reason, actor=who)
    promotion.promote(store, first, kind="rollback", expected=second, reason=reason, actor=who)
    promotion.set_challenger(store, third)
    promotion.reject(store, third, reason, actor=who)
    _, changes = promotion.history(store)
    assert [change["kind"] for change in changes] == ["approve", "approve", "rollback", "reject"]
    assert is_complete(changes)
    assert {change["reason"] for change in changes} == {reason}


def test_no_secret_is_in_what_was_said_or_written(stage: Stage) -> None:
    # The store's access key is a name, which its own log says; the secret key belongs to it.
    hidden = [secret.split(":")[-1] for name, secret in SECRETS.items() if name != "STORE_ACCESS_KEY"]
    written = [*stage.folder.glob("*.log"), *stage.home.glob("runs/**/*.json"), *stage.home.glob("runs/**/*.html")]
    assert len(written) > 5
    for path in written:
        text = path.read_text(errors="replace")
        assert [secret for secret in hidden if secret in text] == [], path
    lines = stage.prefect("POST", "/logs/filter", limit=200)
    assert [secret for secret in hidden if any(secret in line["message"] for line in lines)] == []


def _deployment(stage: Stage) -> str:
    return str(stage.prefect("GET", "/deployments/name/retrain/retrain")["id"])


def _expect_signs_within(stage: Stage, seconds: int) -> float:
    """Change the time after which a silent run counts as crashed; return what it was."""
    found = stage.prefect("POST", "/automations/filter")
    [automation] = [each for each in found if each["name"] == "verdict: worker gone"]
    before = float(automation["trigger"]["within"])
    automation["trigger"]["within"] = seconds
    kept = {key: automation[key] for key in ("name", "description", "enabled", "trigger", "actions")}
    stage.prefect("PUT", f"/automations/{automation['id']}", **kept)
    return before


def _post_list(stage: Stage, path: str, items: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return list(stage.prefect("POST", path, items=items))
