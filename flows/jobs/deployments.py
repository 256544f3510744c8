"""The flows that a Prefect worker runs: retrain, watch and score, with parameters that Prefect's page shows as a form.

infra/prefect.yaml schedules them and `verdict deploy` creates them. After an outage or a long run, several scheduled
runs of a deployment may be due: the first one to start cancels the others, because it does their work as well.
"""

import contextlib
import functools
import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from prefect import flow, get_client
from prefect.client.schemas import filters
from prefect.client.schemas.objects import FlowRun, State, StateType
from prefect.client.schemas.sorting import FlowRunSort
from prefect.context import FlowRunContext
from prefect.states import Cancelled, Completed, Failed
from prefect.types import DateTime
from pydantic import BaseModel, Field, ValidationError

from flows import environment
from flows.notifications import alert_crash, alert_failure
from flows.outcome import RetrainOutcome
from tasks.core import log_format
from tasks.core.errors import UsageError, VerdictError
from tasks.core.hidden_addresses import reject_secrets
from tasks.core.printable import counted
from tasks.core.refusals import describe_refusal
from tasks.core.settings_loader import ResolvedSettings, load_settings, parse_setting
from tasks.inference.bundle import CHAMPION_URI

ProfileName = Literal["sample", "cola-small", "cola"]
Device = Literal["auto", "cuda", "cpu"]
PAGE_SIZE = 200  # runs of one query, Prefect's limit


class DataForm(BaseModel, extra="forbid"):
    """Where sentences come from; empty fields keep the profile's value."""

    path: list[str] = Field(default=[], description="Folder, file, https://...#sha256=HEX or hf:ORG/NAME; merged.")
    train: str = Field(default="", description="Training file.")
    holdout: str = Field(default="", description="Holdout file.")
    columns: str = Field(default="", description="Columns: text=NAME,label=NAME[,source=NAME,mark=NAME].")
    labels: str = Field(default="", description="Names of the labels: acceptable=1,unacceptable=0.")


class TrainingForm(BaseModel, extra="forbid"):
    """The training recipe; empty fields keep the profile's value."""

    encoder: str = Field(default="", description="Folder or hub id of an encoder, or packaged.")
    epochs: int | None = Field(default=None, ge=1, le=1000, description="Passes over the training sentences.")
    seed: int | None = Field(
        default=None, ge=0, lt=2**32, description="Of the new head, dropout, batch order and split."
    )
    device: Device | None = Field(default=None, description="Where to train; cuda fails without a GPU.")


deployed_flow = functools.partial(
    flow, persist_result=True, result_serializer="json", on_failure=[alert_failure], on_crashed=[alert_crash]
)
DATA, TRAINING = DataForm(), TrainingForm()
NO_EXTRA_SETTINGS: list[str] = []


@deployed_flow(name="retrain")
def retrain(
    profile: ProfileName = "sample",
    data: DataForm = DATA,
    training: TrainingForm = TRAINING,
    more: list[str] = NO_EXTRA_SETTINGS,
    force: bool = False,
) -> State[Any]:
    """Train, export, measure, judge and register a candidate; promote it if it passes the policy.

    Args:
        profile: settings to start from.
        data: where sentences come from.
        training: the recipe.
        more: any setting as KEY=VALUE, for example judge.threshold=0.4.
        force: start over, even if nothing changed.
    """
    _begin()
    try:
        settings = resolve(profile, data, training, more)
    except UsageError as error:
        return Failed(message=str(error))
    from flows.jobs.retrain import retrain as job

    drop_missed()
    # The flow's function, not the flow: the run that is suspended for approval must be the one of the deployment.
    with answers_carried_out() as home:
        outcome = job.fn(settings.settings.model_dump(), settings.origins, home, force)
    if outcome.unchanged:
        message = f"nothing new: {_describe(outcome)} stands"
        return Completed(name="NothingNew", message=message, data=outcome.to_json())
    return Completed(message=_describe(outcome), data=outcome.to_json())


@deployed_flow(name="watch")
def watch(
    profile: ProfileName = "sample",
    data: DataForm = DATA,
    training: TrainingForm = TRAINING,
    more: list[str] = NO_EXTRA_SETTINGS,
    retrain_when: Literal["never", "on_change", "on_drift"] = "on_change",
) -> State[Any]:
    """Check the data once; retrain if it changed or drifted.

    Args:
        profile: settings to start from.
        data: where sentences come from.
        training: the recipe of a retraining run.
        more: any setting as KEY=VALUE, for example judge.threshold=0.4.
        retrain_when: what starts a retraining run.
    """
    _begin()
    try:
        settings = resolve(profile, data, training, [*more, f"watch.retrain_on={retrain_when}"])
    except UsageError as error:
        return Failed(message=str(error))
    from flows.jobs.watch import watch as job

    drop_missed()
    with answers_carried_out() as home:
        outcome = job.fn(settings.settings.model_dump(), settings.origins, home)
    return Completed(name=None if outcome.changed else "NothingNew", message=outcome.why, data=outcome.to_json())


