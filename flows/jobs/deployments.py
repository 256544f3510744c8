"""The flows that a Prefect worker runs, with parameters that Prefect's page shows as a form.

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
from flows.jobs.deployment_forms import FORM_GROUPS, DataForm, ExportForm, FinetuneForm, GateForm, JudgeForm, WatchForm
from flows.notifications import alert_crash, alert_failure
from flows.outcome import describe_outcome
from tasks.core import log_format
from tasks.core.errors import UsageError, VerdictError
from tasks.core.hidden_addresses import reject_secrets
from tasks.core.printable import counted
from tasks.core.refusals import describe_refusal
from tasks.core.settings_loader import ResolvedSettings, load_settings
from tasks.inference.bundle import CHAMPION_URI
from tasks.training.search_space import GROUP_PREFIX, Dimension, make_space

ProfileName = Literal["sample", "cola-small", "cola"]
Device = Literal["auto", "cuda", "cpu"]
TRAINING_FLOWS = ("retrain", "watch", "sweep")  # whose parameters are settings
PAGE_SIZE = 200  # runs of one query, Prefect's limit


deployed_flow = functools.partial(
    flow, persist_result=True, result_serializer="json", on_failure=[alert_failure], on_crashed=[alert_crash]
)
DATA, GATE, FINETUNE = DataForm(), GateForm(), FinetuneForm()
EXPORT, JUDGE, WATCH = ExportForm(), JudgeForm(), WatchForm()


@deployed_flow(name="retrain")
def retrain(
    profile: ProfileName = "sample",
    data: DataForm = DATA,
    gate: GateForm = GATE,
    finetune: FinetuneForm = FINETUNE,
    export: ExportForm = EXPORT,
    judge: JudgeForm = JUDGE,
    force: bool = False,
) -> State[Any]:
    """Train, export, measure, judge and register a candidate; promote it if it passes the policy.

    Args:
        profile: settings to start from; an empty field below keeps the profile's value.
        data: where sentences come from and how they are split.
        gate: limits of the data gate.
        finetune: the training recipe.
        export: what the bundle states besides the graphs.
        judge: the promotion policy and how it is applied.
        force: start over, even if nothing changed.
    """
    _begin()
    try:
        settings = resolve(profile, data, gate, finetune, export, judge)
    except UsageError as error:
        return Failed(message=str(error))
    from flows.jobs.retrain import retrain as job

    drop_missed()
    # The flow's function, not the flow: the run that is suspended for approval must be the one of the deployment.
    with answers_carried_out() as home:
        outcome = job.fn(settings.settings.model_dump(), settings.origins, home, force)
    if outcome.unchanged:
        message = f"nothing new: {describe_outcome(outcome)}"
        return Completed(name="NothingNew", message=message, data=outcome.to_json())
    return Completed(message=describe_outcome(outcome), data=outcome.to_json())


@deployed_flow(name="watch")
def watch(
    profile: ProfileName = "sample",
    data: DataForm = DATA,
    gate: GateForm = GATE,
    finetune: FinetuneForm = FINETUNE,
    export: ExportForm = EXPORT,
    judge: JudgeForm = JUDGE,
    watch: WatchForm = WATCH,
) -> State[Any]:
    """Check the data once; retrain if it changed or drifted.

    Args:
        profile: settings to start from; an empty field below keeps the profile's value.
        data: where sentences come from and how they are split.
        gate: limits of the data gate.
        finetune: the training recipe of a retraining run.
        export: what the bundle states besides the graphs.
        judge: the promotion policy and how it is applied.
        watch: what a check of the data and of what was served may start.
    """
    _begin()
    try:
        settings = resolve(profile, data, gate, finetune, export, judge, watch)
    except UsageError as error:
        return Failed(message=str(error))
    from flows.jobs.watch import watch as job

    drop_missed()
    with answers_carried_out() as home:
        outcome = job.fn(settings.settings.model_dump(), settings.origins, home)
    name = None if outcome.changed or outcome.action == "retrain" else "NothingNew"
    return Completed(name=name, message=outcome.why, data=outcome.to_json())


@deployed_flow(name="sweep")
def sweep(
    vary: dict[str, str],
    profile: ProfileName = "sample",
    data: DataForm = DATA,
    gate: GateForm = GATE,
    finetune: FinetuneForm = FINETUNE,
    export: ExportForm = EXPORT,
    judge: JudgeForm = JUDGE,
    folds: Annotated[int, Field(ge=1, le=20)] = 1,
    trials: Annotated[int, Field(ge=1, le=10_000)] = 12,
    budget_minutes: Annotated[float, Field(gt=0)] = 1_440.0,
    workers: Annotated[int, Field(ge=0, le=1_024)] = 0,
    ray: str = "",
    trial_cpus: Annotated[float, Field(ge=0.1, le=1_024)] = 1.0,
    trial_gpus: Annotated[float, Field(ge=0, le=64)] = 0.0,
) -> State[Any]:
    """Search settings of fine-tuning by validation MCC, then retrain with the best ones.

    Args:
        vary: values of settings of finetune: A,B or LOW..HIGH, by name, for example learning_rate = 1e-5,3e-5.
        profile: settings to start from; an empty field below keeps the profile's value.
        data: where sentences come from and how they are split.
        gate: limits of the data gate.
        finetune: the training recipe of what is not varied; with several seeds the mean MCC of a trial counts.
        export: what the bundle states besides the graphs.
        judge: the promotion policy and how it is applied.
        folds: of each trial: every row validates once, and the mean MCC counts; 1 for one split.
        trials: trials at most, those of earlier runs included.
        budget_minutes: time after which no other trial starts.
        workers: trials side by side; 0 for one on each GPU, one on a CPU, or as many as the cluster has room for.
        ray: Ray cluster whose tasks the trials are: local, auto or HOST:PORT; empty for processes of the worker.
        trial_cpus: CPUs of each trial, on a Ray cluster.
        trial_gpus: GPUs of each trial, or a share of one, on a Ray cluster.
    """
    _begin()
    try:
        settings = resolve(profile, data, gate, finetune, export, judge)
        space = [dimension._asdict() for dimension in _make_space(vary, profile)]
    except UsageError as error:
        return Failed(message=str(error))
    from flows.jobs.sweep import sweep as job

    with answers_carried_out() as home:
        outcome = job.fn(
            settings.settings.model_dump(),
            settings.origins,
            space,
            trials,
            60 * budget_minutes,
            workers,
            home,
            {"address": ray, "cpus": trial_cpus, "gpus": trial_gpus} if ray else None,
            folds,
        )
    return Completed(message=describe_outcome(outcome.retrain), data=outcome.to_json())


def _make_space(vary: dict[str, str], profile: str) -> tuple[Dimension, ...]:
    """Return the search space of a form.

    Raises:
        UsageError: if a setting is unknown, cannot be varied, or a value is not valid.
    """

    def parse(key: str, text: str) -> Any:
        return getattr(load_settings(profile, {key: text}).settings.finetune, key.removeprefix(GROUP_PREFIX))

    return make_space({f"{GROUP_PREFIX}{name.removeprefix(GROUP_PREFIX)}": text for name, text in vary.items()}, parse)


@deployed_flow(name="score")
def score(
    path: Annotated[str, Field(min_length=1)],
    out: Annotated[str, Field(min_length=1)],
    model: str = CHAMPION_URI,
    device: Device = "auto",
    columns: str = "",
    form: Literal["", "txt", "tsv", "csv", "jsonl", "json", "parquet", "arrow"] = "",
    refuse_truncated: bool = False,
) -> State[Any]:
    """Score a file of sentences; a run that was stopped resumes where it stopped.

    Args:
        path: sentences as verdict score takes them: a file on the worker, a folder that is one table, or s3://BUCKET/KEY.
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

    try:
        check_paths(path, out, columns, form)
    except UsageError as error:
        return Failed(message=str(error))
    outcome = job.fn(path, out, model, device, columns, form, environment.usable_home(), refuse_truncated)
    return Completed(message=f"{outcome['scored']} of {counted(outcome['rows_in'], 'row')} scored", data=outcome)


