"""The policy is complete, its keys are checked by name, and it is the lowest layer of the settings."""

import tomllib
from pathlib import Path

import pytest

from tasks.core.errors import UsageError
from tasks.core.policy import Policy, bundled_path, load_policy, parse_policy
from tasks.core.settings import Settings
from tasks.core.settings_loader import load_settings

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "mlflow" / "policy.toml").read_text(encoding="utf-8")


def write(folder: Path, old: str, new: str) -> str:
    assert old in TEXT
    path = folder / "mine.toml"
    path.write_text(TEXT.replace(old, new), encoding="utf-8")
    return str(path)


def test_the_bundled_policy_lies_under_mlflow_and_is_the_one_that_is_read() -> None:
    assert bundled_path() == ROOT / "mlflow" / "policy.toml"
    assert load_policy().model_dump() == tomllib.loads(TEXT)


def test_every_number_has_its_reason_above_it() -> None:
    lines = TEXT.splitlines()
    keys = [number for number, line in enumerate(lines) if " = " in line and not line.startswith("#")]
    assert [lines[number].split(" = ")[0] for number in keys] == list(Policy.model_fields)
    for number in keys[1:]:
        while lines[number - 1] and not lines[number - 1].startswith("#"):
            number -= 1  # two numbers may share a reason
        assert lines[number - 1].startswith("#"), lines[number]


def test_the_wheel_contains_the_policy() -> None:
    build = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]
    assert build["wheel"]["force-include"]["mlflow/policy.toml"] == "tasks/core/policy.toml"
    assert "mlflow/policy.toml" in build["sdist"]["include"]


def test_the_digest_depends_on_the_numbers() -> None:
    policy = load_policy()
    assert policy.digest == parse_policy(policy.model_dump(), "x").digest
    assert policy.model_copy(update={"alpha_decay": 2.0}).digest != policy.digest


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("confidence = 0.98", "confidense = 0.98", "key 'confidense' is unknown; did you mean 'confidence'?"),
        ("alpha_decay = 1.5\n", "", "lacks alpha_decay; take it from mlflow/policy.toml"),
        (
            "alpha_decay = 1.5",
            "alpha_decay = -1",
            "alpha_decay = -1 is refused: expected at least 0",
        ),
        ("confidence = 0.98", "confidence = 1.0", "confidence = 1.0 is refused: expected less than 1"),
        ("threshold = 0.454", "threshold = nan", "threshold = nan is refused: expected"),
        ('version = "2"', 'version = ""', "version = '' is refused"),
        ("alpha_decay = 1.5", "alpha_decay =", "is not valid TOML"),
    ],
)
def test_an_invalid_policy_is_refused_in_one_line(tmp_path: Path, old: str, new: str, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        load_policy(write(tmp_path, old, new))
    assert message in str(caught.value)
    assert "mine.toml" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_refused() -> None:
    with pytest.raises(UsageError, match=r"policy nowhere\.toml cannot be read"):
        load_policy("nowhere.toml")


def test_settings_override_single_numbers_and_remember_their_origin(tmp_path: Path) -> None:
    path = write(tmp_path, "alpha_decay = 1.5", "alpha_decay = 2.0")
    environ = {"VERDICT_JUDGE__POLICY": path, "VERDICT_JUDGE__MAX_HOLDOUT_USES": "7"}
    resolved = load_settings("sample", {"judge.confidence": "0.99"}, environ)
    policy = resolved.settings.judge.chosen_policy()
    assert (policy.threshold, policy.alpha_decay, policy.max_holdout_uses, policy.confidence) == (0.4, 2.0, 7, 0.99)
    origins = {key: origin for key, _, origin in resolved.rows()}
    assert origins["judge.threshold"] == "profile sample"
    assert origins["judge.alpha_decay"] == path
    assert origins["judge.max_holdout_uses"] == "environment"
    assert origins["judge.confidence"] == "flag"
    assert origins["judge.resamples"] == "default"


def test_without_changes_the_settings_are_the_policy() -> None:
    assert Settings().judge.chosen_policy() == load_policy()
    origins = {key: origin for key, _, origin in load_settings("sample", {}, {}).rows()}
    assert origins["judge.alpha_decay"] == "policy.toml"


def test_settings_survive_serialisation() -> None:
    settings = load_settings("sample", {"judge.alpha_decay": "3"}, {}).settings
    assert Settings.model_validate(settings.model_dump()) == settings
    assert Settings.model_validate(settings.model_dump(mode="json")) == settings


def test_an_invalid_policy_file_is_refused_as_a_setting(tmp_path: Path) -> None:
    path = write(tmp_path, "alpha_decay = 1.5\n", "")
    with pytest.raises(UsageError, match="lacks alpha_decay"):
        load_settings("sample", {"judge.policy": path}, {})
