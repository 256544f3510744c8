"""Settings come from three layers, remember which, and are refused by name when they cannot be meant."""

import tomllib
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from tasks.core.errors import UsageError
from tasks.core.settings import DataSettings, Settings
from tasks.core.settings_loader import ResolvedSettings, load_settings, profile_names, valid_keys

EPOCHS = {"VERDICT_FINETUNE__EPOCHS": "7"}


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for key in valid_keys():
        monkeypatch.delenv(f"VERDICT_{key.replace('.', '__').upper()}", raising=False)


def load(
    profile: str = "sample", flags: dict[str, Any] | None = None, environ: dict[str, str] | None = None
) -> ResolvedSettings:
    return load_settings(profile, flags, environ or {})


def refusal(profile: str = "sample", flags: dict[str, Any] | None = None, environ: dict[str, str] | None = None) -> str:
    with pytest.raises(UsageError) as caught:
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


@pytest.mark.parametrize("value", ["", "0", "1", "true", "anything"])
def test_the_switch_for_tracebacks_is_no_setting(value: str) -> None:
    assert load(environ={"VERDICT_DEBUG": value}) == load()
    assert not any("debug" in key for key, _, _ in load().rows())


def test_texts_that_look_like_json_stay_texts() -> None:
    for text in ("null", "3", '{"a": 1}', "[1]"):
        assert load(environ={"VERDICT_DATA__TRAIN": text}).settings.data.train == text


# Addresses

MERGED = ("/data/cola", "feedback.tsv")


@pytest.mark.parametrize(
    ("value", "addresses"),
    [
        ("folder", ("folder",)),
        ("", ()),
        ("a,b c", ("a,b c",)),  # a file may be called so
        ("https://host/f.zip#sha256=00&member=raw", ("https://host/f.zip#sha256=00&member=raw",)),
        ('["/data/cola", "feedback.tsv"]', MERGED),
        ("[]", ()),
        ('["one"]', ("one",)),
        ("null", ("null",)),
        ('{"a": 1}', ('{"a": 1}',)),
        ('"quoted"', ('"quoted"',)),
    ],
)
def test_addresses_of_a_variable_or_one_flag_are_one_string_or_a_json_list(
    value: str, addresses: tuple[str, ...]
) -> None:
    by_variable = load(environ={"VERDICT_DATA__PATH": value})
    by_flag = load(flags={"data.path": value})
    assert by_variable.settings.data.path == by_flag.settings.data.path == addresses
    assert (by_variable.origins["data.path"], by_flag.origins["data.path"]) == ("environment", "flag")


@pytest.mark.parametrize("flags", [list(MERGED), MERGED])
def test_addresses_of_several_flags_are_one_list(flags: list[str] | tuple[str, ...]) -> None:
    resolved = load(flags={"data.path": flags}, environ={"VERDICT_DATA__PATH": "other"})
    assert resolved.settings.data.path == MERGED
    assert ("data.path", MERGED, "flag") in resolved.rows()


@pytest.mark.parametrize(
    ("toml", "addresses"),
    [
        ('path = "folder"', ("folder",)),
        ('path = ["/data/cola", "feedback.tsv"]', MERGED),
        ("path = []", ()),
        ('path = ""', ()),
        ("", ("sample",)),
    ],
)
def test_addresses_of_a_profile_are_one_string_or_a_list(tmp_path: Path, toml: str, addresses: tuple[str, ...]) -> None:
    assert load(write(tmp_path, f"[data]\n{toml}\n")).settings.data.path == addresses


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("[1]", "data.path = 1 (environment) is refused: expected text"),
        ('["a", null]', "data.path = None (environment) is refused: expected text"),
        ('["a"', "data.path = '[\"a\"' (environment) is refused: not a JSON list of addresses: "),
        ("[x].tsv", "data.path = '[x].tsv' (environment) is refused: not a JSON list of addresses: "),
    ],
)
def test_addresses_that_cannot_be_read_are_named_with_their_origin(value: str, message: str) -> None:
    assert refusal(environ={"VERDICT_DATA__PATH": value}).startswith(f"setting {message}")


# Columns and labels


