"""Commands that look after the stores' folder as a whole: backup, restore, upgrade. They parse, call and print."""

from typing import Annotated, Any

import typer

from flows import environment
from flows.cli.options import AsJson, print_result
from tasks.core.printable import counted


def backup(
    target: Annotated[str, typer.Argument(metavar="FILE|DIR", help="New archive (.tar, .tar.gz) or folder.")],
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="List what would be backed up, and write nothing.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Copy the stores to a file or folder, with digests; other commands may run meanwhile."""
    environment.set_process_defaults()
    from flows.commands import backup

    print_result(backup.backup(target, dry_run, environment.own_home()), as_json, _show_backup)


def restore(
    source: Annotated[str, typer.Argument(metavar="FILE|DIR", help="What verdict backup wrote.")],
    replace: Annotated[bool, typer.Option("--replace", help="Replace stores; the old folder is kept beside.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check the backup and list it; change nothing.")] = False,
    as_json: AsJson = False,
) -> None:
    """Check a backup, and make it the stores' folder."""
    environment.set_process_defaults()
    from flows.commands import backup

    print_result(backup.restore(source, replace, dry_run, environment.own_home()), as_json, _show_restored)


def upgrade(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would change, and change nothing.")] = False,
    as_json: AsJson = False,
) -> None:
    """Bring MLflow's database to the schema of the installed version, after a copy of it."""
    environment.set_process_defaults()
    from flows.commands import backup

    outcome = backup.upgrade(True, environment.verdict_home())
    if outcome["changes"] and not as_json:  # said before it is done
        _show_changes(outcome)
    if not dry_run:
        outcome = backup.upgrade(False, environment.verdict_home())
    print_result(outcome, as_json, _show_upgraded)


def _show_backup(outcome: dict[str, Any]) -> None:
    if outcome["dry_run"]:
        print(*outcome["files"], sep="\n")
    verb = "would be written to" if outcome["dry_run"] else "written to"
    print(f"{counted(len(outcome['files']), 'file')}, {outcome['megabytes']:.1f} MB, {verb} {outcome['target']}")
    for notice in outcome["notices"]:
        print(f"not in it: {notice}")


def _show_restored(outcome: dict[str, Any]) -> None:
    if outcome["dry_run"]:
        print(*outcome["files"], sep="\n")
    verb = "are sound; nothing was changed" if outcome["dry_run"] else f"restored to {outcome['home']}"
    print(f"{counted(len(outcome['files']), 'file')} of {outcome['time']} {verb}")
    if outcome["aside"]:
        print(f"the old stores are in {outcome['aside']}")


def _show_changes(outcome: dict[str, Any]) -> None:
    print(f"{outcome['database']}: {counted(len(outcome['changes']), 'change')} of MLflow's schema")
    for change in outcome["changes"]:
        print(f"  {change['revision']}  {change['meaning']}")


def _show_upgraded(outcome: dict[str, Any]) -> None:
    if not outcome["changes"]:
        print(f"{outcome['database']} is current; Prefect's database is upgraded by its server")
    elif outcome["dry_run"]:
        print("nothing was changed")
    else:
        print(f"done; the database as it was is {outcome['backup']}")
