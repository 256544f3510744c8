"""The flows that a worker runs: the jobs of the command line, with parameters that Prefect's page shows as a form.

infra/prefect.yaml says when they run, and `verdict deploy` puts them there. A run of a schedule that finds others of
its deployment due, after an outage or a long run, stands for all of them.
"""

from typing import Annotated, Any, Literal

from prefect import flow, get_client
from prefect.client.schemas import filters
from prefect.client.schemas.objects import FlowRun, State, StateType
from prefect.context import FlowRunContext
from prefect.states import Cancelled, Completed
from prefect.types import DateTime
from pydantic import BaseModel, Field

from flows import environment
from flows.environment import CHAMPION_URI
from flows.notifications import alert_crash, alert_failure
from flows.outcome import RetrainOutcome
from tasks.core import log_format
from tasks.core.settings_loader import ResolvedSettings, load_settings, parse_setting

ProfileName = Literal["sample", "cola-small", "cola"]
Device = Literal["auto", "cuda", "cpu"]


class DataForm(BaseModel):
    """Where sentences come from; what is empty is as the profile says."""

    path: list[str] = Field(default=[], description="Folder, file, https://...#sha256=HEX or hf:ORG/NAME; merged.")
    train: str = Field(default="", description="Training file.")
    holdout: str = Field(default="", description="Judging file.")
    columns: str = Field(default="", description="Columns: text=NAME,label=NAME[,source=NAME,mark=NAME].")
    labels: str = Field(default="", description="What labels are called: acceptable=1,unacceptable=0.")


class TrainingForm(BaseModel):
    """The recipe; what is empty is as the profile says."""

    encoder: str = Field(default="", description="Folder or hub id of an encoder, or packaged.")
    epochs: int | None = Field(default=None, ge=1, le=1000, description="Passes over the training sentences.")
    seed: int | None = Field(default=None, ge=0, lt=2**32, description="Of head, dropout, batch order and split.")
    device: Device | None = Field(default=None, description="Where to compute; cuda never falls back.")


DATA, TRAINING = DataForm(), TrainingForm()
NO_EXTRA_SETTINGS: list[str] = []


@flow(
    name="retrain",
    persist_result=True,
    result_serializer="json",
    on_failure=[alert_failure],
    on_crashed=[alert_crash],
)
def retrain(
    profile: ProfileName = "sample",
    data: DataForm = DATA,
    training: TrainingForm = TRAINING,
    more: list[str] = NO_EXTRA_SETTINGS,
    force: bool = False,
) -> State[Any]:
    """Train, export, measure, judge and register a candidate; promote it where it deserves it.

    Args:
        profile: settings to begin with.
        data: where sentences come from.
        training: the recipe.
        more: any setting as KEY=VALUE, for example judge.threshold=0.4.
        force: run even where nothing changed, from the start.
    """
    _begin()
    from flows.jobs.retrain import retrain as job

    drop_missed()
    settings = resolve(profile, data, training, more)
    # The job's body and not its flow: a run that waits for a person must be this one, which a deployment started.
    outcome = job.fn(settings.settings.model_dump(), settings.origins, environment.usable_home(), force)
    if outcome.unchanged:
        message = f"nothing new: {_describe(outcome)} stands"
        return Completed(name="NothingNew", message=message, data=outcome.to_json())
    return Completed(message=_describe(outcome), data=outcome.to_json())


@flow(
    name="watch",
    persist_result=True,
    result_serializer="json",
    on_failure=[alert_failure],
    on_crashed=[alert_crash],
)
def watch(
    profile: ProfileName = "sample",
    data: DataForm = DATA,
    training: TrainingForm = TRAINING,
    more: list[str] = NO_EXTRA_SETTINGS,
    retrain_when: Literal["never", "on_change", "on_drift"] = "on_change",
) -> State[Any]:
    """Look once at the data; where it changed or drifted, retrain.

    Args:
        profile: settings to begin with.
        data: where sentences come from.
        training: the recipe of a retraining run.
        more: any setting as KEY=VALUE, for example judge.threshold=0.4.
        retrain_when: when new data starts a retraining run.
    """
    _begin()
    from flows.jobs.watch import watch as job

    drop_missed()
    settings = resolve(profile, data, training, [*more, f"watch.retrain_on={retrain_when}"])
    outcome = job.fn(settings.settings.model_dump(), settings.origins, environment.usable_home())
    return Completed(name=None if outcome.changed else "NothingNew", message=outcome.why, data=outcome.to_json())


@flow(
    name="score",
    persist_result=True,
    result_serializer="json",
    on_failure=[alert_failure],
    on_crashed=[alert_crash],
)
def score(
    path: Annotated[str, Field(min_length=1)],
    out: Annotated[str, Field(min_length=1)],
    model: str = CHAMPION_URI,
    device: Device = "auto",
    columns: str = "",
    form: Literal["", "txt", "tsv", "csv", "jsonl", "parquet"] = "",
) -> State[Any]:
    """Score a file of sentences; a run that was stopped goes on where it stopped.

    Args:
        path: file of sentences on the worker: .tsv, .csv, .jsonl, .parquet or .txt.
        out: Parquet file that is written there.
        model: registry address, version number, or a bundle's folder.
        device: where to compute.
        columns: column of the sentences, text=NAME.
        form: how the file is written; empty for what its ending says.
    """
    _begin()
    from flows.jobs.score import score as job
    from tasks.serving.batch_scoring import check_paths

    check_paths(path, out, columns, form)
    outcome = job.fn(path, out, model, device, columns, form, environment.usable_home())
    return Completed(message=f"{outcome['scored']} of {outcome['rows_in']} rows scored", data=outcome)


def resolve(profile: str, data: DataForm, training: TrainingForm, more: list[str]) -> ResolvedSettings:
    """Resolve profile, the worker's environment and the form, in this order.

    Raises:
        WrongUsage: if a value cannot be meant.
    """
    form = {f"data.{key}": value for key, value in data.model_dump().items()}
    form |= {f"finetune.{key}": value for key, value in training.model_dump().items()}
    chosen = {key: value for key, value in form.items() if value not in (None, "", [])}
    return load_settings(profile, chosen | dict(parse_setting(text) for text in more))


def drop_missed() -> list[str]:
    """Cancel the runs that this deployment's schedules wanted up to now and nobody started; return their names.

    They pile up while no worker runs, or behind a long run: this run sees everything that they would have seen.
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
        missed = [run for run in client.read_flow_runs(flow_run_filter=due) if _is_due(run, own)]
        for run in missed:
            client.set_flow_run_state(run.id, Cancelled(name="Missed", message=f"missed; {own.name} stands for it"))
    return [run.name for run in missed]


def _begin() -> None:
    """Choose for Prefect and MLflow, and let the run's page and the worker's output show what the tasks say."""
    environment.set_process_defaults()
    environment.show_worker_log()
    if (context := FlowRunContext.get()) and context.flow_run:
        log_format.bind_context(flow_run=str(context.flow_run.id))


def _is_due(run: FlowRun, own: FlowRun) -> bool:
    """Tell a schedule's run from one that a person asked for, or that was started before and waits."""
    return run.auto_scheduled and run.id != own.id and run.run_count == 0 and run.parameters == own.parameters


def _describe(outcome: RetrainOutcome) -> str:
    reasons = "; ".join(outcome.reasons)
    return f"{outcome.decision} of version {outcome.version} ({reasons})"[:500]