@pytest.mark.parametrize(
    ("key", "text", "pairs", "shown"),
    [
        ("columns", "", {}, ""),
        (
            "columns",
            "text=original,label=gold",
            {"text": "original", "label": "gold"},
            "text=original,label=gold",
        ),
        ("columns", " text = a b , mark=m ", {"text": "a b", "mark": "m"}, "text=a b,mark=m"),
        ("columns", "text=x=y", {"text": "x=y"}, "text=x=y"),
        ("labels", "", {}, ""),
        ("labels", "good=1,bad=0", {"good": 1, "bad": 0}, "good=1,bad=0"),
        ("labels", "1=0,0=1", {"1": 0, "0": 1}, "1=0,0=1"),
        ("labels", "yes=1,ok=1,no=0", {"yes": 1, "ok": 1, "no": 0}, "yes=1,ok=1,no=0"),
    ],
)
def test_columns_and_labels_are_mappings_that_are_shown_as_they_are_written(
    tmp_path: Path, key: str, text: str, pairs: dict[str, Any], shown: str
) -> None:
    profile = load(write(tmp_path, f"[data]\n{key} = {text!r}\n"))
    flag, environment = load(flags={f"data.{key}": text}), load(environ={f"VERDICT_DATA__{key.upper()}": text})
    for resolved in (profile, flag, environment):
        assert getattr(resolved.settings.data, key) == pairs
        assert {name: value for name, value, _ in resolved.rows()}[f"data.{key}"] == shown
        assert Settings.model_validate(resolved.settings.model_dump(mode="json")) == resolved.settings
    assert getattr(DataSettings.model_validate({key: pairs}), key) == pairs


@pytest.mark.parametrize(
    ("key", "value", "reason"),
    [
        ("columns", "txt=a,label=b", "'txt' is no role of a column; expected text, label, source, mark"),
        ("columns", "Text=a", "'Text' is no role of a column; expected text, label, source, mark"),
        (
            "columns",
            "text",
            "expected NAME=VALUE,NAME=VALUE, such as text=sentence,label=verdict",
        ),
        (
            "columns",
            "text=",
            "expected NAME=VALUE,NAME=VALUE, such as text=sentence,label=verdict",
        ),
        (
            "columns",
            "=a",
            "expected NAME=VALUE,NAME=VALUE, such as text=sentence,label=verdict",
        ),
        ("columns", "text=a,text=b", "'text' stands twice in 'text=a,text=b'"),
        ("labels", "good=1", "every label stands for 0 or 1, and both occur: acceptable=1,unacceptable=0"),
        ("labels", "good=1,bad=2", "every label stands for 0 or 1, and both occur: acceptable=1,unacceptable=0"),
        ("labels", "good=yes,bad=no", "every label stands for 0 or 1, and both occur: acceptable=1,unacceptable=0"),
        (
            "labels",
            "good",
            "expected NAME=VALUE,NAME=VALUE, such as acceptable=1,unacceptable=0",
        ),
        ("labels", "good=1,bad=0,good=0", "'good' stands twice in 'good=1,bad=0,good=0'"),
    ],
)
def test_wrong_columns_and_labels_are_named_with_what_is_expected(key: str, value: str, reason: str) -> None:
    assert refusal(flags={f"data.{key}": value}) == f"setting data.{key} = {value!r} (flag) is refused: {reason}"


# Profiles


def test_bundled_profiles_are_the_files_of_their_folder() -> None:
    folder = Path(__file__).parents[2] / "tasks" / "core" / "profiles"
    assert profile_names() == sorted(path.stem for path in folder.glob("*.toml"))
    assert {"cola", "cola-small", "sample"} <= set(profile_names())


@pytest.mark.parametrize("name", profile_names())
def test_bundled_profile_sets_the_values_of_its_file_and_no_others(name: str) -> None:
    resolved = load(name)
    text = (Path(__file__).parents[2] / "tasks" / "core" / "profiles" / f"{name}.toml").read_text(encoding="utf-8")
    keys = {
        f"{section}.{key}": value for section, values in tomllib.loads(text).items() for key, value in values.items()
    }
    assert resolved.origins == dict.fromkeys(keys, f"profile {name}")
    paths = keys["data.path"]
    keys["data.path"] = (paths,) if isinstance(paths, str) else tuple(paths)
    assert flatten(resolved.settings) == flatten(Settings()) | keys


def test_every_setting_is_described() -> None:
    for section, field in Settings.model_fields.items():
        model = field.annotation
        assert isinstance(model, type)
        assert issubclass(model, BaseModel)
        assert [key for key, each in model.model_fields.items() if not each.description] == [], section


def test_profile_may_be_a_file(tmp_path: Path) -> None:
    path = write(tmp_path, "[judge]\nthreshold = 0.5\n")
    resolved = load(path)
    assert resolved.settings.judge.threshold == 0.5
    assert resolved.origins == {"judge.threshold": f"profile {path}"}


