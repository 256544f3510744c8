"""The deployments on a real Prefect server: what is stored, what its form shows, which runs they stand for."""

import datetime
import json
import os
import subprocess
import sys
import time
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from flows.services.deployment_file import find_template
from tasks.core.errors import UsageError, VerdictError
from tasks.core.finetune_settings import FinetuneSettings
from tasks.core.settings_description import describe_settings
from tasks.core.settings_loader import profile_names

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def applied(prefect_server: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    from flows.jobs.deployments import check_file
    from flows.services.deploy import deploy
    from flows.services.deployment_file import DeploymentChoice, write_deployments

    os.environ["PREFECT_API_URL"] = prefect_server  # Prefect's own command is a process of its own
    home = tmp_path_factory.mktemp("home")
    (home / "mine.toml").write_text('[data]\npath = "sample"\n[finetune]\nepochs = 3\nseeds = 2\n')
    choice = DeploymentChoice(str(home / "mine.toml"), {"path": [str(home)]}, {}, ["judge.threshold=0.5"])
    path = write_deployments(choice, str(home))
    check_file(path)
    yield deploy(str(path))
    del os.environ["PREFECT_API_URL"]


@pytest.fixture
def client(prefect_server: str) -> Iterator[Any]:
    from prefect import get_client

    with get_client(sync_client=True) as client:
        yield client


@pytest.mark.parametrize("setting", ["encoder", "teacher"])
def test_folders_of_models_are_absolute_in_the_deployments_file(
    setting: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from flows.services.deployment_file import DeploymentChoice, write_deployments

    (tmp_path / "model").mkdir()
    monkeypatch.chdir(tmp_path)
    path = write_deployments(DeploymentChoice("sample", {}, {}, [f"finetune.{setting}=model"]), str(tmp_path))
    assert f"{setting}: {tmp_path}/model" in Path(path).read_text()


def test_the_schedules_are_what_the_file_says(applied: dict[str, Any]) -> None:
    assert {held["name"]: (held["schedules"], held["paused"]) for held in applied["deployments"]} == {
        "retrain": (["0 3 * * 0 Europe/Berlin"], False),
        "score": ([], False),
        "sweep": ([], False),
        "watch": (["17 * * * * UTC"], False),
    }
    assert applied["pool"] == "verdict"
    assert applied["notices"] == []


def test_the_schedules_retrain_the_data_and_settings_that_were_named(applied: dict[str, Any], client: Any) -> None:
    from flows.jobs.deployments import DataForm, FinetuneForm, JudgeForm, resolve

    held = client.read_deployment_by_name("watch/watch").parameters
    folder = str(Path(applied["file"]).parent)
    assert held.pop("watch") == {"retrain_on": "on_change"}
    assert held == client.read_deployment_by_name("retrain/retrain").parameters
    sweep = client.read_deployment_by_name("sweep/sweep").parameters
    assert sweep.pop("vary") == {"learning_rate": "2e-5,5e-5,1e-4"}
    assert sweep == held
    assert held["profile"] == "sample"
    assert held["data"] == {"path": [folder]}
    forms: Any = {"data": DataForm(**held["data"]), "finetune": FinetuneForm(**held["finetune"])}
    settings = resolve(held["profile"], **forms, judge=JudgeForm(**held["judge"])).settings
    assert (settings.finetune.epochs, settings.finetune.seeds, settings.judge.threshold) == (3, 2, 0.5)
    assert settings.finetune.max_length == FinetuneSettings().max_length  # the file's, not the sample's


def test_the_product_s_own_file_schedules_nothing() -> None:
    document = yaml.safe_load(find_template().read_text())
    schedules = [schedule for each in document["deployments"] for schedule in each.get("schedules", [])]
    assert [schedule["active"] for schedule in schedules] == [False, False]


def test_one_run_at_a_time_and_a_second_one_is_cancelled(applied: dict[str, Any], client: Any) -> None:
    for name in ("retrain", "watch", "sweep"):
        held = client.read_deployment_by_name(f"{name}/{name}")
        assert held.global_concurrency_limit.limit == 1
        assert held.concurrency_options.collision_strategy == "CANCEL_NEW"
        assert held.concurrency_options.grace_period_seconds == 300
        assert held.work_queue_name == "train"
        assert held.tags == ["verdict", name]
        assert held.description
    assert client.read_work_queue_by_name("train", work_pool_name="verdict").concurrency_limit == 1


@pytest.mark.parametrize("name", ["retrain", "watch", "score", "sweep"])
def test_every_field_of_the_form_has_a_type_and_says_what_it_is(
    applied: dict[str, Any], client: Any, name: str
) -> None:
    schema = client.read_deployment_by_name(f"{name}/{name}").parameter_openapi_schema
    fields = list(schema["properties"].items())
    for definition in schema.get("definitions", {}).values():
        fields += definition["properties"].items()
    assert fields
    for key, field in fields:
        assert field.get("description"), key
        assert {"type", "$ref", "anyOf", "allOf"} & field.keys(), key


def test_what_can_only_be_one_of_a_few_is_a_choice(applied: dict[str, Any], client: Any) -> None:
    schema = client.read_deployment_by_name("retrain/retrain").parameter_openapi_schema
    assert sorted(schema["properties"]["profile"]["enum"]) == profile_names()
    device = schema["definitions"]["FinetuneForm"]["properties"]["device"]
    assert device["anyOf"][0]["enum"] == ["auto", "cuda", "cpu"]
    assert schema.get("required", []) == []
    score = client.read_deployment_by_name("score/score").parameter_openapi_schema
    assert score["required"] == ["path", "out"]


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("retrain", {"profile": "unheard-of"}),
        ("retrain", {"finetune": {"epochs": 0}}),
        ("retrain", {"finetune": {"encodr": "a"}}),
        ("score", {"path": "a.txt"}),
        ("sweep", {"trials": 0}),
    ],
)
def test_the_server_rejects_invalid_parameters(
    applied: dict[str, Any], client: Any, name: str, parameters: dict[str, Any]
) -> None:
    from prefect.exceptions import PrefectHTTPStatusError

    held = client.read_deployment_by_name(f"{name}/{name}")
    with pytest.raises(PrefectHTTPStatusError, match="409"):
        client.create_flow_run_from_deployment(held.id, parameters=parameters)


