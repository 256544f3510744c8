"""What MLflow's own pages show of versions and runs."""

from pathlib import Path
from typing import Any

import pytest
from candidates import tell, weigh
from registry_store import add_version, new_store

from tasks.core.printable import MARK, shorten
from tasks.evaluation.run_diff import SettingChange
from tasks.inference.bundle import MODEL_NAME
from tasks.registry import promotion as moves
from tasks.registry import register
from tasks.registry import tracking as runs
from tasks.registry.descriptions import (
    MAX_CELL_CHARS,
    WAITS,
    describe_change,
    describe_failure,
    describe_run,
    describe_version,
    headline,
    version_tags,
)
from tasks.registry.limits import MAX_CHANGES, MAX_DECISION, MAX_DESCRIPTION
from tasks.registry.mlflow_client import PAGE_MODE, connect
from tasks.registry.store import MlflowStore
from tasks.reporting.tables import compare_figures

PAGE = "#/experiments/1/runs/r1"
CHANGES = [SettingChange("finetune.epochs", "1", "2"), SettingChange("data.path", "", "a|b <x> @me")]
HELD = tell(weigh(2.0, 1.9))


@pytest.fixture
def store(empty_store: Path, tmp_path: Path) -> MlflowStore:
    return new_store(empty_store, tmp_path)


def describe(judged: Any, changes: list[SettingChange] | None = None) -> str:
    return describe_version(judged.evidence, judged.verdict, compare_figures(judged.evidence), changes, PAGE)


def test_the_first_line_is_plain_and_says_it_all() -> None:
    first = describe(HELD).splitlines()[0]
    assert first == headline(HELD.evidence, HELD.verdict)
    interval, comparison = HELD.evidence["candidate"]["interval"], HELD.evidence["comparison"]
    assert comparison is not None
    assert first == (
        f"HOLD: MCC {interval['mcc']:.3f} (95% CI {interval['low']:.3f} to {interval['high']:.3f}) on 300 holdout "
        f"sentences, {comparison['difference']:+.3f} beside champion 7."
    )
    alone = tell(weigh())
    assert headline(alone.evidence, alone.verdict).endswith("on 300 holdout sentences.")


def test_a_version_on_hold_says_why_what_changed_and_how_to_decide() -> None:
    text = describe(HELD, CHANGES)
    assert "(rule `not_better`)" in text
    assert "`verdict approve N --reason TEXT` or `verdict reject N --reason TEXT`" in text
    assert "**Changed since champion 7**\n\n- `finetune.epochs`: 1 → 2\n" in text
    assert "- `data.path`: empty → a\\|b &lt;x> &#64;me" in text
    assert f"[report]({PAGE}/artifacts/records/report.html{PAGE_MODE})" in text
    assert f"[data gate]({PAGE}/artifacts/gate/gate.html{PAGE_MODE})" in text
    assert f"`{'t' * 12}`" in text
    assert "| this version&emsp; | champion 7&emsp; |" in text


def test_versions_that_wait_for_nobody_name_no_command() -> None:
    promoted = tell(weigh())
    assert "verdict approve" not in describe(promoted)
    assert "Changed since" not in describe(promoted)
    assert "| figure&emsp; | this version&emsp; |\n" in describe(promoted)


def test_what_is_unknown_and_what_is_equal_are_distinguished() -> None:
    assert "is not known: its run is not in this store" in describe(HELD)
    assert "Nothing changed since champion 7" in describe(HELD, [])
    many = [SettingChange(f"key{i}", "a", "b") for i in range(MAX_CHANGES)]
    text = describe(HELD, many)
    listed = text.count("- `key")
    assert f"- {MAX_CHANGES - listed} more in the report" in text
    assert 50 < listed < MAX_CHANGES
    long = describe(HELD, [SettingChange("data.path", "a" * 9_000, "<" * 9_000)])
    assert len(long) < MAX_DESCRIPTION
    assert long.count("a" * 50) == long.count("&lt;" * 50) == 3
    assert "| figure&emsp; |" in long  # the figures are not cut off


def test_tags_say_at_a_glance_what_a_version_is() -> None:
    assert version_tags(HELD.evidence, HELD.verdict, CHANGES[:1]) == {
        "verdict": "HOLD",
        "mcc": f"{HELD.evidence['candidate']['interval']['mcc']:.6f}",
        "changed": "finetune.epochs 1 -> 2",
    }
    assert version_tags(HELD.evidence, HELD.verdict, [])["changed"] == "nothing"
    assert version_tags(HELD.evidence, HELD.verdict, None)["changed"] == "unknown"
    endless = [SettingChange("key", "a" * 5_000, "b")]
    assert len(version_tags(HELD.evidence, HELD.verdict, endless)["changed"]) == MAX_CELL_CHARS
    alone = tell(weigh())
    assert "without a champion" in version_tags(alone.evidence, alone.verdict, None)["changed"]