def test_unknown_flag_is_named_with_the_nearest_valid_key() -> None:
    assert refusal(flags={"finetune.epoch": 3}) == (
        "setting 'finetune.epoch' (flag) is unknown; did you mean 'finetune.epochs'? all of them: verdict settings"
    )


@pytest.mark.parametrize("given", [{"flags": {"finetune": 3}}, {"environ": {"VERDICT_FINETUNE": "3"}}])
def test_a_group_of_settings_in_place_of_one_is_named(given: dict[str, Any]) -> None:
    origin = "flag" if "flags" in given else "environment"
    assert refusal(**given) == (
        f"setting 'finetune' ({origin}) is a group of settings; expected one of its own, such as finetune.encoder: "
        "verdict settings finetune"
    )


def test_a_profile_with_a_byte_order_mark_is_read(tmp_path: Path) -> None:
    assert load(write(tmp_path, "\ufeff[judge]\nthreshold = 0.5\n")).settings.judge.threshold == 0.5


def test_unknown_variable_is_named_with_the_nearest_valid_key() -> None:
    message = refusal(environ={"VERDICT_GATE__MIN_ROW": "3"})
    assert message.startswith("setting 'gate.min_row' (environment) is unknown; did you mean 'gate.min_rows'?")


def test_unknown_key_of_a_profile_file_is_named_with_the_nearest_valid_key(tmp_path: Path) -> None:
    path = write(tmp_path, "[finetune]\nlearning_rat = 1e-5\n")
    message = refusal(path)
    assert message.startswith(f"setting 'finetune.learning_rat' (profile {path}) is unknown;")
    assert "did you mean 'finetune.learning_rate'?" in message


@pytest.mark.parametrize("key", ["", "finetune.epochs.x", "judge.", "FINETUNE.EPOCHS", "home"])
def test_sections_and_other_spellings_are_no_keys(key: str) -> None:
    assert refusal(flags={key: 1}).startswith(f"setting {key!r} (flag) is unknown; ")


@pytest.mark.parametrize(
    ("key", "advice"),
    [
        ("epochs", "did you mean 'finetune.epochs'? all of them: verdict settings"),
        ("finetune.epoch", "did you mean 'finetune.epochs'? all of them: verdict settings"),
        ("xyzzy", "all of them: verdict settings"),
    ],
)
def test_a_key_is_proposed_only_where_it_is_like_the_unknown_one(key: str, advice: str) -> None:
    assert refusal(flags={key: 1}) == f"setting {key!r} (flag) is unknown; {advice}"


def test_whole_section_in_one_variable_is_refused() -> None:
    assert refusal(environ={"VERDICT_FINETUNE": '{"epochs": 3}'}).startswith(
        "setting 'finetune' (environment) is a group of settings"
    )


@pytest.mark.parametrize(
    ("name", "low", "high"),
    [("acceptable", 0.9, 0.9), ("acceptable", 0.95, 0.9), ("characters", 1000, 1000), ("words", 300, 200)],
)
def test_contradiction_names_both_settings_and_their_values(name: str, low: float, high: float) -> None:
    assert refusal(flags={f"gate.min_{name}": low}) == (
        f"settings contradict each other: gate.min_{name} ({low}) must be below gate.max_{name} ({high})"
    )
    assert refusal(flags={f"gate.min_{name}": low}, environ={f"VERDICT_GATE__MAX_{name.upper()}": str(low)}) == (
        f"settings contradict each other: gate.min_{name} ({low}) must be below gate.max_{name} ({low})"
    )


def test_limits_may_lie_close_together() -> None:
    gate = load(flags={"gate.min_words": 3, "gate.max_words": 4, "gate.min_characters": 0}).settings.gate
    assert (gate.min_words, gate.max_words, gate.min_characters) == (3, 4, 0)


