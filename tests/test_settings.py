"""Settings come from three layers, remember which, and are refused by name when they cannot be meant."""

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from tasks.errors import WrongUsage
from tasks.settings import Resolved, Settings, load_settings, profile_names, valid_keys

EPOCHS = {"VERDICT_FINETUNE__EPOCHS": "7"}


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for key in valid_keys():
        monkeypatch.delenv(f"VERDICT_{key.replace('.', '__').upper()}", raising=False)


def load(
    profile: str = "sample", flags: dict[str, Any] | None = None, environ: dict[str, str] | None = None
) -> Resolved:
    return load_settings(profile, flags, environ or {})


def refusal(profile: str = "sample", flags: dict[str, Any] | None = None, environ: dict[str, str] | None = None) -> str:
    with pytest.raises(WrongUsage) as caught:
        load(profile, flags, environ)
    assert caught.value.exit_code == 2
    assert "\n" not in str(caught.value)
    return str(caught.value)


def write(folder: Path, toml: str) -> str:
    path = folder / "mine.toml"
    path.write_text(toml, encoding="utf-8")
    return str(path)


def flatten(settings: Settings) -> dict[str, Any]:
    return {f"{section}.{key}": value for section, keys in settings.model_dump().items() for key, value in keys.items()}


@pytest.mark.parametrize(
    ("flags", "environ", "epochs", "origin"),
    [
        ({}, {}, 2, "profile sample"),
        ({}, EPOCHS, 7, "environment"),
        ({"finetune.epochs": "9"}, {}, 9, "flag"),
        ({"finetune.epochs": "9"}, EPOCHS, 9, "flag"),
    ],
)
def test_flag_wins_over_environment_over_profile(
    flags: dict[str, str], environ: dict[str, str], epochs: int, origin: str
) -> None:
    resolved = load("sample", flags, environ)
    assert resolved.settings.finetune.epochs == epochs
    assert resolved.origins["finetune.epochs"] == origin
    assert ("finetune.epochs", epochs, origin) in resolved.rows()


def test_layers_add_up_key_by_key() -> None:
    resolved = load("sample", {"finetune.seed": 1}, {"VERDICT_FINETUNE__DEVICE": "cpu"})
    chosen = resolved.settings.finetune
    assert (chosen.seed, chosen.device, chosen.max_length, chosen.weight_decay) == (1, "cpu", 64, 0.01)
    origins = {key: origin for key, _, origin in resolved.rows()}
    assert origins["finetune.seed"] == "flag"
    assert origins["finetune.device"] == "environment"
    assert origins["finetune.max_length"] == "profile sample"
    assert origins["finetune.weight_decay"] == "default"


def test_rows_show_every_setting_once() -> None:
    resolved = load()
    assert [key for key, _, _ in resolved.rows()] == valid_keys()
    assert {key: value for key, value, _ in resolved.rows()} == flatten(resolved.settings)


def test_process_environment_is_read_when_none_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VERDICT_FINETUNE__EPOCHS", "7")
    resolved = load_settings("sample")
    assert (resolved.settings.finetune.epochs, resolved.origins["finetune.epochs"]) == (7, "environment")


def test_variables_of_others_and_the_home_of_the_stores_are_no_settings() -> None:
    environ = {"VERDICT_HOME": "/stores", "PATH": "/bin", "FINETUNE__EPOCHS": "9", "MY_VERDICT_DATA__PATH": "x"}
    assert load("sample", {}, environ) == load()


def test_texts_that_look_like_json_stay_texts() -> None:
    for text in ("null", "3", '{"a": 1}', "[1]"):
        assert load(environ={"VERDICT_DATA__PATH": text}).settings.data.path == text


def test_bundled_profiles_are_these() -> None:
    assert profile_names() == ["cola", "cola-small", "sample"]


BUNDLED = {
    "cola": {
        "data.path": "",
        "finetune.encoder": "bert-base-uncased",
        "finetune.epochs": 4,
        "finetune.batch_size": 32,
        "finetune.learning_rate": 2e-5,
        "finetune.warmup_ratio": 0.1,
        "finetune.max_length": 128,
        "judge.threshold": 0.454,
    },
    "cola-small": {
        "data.path": "",
        "finetune.encoder": "packaged",
        "finetune.epochs": 8,
        "finetune.batch_size": 32,
        "finetune.learning_rate": 5e-5,
        "finetune.warmup_ratio": 0.1,
        "finetune.max_length": 128,
        "judge.threshold": 0.20,
    },
    "sample": {
        "data.path": "sample",
        "finetune.encoder": "packaged",
        "finetune.epochs": 2,
        "finetune.batch_size": 32,
        "finetune.learning_rate": 1e-4,
        "finetune.max_length": 64,
        "judge.threshold": 0.4,
    },
}


@pytest.mark.parametrize("name", BUNDLED)
def test_bundled_profile_sets_these_values_and_no_others(name: str) -> None:
    resolved = load(name)
    assert resolved.origins == dict.fromkeys(BUNDLED[name], f"profile {name}")
    assert flatten(resolved.settings) == flatten(Settings.model_construct()) | BUNDLED[name]


def test_profile_may_be_a_file(tmp_path: Path) -> None:
    path = write(tmp_path, "[judge]\nthreshold = 0.5\n")
    resolved = load(path)
    assert resolved.settings.judge.threshold == 0.5
    assert resolved.origins == {"judge.threshold": f"profile {path}"}


