"""Says what is wrong with a model's config.json by key, value and expectation, of which libraries mostly name one."""

import difflib
import json
import re
from pathlib import Path
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from transformers import CONFIG_MAPPING, PreTrainedConfig
from transformers.activations import ACT2FN

from tasks.core.errors import UsageError, first_line, summarise_error

SIZES = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")  # that have to be at least 1
CLAIMS = ("model_type", "num_hidden_layers", "hidden_size", "intermediate_size", "vocab_size")  # worth quoting
OTHER_COMMAND = "correct it, or name another encoder: --encoder DIR|HUB_ID"


def explain(folder: str, error: BaseException) -> str:
    """Return in one line why a model or its configuration cannot be loaded, and what was expected.

    Args:
        folder: of the model.
        error: what transformers raised.
    """
    fields = _read_fields(folder)
    kind = fields.get("model_type")
    if not isinstance(kind, str) or kind not in CONFIG_MAPPING:
        found = f'model_type = "{kind}", which transformers does not know' if kind else "no model_type"
        similar = difflib.get_close_matches(str(kind), list(CONFIG_MAPPING), 1)
        return f'config.json has {found}; expected a name such as "{(similar or ["bert"])[0]}": {OTHER_COMMAND}'
    reason = first_line(error)
    if reason.startswith("Unrecognized configuration class"):
        return (
            f'config.json has model_type = "{kind}", for which transformers has no classifier of sentences; expected '
            "another encoder: --encoder DIR|HUB_ID"
        )
    if isinstance(error, StrictDataclassError):
        reason = str(error).splitlines()[-1].strip()[:500]
        if match := re.search(r"Field '(\w+)' expected (\w+), got", reason):
            return f"config.json has {_quote(fields, match[1])}; expected {match[2]}: {OTHER_COMMAND}"
    elif isinstance(error, KeyError):
        reason = summarise_error(error)
    named = _fields_in(reason, fields)
    if not named:
        return f"{reason}; expected --encoder DIR|HUB_ID"
    quoted = ", ".join(_quote(fields, key) for key in named)
    if isinstance(error, KeyError):
        known = f"one of {', '.join(sorted(ACT2FN))}" if "act" in named[0] else "a name that transformers knows"
        return f"config.json has {quoted}; expected {known}: {OTHER_COMMAND}"
    return f"{reason}; config.json has {quoted}; {OTHER_COMMAND}"


def refuse_sizes(name: str, config: PreTrainedConfig) -> None:
    """Raise UsageError if a size of a configuration is below 1."""
    for key in SIZES:
        value = getattr(config, key, None)
        if isinstance(value, int) and value < 1:
            own = config.attribute_map.get(key, key)
            raise UsageError(
                f"config.json of encoder {name!r} has {own} = {value}; expected at least 1: {OTHER_COMMAND}"
            )


def refuse_decoder(name: str, config: PreTrainedConfig) -> None:
    """Raise UsageError if a configuration makes an encoder a decoder: each token would see only those before it."""
    if getattr(config, "is_decoder", False):
        raise UsageError(f"config.json of encoder {name!r} has is_decoder = true; expected false: {OTHER_COMMAND}")


def describe_claims(config: PreTrainedConfig) -> str:
    """Return the main fields of a configuration."""
    return ", ".join(f"{key} = {value!r}" for key in CLAIMS if (value := getattr(config, key, None)) is not None)


def _read_fields(folder: str) -> dict[str, Any]:
    try:
        fields = json.loads((Path(folder) / "config.json").read_bytes())
    except (OSError, ValueError):
        return {}
    return fields if isinstance(fields, dict) else {}


def _fields_in(message: str, fields: dict[str, Any]) -> list[str]:
    """Return the fields whose values a message names; 0 and 1 may stand for anything."""
    words = set(re.findall(r"[\w.+-]*\w", message)) - {"0", "1"}
    return [key for key, value in fields.items() if type(value) in (str, int, float) and str(value) in words]


def _quote(fields: dict[str, Any], key: str) -> str:
    return f"{key} = {json.dumps(fields.get(key))[:100]}"
