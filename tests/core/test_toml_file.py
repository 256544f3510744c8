"""Settings and policies are read within bounds."""

import random
from pathlib import Path

import pytest
from fuzzing import MUTATIONS

from tasks.core.errors import UsageError
from tasks.core.policy import load_policy
from tasks.core.settings_loader import load_settings, profile_names
from tasks.core.toml_file import MAX_BYTES, MAX_DEPTH, read_toml

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"#" * (MAX_BYTES + 1), r"has 262,145 bytes; expected a TOML file of at most 262,144"),
        (b"x = 1\n" + b"a." * MAX_DEPTH + b"a = 1", r"line 2: a key of 33 names; expected at most 32"),
        (b"[" + b"a." * MAX_DEPTH + b"a]", r"line 1: a key of 33 names"),
        (b"x = " + b"[" * 33 + b"]" * 33, r"line 1: more than 32 brackets within brackets"),
        (b"x = " + b"{a = " * 33 + b"1" + b"}" * 33, r"more than 32 brackets"),
        (b"x = [\n" * 33, r"line 33: more than 32 brackets"),
        (b"x = " + b"9" * 5_000, r"is not valid TOML: Exceeds the limit"),
        (b"x = \xff", r"is no text in UTF-8"),
        (b"x = ", r"is not valid TOML"),
    ],
)
def test_a_file_out_of_bounds_is_refused_in_one_line(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "file.toml"
    path.write_bytes(content)
    for load in (load_settings, load_policy):
        with pytest.raises(UsageError, match=message) as error:
            load(str(path))
        assert len(str(error.value)) < 500
        assert "\n" not in str(error.value)


def test_what_stands_in_strings_and_comments_is_not_nesting(tmp_path: Path) -> None:
    path = tmp_path / "file.toml"
    path.write_text('x = ["' + "[{." * 99 + "\", '" + "[" * 99 + "'] # " + "[" * 99 + "\ny = 'https://a.b/c.d'\n")
    assert list(read_toml(path, "file")) == ["x", "y"]


def test_a_file_at_the_bounds_is_read(tmp_path: Path) -> None:
    path = tmp_path / "file.toml"
    path.write_text("x = " + "[" * MAX_DEPTH + "]" * MAX_DEPTH + "\n" + "a." * (MAX_DEPTH - 1) + "a = 1\n")
    assert list(read_toml(path, "file")) == ["x", "a"]
    assert all(load_settings(name) for name in profile_names())


@pytest.mark.parametrize("content", [f"{'k' * 9_000} = 1", f"[finetune]\nepochs = '{'9' * 9_000}'"])
def test_a_long_key_or_value_is_cut_in_the_message(content: str, tmp_path: Path) -> None:
    path = tmp_path / "file.toml"
    path.write_text(content)
    with pytest.raises(UsageError, match=r"\[\.\.\.\]") as error:
        load_settings(str(path))
    assert len(str(error.value)) < 500 + len(str(tmp_path))


def test_damaged_settings_and_policies_are_read_or_refused_in_one_line(tmp_path: Path) -> None:
    path, messages = tmp_path / "file.toml", []
    profiles = [file.read_bytes() for file in sorted((ROOT / "tasks" / "core" / "profiles").glob("*.toml"))]
    policy = (ROOT / "mlflow" / "policy.toml").read_bytes()
    for number in range(150):  # make bench BENCH=faults ARGS=mutate reads thousands
        rng = random.Random(number)
        content = policy if number % 2 else rng.choice(profiles)
        for mutation in rng.choices(MUTATIONS, k=rng.randint(1, 4)):
            content = mutation(rng, content)
        path.write_bytes(content)
        try:
            load_policy(str(path)) if number % 2 else load_settings(str(path), {}, {})
        except UsageError as error:
            messages.append(str(error))
    assert 75 < len(messages) < 150
    assert [message for message in messages if not message.isprintable() or len(message) >= 500] == []
