"""What changed since the champion."""

from tasks.evaluation.run_diff import Change, Past, list_changes

PAST = Past(
    settings={"a": "1", "b": "x", "old": "0"}, tags={"dataset": "d" * 64, "git_commit": "c" * 40, "numpy": "2.0"}
)
FACTS = {"dataset": "d" * 64, "git_commit": "c" * 40, "numpy": "2.0"}


def test_what_is_equal_is_no_change() -> None:
    past = Past(settings={"a": "1", "b": "x"}, tags=PAST["tags"])
    assert list_changes(past, [("a", 1, "flag"), ("b", "x", "default")], FACTS) == []


def test_data_come_first_then_settings_then_code_and_libraries() -> None:
    facts = {"dataset": "e" * 64, "git_commit": "f" * 40 + "-dirty", "numpy": "2.1", "torch": "3"}
    assert list_changes(PAST, [("a", 2, "flag"), ("b", "x", "default"), ("new", True, "flag")], facts) == [
        Change("data set", "d" * 12, "e" * 12),
        Change("a", "1", "2"),
        Change("new", "not recorded", "True"),
        Change("old", "0", "no setting any more"),
        Change("code", "c" * 12, "f" * 12 + "-dirty"),
        Change("numpy", "2.0", "2.1"),
        Change("torch", "not recorded", "3"),
    ]


def test_a_run_without_tags_is_told_apart_from_an_equal_one() -> None:
    assert list_changes(Past(settings={}, tags={}), [], {"dataset": "d" * 64}) == [
        Change("data set", "not recorded", "d" * 12)
    ]
