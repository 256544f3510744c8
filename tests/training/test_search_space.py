"""Search spaces: what is written on the command line becomes typed choices and ranges, or one line of refusal."""

import math
from typing import Any

import pytest

from tasks.core.errors import UsageError
from tasks.core.settings_loader import load_settings
from tasks.training.search_space import (
    MAX_COMBINATIONS,
    Dimension,
    all_combinations,
    combinations,
    has_range,
    make_space,
    split_assignments,
)


def resolve(key: str, text: str) -> Any:
    return getattr(load_settings("sample", {key: text}, {}).settings.finetune, key.removeprefix("finetune."))


def space_of(*assignments: str) -> tuple[Dimension, ...]:
    return make_space(split_assignments(assignments)[1], resolve)


def test_settings_with_several_values_are_the_space_and_others_stay_fixed() -> None:
    fixed, varied = split_assignments(["finetune.epochs=2,3", "data.columns=text=a,label=b", "finetune.seed=3"])
    assert fixed == ["data.columns=text=a,label=b", "finetune.seed=3"]
    assert varied == {"finetune.epochs": "2,3"}


def test_values_have_the_type_of_their_setting() -> None:
    space = space_of("finetune.learning_rate=1e-5, 3e-5", "finetune.epochs=2..4", "finetune.weight_decay=0..0.1")
    assert space == (
        Dimension("learning_rate", (1e-5, 3e-5)),
        Dimension("epochs", (), 2, 4),
        Dimension("weight_decay", (), 0.0, 0.1),
    )
    assert isinstance(space[1].low, int)
    assert [dimension.text for dimension in space] == ["1e-05,3e-05", "2..4", "0.0..0.1"]
    assert [dimension.is_logarithmic for dimension in space[1:]] == [True, False]
    assert math.isinf(combinations(space))


def test_all_combinations_come_once_in_an_order_of_the_seed() -> None:
    space = space_of("finetune.epochs=2,3", "finetune.batch_size=8,16,32")
    found = all_combinations(space, seed=1)
    assert len(found) == combinations(space) == 6
    assert {(each["epochs"], each["batch_size"]) for each in found} == {(e, b) for e in (2, 3) for b in (8, 16, 32)}
    assert found == all_combinations(space, seed=1) != all_combinations(space, seed=2)


def test_a_range_of_integers_has_as_many_values_as_lie_between_its_ends() -> None:
    space = space_of("finetune.epochs=2..4", "finetune.batch_size=8,16")
    assert combinations(space) == len(all_combinations(space, seed=1)) == 6
    assert {each["epochs"] for each in all_combinations(space, seed=1)} == {2, 3, 4}
    assert has_range(space)
    large = space_of("finetune.epochs=1..100", "finetune.batch_size=1..1024")  # drawn, so not too many
    assert combinations(large) == 102_400 > MAX_COMBINATIONS


@pytest.mark.parametrize(
    ("assignments", "message"),
    [
        (["finetune.epochs=2"], "a sweep needs a setting with several values, for example --set finetune"),
        (["finetune.epochs=2,2"], "setting finetune.epochs = '2,2' repeats a value; expected each once"),
        (["finetune.epochs=4..2"], "range '4..2' of setting finetune.epochs is empty; expected LOW..HIGH"),
        (["finetune.epochs=2,0"], r"setting finetune.epochs = '0' \(flag\) is refused"),
        (["finetune.epoch=2,3"], "did you mean 'finetune.epochs'"),
        (["finetune.seed=1,2"], "finetune.seed is the same for all trials of a sweep; expected one value, not '1,2'"),
        (["finetune.encoder=a..b"], "finetune.encoder takes no range; expected choices"),
        (
            [f"finetune.{name}={','.join(map(str, range(1, 31)))}" for name in ("epochs", "batch_size", "patience")],
            "the sweep has 27,000 combinations; expected at most 10,000, or a range of a setting",
        ),
    ],
)
def test_a_space_that_makes_no_sense_is_one_line(assignments: list[str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        space_of(*assignments)