def resolve(
    profile: str,
    data: BaseModel = DATA,
    gate: BaseModel = GATE,
    finetune: BaseModel = FINETUNE,
    export: BaseModel = EXPORT,
    judge: BaseModel = JUDGE,
    watch: BaseModel = WATCH,
) -> ResolvedSettings:
    """Resolve profile, the worker's environment and the forms, in this order.

    Raises:
        UsageError: if a value is not valid, or is an address with a password or signature.
    """
    chosen = {
        f"{group}.{key}": value
        for group, form in zip(FORM_GROUPS, (data, gate, finetune, export, judge, watch), strict=True)
        for key, value in form.model_dump().items()
        if value not in (None, "", [])
    }
    for value in chosen.values():
        for text in value if isinstance(value, list) else [value]:
            reject_secrets(str(text), "the form of this deployment")
    return load_settings(profile, chosen)


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
            if entrypoint.removeprefix(f"{__name__}.") in TRAINING_FLOWS:
                _check_parameters(entrypoint.rpartition(".")[2], each.get("parameters") or {})
        except (VerdictError, ValidationError) as error:
            raise UsageError(f"deployment {name!r} in {path}: {_what_is_wrong(error)}; nothing was deployed") from error


def _check_parameters(flow_name: str, given: dict[str, Any]) -> None:
    ours: Any = {"retrain": retrain, "watch": watch, "sweep": sweep}[flow_name]
    known = inspect.signature(ours.fn).parameters
    if unknown := [key for key in given if key not in known]:
        raise UsageError(f"parameter {unknown[0]!r} is unknown; expected {', '.join(known)}")
    kinds: dict[str, type[BaseModel]] = dict(
        zip(FORM_GROUPS, (DataForm, GateForm, FinetuneForm, ExportForm, JudgeForm, WatchForm), strict=True)
    )
    forms = {group: form.model_validate(given.get(group) or {}) for group, form in kinds.items()}
    profile = str(given.get("profile", "sample"))
    resolve(profile, **forms)
    if vary := given.get("vary"):
        _make_space(vary, profile)


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
    from flows.jobs.approval import carry_out_answers

    home = environment.usable_home()
    carry_out_answers(home)
    try:
        yield home
    finally:
        carry_out_answers(home)


def _begin() -> None:
    """Set the process defaults, and show log records of `tasks` on the run's page and in the worker's output."""
    environment.set_process_defaults()
    environment.show_worker_log()
    if (context := FlowRunContext.get()) and context.flow_run:
        log_format.bind_context(flow_run=str(context.flow_run.id))


def _is_due(run: FlowRun, own: FlowRun) -> bool:
    """Return whether a run is a schedule's: not started by a person, and not started before and suspended."""
    return run.auto_scheduled and run.id != own.id and run.run_count == 0 and run.parameters == own.parameters