def test_unknown_flag_is_named_with_the_nearest_valid_key() -> None:
    assert refusal(flags={"finetune.epoch": 3}) == (
        "setting 'finetune.epoch' (flag) is unknown; did you mean 'finetune.epochs'? verdict retrain --show-settings"
    )


def test_unknown_variable_is_named_with_the_nearest_valid_key() -> None:
    message = refusal(environ={"VERDICT_GATE__MIN_ROW": "3"})
    assert message.startswith("setting 'gate.min_row' (environment) is unknown; did you mean 'gate.min_rows'?")


def test_unknown_key_of_a_profile_file_is_named_with_the_nearest_valid_key(tmp_path: Path) -> None:
    path = write(tmp_path, "[finetune]\nlearning_rat = 1e-5\n")
    message = refusal(path)
    assert message.startswith(f"setting 'finetune.learning_rat' (profile {path}) is unknown;")
    assert "did you mean 'finetune.learning_rate'?" in message


@pytest.mark.parametrize("key", ["", "finetune", "finetune.epochs.x", "judge.", "FINETUNE.EPOCHS", "home"])
def test_sections_and_other_spellings_are_no_keys(key: str) -> None:
    assert refusal(flags={key: 1}).startswith(f"setting {key!r} (flag) is unknown; did you mean '")


def test_whole_section_in_one_variable_is_refused() -> None:
    assert refusal(environ={"VERDICT_FINETUNE": '{"epochs": 3}'}).startswith(
        "setting 'finetune' (environment) is unknown"
    )


@pytest.mark.parametrize("low", [0.9, 0.95])
def test_contradiction_names_both_settings_and_their_values(low: float) -> None:
    assert refusal(flags={"gate.min_acceptable": low}) == (
        f"settings contradict each other: gate.min_acceptable ({low}) must be below gate.max_acceptable (0.9)"
    )


@pytest.mark.parametrize(
    ("key", "value", "reason"),
    [
        ("finetune.epochs", 0, "input should be greater than or equal to 1"),
        ("finetune.epochs", 1001, "input should be less than or equal to 1000"),
        ("finetune.learning_rate", 0, "input should be greater than 0"),
        ("finetune.warmup_ratio", 1.0, "input should be less than 1"),
        ("finetune.max_length", 3, "input should be greater than or equal to 4"),
        ("finetune.seed", 2**32, "input should be less than 4294967296"),
        ("finetune.max_grad_norm", float("inf"), "input should be a finite number"),
        ("data.validation_share", 0.5, "input should be less than 0.5"),
        ("gate.max_leak", 1.1, "input should be less than or equal to 1"),
        ("gate.min_rows", -1, "input should be greater than or equal to 0"),
        ("judge.threshold", -1.1, "input should be greater than or equal to -1"),
        ("judge.threshold", float("nan"), "input should be a finite number"),
        ("judge.resamples", 99, "input should be greater than or equal to 100"),
    ],
)
def test_value_out_of_bounds_is_named_with_its_origin_and_the_bound(key: str, value: float, reason: str) -> None:
    assert refusal(flags={key: value}) == f"setting {key} = {value!r} (flag) is refused: {reason}"


@pytest.mark.parametrize(
    ("key", "value", "reason"),
    [
        ("finetune.epochs", "many", "input should be a valid integer, unable to parse string as an integer"),
        ("finetune.epochs", "3.5", "input should be a valid integer, unable to parse string as an integer"),
        ("finetune.learning_rate", "fast", "input should be a valid number, unable to parse string as a number"),
        ("finetune.device", "tpu", "input should be 'auto', 'cuda' or 'cpu'"),
    ],
)
def test_value_of_the_wrong_type_is_named_with_its_origin(key: str, value: str, reason: str) -> None:
    variable = f"VERDICT_{key.replace('.', '__').upper()}"
    assert refusal(environ={variable: value}) == f"setting {key} = {value!r} (environment) is refused: {reason}"


def test_wrong_value_in_a_profile_file_is_named_with_the_file(tmp_path: Path) -> None:
    path = write(tmp_path, "[data]\npath = 3\n")
    assert refusal(path) == f"setting data.path = 3 (profile {path}) is refused: input should be a valid string"


def test_broken_toml_is_named_with_its_fault(tmp_path: Path) -> None:
    path = write(tmp_path, "[finetune\n")
    assert refusal(path).startswith(f"profile {path} is not valid TOML: Expected ']'")


@pytest.mark.parametrize("profile", ["colla", "", "none.toml", "."])
def test_unknown_profile_is_named_with_the_bundled_ones(profile: str) -> None:
    assert (
        refusal(profile) == f"profile {profile!r} is unknown; expected one of cola, cola-small, sample, or a TOML file"
    )


@pytest.mark.parametrize("section", ["data", "gate", "finetune", "judge"])
def test_settings_do_not_change_after_loading(section: str) -> None:
    settings = load().settings
    key, value = next(iter(getattr(settings, section).model_dump().items()))
    with pytest.raises(ValidationError, match="frozen"):
        setattr(getattr(settings, section), key, value)
    with pytest.raises(ValidationError, match="frozen"):
        setattr(settings, section, getattr(settings, section))


def test_settings_come_back_from_plain_values() -> None:
    settings = load("cola").settings
    assert Settings.model_validate(settings.model_dump(mode="json")) == settings


def test_the_process_environment_does_not_reach_past_the_one_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VERDICT_GATE__MIN_ROWS", "9")
    assert load_settings("sample", {}, {}).settings.gate.min_rows == 100
    assert load_settings("sample", {}).settings.gate.min_rows == 9
