"""Says in our words why a schema refuses a value, and which known name an unknown one may stand for."""

import difflib
from collections.abc import Iterable, Mapping
from typing import Any

from tasks.core.printable import MAX_QUOTED

# What was expected, by pydantic's name of the fault; the names in braces are those of its context.
FAULT_WORDS = {
    **dict.fromkeys(("int_parsing", "int_type", "int_from_float", "int_parsing_size"), "a whole number"),
    **dict.fromkeys(("float_parsing", "float_type"), "a number"),
    "finite_number": "a finite number",
    **dict.fromkeys(("bool_parsing", "bool_type"), "true or false"),
    "string_type": "text",
    **dict.fromkeys(("tuple_type", "list_type"), "text, or a list of texts"),
    **dict.fromkeys(("dict_type", "model_type"), "a table of settings"),
    "greater_than_equal": "at least {ge}",
    "greater_than": "more than {gt}",
    "less_than_equal": "at most {le}",
    "less_than": "less than {lt}",
    "literal_error": "{expected}",
}


def describe_refusal(fault: Mapping[str, Any]) -> str:
    """Return what was expected of a value.

    Args:
        fault: one of the `errors()` of pydantic's ValidationError.
    """
    if words := FAULT_WORDS.get(fault["type"]):
        bounds = {
            name: f"{value:g}" if isinstance(value, float) else value for name, value in fault.get("ctx", {}).items()
        }
        return f"expected {words.format(**bounds)}"
    reason: str = fault["msg"].removeprefix("Value error, ")
    return f"{reason[0].lower()}{reason[1:]}"


def suggest(name: str, known: Iterable[str]) -> str:
    """Return a question for the known name that is like another one; empty where none is."""
    close = difflib.get_close_matches(name[:MAX_QUOTED], list(known), n=1)
    return f"did you mean {close[0]!r}? " if close else ""