def test_applying_the_file_again_creates_nothing_twice(applied: dict[str, Any], client: Any) -> None:
    from flows.services.deploy import apply_automations, prepare_pool

    prepare_pool(client)
    assert apply_automations(client) == applied["automations"]
    for name in applied["automations"]:
        [automation] = client.read_automations_by_name(name)
        assert automation.enabled
        assert automation.trigger.match_related["prefect.resource.id"] == ["prefect.tag.verdict"]


def test_the_server_sends_alerts_if_an_address_is_set(
    applied: dict[str, Any], client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from flows.services.deploy import apply_automations

    monkeypatch.setenv("VERDICT_ALERT_URL", "http://127.0.0.1:9/secret-token")
    [name, _] = apply_automations(client)
    [automation] = client.read_automations_by_name(name)
    assert [action.type for action in automation.actions] == ["change-flow-run-state", "call-webhook"]
    document = client.read_block_document(automation.actions[1].block_document_id, include_secrets=False)
    assert "secret-token" not in json.dumps(document.model_dump(mode="json"))
    monkeypatch.setenv("VERDICT_ALERT_BLOCK", "slack-webhook/nobody-made-it")
    with pytest.raises(UsageError, match="slack-webhook/nobody-made-it"):
        apply_automations(client)
    monkeypatch.undo()
    apply_automations(client)


def test_a_run_cancels_the_missed_runs_of_its_schedule(
    applied: dict[str, Any], client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from prefect import flow
    from prefect.client.schemas.actions import DeploymentScheduleCreate
    from prefect.client.schemas.schedules import IntervalSchedule
    from prefect.context import FlowRunContext

    from flows.jobs import deployments
    from flows.jobs.deployments import drop_missed

    monkeypatch.setattr(deployments, "PAGE_SIZE", 2)
    every_second = IntervalSchedule(interval=datetime.timedelta(seconds=1))
    watch = client.read_deployment_by_name("watch/watch")
    schedules = [DeploymentScheduleCreate(schedule=every_second, active=True)]
    deployment = client.create_deployment(
        watch.flow_id, "every-second", schedules=schedules, parameters={"force": False}
    )
    held = client.read_deployment(deployment)
    asked = client.create_flow_run_from_deployment(held.id, name="by-hand").id
    deadline = time.monotonic() + 200
    while len(_due(client, held.id)) < 3 and time.monotonic() < deadline:
        time.sleep(0.5)

    @flow
    def run() -> list[str]:
        context = FlowRunContext.get()
        assert context is not None
        context.flow_run.deployment_id = held.id
        context.flow_run.parameters = held.parameters
        return drop_missed()

    dropped = set(run())
    client.delete_deployment_schedule(held.id, held.schedules[0].id)
    assert len(dropped) >= 3
    missed = [each for each in _runs(client, held.id) if each.state.name == "Missed"]
    assert {each.name for each in missed} == dropped
    assert client.read_flow_run(asked).state.is_scheduled()


def _runs(client: Any, deployment: Any) -> list[Any]:
    from prefect.client.schemas.filters import DeploymentFilter, DeploymentFilterId

    chosen = DeploymentFilter(id=DeploymentFilterId(any_=[deployment]))
    return list(client.read_flow_runs(deployment_filter=chosen, limit=200))


def _due(client: Any, deployment: Any) -> list[Any]:
    now = datetime.datetime.now(datetime.UTC)
    return [each for each in _runs(client, deployment) if each.auto_scheduled and each.expected_start_time < now]


def test_without_a_server_one_line_says_what_to_do(tmp_path: Path) -> None:
    environ = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    environ |= {"PREFECT_HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-m", "flows.cli.app", "deploy"], cwd=ROOT, env=environ, capture_output=True, text=True
    )
    assert done.returncode == 2
    assert done.stderr.strip() == (
        "error: schedules need a Prefect server; start one: make up, then set PREFECT_API_URL"
    )


def test_a_file_that_prefect_rejects_is_one_line(applied: dict[str, Any], tmp_path: Path) -> None:
    from flows.services.deploy import apply_file, deploy

    (tmp_path / "broken.yaml").write_text("deployments: [{name: a, entrypoint: flows.jobs.deployments.nothing}]\n")
    with pytest.raises(VerdictError, match=r"Prefect rejects .*broken\.yaml: "):
        apply_file(tmp_path / "broken.yaml")
    with pytest.raises(UsageError, match="is not a file"):
        deploy(str(tmp_path / "none.yaml"))


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ("{profile: unheard-of}", "profile 'unheard-of' is unknown; expected one of"),
        (
            "{profil: sample}",
            "parameter 'profil' is unknown; expected profile, data, gate, finetune, export, judge, force",
        ),
        ("{finetune: {encodr: a}}", "FinetuneForm field 'encodr': extra inputs are not permitted"),
        ("{gate: {min_rows: -1}}", "GateForm field 'min_rows': expected at least 0"),
        ("{data: {columns: text}}", "setting data.columns = 'text' (flag) is refused"),
    ],
)
def test_wrong_parameters_of_a_deployment_are_one_line_before_anything_is_deployed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, parameters: str, message: str
) -> None:
    from flows.jobs.deployments import check_file

    path = tmp_path / "mine.yaml"
    path.write_text(find_template().read_text().replace("{profile: sample}", parameters))
    with pytest.raises(UsageError) as caught:
        check_file(path)
    assert message in str(caught.value)
    assert str(caught.value).startswith(f"deployment 'retrain' in {path}: ")
    check_file(find_template())


