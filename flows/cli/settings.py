"""Commands that write and explain settings: init, settings. They parse, call and print."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flows.cli.completion import complete_setting
from flows.cli.options import AsJson, DataOptions, TrainingDevice, print_result, with_option_groups

if TYPE_CHECKING:
    from tasks.core.settings_description import SettingDescription


@with_option_groups
def init(
    options: DataOptions,
    file: Annotated[str, typer.Argument(metavar="FILE", help="New TOML file.")] = "verdict.toml",
    device: TrainingDevice = None,
    as_json: AsJson = False,
) -> None:
    """Write a TOML file of all settings, each with its meaning, values and default; options set values in it."""
    from tasks.core.settings_description import write_template

    resolved = options.resolve(device)
    write_template(Path(file), resolved, options.profile)
    chosen = sorted(key for key, origin in resolved.origins.items() if not origin.startswith("profile "))
    print_result({"file": file, "profile": options.profile, "set": chosen}, as_json, _show_written)


def settings(
    name: Annotated[
        str | None,
        typer.Argument(
            metavar="NAME", help="Setting, such as epochs, or group, such as gate.", autocompletion=complete_setting
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Explain a setting, a group of them, or all."""
    from tasks.core.settings_description import describe_settings, find_settings, profile_values

    found = describe_settings() if name is None else find_settings(name)
    profiles = {each.key: profile_values(each.key) for each in found} if len(found) == 1 else {}
    document = [each._asdict() | {"profiles": profiles[each.key]} if profiles else each._asdict() for each in found]
    print_result(found, as_json, lambda rows: _show_settings(rows, profiles), document)


def _show_written(outcome: dict[str, Any]) -> None:
    from flows.cli.show_run import new_console
    from flows.cli.terminal import escape

    file = escape(outcome["file"])
    more = f", and {', '.join(outcome['set'])}" if outcome["set"] else ""
    new_console().print(f"written  {file}, with the values of profile {escape(outcome['profile'])}{more}")
    new_console().print(f"next     verdict retrain --profile {file} --dry-run")


def _show_settings(rows: "list[SettingDescription]", profiles: dict[str, dict[str, Any]]) -> None:
    """Print each setting with default and values above its meaning; of a single one also how it is set."""
    from flows.cli.show_run import new_console
    from flows.cli.terminal import escape
    from tasks.core.settings_description import toml_value, variable_of

    console = new_console()
    for each in rows:
        console.print(f"[bold]{each.key}[/] = {escape(toml_value(each.default))}  ({escape(each.values)})")
        console.print(f"    {escape(each.meaning)}")
        for profile, value in profiles.get(each.key, {}).items():
            console.print(f"    profile {profile}: {escape(toml_value(value))}")
    if len(rows) == 1:
        key, default = rows[0].key, escape(toml_value(rows[0].default))
        group, _, name = key.partition(".")
        console.print(f"    set it: --set {key}=VALUE, {variable_of(key)}=VALUE, or in a TOML file for --profile:")
        console.print(f"        {escape(f'[{group}]')}")
        console.print(f"        {name} = {default}")