@pytest.mark.parametrize(
    ("key", "value", "reason"),
    [
        ("finetune.epochs", 0, "expected at least 1"),
        ("finetune.epochs", 1001, "expected at most 1000"),
        ("finetune.learning_rate", 0, "expected more than 0"),
        ("finetune.warmup_ratio", 1.0, "expected less than 1"),
        ("finetune.max_length", 3, "expected at least 4"),
        ("finetune.seed", 2**32, "expected less than 4294967296"),
        ("finetune.max_grad_norm", float("inf"), "expected a finite number"),
        ("finetune.max_grad_norm", -1, "expected at least 0"),
        ("finetune.adam_beta1", 1.0, "expected less than 1"),
        ("finetune.adam_beta2", -0.1, "expected at least 0"),
        ("finetune.adam_eps", 0, "expected at least 1e-12"),
        ("finetune.token_loss", -1, "expected at least 0"),
        ("finetune.label_smoothing", -0.1, "expected at least 0"),
        ("finetune.label_smoothing", 1, "expected less than 1"),
        ("finetune.r_drop", -1, "expected at least 0"),
        ("finetune.r_drop", 100.5, "expected at most 100"),
        ("finetune.r_drop", float("nan"), "expected a finite number"),
        ("finetune.corruptions", -1, "expected at least 0"),
        ("finetune.corruptions", 101, "expected at most 100"),
        ("finetune.patience", -1, "expected at least 0"),
        ("finetune.seeds", 0, "expected at least 1"),
        ("finetune.seeds", 101, "expected at most 100"),
        ("data.validation_share", 0.5, "expected less than 0.5"),
        ("data.holdout_share", 0, "expected more than 0"),
        ("data.holdout_share", 1, "expected less than 1"),
        ("data.max_quarantined", 1.01, "expected at most 1"),
        ("data.max_quarantined", -0.01, "expected at least 0"),
        ("data.max_chars", 0, "expected at least 1"),
        ("gate.max_leak", 1.1, "expected at most 1"),
        ("gate.min_rows", -1, "expected at least 0"),
        ("gate.min_holdout_rows", -1, "expected at least 0"),
        ("gate.min_characters", -1, "expected at least 0"),
        ("gate.max_words", -1, "expected at least 0"),
        ("gate.max_odd_lengths", 1.5, "expected at most 1"),
        ("gate.max_control", -1, "expected at least 0"),
        ("gate.max_unknown", 2, "expected at most 1"),
        ("gate.max_unseen_sources", -0.1, "expected at least 0"),
        ("gate.drift_level", 0, "expected more than 0"),
        ("gate.drift_level", 1, "expected less than 1"),
        ("gate.drift_level", float("nan"), "expected a finite number"),
        ("gate.max_label_shift", 1.1, "expected at most 1"),
        ("gate.max_length_shift", -1, "expected at least 0"),
        ("gate.max_source_shift", 1.1, "expected at most 1"),
        ("gate.max_vocabulary_shift", float("inf"), "expected a finite number"),
        ("judge.threshold", -1.1, "expected at least -1"),
        ("judge.threshold", float("nan"), "expected a finite number"),
        ("judge.resamples", 99, "expected at least 100"),
    ],
)
def test_value_out_of_bounds_is_named_with_its_origin_and_the_bound(key: str, value: float, reason: str) -> None:
    assert refusal(flags={key: value}) == f"setting {key} = {value!r} (flag) is refused: {reason}"


@pytest.mark.parametrize(
    ("key", "value", "reason"),
    [
        ("finetune.epochs", "many", "expected a whole number"),
        ("finetune.epochs", "3.5", "expected a whole number"),
        ("finetune.learning_rate", "fast", "expected a number"),
        ("finetune.label_smoothing", "some", "expected a number"),
        ("finetune.patience", "2.5", "expected a whole number"),
        ("finetune.seeds", "7,8", "expected a whole number"),
        ("finetune.device", "tpu", "expected 'auto', 'cuda' or 'cpu'"),
        ("finetune.precision", "fp16", "expected 'auto', 'fp32' or 'bf16'"),
        ("data.group", "author", "expected 'auto', 'sentence' or 'source'"),
        ("gate.drift", "stop", "expected 'warn' or 'refuse'"),
        ("gate.max_words", "2.5", "expected a whole number"),
        ("watch.retrain_on", "always", "expected 'never', 'on_change' or 'on_drift'"),
        ("data.offline", "maybe", "expected true or false"),
    ],
)
def test_value_of_the_wrong_type_is_named_with_its_origin(key: str, value: str, reason: str) -> None:
    variable = f"VERDICT_{key.replace('.', '__').upper()}"
    assert refusal(environ={variable: value}) == f"setting {key} = {value!r} (environment) is refused: {reason}"


