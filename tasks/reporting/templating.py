"""Renders the Jinja templates of the HTML pages and the model card."""

import functools
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from tasks.core.printable import counted, escape_controls

TEMPLATES = Path(__file__).with_name("templates")


def render(template: str, folder: Path = TEMPLATES, **content: Any) -> str:
    r"""Render a template.

    Sentences, sources and file names are untrusted text: in HTML everything is escaped, and control characters are
    replaced by escapes such as \x08.

    Args:
        template: file name; HTML if it ends in .html.j2.
        folder: of the template and its includes.
        content: values by the names that the template uses.

    Raises:
        UndefinedError: if a name is missing.
    """
    environment = _make_environment(folder, html=template.endswith(".html.j2"))
    return environment.get_template(template).render(**content)


@functools.cache  # an environment keeps the templates that it compiled
def _make_environment(folder: Path, html: bool) -> Environment:
    environment = Environment(
        loader=FileSystemLoader(folder),
        autoescape=html,
        finalize=_show if html else None,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.globals["counted"] = counted
    return environment


def _show(value: Any) -> Any:
    # The output of a macro is Markup (__html__), whose parts were escaped when the macro was rendered.
    return escape_controls(value, keep="") if isinstance(value, str) and not hasattr(value, "__html__") else value
