"""Commands: retrain, check, watch, predict, score, serve, api-key, export-triton. They parse, call and print."""

import contextlib
import dataclasses
import functools
import importlib
import os
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple

import typer

from flows import environment
from flows.cli import stopping
from flows.cli.options import (
    AccessOptions,
    AsJson,
    BatchingOptions,
    ChallengerOptions,
    DataOptions,
    Model,
    OnDevice,
    RayAddress,
    ReplicaOptions,
    RequestLogOptions,
    TrainingDevice,
    Verbose,
    print_result,
    with_option_groups,
)
from flows.services.server_watch import check_servers, external_servers, watched
from flows.stopwatch import Stopwatch
from tasks.core.addresses import HUB_PREFIX, SAMPLE_ADDRESS
from tasks.core.errors import DataRejected, UnreachableError, UsageError, VerdictError
from tasks.core.hidden_addresses import check_address
from tasks.core.printable import escape_controls
from tasks.core.quick_imports import collection_paused
from tasks.inference.bundle import CHAMPION_URI, MODEL_NAME

if TYPE_CHECKING:
    from flows.outcome import RetrainOutcome
    from tasks.core.settings import DataSettings, Settings
    from tasks.core.settings_loader import ResolvedSettings
    from tasks.data.sources import Sources

ScoreFormat = Literal["txt", "tsv", "csv", "jsonl", "json", "parquet", "arrow"]
FIRST_SENTENCES = ("The child has eaten the apple.", "The child have eat the apple.")  # classified after a run


@with_option_groups
def retrain(
    options: DataOptions,
    device: TrainingDevice = None,
    force: Annotated[bool, typer.Option("--force", help="Start over, even if nothing changed.")] = False,
    show_settings: Annotated[bool, typer.Option("--show-settings", help="Print all settings and exit.")] = False,
    as_toml: Annotated[
        bool, typer.Option("--toml", help="With --show-settings: as TOML, which --profile reads.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be retrained and why, and start nothing.")
    ] = False,
    timings: Annotated[bool, typer.Option("--timings", help="Print where each second of the process went.")] = False,
    verbose: Verbose = False,
    as_json: AsJson = False,
) -> None:
    """Train, export, measure, judge and register a candidate; promote it if it passes the policy."""
    from flows.cli import show_run

    stopwatch = Stopwatch()
    _refuse_conflicts(show_settings, as_toml, dry_run, as_json)
    resolved = options.resolve(device)
    if show_settings:
        _show_settings(resolved, as_toml, as_json)
        return
    unseen = _refuse_inputs(resolved.settings, all_now=dry_run)
    if dry_run:
        _show_plan(resolved, force, as_json)
        return
    if "TORCHELASTIC_RUN_ID" in os.environ and not _lead_ranks(resolved.settings):
        return
    home = environment.usable_home()
    stopwatch.mark("interpreter, settings")
    with shown("retrain", verbose):
        outcome = None if force else _find_unchanged(resolved.settings, home)
        stopwatch.mark("compare inputs")
        if outcome is None:
            _refuse_columns(unseen, resolved.settings.data)
            arguments = (resolved.settings.model_dump(), resolved.origins, home, force)
            outcome, times = run_flow("retrain", home, *arguments, stopwatch=stopwatch)
            outcome = dataclasses.replace(outcome, seconds=times.around(outcome.seconds))
    measured = {"timings": stopwatch.seconds} if timings else {}
    champion = _find_champion() if outcome.unchanged and not as_json else None
    show = functools.partial(show_run.show_outcome, champion=champion)
    print_result(outcome, as_json, show, outcome.to_json() | measured)
    if not as_json:
        _show_next(outcome, resolved.settings.data.path == (SAMPLE_ADDRESS,))
        stopwatch.mark("first predictions")
        if timings:
            show_run.show_seconds(stopwatch.seconds)


