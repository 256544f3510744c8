"""Settings explain themselves, and what is written as TOML is read back as it was."""

import re
import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.core.errors import UsageError
from tasks.core.settings_description import (
    describe_settings,
    find_settings,
    format_settings,
    profile_values,
    toml_value,
    write_template,
)
from tasks.core.settings_loader import load_settings, profile_names, valid_keys

DEFAULTS = {each.key: each.default for each in describe_settings()}


def test_every_setting_has_meaning_values_and_default() -> None:
    described = describe_settings()
    assert [each.key for each in described] == valid_keys()
    assert [each.key for each in described if not each.meaning.endswith(".") or not each.values] == []
    found = {each.key: each.values for each in described}
    assert [
        key for key, values in found.items() if values.startswith("number") and not isinstance(DEFAULTS[key], float)
    ] == []
    assert found["finetune.epochs"] == "whole number, ≥ 1 and ≤ 1000"
    assert found["finetune.seed"] == "whole number, ≥ 0 and < 4294967296"
    assert found["finetune.learning_rate"] == "number, > 0 and ≤ 1"
    assert found["finetune.precision"] == "auto, fp32, bf16"
    assert (found["data.offline"], found["data.train"]) == ("true or false", "text")
    assert found["data.path"] == "text, or a list of texts"
    assert (DEFAULTS["finetune.epochs"], DEFAULTS["data.path"], DEFAULTS["judge.threshold"]) == (4, ["sample"], 0.454)


@pytest.mark.parametrize("profile", profile_names())
def test_settings_of_every_profile_are_read_back_from_toml(profile: str, tmp_path: Path) -> None:
    path = tmp_path / "all.toml"
    resolved = load_settings(profile, {"data.columns": "text=a b,label=c", "finetune.layer_decay": "1e-9"}, {})
    path.write_text(format_settings(resolved.rows()), encoding="utf-8")
    assert load_settings(str(path), {}, {}).settings == resolved.settings


@pytest.mark.parametrize("profile", profile_names())
def test_a_new_file_has_the_values_of_its_profile_and_every_default_in_a_comment(profile: str, tmp_path: Path) -> None:
    path = tmp_path / "new.toml"
    write_template(path, load_settings(profile, {}, {}), profile)
    text = path.read_text(encoding="utf-8")
    assert load_settings(str(path), {}, {}).settings == load_settings(profile, {}, {}).settings
    uncommented = re.sub(r"^#(\w+ = )", r"\1", text, flags=re.MULTILINE)
    values = {
        f"{group}.{key}": value for group, keys in tomllib.loads(uncommented).items() for key, value in keys.items()
    }
    assert list(values) == valid_keys()
    chosen = {f"{group}.{key}" for group, keys in tomllib.loads(text).items() for key in keys}
    assert {key: value for key, value in values.items() if key not in chosen} == {
        key: value for key, value in DEFAULTS.items() if key not in chosen
    }
    assert "# Passes over the training sentences. Values: whole number, ≥ 1 and ≤ 1000. Default: 4.\n" in text
    assert max(map(len, (line for line in text.splitlines()[2:] if line.startswith("# ")))) <= 112


def test_a_file_that_exists_is_not_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text("mine")
    with pytest.raises(UsageError, match=r"mine\.toml exists and is not overwritten; name a new file"):
        write_template(path, load_settings("sample", {}, {}), "sample")
    assert path.read_text() == "mine"
    with pytest.raises(UsageError, match="there is no folder"):
        write_template(tmp_path / "none" / "mine.toml", load_settings("sample", {}, {}), "sample")
    assert [each.name for each in tmp_path.iterdir()] == ["mine.toml"]


def test_what_flags_and_environment_set_is_set_in_a_new_file_too(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    flags = {"data.path": ("a.csv", "b.csv"), "data.columns": "text=s,label=l"}
    resolved = load_settings("sample", flags, {"VERDICT_FINETUNE__SEED": "7"})
    write_template(path, resolved, "sample")
    written = tomllib.loads(path.read_text(encoding="utf-8"))
    assert written["data"]["path"] == ["a.csv", "b.csv"]
    assert written["data"]["columns"] == "text=s,label=l"
    assert written["finetune"]["seed"] == 7
    assert load_settings(str(path), {}, {}).settings == resolved.settings


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_any_text_is_read_back_from_toml(text: str) -> None:
    written = toml_value(text)
    assert written.isprintable()
    assert tomllib.loads(f"x = {written}")["x"] == text


@pytest.mark.parametrize("value", [True, 0, -3, 5e-05, 1e22, 0.1, ["a", 'b"'], []])
def test_other_values_are_read_back_from_toml(value: object) -> None:
    assert tomllib.loads(f"x = {toml_value(value)}")["x"] == value


def test_a_setting_is_found_by_its_key_its_name_or_its_group() -> None:
    assert [each.key for each in find_settings("finetune.epochs")] == ["finetune.epochs"]
    assert [each.key for each in find_settings("epochs")] == ["finetune.epochs"]
    assert [each.key for each in find_settings("watch")][:2] == ["watch.retrain_on", "watch.request_log"]
    for typo, meant in (("epoch", "epochs"), ("finetune.epoch", "finetune.epochs"), ("gates", "gate")):
        with pytest.raises(UsageError, match=rf"setting '{typo}' is unknown; did you mean '{meant}'\?"):
            find_settings(typo)


def test_what_the_bundled_profiles_set_is_shown() -> None:
    assert profile_values("finetune.epochs") == {"cola": 8, "cola-small": 5, "sample": 2}
    assert profile_values("finetune.precision") == {}
