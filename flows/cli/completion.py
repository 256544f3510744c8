"""Completion in a shell: the script that verdict completion prints, and the values that it offers.

Typer's own script runs `verdict` at each press of the tab key, with what was typed in the environment.
"""

import os
from typing import Annotated, Literal

import typer

Shell = Literal["bash", "zsh", "fish"]
VARIABLE = "_VERDICT_COMPLETE"  # of the script; typer derives it from the program's name


def completion(shell: Annotated[Shell, typer.Argument(metavar="SHELL", help="bash, zsh or fish.")]) -> None:
    """Print a script that completes commands, options, profiles and settings in a shell."""
    from typer.completion import get_completion_script

    print(get_completion_script(prog_name="verdict", complete_var=VARIABLE, shell=shell))


def prepare() -> None:
    """Let typer answer the script, if that is what runs the command."""
    if VARIABLE in os.environ:
        from typer.completion import completion_init

        completion_init()


def complete_setting(incomplete: str) -> list[str]:
    """Return the settings that begin with a text."""
    from tasks.core.settings_loader import valid_keys

    return [key for key in valid_keys() if key.startswith(incomplete)]


def complete_assignment(incomplete: str) -> list[str]:
    """Return the settings that begin with a text, as --set takes them."""
    return [f"{key}=" for key in complete_setting(incomplete)]


def complete_profile(incomplete: str) -> list[str]:
    """Return the bundled profiles that begin with a text."""
    from tasks.core.settings_loader import profile_names

    return [name for name in profile_names() if name.startswith(incomplete)]