@deployed_flow(name="score")
def score(
    path: Annotated[str, Field(min_length=1)],
    out: Annotated[str, Field(min_length=1)],
    model: str = CHAMPION_URI,
    device: Device = "auto",
    columns: str = "",
    form: Literal["", "txt", "tsv", "csv", "jsonl", "parquet"] = "",
    refuse_truncated: bool = False,
) -> State[Any]:
    """Score a file of sentences; a run that was stopped resumes where it stopped.

    Args:
        path: file of sentences, on the worker: .tsv, .csv, .jsonl, .parquet or .txt.
        out: Parquet file to write, on the worker.
        model: registry address, version number, or a bundle's folder.
        device: where to compute.
        columns: column of the sentences, text=NAME.
        form: format of the file; empty for the one of its extension.
        refuse_truncated: quarantine sentences of more tokens than the model reads.
    """
    _begin()
    from flows.jobs.score import score as job
    from tasks.serving.batch_scoring import check_paths

    check_paths(path, out, columns, form)
    outcome = job.fn(path, out, model, device, columns, form, environment.usable_home(), refuse_truncated)
    return Completed(message=f"{outcome['scored']} of {counted(outcome['rows_in'], 'row')} scored", data=outcome)


def resolve(profile: str, data: DataForm, training: TrainingForm, more: list[str]) -> ResolvedSettings:
    """Resolve profile, the worker's environment and the form, in this order.

    Raises:
        UsageError: if a value is not valid, or is an address with a password or signature.
    """
    for text in (*data.path, data.train, data.holdout, training.encoder, *more):
        reject_secrets(text, "the form of this deployment")
    form = {f"data.{key}": value for key, value in data.model_dump().items()}
    form |= {f"finetune.{key}": value for key, value in training.model_dump().items()}
    chosen = {key: value for key, value in form.items() if value not in (None, "", [])}
    return load_settings(profile, chosen | dict(parse_setting(text) for text in more))


def check_file(path: Path) -> None:
    """Check the parameters of our flows in a deployments file, before any run fails for them.

    Raises:
        UsageError: if one is unknown, or its value not valid.
    """
    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
        deployments = [(str(each["name"]), str(each["entrypoint"]), each) for each in document["deployments"]]
    except (OSError, ValueError, KeyError, TypeError, yaml.YAMLError):
        return  # Prefect says what is wrong with the file
    for name, entrypoint, each in deployments:
        try:
            if entrypoint in (f"{__name__}.retrain", f"{__name__}.watch"):
                _check_parameters(entrypoint.rpartition(".")[2], each.get("parameters") or {})
        except (VerdictError, ValidationError) as error:
            raise UsageError(f"deployment {name!r} in {path}: {_what_is_wrong(error)}; nothing was deployed") from error


def _check_parameters(flow_name: str, given: dict[str, Any]) -> None:
    ours: Any = retrain if flow_name == "retrain" else watch
    known = inspect.signature(ours.fn).parameters
    if unknown := [key for key in given if key not in known]:
        raise UsageError(f"parameter {unknown[0]!r} is unknown; expected {', '.join(known)}")
    forms = DataForm.model_validate(given.get("data", {})), TrainingForm.model_validate(given.get("training", {}))
    more = [str(each) for each in given.get("more") or []]
    if "retrain_when" in given:
        more.append(f"watch.retrain_on={given['retrain_when']}")
    resolve(str(given.get("profile", "sample")), *forms, more)


def _what_is_wrong(error: VerdictError | ValidationError) -> str:
    if isinstance(error, VerdictError):
        return str(error)
    first = error.errors()[0]
    return f"{error.title} field {'.'.join(map(str, first['loc']))!r}: {describe_refusal(first)}"


def drop_missed() -> list[str]:
    """Cancel the scheduled runs of this deployment that are due and not started; return their names.

    They accumulate while no worker is up, or during a long run. This run does their work as well.
    """
    context = FlowRunContext.get()
    own = context.flow_run if context else None
    if own is None or own.deployment_id is None:
        return []
    due = filters.FlowRunFilter(
        deployment_id=filters.FlowRunFilterDeploymentId(any_=[own.deployment_id]),
        state=filters.FlowRunFilterState(type=filters.FlowRunFilterStateType(any_=[StateType.SCHEDULED])),
        expected_start_time=filters.FlowRunFilterExpectedStartTime(before_=DateTime.now("UTC")),
    )
    with get_client(sync_client=True) as client:
        runs: list[FlowRun] = []  # every page: an outage of nine days leaves more hourly runs than one has
        while page := client.read_flow_runs(
            flow_run_filter=due, sort=FlowRunSort.EXPECTED_START_TIME_ASC, limit=PAGE_SIZE, offset=len(runs)
        ):
            runs += page
        missed = [run for run in runs if _is_due(run, own)]
        for run in missed:
            client.set_flow_run_state(run.id, Cancelled(name="Missed", message=f"missed; {own.name} does its work"))
    return [run.name for run in missed]


@contextlib.contextmanager
def answers_carried_out() -> Iterator[str]:
    """Yield the folder of the stores; before and after, carry out answers to runs that were cancelled for this one."""
    from flows.jobs.approval import carry_out_cancelled

    home = environment.usable_home()
    carry_out_cancelled(home)
    try:
        yield home
    finally:
        carry_out_cancelled(home)


def _begin() -> None:
    """Set the process defaults, and show log records of `tasks` on the run's page and in the worker's output."""
    environment.set_process_defaults()
    environment.show_worker_log()
    if (context := FlowRunContext.get()) and context.flow_run:
        log_format.bind_context(flow_run=str(context.flow_run.id))


def _is_due(run: FlowRun, own: FlowRun) -> bool:
    """Return whether a run is a schedule's: not started by a person, and not started before and suspended."""
    return run.auto_scheduled and run.id != own.id and run.run_count == 0 and run.parameters == own.parameters


def _describe(outcome: RetrainOutcome) -> str:
    reasons = "; ".join(outcome.reasons)
    return f"{outcome.decision} of version {outcome.version} ({reasons})"[:500]
