"""The `verdict` command: parses, calls a flow, prints. Libraries are imported by the command that needs them."""

import importlib
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from flows import environment
from tasks.core import log_format as logs
from tasks.core.errors import DataRejected, UsageError, VerdictError

if TYPE_CHECKING:
    from tasks.core.settings import ResolvedSettings

Device = Literal["auto", "cuda", "cpu"]
ScoreFormat = Literal["txt", "tsv", "csv", "jsonl", "parquet"]
CHAMPION_URI = "models:/acceptability@champion"
FIRST_SENTENCES = ("The child has eaten the apple.", "The child have eat the apple.")

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document and nothing else on standard output.")]
OnDevice = Annotated[Device, typer.Option(help="Where to compute; auto takes a GPU that works.")]
Model = Annotated[str, typer.Option(help="Registry address, version number, or a bundle's folder.")]

VersionNumber = Annotated[str, typer.Argument(metavar="VERSION", help="Number that `verdict status` shows.")]
Reason = Annotated[str, typer.Option(help="Why; it stays in the history.")]

Profile = Annotated[str, typer.Option(help="sample, cola, cola-small, or a TOML file.")]
DataAddresses = Annotated[
    list[str] | None,
    typer.Option("--data", help="Folder, file, https://...#sha256=HEX, hf:ORG/NAME or sample; several are merged."),
]
Train = Annotated[str | None, typer.Option(help="Training file [in_domain_train.tsv].")]
Holdout = Annotated[str | None, typer.Option(help="Judging file [out_of_domain_dev.tsv].")]
Columns = Annotated[
    str | None, typer.Option(help="Columns of CSV, JSONL, Parquet: text=NAME,label=NAME[,source=NAME,mark=NAME].")
]
Labels = Annotated[str | None, typer.Option(help="What labels are called: acceptable=1,unacceptable=0.")]
EncoderName = Annotated[str | None, typer.Option(help="Folder or hub id of an encoder, or packaged.")]
OneSetting = Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Any setting.")]