@with_option_groups
def check(options: DataOptions, verbose: Verbose = False, as_json: AsJson = False) -> None:
    """Read data and run the gate on it, nothing else; exit code 3 if the gate rejects it."""
    environment.set_process_defaults()
    from flows.cli import show_run
    from flows.commands import check

    environment.show_log(verbose)
    settings = options.resolve().settings
    refuse_unusable_files(settings.data)
    outcome = check.check(settings.model_dump(), environment.usable_home())
    print_result(outcome, as_json, functools.partial(show_run.show_check, verbose=verbose))
    if not outcome["passed"]:
        raise typer.Exit(DataRejected.exit_code)


@with_option_groups
def watch(
    options: DataOptions, device: TrainingDevice = None, verbose: Verbose = False, as_json: AsJson = False
) -> None:
    """Check the data once; retrain if it changed or drifted (--set watch.retrain_on=never|on_change|on_drift)."""
    from flows.cli import show_run

    resolved = options.resolve(device)
    refuse_early(resolved.settings)
    refuse_unusable_files(resolved.settings.data)
    home = environment.usable_home()
    with shown("watch", verbose):
        outcome, times = run_flow("watch", home, resolved.settings.model_dump(), resolved.origins, home)
    outcome = dataclasses.replace(outcome, seconds=times.around(outcome.seconds))
    print_result(outcome, as_json, functools.partial(show_run.show_watch, verbose=verbose), outcome.to_json())


def predict(
    sentences: Annotated[list[str], typer.Argument(metavar="SENTENCE", help="Sentences to classify.")],
    model: Model = CHAMPION_URI,
    device: OnDevice = "auto",
    as_json: AsJson = False,
) -> None:
    """Classify sentences with the champion."""
    environment.set_process_defaults()
    environment.show_log()
    with collection_paused():
        from flows.cli import show_run
        from flows.commands.predict import predict

    predictions = predict(sentences, model, device, environment.verdict_home())
    print_result(predictions, as_json, show_run.show_predictions)


def score(
    path: Annotated[
        str,
        typer.Argument(
            metavar="IN",
            help="Sentences: .tsv, .csv, .jsonl, .json, .parquet, .arrow, .txt (or .gz, .zst), a folder, s3://..., -",
        ),
    ],
    out: Annotated[str, typer.Argument(metavar="OUT", help="Parquet file, or - for JSON lines on standard output.")],
    model: Model = CHAMPION_URI,
    device: OnDevice = "auto",
    columns: Annotated[str, typer.Option(help="Column of the sentences: text=NAME [sentence or text].")] = "",
    form: Annotated[
        ScoreFormat | None, typer.Option("--format", help="Format of IN [by its file extension; - is txt].")
    ] = None,
    refuse_truncated: Annotated[
        bool, typer.Option("--refuse-truncated", help="Quarantine sentences longer than the model reads.")
    ] = False,
    ray: RayAddress = "",
    workers: Annotated[
        int,
        typer.Option(
            min=0,
            help="With --ray: maximum number of workers (on GPUs rounded up to the same number per GPU); 0: one per "
            "CPU, or up to eight per GPU.",
        ),
    ] = 0,
    as_json: AsJson = False,
) -> None:
    """Score a file of sentences; a run that was stopped resumes where it stopped."""
    if as_json and out == "-":
        raise UsageError("--json and output '-' both write to standard output; name a Parquet file")
    if workers and not ray:
        raise UsageError(f"--workers {workers} is refused without --ray; expected --ray local, auto or HOST:PORT")
    from flows.cli import show_run
    from flows.commands.predict import check_model
    from tasks.serving.batch_scoring import check_paths
    from tasks.serving.ray_scoring import check_ray

    if ray:
        check_ray(path, out, ray)
    check_paths(path, out, columns, form or "")  # a usage error is reported before a server starts
    _check_servers()
    home = environment.usable_home()
    check_model(model, home)
    arguments = (path, out, model, device, columns, form or "", home, refuse_truncated, ray, workers)
    with shown("score"):
        outcome, times = run_flow("score", home, *arguments)
    print_result({**outcome, "seconds": times.around(outcome["seconds"])}, as_json, show_run.show_scores)


