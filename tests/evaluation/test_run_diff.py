"""What differs between the champion's run and the candidate's."""

from tasks.core.settings_loader import SettingRow
from tasks.evaluation.run_diff import RunRecord, SettingChange, diff_runs

PAST = RunRecord(
    settings={"a": "1", "b": "x", "old": "0"}, tags={"dataset": "d" * 64, "git_commit": "c" * 40, "numpy": "2.0"}
)
FACTS = {"dataset": "d" * 64, "git_commit": "c" * 40, "numpy": "2.0"}


def test_equal_runs_have_no_differences() -> None:
    past = RunRecord(settings={"a": "1", "b": "x"}, tags=PAST["tags"])
    assert diff_runs(past, [SettingRow("a", 1, "flag"), SettingRow("b", "x", "default")], FACTS) == []


def test_data_come_first_then_settings_then_code_and_libraries() -> None:
    facts = {"dataset": "e" * 64, "git_commit": "f" * 40 + "-dirty", "numpy": "2.1", "torch": "3"}
    assert diff_runs(
        PAST, [SettingRow("a", 2, "flag"), SettingRow("b", "x", "default"), SettingRow("new", True, "flag")], facts
    ) == [
        SettingChange("data set", "d" * 12, "e" * 12),
        SettingChange("a", "1", "2"),
        SettingChange("new", "not recorded", "True"),
        SettingChange("old", "0", "removed"),
        SettingChange("code", "c" * 12, "f" * 12 + "-dirty"),
        SettingChange("numpy", "2.0", "2.1"),
        SettingChange("torch", "not recorded", "3"),
    ]


def test_a_run_without_tags_differs_from_an_equal_one() -> None:
    assert diff_runs(RunRecord(settings={}, tags={}), [], {"dataset": "d" * 64}) == [
        SettingChange("data set", "not recorded", "d" * 12)
    ]