app = typer.Typer(
    help="Retrain, judge and ship a sentence-acceptability classifier.",
    epilog="Stores lie in ./.verdict, or where VERDICT_HOME says; VERDICT_LOG=json logs one JSON object a line. "
    "Exit codes: 0 done, 1 failed, 2 wrong usage, 3 data refused.",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


@app.callback()
def options(
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks and Prefect's own log.")] = False,
) -> None:
    """Take the options of every command."""
    if debug:
        os.environ["VERDICT_DEBUG"] = "1"
    logs.wants_json()  # a form of the log that is not known is told before anything starts


@app.command()
def retrain(
    profile: Profile = "sample",
    data: DataAddresses = None,
    train: Train = None,
    holdout: Holdout = None,
    columns: Columns = None,
    labels: Labels = None,
    encoder: EncoderName = None,
    settings: OneSetting = None,
    device: Annotated[Device | None, typer.Option(help="Where to compute; cuda never falls back.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Run even where nothing changed, from the start.")] = False,
    show_settings: Annotated[bool, typer.Option("--show-settings", help="Print the settings and stop.")] = False,
    as_json: AsJson = False,
) -> None:
    """Train, export, measure, judge and register a candidate; promote it where it deserves it."""
    from flows.cli import show_run as console

    resolved = _resolve(profile, settings, _named(data, train, holdout, columns, labels, encoder), device=device)
    if show_settings:
        rows = resolved.rows()
        _print(rows, as_json, console.show_settings, as_document={key: [value, origin] for key, value, origin in rows})
        return
    home = environment.usable_home()
    outcome = _run_flow("retrain", home, resolved.settings.model_dump(), resolved.origins, home, force)
    _print(outcome, as_json, console.show_outcome)
    if not as_json:
        _ask_champion()


@app.command()
def check(
    profile: Profile = "sample",
    data: DataAddresses = None,
    train: Train = None,
    holdout: Holdout = None,
    columns: Columns = None,
    labels: Labels = None,
    encoder: EncoderName = None,
    settings: OneSetting = None,
    as_json: AsJson = False,
) -> None:
    """Read data and let the gate look at it, nothing else; exit 3 where it refuses."""
    environment.set_process_defaults()
    from flows.cli import show_run as console
    from flows.commands.check import check as examine

    environment.show_log(quiet_prefect=False)
    resolved = _resolve(profile, settings, _named(data, train, holdout, columns, labels, encoder))
    outcome = examine(resolved.settings.model_dump(), environment.usable_home())
    _print(outcome, as_json, console.show_check)
    if not outcome["passed"]:
        raise typer.Exit(DataRejected.exit_code)


@app.command()
def watch(
    profile: Profile = "sample",
    data: DataAddresses = None,
    train: Train = None,
    holdout: Holdout = None,
    columns: Columns = None,
    labels: Labels = None,
    encoder: EncoderName = None,
    settings: OneSetting = None,
    device: Annotated[Device | None, typer.Option(help="Where a retraining run computes.")] = None,
    as_json: AsJson = False,
) -> None:
    """Look once at the data; where it changed or drifted, retrain (--set watch.retrain_on=never|on_change|on_drift)."""
    from flows.cli import show_run as console

    resolved = _resolve(profile, settings, _named(data, train, holdout, columns, labels, encoder), device=device)
    home = environment.usable_home()
    outcome = _run_flow("watch", home, resolved.settings.model_dump(), resolved.origins, home)
    _print(outcome, as_json, console.show_watch)


@app.command("judge")
def judge(
    evidence: Annotated[str, typer.Argument(metavar="EVIDENCE.json", help="What a run wrote: runs/JOB/evidence.json.")],
    policy: Annotated[str, typer.Option(help="Another policy: a TOML file [the one in the evidence].")] = "",
    as_json: AsJson = False,
) -> None:
    """Judge recorded evidence again; exit 1 where figures or verdict are not those that were recorded."""
    from flows.cli import show_review as console_review
    from tasks.evaluation.rejudge import rejudge

    outcome = rejudge(evidence, policy)
    _print(outcome, as_json, console_review.show_rejudge)
    if outcome["contradictions"]:
        raise typer.Exit(1)


@app.command()
def status(as_json: AsJson = False) -> None:
    """Show champion, challenger, what ran and why it ended so, what runs next, drift and disk."""
    environment.set_process_defaults()
    from flows.cli import show_review as console_review
    from flows.commands import status as oncall

    answer = oncall.status(environment.verdict_home())
    _print(answer, as_json, console_review.show_status)
    if answer["unreachable"]:
        raise typer.Exit(1)


@app.command()
def compare(
    first: Annotated[str, typer.Argument(metavar="A", help="Version.")],
    second: Annotated[str | None, typer.Argument(metavar="B", help="Another one [the champion].")] = None,
    device: OnDevice = "auto",
    as_json: AsJson = False,
) -> None:
    """Put two versions side by side on the same holdout sentences."""
    environment.set_process_defaults()
    from flows.cli import show_review as console_review
    from flows.commands import compare as comparison

    _print(
        comparison.compare(first, second, device, environment.verdict_home()), as_json, console_review.show_comparison
    )


@app.command()
def approve(version: VersionNumber, reason: Reason, as_json: AsJson = False) -> None:
    """Make a version on HOLD champion."""
    environment.set_process_defaults()
    from flows.cli import show_review as console_review
    from flows.commands import review

    environment.show_log(quiet_prefect=False)
    _print(review.approve(version, reason, environment.verdict_home()), as_json, console_review.show_move)


@app.command()
def reject(version: VersionNumber, reason: Reason, as_json: AsJson = False) -> None:
    """Turn a version on HOLD down."""
    environment.set_process_defaults()
    from flows.cli import show_review as console_review
    from flows.commands import review

    environment.show_log(quiet_prefect=False)
    _print(review.reject(version, reason, environment.verdict_home()), as_json, console_review.show_move)


@app.command()
def rollback(
    reason: Reason,
    to: Annotated[
        str | None, typer.Option(metavar="VERSION", help="Another one that reigned [the one before].")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check everything and move nothing.")] = False,
    as_json: AsJson = False,
) -> None:
    """Give the champion's alias back to the champion before."""
    environment.set_process_defaults()
    from flows.cli import show_review as console_review
    from flows.commands import review

    environment.show_log(quiet_prefect=False)
    _print(review.rollback(to, reason, dry_run, environment.verdict_home()), as_json, console_review.show_move)


@app.command()
def history(as_json: AsJson = False) -> None:
    """Show every move of the champion's alias: when, who, from, to, why."""
    environment.set_process_defaults()
    from flows.cli import show_review as console_review
    from flows.commands import review

    _print(review.history(environment.verdict_home()), as_json, console_review.show_history)


@app.command()
def predict(
    sentences: Annotated[list[str], typer.Argument(metavar="SENTENCE...", help="Sentences to judge.")],
    model: Model = CHAMPION_URI,
    device: OnDevice = "auto",
    as_json: AsJson = False,
) -> None:
    """Ask the champion whether sentences are acceptable."""
    environment.set_process_defaults()
    from flows.cli import show_run as console
    from flows.commands import review

    _print(review.predict(sentences, model, device, environment.verdict_home()), as_json, console.show_predictions)


@app.command()
def score(
    path: Annotated[
        str,
        typer.Argument(metavar="IN", help="Sentences: .tsv, .csv, .jsonl, .parquet, .txt, or - for standard input."),
    ],
    out: Annotated[str, typer.Argument(metavar="OUT", help="Parquet file, or - for JSON lines on standard output.")],
    model: Model = CHAMPION_URI,
    device: OnDevice = "auto",
    columns: Annotated[str, typer.Option(help="Column of the sentences: text=NAME [sentence or text].")] = "",
    form: Annotated[
        ScoreFormat | None, typer.Option("--format", help="How IN is written [what its ending says; - is txt].")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Score a file of sentences; a run that was stopped goes on where it stopped."""
    if as_json and out == "-":
        raise UsageError("--json and output '-' both want standard output; name a Parquet file")
    from flows.cli import show_run as console
    from tasks.serving.batch_scoring import check_paths

    check_paths(path, out, columns, form or "")  # wrong usage is told before a server starts
    home = environment.usable_home()
    outcome = _run_flow("score", home, path, out, model, device, columns, form or "", home)
    _print(outcome, as_json, console.show_scores)


@app.command()
def serve(
    model: Model = CHAMPION_URI,
    host: Annotated[
        str, typer.Option(help="Address to listen on; others than loopback let anybody ask.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65_535, help="Port to listen on; 0 takes a free one.")] = 8080,
    device: OnDevice = "auto",
    refresh_seconds: Annotated[float, typer.Option(min=0.1, help="Between two looks for another champion.")] = 30.0,
    max_batch: Annotated[int, typer.Option(min=1, max=4_096, help="Sentences computed together.")] = 64,
    max_wait_ms: Annotated[float, typer.Option(min=0, max=1_000, help="That a request waits for company.")] = 2.0,
    queue: Annotated[int, typer.Option(min=1, help="Sentences that may wait; more are refused with 429.")] = 4_096,
    page: Annotated[bool, typer.Option("--page/--no-page", help="A page at / to try sentences and flag them.")] = True,
    feedback: Annotated[
        str, typer.Option(help="TSV file that its flags are written to [feedback/feedback.tsv in the stores' folder].")
    ] = "",
) -> None:
    """Answer over HTTP (JSON, Open Inference Protocol V2, a page to try it), following the champion."""
    environment.set_process_defaults()
    from tasks.serving.server import ServerConfig
    from tasks.serving.server import serve as run

    environment.show_log(quiet_prefect=False)
    serving = ServerConfig(model, host, port, device, refresh_seconds, max_batch, max_wait_ms, queue, page, feedback)
    run(serving, environment.verdict_home())


@app.command("export-triton")
def export_triton(
    folder: Annotated[str, typer.Argument(metavar="DIR", help="New folder, or one that this command wrote.")],
    model: Model = CHAMPION_URI,
    instances: Annotated[int, typer.Option(min=1, max=64, help="Of each step; the graph's are for each GPU.")] = 2,
    max_batch: Annotated[int, typer.Option(min=1, max=4_096, help="Sentences computed together.")] = 64,
    max_queue_delay_us: Annotated[
        int, typer.Option(min=0, max=1_000_000, help="Microseconds that the graph waits for company.")
    ] = 500,
    as_json: AsJson = False,
) -> None:
    """Write a model repository for NVIDIA's Triton: sentences in, label and probability out."""
    environment.set_process_defaults()
    from flows.cli import show_run as console
    from flows.commands import review
    from tasks.serving.triton import TritonTuning, check_folder, export_repository

    check_folder(folder)  # before a model is fetched
    version, bundle = review.find_model(model, environment.verdict_home())
    written = export_repository(bundle, folder, version, TritonTuning(instances, max_batch, max_queue_delay_us))
    _print(written, as_json, console.show_repository)


@app.command()
def deploy(
    file: Annotated[str, typer.Option(help="Another file of deployments [infra/prefect.yaml].")] = "",
    as_json: AsJson = False,
) -> None:
    """Put the schedules of retrain, watch and score onto a lasting Prefect server."""
    environment.set_process_defaults()
    from flows.cli import show_review as console_review
    from flows.services.deploy import deploy as apply

    _print(apply(file), as_json, console_review.show_deployments)


@app.command()
def prune(
    days: Annotated[float, typer.Option(min=0, help="Whatever is younger stays.")] = 30.0,
    keep: Annotated[int, typer.Option(min=1, help="So many of the newest stay, of each kind.")] = 5,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would go, and delete nothing.")] = False,
    as_json: AsJson = False,
) -> None:
    """Delete old jobs, snapshots, checks and rejected bundles that no alias, history or running job needs."""
    environment.set_process_defaults()
    from flows.cli import show_review as console_review
    from tasks.registry.retention import RetentionRule
    from tasks.registry.retention import prune as forget

    _print(forget(environment.verdict_home(), RetentionRule(days, keep), dry_run), as_json, console_review.show_pruned)


@app.command()
def doctor(as_json: AsJson = False) -> None:
    """Check versions, GPU, ONNX Runtime, stores and disk."""
    environment.set_process_defaults()
    from flows.cli import show_review as console_review
    from flows.commands.doctor import run_checks

    checks = run_checks(environment.verdict_home())
    _print(checks, as_json, console_review.show_checks)
    if not all(check["works"] for check in checks):
        raise typer.Exit(1)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command and exit with its code; a failure is one or two lines on standard error."""
    command = typer.main.get_command(app)
    try:
        code = command.main(
            args=list(arguments or sys.argv[1:]) or ["--help"], prog_name="verdict", standalone_mode=False
        )
    except Exception as error:
        if os.environ.get("VERDICT_DEBUG") == "1":
            raise
        code = _explain(error)
    except KeyboardInterrupt:
        print("stopped; run the same command to go on", file=sys.stderr)
        code = 130
    sys.exit(code if isinstance(code, int) else 0)


def _explain(error: Exception) -> int:
    """Print a failure and return the exit code."""
    if isinstance(error, VerdictError):
        logs.print_error(str(error))
        return error.exit_code
    # typer's usage errors know their code and carry their command; typer may bring its own copy of click.
    if hasattr(error, "format_message") and hasattr(error, "exit_code"):
        context = getattr(error, "ctx", None)
        logs.print_error(error.format_message(), f"see: {context.command_path if context else 'verdict'} --help")
        return int(error.exit_code)
    fault = "this is a fault of the program; show it whole with: verdict --debug ..."
    logs.print_error(f"{type(error).__name__}: {error}", fault)
    return 1


def _named(
    data: list[str] | None,
    train: str | None,
    holdout: str | None,
    columns: str | None,
    labels: str | None,
    encoder: str | None,
) -> dict[str, Any]:
    """Return the settings that have options of their own."""
    return {
        "data.path": data or None,
        "data.train": train,
        "data.holdout": holdout,
        "data.columns": columns,
        "data.labels": labels,
        "finetune.encoder": encoder,
    }


def _resolve(
    profile: str, settings: list[str] | None, named: dict[str, Any], device: Device | None = None
) -> "ResolvedSettings":
    """Resolve profile, environment and flags."""
    from tasks.core.settings import load_settings

    flags = dict(parse_setting(text) for text in settings or ())
    named = named | {"finetune.device": device}
    return load_settings(profile, flags | {key: value for key, value in named.items() if value is not None})


def _run_flow(name: str, home: str, *arguments: Any) -> dict[str, Any]:
    """Start a flow against the configured Prefect server, or an embedded one that starts during the imports."""
    started = time.perf_counter()
    environment.set_process_defaults()
    from flows.services.embedded_prefect import connected, prefect_api

    with prefect_api(home) as server:
        flow = getattr(importlib.import_module(f"flows.jobs.{name}"), name)
        environment.show_log(quiet_prefect=os.environ.get("VERDICT_DEBUG") != "1")
        with connected(server):
            ready = time.perf_counter()
            outcome = flow(*arguments)
    total = {"start": ready - started, **outcome["seconds"], "total": time.perf_counter() - started}
    return {**outcome, "seconds": {step: round(seconds, 2) for step, seconds in total.items()}}


def _ask_champion() -> None:
    """Let the champion answer two sentences; there may be none after a rejection."""
    from flows.cli import show_run as console
    from flows.commands import review

    try:
        console.show_predictions(
            review.predict(list(FIRST_SENTENCES), CHAMPION_URI, "auto", environment.verdict_home())
        )
    except VerdictError as error:
        print(f"no answer: {error}")
    console.show_next_commands()


def parse_setting(text: str) -> tuple[str, str]:
    """Split KEY=VALUE.

    Raises:
        WrongUsage: if there is no value.
    """
    key, separator, value = text.partition("=")
    if not separator:
        raise UsageError(f"--set {text!r} has no value; expected KEY=VALUE, for example --set finetune.epochs=3")
    return key.strip(), value.strip()


def _print(value: Any, as_json: bool, show: Callable[[Any], None], as_document: Any = None) -> None:
    if as_json:
        print(json.dumps(as_document if as_document is not None else value, indent=2, ensure_ascii=False))
    else:
        show(value)


if __name__ == "__main__":
    main()