@pytest.mark.parametrize(
    ("key", "default", "lowest", "highest"),
    [
        ("label_smoothing", 0.0, 0.0, 0.999),
        ("r_drop", 0.0, 0.0, 100.0),
        ("sift", 0.0, 0.0, 100.0),
        ("corruptions", 0, 0, 100),
        ("text_corruptions", 1, 0, 100),
        ("patience", 0, 0, 10**9),
        ("seeds", 1, 1, 100),
        ("processes", 1, 1, 64),
    ],
)
def test_what_a_training_does_beyond_the_usual_is_asked_for(
    key: str, default: float, lowest: float, highest: float
) -> None:
    name = f"finetune.{key}"
    assert (name, default, "default") in load().rows()
    for value in (lowest, highest):
        assert (name, value, "flag") in load(flags={name: value}).rows()
        assert (name, value, "flag") in load(flags={name: str(value)}).rows()
        assert (name, value, "environment") in load(environ={f"VERDICT_FINETUNE__{key.upper()}": str(value)}).rows()


def test_wrong_value_in_a_profile_file_is_named_with_the_file(tmp_path: Path) -> None:
    path = write(tmp_path, "[data]\ntrain = 3\n")
    assert refusal(path) == f"setting data.train = 3 (profile {path}) is refused: expected text"
    path = write(tmp_path, "[data]\npath = 3\n")
    assert refusal(path) == f"setting data.path = 3 (profile {path}) is refused: expected text, or a list of texts"


def test_broken_toml_is_named_with_its_fault(tmp_path: Path) -> None:
    path = write(tmp_path, "[finetune\n")
    assert refusal(path).startswith(f"profile {path} is not valid TOML: Expected ']'")


EXPECTED_PROFILE = "expected one of cola, cola-small, sample, or a TOML file of settings: verdict init FILE"


@pytest.mark.parametrize(
    ("profile", "fault"),
    [
        ("colla", "is unknown; did you mean 'cola'? "),
        ("xyzzy", "is unknown; "),
        ("", "is unknown; "),
        ("none.toml", "does not exist; "),
        (".", "is a folder; "),
        ("/dev/null/x", "cannot be read (Not a directory); "),
    ],
)
def test_a_profile_that_cannot_be_read_is_named_with_its_fault_and_the_bundled_ones(profile: str, fault: str) -> None:
    assert refusal(profile) == f"profile {profile!r} {fault}{EXPECTED_PROFILE}"


def test_a_profile_that_is_a_file_of_data_is_said_to_be_data(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_text("sentence,label\nA cat.,1\n")
    assert refusal(str(path)) == (
        f"profile {path} is not valid TOML: Expected '=' after a key in a key/value pair (at line 1, column 9); "
        f"{EXPECTED_PROFILE}; data is named by --data {path}"
    )


@pytest.mark.parametrize("section", ["data", "gate", "finetune", "judge", "watch"])
def test_settings_do_not_change_after_loading(section: str) -> None:
    settings = load().settings
    key, value = next(iter(getattr(settings, section).model_dump().items()))
    with pytest.raises(ValidationError, match="frozen"):
        setattr(getattr(settings, section), key, value)
    with pytest.raises(ValidationError, match="frozen"):
        setattr(settings, section, getattr(settings, section))


def test_settings_come_back_from_plain_values() -> None:
    for name in profile_names():
        settings = load(name).settings
        assert Settings.model_validate(settings.model_dump(mode="json")) == settings
        assert Settings.model_validate(settings.model_dump()) == settings


@pytest.mark.parametrize(("value", "offline"), [("1", True), ("true", True), ("0", False), ("no", False)])
def test_switch_may_be_a_word_or_a_number(value: str, offline: bool) -> None:
    assert load(environ={"VERDICT_DATA__OFFLINE": value}).settings.data.offline is offline


@pytest.mark.parametrize("retrain", ["never", "on_change", "on_drift"])
def test_what_a_watch_starts_is_one_of_three(retrain: str) -> None:
    assert load(environ={"VERDICT_WATCH__RETRAIN_ON": retrain}).settings.watch.retrain_on == retrain


def test_share_of_quarantined_rows_is_a_setting_of_the_data() -> None:
    assert load(flags={"data.max_quarantined": 0.5}).settings.data.max_quarantined == 0.5
    assert refusal(flags={"gate.max_quarantined": 0.5}).startswith("setting 'gate.max_quarantined' (flag) is unknown;")


def test_the_process_environment_does_not_reach_past_the_one_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VERDICT_GATE__MIN_ROWS", "9")
    assert load_settings("sample", {}, {}).settings.gate.min_rows == 100
    assert load_settings("sample", {}).settings.gate.min_rows == 9