def test_a_run_with_wrong_settings_fails_with_their_message_and_no_traceback(
    applied: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    from flows.jobs import deployments

    flow: Any = deployments.retrain
    state = flow(data=deployments.DataForm(columns="text"), return_state=True)
    assert state.is_failed()
    assert "setting data.columns = 'text' (flag) is refused" in str(state.message)
    assert "Traceback" not in caplog.text


def test_a_pod_of_a_sweep_lasts_longer_than_its_budget(applied: dict[str, Any], client: Any) -> None:
    sweep = client.read_deployment_by_name("sweep/sweep")
    budget = sweep.parameter_openapi_schema["properties"]["budget_minutes"]["default"]
    template = json.loads((find_template().parent / "kubernetes" / "base" / "job-template.json").read_text())
    usual = template["variables"]["properties"]["deadline_seconds"]["default"]
    assert sweep.job_variables["deadline_seconds"] >= 60 * budget + usual


def test_scoring_takes_the_formats_of_the_command_and_a_wrong_one_is_one_line(
    applied: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    from flows.cli.run import ScoreFormat
    from flows.jobs import deployments

    flow: Any = deployments.score
    form = typing.get_type_hints(flow.fn)["form"]
    assert set(typing.get_args(form)) == {"", *typing.get_args(ScoreFormat)}
    state = flow(path=__file__, out="scores.docx", return_state=True)
    assert state.is_failed()
    assert str(state.message).startswith(f"input {__file__!r} has the unknown ending '.py'")
    assert "Traceback" not in caplog.text


@pytest.mark.parametrize(("changed", "action", "name"), [
    (False, "none", "NothingNew"), (False, "retrain", "Completed"), (True, "none", "Completed"),
])  # fmt: skip
def test_a_check_that_retrained_is_something_new(
    applied: dict[str, Any], monkeypatch: pytest.MonkeyPatch, changed: bool, action: Any, name: str
) -> None:
    from flows.jobs import deployments
    from flows.jobs import watch as module

    outcome = module.WatchOutcome("b" * 64, "b" * 64, changed, "why", action)
    monkeypatch.setattr(module.watch, "fn", lambda *_: outcome)
    flow: Any = deployments.watch
    assert flow(return_state=True).name == name


def test_the_doctor_fails_without_a_worker(applied: dict[str, Any]) -> None:
    from flows.commands.doctor import _prefect

    with pytest.raises(VerdictError, match="no worker takes runs from the pool verdict; start one: make up"):
        _prefect()


@pytest.mark.parametrize(("installed", "works"), [("2.1.9", False), ("2.0.58", True)])
def test_the_doctor_fails_on_a_library_version_that_breaks_schedules(
    installed: str, works: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    from flows.commands import doctor

    real = doctor.importlib.metadata.version
    monkeypatch.setattr(
        "flows.commands.doctor.importlib.metadata.version",
        lambda name: installed if name == "sqlalchemy" else real(name),
    )
    check = doctor._run("versions", doctor._libraries)
    assert check["works"] is works
    assert works or "never fire; install the pinned one: make install" in check["seen"]


def test_a_form_becomes_settings_with_their_origins() -> None:
    from flows.jobs.deployments import DataForm, FinetuneForm, JudgeForm, resolve

    forms: dict[str, Any] = {"finetune": FinetuneForm(epochs=3), "judge": JudgeForm(resamples=200)}
    resolved = resolve("sample", DataForm(path=["a", "b"], labels="good=1,bad=0"), **forms)
    assert resolved.settings.data.labels == {"good": 1, "bad": 0}
    assert resolved.settings.data.path == ("a", "b")
    assert (resolved.settings.finetune.epochs, resolved.settings.judge.resamples) == (3, 200)
    assert resolved.settings.finetune.encoder == "packaged"
    assert resolved.origins["finetune.epochs"] == "flag"


def test_the_forms_have_every_setting_with_its_meaning(applied: dict[str, Any], client: Any) -> None:
    from flows.jobs.deployment_forms import FORM_GROUPS

    schema = client.read_deployment_by_name("watch/watch").parameter_openapi_schema["definitions"]
    fields = {
        f"{group}.{name}": field["description"]
        for group in FORM_GROUPS
        for name, field in schema[f"{group.capitalize()}Form"]["properties"].items()
    }
    meanings = {each.key: each.meaning for each in describe_settings()}
    assert fields == meanings
