"""The forms that Prefect's page shows for the settings of a deployment, made from the schema of the settings.

A form has every setting of a group with its meaning and bounds. All fields are empty at first: an empty one keeps the
value of the profile, or of the worker's environment.
"""

from typing import Annotated, Any

from pydantic import ConfigDict, Field, create_model

from tasks.core.settings_description import describe_settings, settings_groups

FORM_GROUPS = ("data", "gate", "finetune", "export", "judge", "watch")
TEXTS = {"data.columns", "data.labels"}  # written as NAME=VALUE,NAME=VALUE, as on the command line
LISTS = {"data.path"}  # as it was entered: the setting's own type would hide the secret that is to be refused


def make_form(group: str) -> Any:
    """Return the form of a group of settings, a pydantic model."""
    meanings = {each.key: each.meaning for each in describe_settings()}
    fields: dict[str, Any] = {}
    for name, field in settings_groups()[group].model_fields.items():
        key, kind = f"{group}.{name}", field.annotation
        if key in TEXTS or kind is str:
            fields[name] = (str, Field(default="", description=meanings[key]))
        elif key in LISTS:
            fields[name] = (list[str], Field(default=[], description=meanings[key]))
        else:
            bounded: Any = Annotated[kind, *field.metadata] if field.metadata else kind
            fields[name] = (bounded | None, Field(default=None, description=meanings[key]))
    return create_model(f"{group.capitalize()}Fields", __config__=ConfigDict(extra="forbid"), **fields)


class DataForm(make_form("data")):  # type: ignore[misc]
    """Where sentences come from and how they are split."""


class GateForm(make_form("gate")):  # type: ignore[misc]
    """Limits of the data gate."""


class FinetuneForm(make_form("finetune")):  # type: ignore[misc]
    """The training recipe."""


class ExportForm(make_form("export")):  # type: ignore[misc]
    """What the bundle states besides the graphs."""


class JudgeForm(make_form("judge")):  # type: ignore[misc]
    """The promotion policy and how it is applied."""


class WatchForm(make_form("watch")):  # type: ignore[misc]
    """What a check of the data and of what was served may start."""
