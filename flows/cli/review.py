"""Commands that look after models and stores: judge, status, compare, approve, ... They parse, call and print."""

from typing import TYPE_CHECKING, Annotated

import typer

from flows import environment
from flows.cli.options import AsJson, DataOptions, OnDevice, Reason, VersionNumber, print_result, with_option_groups
from flows.cli.run import refuse_unusable_files
from tasks.core.errors import NoChampion, UsageError
from tasks.core.printable import escape_controls
from tasks.inference.bundle import CHAMPION_URI, DEFAULT_MODEL_NAME, MODEL_NAME

if TYPE_CHECKING:
    from flows.services.deployment_file import DeploymentChoice


def judge(
    evidence: Annotated[str, typer.Argument(metavar="EVIDENCE.json", help="runs/JOB/evidence.json of a run.")],
    policy: Annotated[str, typer.Option(help="TOML file of another policy [the one in the evidence].")] = "",
    as_json: AsJson = False,
) -> None:
    """Judge recorded evidence again; exit code 1 if figures or verdict differ from the recorded ones."""
    from flows.cli import show_review
    from tasks.evaluation.rejudge import rejudge

    outcome = rejudge(evidence, policy)
    print_result(outcome, as_json, show_review.show_rejudge)
    if outcome["contradictions"]:
        raise typer.Exit(1)


def status(as_json: AsJson = False) -> None:
    """Show champion, challenger, the latest runs and how they ended, the next runs, drift and disk."""
    environment.set_process_defaults()
    from flows.cli import show_review
    from flows.commands import status

    found = status.status(environment.verdict_home())
    print_result(found, as_json, show_review.show_status)
    if found["unreachable"]:
        raise typer.Exit(1)
    _reject_new_store()


def report(
    version: Annotated[
        str, typer.Argument(metavar="VERSION", help="Version number, or a bundle's folder [the champion].")
    ] = CHAMPION_URI,
    open_it: Annotated[bool, typer.Option("--open", help="Open it in a browser.")] = False,
    as_json: AsJson = False,
) -> None:
    """Print where a version's report is: one HTML file that needs no network."""
    environment.set_process_defaults()
    environment.show_log()
    from flows.commands.report import find_report, open_in_browser

    found = find_report(version, environment.verdict_home())
    print_result(found, as_json, lambda report: print(escape_controls(report["report"])))
    if open_it:
        open_in_browser(found["report"])


def compare(
    first: Annotated[str, typer.Argument(metavar="A", help="Version number.")],
    second: Annotated[str | None, typer.Argument(metavar="B", help="Another version number [the champion].")] = None,
    device: OnDevice = "auto",
    as_json: AsJson = False,
) -> None:
    """Compare two versions on the same holdout sentences; without B with the champion."""
    environment.set_process_defaults()
    from flows.cli import show_review
    from flows.commands.predict import check_model
    from tasks.registry.store import check_version_numbers

    check_version_numbers(first, second or first)
    if second is None:
        try:
            check_model(CHAMPION_URI, environment.verdict_home())  # before libraries are imported
        except NoChampion as error:
            raise NoChampion(f"{error}; or name a second version: verdict compare {first} B") from error
    from flows.commands import compare

    outcome = compare.compare(first, second, device, environment.verdict_home())
    print_result(outcome, as_json, show_review.show_comparison)


def approve(version: VersionNumber, reason: Reason, as_json: AsJson = False) -> None:
    """Make a version on HOLD the champion."""
    environment.set_process_defaults()
    from flows.cli import show_review
    from flows.commands import review

    environment.show_log()
    change = review.approve(version, reason, environment.verdict_home())
    print_result(change, as_json, show_review.show_change)


def reject(version: VersionNumber, reason: Reason, as_json: AsJson = False) -> None:
    """Reject a version on HOLD."""
    environment.set_process_defaults()
    from flows.cli import show_review
    from flows.commands import review

    environment.show_log()
    change = review.reject(version, reason, environment.verdict_home())
    print_result(change, as_json, show_review.show_change)


