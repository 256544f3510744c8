"""Resolves the settings of a run from three layers, and remembers which layer set each value.

The layers, each overriding the one before: a profile (tasks/core/profiles/*.toml, or any TOML file), the environment
(VERDICT_FINETUNE__EPOCHS=3), flags (--set finetune.epochs=3).
"""

import os
import shlex
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import ValidationError
from pydantic_settings import EnvSettingsSource

from tasks.core.errors import UsageError
from tasks.core.policy import POLICY_FILE, Policy
from tasks.core.printable import quote
from tasks.core.refusals import describe_refusal, suggest
from tasks.core.settings import ENV_PREFIX, Settings
from tasks.core.toml_file import read_toml

# Variables with our prefix that are no settings: paths, names and addresses, which are never recorded.
NON_SETTING_VARIABLES = {
    "VERDICT_HOME",
    "VERDICT_MODEL_NAME",
    "VERDICT_DEBUG",
    "VERDICT_LOG",
    "VERDICT_ACTOR",
    "VERDICT_SIGNING_KEY",
    "VERDICT_TRUSTED_KEYS",
    "VERDICT_REQUIRE_SIGNATURE",
    "VERDICT_ALERT_URL",
    "VERDICT_ALERT_BLOCK",
}


class SettingRow(NamedTuple):
    """One setting with the layer that set it."""

    key: str
    """Dotted, such as finetune.epochs."""
    value: Any
    origin: str
    """default, profile NAME, environment, flag, or the policy file."""


class ResolvedSettings(NamedTuple):
    """Settings and, for each dotted key, the layer that set it."""

    settings: Settings
    origins: dict[str, str]

    def rows(self) -> list[SettingRow]:
        """Return a row of every setting, in the order of the schema."""
        values = _flatten(self.settings.model_dump())
        policy = dict.fromkeys(
            (f"judge.{key}" for key in Policy.model_fields), self.settings.judge.policy or POLICY_FILE
        )
        return [SettingRow(key, value, (policy | self.origins).get(key, "default")) for key, value in values.items()]


def load_settings(
    profile: str, flags: Mapping[str, Any] | None = None, environ: Mapping[str, str] | None = None
) -> ResolvedSettings:
    """Resolve profile < environment < flags.

    Args:
        profile: name of a bundled profile or path of a TOML file.
        flags: dotted key to value, as given on the command line.
        environ: environment to read; the process's own when None.

    Raises:
        UsageError: for an unknown profile, an unknown key (the message names the nearest valid one), or a value out of
            bounds.
    """
    layers = {
        f"profile {profile}": _read_profile(profile),
        "environment": _read_environment(os.environ if environ is None else environ),
        "flag": dict(flags or {}),
    }
    merged: dict[str, Any] = {}
    origins: dict[str, str] = {}
    for origin, values in layers.items():
        for key, value in values.items():
            _reject_unknown(key, origin)
            merged[key], origins[key] = value, origin
    try:
        settings = Settings.model_validate(_nest(merged))
    except ValidationError as error:
        raise UsageError(_explain(error, origins)) from error
    return ResolvedSettings(settings, origins)


def parse_setting(text: str) -> tuple[str, str]:
    """Split KEY=VALUE.

    Raises:
        UsageError: if there is no value.
    """
    key, separator, value = text.partition("=")
    if not separator:
        raise UsageError(f"--set {text!r} has no value; expected KEY=VALUE, for example --set finetune.epochs=3")
    return key.strip(), value.strip()


def profile_names() -> list[str]:
    """Return the names of the bundled profiles."""
    folder = resources.files("tasks.core") / "profiles"
    return sorted(item.name.removesuffix(".toml") for item in folder.iterdir() if item.name.endswith(".toml"))


def valid_keys() -> list[str]:
    """Return every dotted key."""
    return list(_flatten(Settings.model_construct().model_dump()))


def _read_profile(profile: str) -> dict[str, Any]:
    bundled = resources.files("tasks.core") / "profiles" / f"{profile}.toml"
    source = bundled if profile in profile_names() else Path(profile)
    known = ", ".join(profile_names())
    expected = f"expected one of {known}, or a TOML file of settings: verdict init FILE"
    try:
        return _flatten(read_toml(source, f"profile {profile}"))
    except OSError as error:
        fault = _describe_missing(profile, error)
        raise UsageError(f"profile {quote(profile)} {fault}; {suggest(profile, profile_names())}{expected}") from error
    except UsageError as error:
        if Path(profile).suffix.lower() == ".toml":
            raise
        raise UsageError(f"{error}; {expected}; data is named by --data {shlex.quote(profile)}") from error


def _describe_missing(profile: str, error: OSError) -> str:
    """Return why a profile cannot be read: a name without an ending is not meant as a file."""
    path = Path(profile)
    if not profile or isinstance(error, FileNotFoundError):
        return "does not exist" if path.name != profile or path.suffix else "is unknown"
    return "is a folder" if path.is_dir() else f"cannot be read ({error.strerror})"


def _read_environment(environ: Mapping[str, str]) -> dict[str, Any]:
    source = EnvSettingsSource(Settings)
    wanted = {
        name.lower(): value
        for name, value in environ.items()
        if name.startswith(ENV_PREFIX) and name not in NON_SETTING_VARIABLES
    }
    for name in wanted:
        _reject_unknown(name.removeprefix(ENV_PREFIX.lower()).replace("__", "."), "environment")
    source.env_vars = wanted
    return _flatten(source())


def _reject_unknown(key: str, origin: str) -> None:
    keys = valid_keys()
    if key in keys:
        return
    if inside := [known for known in keys if known.startswith(f"{key}.")]:
        raise UsageError(
            f"setting {quote(key)} ({origin}) is a group of settings; expected one of its own, such as {inside[0]}: "
            f"verdict settings {key}"
        )
    same = [known for known in keys if known.endswith(f".{key}")]  # given without its group
    nearest = f"did you mean {same[0]!r}? " if same else suggest(key, keys)
    raise UsageError(f"setting {quote(key)} ({origin}) is unknown; {nearest}all of them: verdict settings")


def _explain(error: ValidationError, origins: Mapping[str, str]) -> str:
    """Return one line that names the value, the layer that set it and what was expected."""
    first = error.errors()[0]
    key = ".".join(str(part) for part in first["loc"][:2])  # further parts are an index into a list
    reason = describe_refusal(first)
    if key not in origins:  # a contradiction between keys names them itself
        return f"settings contradict each other: {reason}"
    value = quote(first["input"])
    return f"setting {key} = {value} ({origins[key]}) is refused: {reason}"


def _flatten(nested: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in nested.items():
        name = f"{prefix}{key}"
        flat |= _flatten(value, f"{name}.") if isinstance(value, Mapping) else {name: value}
    return flat


def _nest(flat: Mapping[str, Any]) -> dict[str, Any]:
    nested: dict[str, Any] = {}
    for dotted, value in flat.items():
        group, _, key = dotted.partition(".")
        nested.setdefault(group, {})[key] = value
    return nested
