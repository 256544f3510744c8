"""Fills the templates of the HTML pages and of the card."""

import base64
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

TEMPLATES = Path(__file__).with_name("templates")


def render(template: str, folder: Path = TEMPLATES, **content: Any) -> str:
    """Fill a template; a name that it needs and does not get is an error.

    Sentences, sources and file names are other people's text: in HTML everything is escaped, and a character that does
    not print is shown as its escape.

    Args:
        template: file name; what ends in .html.j2 is HTML.
        folder: of the template and of those that it includes; the reports' own by default.
        content: values by the names that the template uses.

    Raises:
        UndefinedError: if a name is missing.
    """
    html = template.endswith(".html.j2")
    environment = Environment(
        loader=FileSystemLoader(folder),
        autoescape=html,
        finalize=_show if html else None,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return environment.get_template(template).render(**content)


def data_uri(png: bytes) -> str:
    """Return a picture as an address that holds it, so that a page is one file."""
    return "data:image/png;base64," + base64.b64encode(png).decode()


def visible(text: str) -> str:
    r"""Replace characters that do not print by their escapes: backspace becomes \x08, a lone surrogate \udcff."""
    if text.isprintable():
        return text
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in text)


def _show(value: Any) -> Any:
    # What a macro of the template has put together is markup (__html__); its parts came through here already.
    return visible(value) if isinstance(value, str) and not hasattr(value, "__html__") else value