@with_option_groups
def serve(
    access: AccessOptions,
    batching: BatchingOptions,
    logged: RequestLogOptions,
    beside: ChallengerOptions,
    spread: ReplicaOptions,
    model: Model = CHAMPION_URI,
    host: Annotated[
        str, typer.Option(help="Address to listen on; beyond loopback everybody who reaches it may use it.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65_535, help="Port to listen on; 0 for any free one.")] = 8080,
    device: OnDevice = "auto",
    refresh_seconds: Annotated[float, typer.Option(min=0.1, help="Seconds between checks for a new champion.")] = 30.0,
    page: Annotated[bool, typer.Option("--page/--no-page", help="Demo page at /, with flags for errors.")] = True,
    feedback: Annotated[
        str, typer.Option(help="TSV file for the page's flags [feedback/feedback.tsv in the stores' folder].")
    ] = "",
    refuse_truncated: Annotated[
        bool, typer.Option("--refuse-truncated", help="Refuse sentences longer than the model reads, with 422.")
    ] = False,
) -> None:
    """Serve the champion over HTTP (JSON, Open Inference Protocol V2, demo page) and follow the alias."""
    model = _prepare_serving(model, access.api_keys)
    from tasks.serving import server

    config = server.ServerConfig(
        model,
        host,
        port,
        device,
        refresh_seconds,
        **dataclasses.asdict(batching),
        page=page,
        feedback=feedback,
        refuse_truncated=refuse_truncated,
        allowed_hosts=tuple(access.allowed_hosts or ()),
        api_keys=access.api_keys,
        client_rate=access.client_rate,
        request_log=logged.to_config(),
        challenger=beside.to_config(),
    )
    if spread.ray:
        from tasks.serving.ray_serve import serve_on_ray

        serve_on_ray(config, spread.to_config(), spread.ray, environment.verdict_home())
    else:
        server.serve(config, environment.verdict_home())


def api_key(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Of the client; a second key of a name is valid too.")],
    path: Annotated[str, typer.Argument(metavar="FILE", help="What `verdict serve --api-keys FILE` reads.")],
) -> None:
    """Make an API key: print it, this once, and add its hash to a file, which a running server reads again."""
    if sys.stdout is None:
        raise UsageError("standard output is closed, and the key is printed there alone; expected a terminal or a file")
    from tasks.serving.api_keys import add_key

    add_key(name, path, functools.partial(print, flush=True))


def _prepare_serving(model: str, api_keys: str) -> str:
    """Set what holds for the server's process, and check the keys and a named model before libraries are imported.

    Returns:
        The model: of the hub, the folder that it was fetched to.
    """
    stopping.leave_to_command()
    environment.set_process_defaults()
    environment.show_log()
    if api_keys:
        from tasks.serving.api_keys import read_keys

        read_keys(Path(api_keys))
    if model == CHAMPION_URI:
        return model
    from flows.commands.predict import check_model, fetch_from_hub

    model = fetch_from_hub(model, environment.verdict_home())
    if "@" not in model:  # the server waits for an alias that is not there yet
        check_model(model, environment.verdict_home())
    return model


def export_triton(
    folder: Annotated[str, typer.Argument(metavar="DIR", help="New folder, or one that this command wrote.")],
    model: Model = CHAMPION_URI,
    instances: Annotated[
        int, typer.Option(min=1, max=64, help="Instances of each model; of the graph, on each GPU.")
    ] = 2,
    max_batch: Annotated[int, typer.Option(min=1, max=4_096, help="Most sentences in one batch.")] = 64,
    max_queue_delay_us: Annotated[
        int, typer.Option(min=0, max=1_000_000, help="Microseconds a request may wait to be batched with others.")
    ] = 500,
    as_json: AsJson = False,
) -> None:
    """Write a model repository for NVIDIA Triton: sentences in, label and probability out."""
    environment.set_process_defaults()
    environment.show_log()
    from flows.cli import show_run
    from flows.commands.predict import find_model
    from tasks.serving.triton import TritonTuning, check_folder, export_repository

    check_folder(folder)  # before a model is fetched
    version, bundle, digest = find_model(model, environment.verdict_home())
    written = export_repository(bundle, folder, version, TritonTuning(instances, max_batch, max_queue_delay_us), digest)
    print_result(written, as_json, show_run.show_repository)


def refuse_early(settings: "Settings", encoders: Sequence[str] = ()) -> None:
    """Check what takes no time before anything starts: servers, encoders, the teacher, the Ray cluster and the GPU.

    Args:
        settings: of the run.
        encoders: that are tried, if not only the one of the settings.

    Raises:
        VerdictError: if one of them is not there.
    """
    from tasks.training.pretrained import check_present

    _check_servers()
    for encoder in encoders or (settings.finetune.encoder,):
        check_present(encoder, offline=settings.data.offline)
    if settings.finetune.teacher:
        from flows.commands.predict import check_teacher

        check_teacher(settings, environment.verdict_home())
    if settings.finetune.ray:
        from tasks.cluster.connection import check_cluster

        check_cluster(settings.finetune.ray)
    if settings.finetune.device == "cuda":
        from tasks.inference.sessions import has_gpu

        if not has_gpu():
            raise VerdictError("device cuda is wanted, but NVIDIA's driver reports no GPU; see: verdict doctor")


def _refuse_inputs(settings: "Settings", all_now: bool) -> "Sources | None":
    """Check what can be checked before anything starts; return the files whose columns are still to be looked at.

    Where the stores have a folder, nothing may have changed, which is found sooner than files are parsed.
    """
    refuse_early(settings)
    files = refuse_missing_files(settings.data)
    if all_now or not Path(environment.verdict_home()).exists():
        _refuse_columns(files, settings.data)
        return None
    return files


def refuse_missing_files(data: "DataSettings") -> "Sources | None":
    """Return the files of data that all lies on this machine; None where the flow has to download or write some.

    Raises:
        UsageError: if a folder or file is not there.
    """
    from tasks.data.sources import locate_sources

    addresses = (*data.path, data.train, data.holdout)
    if any(address == SAMPLE_ADDRESS or address.startswith(HUB_PREFIX) for address in addresses):
        return None
    with contextlib.suppress(UnreachableError):
        return locate_sources(data.path, data.train, data.holdout, environment.verdict_home(), offline=True)
    return None


def refuse_unusable_files(data: "DataSettings") -> None:
    """Look at the beginning of each file of data that lies on this machine, before the stores' folder is made.

    Raises:
        UsageError: if a folder or file is not there, or lacks a required column.
        DataRejected: if a file is damaged.
        VerdictError: if a file cannot be read.
    """
    _refuse_columns(refuse_missing_files(data), data)


def _refuse_columns(files: "Sources | None", data: "DataSettings") -> None:
    if files:
        from flows.commands.data_files import check_columns

        check_columns(files, data)


def _lead_ranks(settings: "Settings") -> bool:
    """Join the processes that torchrun started; return False, after the training, where another one is rank 0."""
    from tasks.training import torchrun
    from tasks.training.device import resolve_device

    environment.set_process_defaults()
    environment.show_log()
    return torchrun.join(resolve_device(settings.finetune.device), settings.finetune.processes)


def _check_servers() -> None:
    """Check that the servers that the environment names answer, before Prefect is imported, which takes seconds."""
    environment.set_process_defaults(environment.RETRY_DEFAULTS)
    prefect = os.environ.get("PREFECT_API_URL", "")
    check_address("PREFECT_API_URL", prefect, http=True)
    check_servers(external_servers(prefect))


def _refuse_conflicts(show_settings: bool, as_toml: bool, dry_run: bool, as_json: bool) -> None:
    """Raise UsageError for options of retrain that exclude each other."""
    if as_toml and not show_settings:
        raise UsageError("--toml is the form of settings; expected verdict retrain --show-settings --toml")
    for given, names in (
        (as_toml and as_json, "--toml and --json"),
        (show_settings and dry_run, "--show-settings and --dry-run"),
    ):
        if given:
            raise UsageError(f"{names} exclude each other; expected one of them")


def _show_settings(resolved: "ResolvedSettings", as_toml: bool, as_json: bool) -> None:
    """Print settings with their origins, or as a TOML file."""
    from flows.cli import show_run
    from tasks.core.settings_description import format_settings

    rows = resolved.rows()
    if as_toml:
        print(format_settings(rows), end="")
        return
    print_result(rows, as_json, show_run.show_settings, {row.key: [row.value, row.origin] for row in rows})


def _show_plan(resolved: "ResolvedSettings", force: bool, as_json: bool) -> None:
    """Print what a run would do; exit code 3 if the gate refuses the data."""
    with collection_paused():
        from flows.cli import show_plan
        from flows.jobs.plan import plan_retraining
    environment.show_log()
    environment.quiet_prefect()  # which the import of the job's parts sets up
    plan = plan_retraining(resolved, environment.verdict_home(), force)
    print_result(plan, as_json, show_plan.show_plan)
    if plan["action"] == "refused":
        raise typer.Exit(DataRejected.exit_code)


def _find_unchanged(settings: "Settings", home: str) -> "RetrainOutcome | None":
    """Return the outcome of a finished job of the same inputs, which takes no server and few imports.

    With an external Prefect server the flow runs, so that the server records the run.
    """
    if os.environ.get("PREFECT_API_URL"):
        return None
    started = time.perf_counter()
    with collection_paused():
        from flows.jobs.unchanged import find_unchanged

        outcome = find_unchanged(settings, home)
    seconds = round(time.perf_counter() - started, 2)
    return outcome and dataclasses.replace(outcome, seconds={"compare inputs": seconds, "total": seconds})


class CommandTimes(NamedTuple):
    """Seconds until a command's flow began, and of the whole command."""

    start: float
    total: float

    def around(self, steps: dict[str, float]) -> dict[str, float]:
        """Return the seconds of the flow's steps between those two."""
        return {"start": round(self.start, 2), **steps, "total": round(self.total, 2)}


def run_flow(name: str, home: str, *arguments: Any, stopwatch: Stopwatch | None = None) -> tuple[Any, CommandTimes]:
    """Run a flow against the configured Prefect server, or an embedded one that starts during the imports."""
    started, stopwatch = time.perf_counter(), stopwatch or Stopwatch()
    from flows.services.embedded_prefect import connected, external_api, prefect_api

    servers = external_servers(external_api())
    check_servers(servers)
    with prefect_api(home) as server:
        with collection_paused():
            flow = getattr(importlib.import_module(f"flows.jobs.{name}"), name)
        if os.environ.get("VERDICT_DEBUG") != "1":
            environment.quiet_prefect()
        stopwatch.mark("imports")
        with watched(servers, stopping.fail), connected(server, stopping.fail):
            ready = time.perf_counter()
            stopwatch.mark("wait for Prefect's server")
            outcome = flow(*arguments)
            steps = outcome["seconds"] if isinstance(outcome, dict) else outcome.seconds
            stopwatch.mark_parts(steps, "between steps")
    stopwatch.mark("stop Prefect's server")
    return outcome, CommandTimes(ready - started, time.perf_counter() - started)


@contextlib.contextmanager
def shown(flow: str, verbose: bool = False) -> Iterator[None]:
    """Show a flow's steps on standard error, and the log above them, from now to the end of the block."""
    from rich.console import Console

    from flows.cli import run_steps
    from tasks.core.progress import Display

    environment.show_log(verbose)
    with Display(Console(stderr=True), run_steps.STEPS[flow]) as display:
        display.begin(run_steps.START.name)
        yield


def _find_champion() -> tuple[str, str] | None:
    """Return version and time of promotion of the champion, where the store is a local database."""
    from tasks.registry.sqlite_lookup import find_local_champion
    from tasks.registry.store import locate_store

    return find_local_champion(locate_store(environment.verdict_home()), MODEL_NAME)


def _show_next(outcome: "RetrainOutcome", sample: bool) -> None:
    """Classify two sentences with a new champion, and print what to do next."""
    from flows.cli import show_run
    from flows.commands.predict import predict

    if outcome.decision == "PROMOTE" and not outcome.unchanged:
        try:
            predictions = predict(list(FIRST_SENTENCES), CHAMPION_URI, "auto", environment.verdict_home())
            show_run.show_examples(predictions)
        except VerdictError as error:
            print(escape_controls(f"no predictions: {error}"))
    show_run.show_next_commands(outcome, sample)