def test_a_run_leads_to_its_version_and_says_where_things_lie() -> None:
    text = describe_run(HELD.evidence, HELD.verdict, "3", "acceptability", PAGE)
    assert text.startswith("HOLD: MCC")
    assert f"[version 3](#/models/acceptability/versions/3{PAGE_MODE})" in text
    assert f"[page of the data gate]({PAGE}/artifacts/gate/gate.html{PAGE_MODE})" in text


def test_a_run_that_failed_says_why() -> None:
    assert describe_failure("REFUSED", "too <few> rows") == "The data gate refused the data: too &lt;few> rows"
    assert describe_failure("STOPPED", "by SIGINT") == "The run was stopped: by SIGINT"
    assert describe_failure("FAILED", "x").startswith("The run failed: ")


def test_the_models_page_names_no_person() -> None:
    """MLflow makes a link to somebody's account of a name behind an at sign, except in code."""
    assert "@" not in "".join(register.MODEL_DESCRIPTION.split("`")[::2])


@pytest.mark.parametrize("decide", [moves.reject, moves.promote])
def test_a_decision_stands_above_the_description_once(store: MlflowStore, tmp_path: Path, decide: Any) -> None:
    version = add_version(store, tmp_path, "a", verdict="HOLD")
    with connect(store) as client:
        client.update_model_version(MODEL_NAME, version, description=f"HOLD: as it was judged.\n\n{WAITS}\n\nFigures")
    approving = decide is moves.promote
    said: Any = {"kind": "approve", "expected": None, "actor": "ann"} if approving else {"actor": "ann"}
    move = decide(store, version, reason="looks right", **said)
    line = describe_change(move)
    assert line.startswith("APPROVED and promoted to champion by ann, 20" if approving else "REJECTED by ann, 20")
    assert line.endswith(": looks right")
    register.prepend_description(store, version, line)  # as somebody does who goes on after a process that died
    register.prepend_description(store, "99", line)
    with connect(store) as client:
        model = client.get_registered_model(MODEL_NAME)
        text = client.get_model_version(MODEL_NAME, version).description
    assert text == f"{line}\n\nHOLD: as it was judged.\n\nFigures"  # nobody is waited for any more
    assert model.description == register.MODEL_DESCRIPTION


def test_versions_say_when_they_became_champion_and_when_they_ceased_to_be(store: MlflowStore, tmp_path: Path) -> None:
    first, second = (add_version(store, tmp_path, name) for name in "ab")
    moves.promote(store, first, kind="promote", expected=None, reason="there is none", actor="ann")
    moves.promote(store, second, kind="promote", expected=first, reason="better", actor="ann")
    moves.promote(store, first, kind="rollback", expected=second, reason="complaints", actor="bob")
    with connect(store) as client:
        texts = [client.get_model_version(MODEL_NAME, version).description for version in (first, second)]
    again, replaced, promoted = (line for line in texts[0].split("\n") if line)
    assert again.startswith("Champion again, by a rollback by bob, 20")
    assert replaced.startswith(f"No longer champion: replaced by version {second} by ann, 20")
    assert promoted.startswith("Promoted to champion by ann, 20")
    assert promoted.endswith(": there is none")
    gone, before = (line for line in texts[1].split("\n") if line)
    assert gone.startswith(f"No longer champion: rolled back to version {first} by bob, 20")
    assert before.endswith(": better")


def test_a_long_decision_and_a_long_description_are_cut_with_a_mark(store: MlflowStore, tmp_path: Path) -> None:
    assert [shorten("a" * 10, limit) for limit in (10, 9)] == ["a" * 10, "aaa [...]"]
    version = add_version(store, tmp_path, "a", verdict="HOLD")
    with connect(store) as client:
        client.update_model_version(MODEL_NAME, version, description="b" * MAX_DESCRIPTION)
    moves.reject(store, version, reason="<" * 2_000, actor="ann")
    moves.reject(store, version, reason="<" * 2_000, actor="ann")  # the cut line is recognised: it stands there once
    with connect(store) as client:
        text = client.get_model_version(MODEL_NAME, version).description
    line, _, rest = text.partition("\n\n")
    assert (len(text), len(line)) == (MAX_DESCRIPTION, MAX_DECISION)
    assert line.endswith(MARK)
    assert rest.startswith("bbb")
    assert rest.endswith(MARK)
    assert moves.history(store)[1][-1]["reason"] == "<" * 2_000  # the record has it whole


def test_what_a_run_recorded_is_read_and_a_missing_run_is_none(store: MlflowStore) -> None:
    run = runs.open_run(store, "a" * 16, {"finetune.epochs": 2}, {"dataset": "d" * 64})
    past = runs.read_run_record(store, run)
    assert past is not None
    assert past["settings"] == {"finetune.epochs": "2"}
    assert past["tags"]["dataset"] == "d" * 64
    assert runs.read_run_record(store, "0" * 32) is None
    assert runs.find_page(store, run) == f"#/experiments/1/runs/{run}"
