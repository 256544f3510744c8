"""The command that pushes a model to the Hugging Face hub."""

from typing import Annotated, Any

import typer

from flows import environment
from flows.cli.options import AsJson, Model, print_result
from tasks.inference.bundle import CHAMPION_URI


def export_hub(
    repository: Annotated[str, typer.Argument(metavar="ORG/NAME", help="Repository; it is created if it is missing.")],
    model: Model = CHAMPION_URI,
    public: Annotated[
        bool, typer.Option("--public", help="Create it for everybody to read; without this, for its owners alone.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Push a model's bundle with its card to the Hugging Face hub (HF_TOKEN, HF_ENDPOINT)."""
    environment.set_process_defaults()
    environment.show_log()
    from flows.commands import export_hub

    print_result(export_hub.export_hub(repository, model, public, environment.verdict_home()), as_json, _show)


def _show(pushed: dict[str, Any]) -> None:
    """Print what was pushed, who may read it, and the command that uses it."""
    from flows.cli.terminal import ResultConsole, escape

    console, kind = ResultConsole(), "private" if pushed["private"] else "public"
    done = "unchanged   the same files are in" if pushed["unchanged"] else "pushed     "
    console.print(f"{done} {escape(pushed['repository'])} ({kind}), commit {pushed['commit'][:12]}")
    console.print(f"version     {escape(pushed['version'])}")
    console.print(f"page        {escape(pushed['page'])}")
    console.print(f'next        verdict predict "Who did you say that left?" --model {escape(pushed["address"])}')
