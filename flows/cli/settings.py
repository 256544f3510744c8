"""Commands that write and explain settings: init, settings. They parse, call and print."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flows.cli.completion import complete_profile, complete_setting
from flows.cli.options import AsJson, print_result

if TYPE_CHECKING:
    from tasks.core.settings_description import SettingDescription


def init(
    file: Annotated[str, typer.Argument(metavar="FILE", help="New TOML file.")] = "verdict.toml",
    profile: Annotated[
        str,
        typer.Option(metavar="NAME|FILE", help="Profile whose values are set in it.", autocompletion=complete_profile),
    ] = "sample",
    as_json: AsJson = False,
) -> None:
    """Write a TOML file of settings, each with its meaning, values and default."""
    from tasks.core.settings_description import write_template

    write_template(Path(file), profile)
    print_result({"file": file, "profile": profile}, as_json, _show_written)


def settings(
    name: Annotated[
        str,
        typer.Argument(
            metavar="NAME", help="Setting, such as epochs, or group, such as gate.", autocompletion=complete_setting
        ),
    ] = "",
    as_json: AsJson = False,
) -> None:
    """Explain a setting, a group of them, or all."""
    from tasks.core.settings_description import describe_settings, find_settings, profile_values

    found = find_settings(name) if name else describe_settings()
    profiles = {each.key: profile_values(each.key) for each in found} if len(found) == 1 else {}
    document = [each._asdict() | {"profiles": profiles[each.key]} if profiles else each._asdict() for each in found]
    print_result(found, as_json, lambda rows: _show_settings(rows, profiles), document)


def _show_written(outcome: dict[str, str]) -> None:
    from flows.cli.show_run import new_console
    from flows.cli.terminal import escape

    file = escape(outcome["file"])
    new_console().print(f"written  {file}, with the values of profile {escape(outcome['profile'])}")
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
