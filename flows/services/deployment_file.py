"""Writes the deployments file of one's own data: infra/prefect.yaml with other parameters and active schedules.

It lies in the stores' folder. Until there is one, nothing is scheduled: the bundled sample never changes.
"""

from pathlib import Path
from typing import Any, NamedTuple

import yaml

from flows.services.prefect_status import POOL, TAG
from tasks.core.files import write_text
from tasks.core.hidden_addresses import reject_secrets
from tasks.core.settings_loader import load_settings, parse_setting, profile_names
from tasks.inference.bundle import scoped

DEPLOYMENTS_FILE = "deployments.yaml"
BASE_PROFILE = "sample"  # that the values of a TOML file are added to: a worker may not have the file
PATH_SETTINGS = (
    "data.path",
    "data.train",
    "data.holdout",
    "data.text",
    "finetune.encoder",
    "finetune.teacher",
    "judge.policy",
)
TRAINING_DEPLOYMENTS = ("retrain", "watch", "sweep")


class DeploymentChoice(NamedTuple):
    """What the command was given: a profile's name or file, data and training as the form has them, more settings."""

    profile: str
    data: dict[str, Any]
    training: dict[str, Any]
    more: list[str]


def find_template() -> Path:
    """Return the path of the product's deployments file: infra/ in a checkout, beside this module when installed."""
    here = Path(__file__).parent
    checkout = here.parents[1] / "infra" / "prefect.yaml"
    return checkout if checkout.is_file() else here / "prefect.yaml"


def find_written(home: str) -> Path | None:
    """Return the path of the deployments file that an earlier command wrote."""
    path = Path(home, DEPLOYMENTS_FILE)
    return path if path.is_file() else None


def write_deployments(choice: DeploymentChoice, home: str, scheduled: bool = True) -> Path:
    """Write the deployments file of a choice and return its path.

    Args:
        choice: data and settings.
        home: folder of the stores, which receives it.
        scheduled: whether its schedules are active.

    Raises:
        UsageError: if an address has a password.
    """
    document = yaml.safe_load(find_template().read_text(encoding="utf-8"))
    parameters = _parameters(choice)
    watching = parameters.pop("watch", {})
    for deployment in document["deployments"]:
        deployment["tags"] = [TAG, deployment["name"]]
        deployment["work_pool"]["name"] = POOL
        if deployment["name"] in TRAINING_DEPLOYMENTS:
            template = deployment["parameters"]
            deployment["parameters"] = dict(parameters)
            if "watch" in template:
                deployment["parameters"]["watch"] = template["watch"] | watching
            if "vary" in template:
                deployment["parameters"]["vary"] = template["vary"]
            for schedule in deployment.get("schedules", ()):
                schedule["active"] = scheduled
        deployment["name"] = scoped(deployment["name"])
    text = "# Written by verdict deploy. Times and limits may be changed here; it is applied by: verdict deploy\n"
    text += yaml.safe_dump(document, sort_keys=False, allow_unicode=True)
    reject_secrets(text, "the deployments file")
    path = Path(home, DEPLOYMENTS_FILE)
    write_text(path, text)
    return path


def _parameters(choice: DeploymentChoice) -> dict[str, Any]:
    """Return the parameters of `retrain`: each group's settings that differ from the profile's.

    Paths on this machine are made absolute, as a worker has its own folder.
    """
    named = {f"data.{key}": value for key, value in choice.data.items() if value}
    named |= {f"finetune.{key}": value for key, value in choice.training.items() if value}
    flags = dict(parse_setting(text) for text in choice.more) | named
    for value in flags.values():
        reject_secrets(str(value), "the deployments file")
    profile = choice.profile if choice.profile in profile_names() else BASE_PROFILE
    base = {row.key: row.value for row in load_settings(profile, {}, {}).rows()}
    parameters: dict[str, Any] = {"profile": profile}
    for key, value, _ in load_settings(choice.profile, flags, {}).rows():
        if value != base[key]:
            group, _, name = key.partition(".")
            parameters.setdefault(group, {})[name] = _absolute(value) if key in PATH_SETTINGS else value
    return parameters


def _absolute(value: Any) -> Any:
    """Return the absolute path of a file or folder that exists, or of each one in a list; other values as they are."""
    if isinstance(value, list | tuple):
        return [_absolute(each) for each in value]
    is_path = isinstance(value, str) and value and Path(value).exists()
    return str(Path(value).resolve()) if is_path else value