def rollback(
    reason: Reason,
    to: Annotated[
        str | None, typer.Option(metavar="VERSION", help="An earlier champion [the one before the current one].")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check everything and change nothing.")] = False,
    as_json: AsJson = False,
) -> None:
    """Move the champion alias back to the previous champion."""
    environment.set_process_defaults()
    from flows.cli import show_review
    from tasks.registry.store import check_version_numbers

    check_version_numbers(*([to] if to else []))
    _reject_new_store()  # before MLflow is imported
    from flows.commands import review

    environment.show_log()
    change = review.rollback(to, reason, dry_run, environment.verdict_home())
    print_result(change, as_json, show_review.show_change)


def history(as_json: AsJson = False) -> None:
    """Show every change of the champion alias: when, who, from, to, why."""
    environment.set_process_defaults()
    from flows.cli import show_review
    from flows.commands import review

    print_result(review.history(environment.verdict_home()), as_json, show_review.show_history)
    _reject_new_store()


def verify(
    target: Annotated[
        str, typer.Argument(metavar="VERSION|DIR", help="Version number, bundle's folder, or hf:ORG/NAME.")
    ],
    copy_to: Annotated[
        str, typer.Option(metavar="DIR", help="New folder for a copy of what was checked: load that one.")
    ] = "",
    as_json: AsJson = False,
) -> None:
    """Check the files of a version without running any: whose they are, who signed what, what nothing covers."""
    environment.set_process_defaults()
    environment.show_log()
    from flows.cli import show_review
    from flows.commands import verify

    outcome = verify.verify(target, copy_to, environment.verdict_home())
    print_result(outcome, as_json, show_review.show_verified)


@with_option_groups
def deploy(
    options: DataOptions,
    file: Annotated[str, typer.Option(help="Another file of deployments, instead of these options.")] = "",
    as_json: AsJson = False,
) -> None:
    """Put the deployments retrain, watch, sweep and score on a Prefect server, scheduled for the data that is named."""
    environment.set_process_defaults()
    from flows.cli import show_review
    from flows.services.embedded_prefect import external_api

    if file and options != DataOptions():
        raise UsageError("--file holds data and settings itself; expected it or --data, --profile, --set ..., not both")
    settings = options.resolve().settings
    refuse_unusable_files(settings.data)
    external_api()  # one of another form fails the imports
    from flows.jobs.deployments import check_file
    from flows.services import deploy, deployment_file
    from tasks.core.settings import DataSettings

    deploy.configured_server()
    home = environment.usable_home()
    file = file or str(deployment_file.find_written(home) or "")
    if options != DataOptions() or (not file and MODEL_NAME != DEFAULT_MODEL_NAME):
        own_data = settings.data.path != DataSettings().path
        file = str(deployment_file.write_deployments(_chosen(options), home, scheduled=own_data))
    print_result(deploy.deploy(file, check_file), as_json, show_review.show_deployments)


def _chosen(options: DataOptions) -> "DeploymentChoice":
    """Return the options as the form of a deployment has them."""
    from flows.services.deployment_file import DeploymentChoice

    names = ("train", "holdout", "columns", "labels")
    data = {"path": options.data, **{name: getattr(options, name) for name in names}}
    return DeploymentChoice(options.profile, data, {"encoder": options.encoder}, options.settings or [])


def prune(
    days: Annotated[float, typer.Option(min=0, help="Keep whatever is younger than this.")] = 30.0,
    keep: Annotated[int, typer.Option(min=1, help="Keep this many of the newest of each kind.")] = 5,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List what would be deleted, and delete nothing.")] = False,
    as_json: AsJson = False,
) -> None:
    """Delete old jobs, sweeps, snapshots, checks and rejected bundles that no alias, history or running job needs."""
    environment.set_process_defaults()
    from flows.cli import show_review
    from flows.jobs.dead_runs import close_dead_runs
    from flows.services.server_watch import reach_store
    from tasks.registry import retention

    home = environment.own_home()
    store = reach_store(home)
    if not dry_run:
        close_dead_runs(store, home)
    outcome = retention.prune(home, retention.RetentionRule(days, keep), dry_run)
    print_result(outcome, as_json, show_review.show_pruned)
    if not outcome["items"]:
        _reject_new_store()


def doctor(
    encoder: Annotated[
        str | None,
        typer.Option(help="Folder or hub id of an encoder, or packaged: train a step and export it untrained."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Check library versions, GPU, ONNX Runtime, encoder, stores, Prefect and disk; exit code 1 if a check fails."""
    environment.set_process_defaults()
    from flows.cli import show_review
    from flows.commands import doctor

    checks = doctor.run_checks(environment.verdict_home(), encoder)
    print_result(checks, as_json, show_review.show_checks)
    if not all(check["works"] for check in checks):
        raise typer.Exit(1)


def _reject_new_store() -> None:
    """Raise VerdictError where no run ever wrote to the stores: this may be the wrong folder."""
    from tasks.registry.store import check_initialised, locate_store

    check_initialised(locate_store(environment.verdict_home()))
