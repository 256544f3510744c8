"""What several servers measured of two versions, as one summary."""

from typing import Any

import pytest

from tasks.evaluation.metrics import mcc_from_counts
from tasks.evaluation.shadow_summary import (
    SHADOW_SCHEMA_VERSION,
    ShadowSummary,
    describe_shadow,
    merge_summaries,
    side_figures,
)


def summary(sentences: int, p50: float, p99: float, confusion: list[int], **more: Any) -> ShadowSummary:
    sides = {
        "champion": side_figures("1", p50, p99, confusion),
        "challenger": side_figures("2", 2 * p50, 2 * p99, confusion[::-1]),
    }
    figures = {
        "schema_version": SHADOW_SCHEMA_VERSION,
        "since": f"2026-01-0{sentences}T00:00:00+00:00",
        "until": f"2026-02-0{sentences}T00:00:00+00:00",
        "servers": 1,
        "sentences": sentences,
        "equal": sentences - 1,
        "dropped": 3,
        "failures": 0,
        "flags": sum(confusion),
    }
    return figures | sides | more  # type: ignore[return-value]


def test_counts_are_summed_and_the_mcc_is_that_of_all_flags() -> None:
    both = merge_summaries([summary(1, 4.0, 9.0, [1, 0, 0, 1]), summary(3, 8.0, 7.0, [0, 1, 1, 2])])
    counts = [both[name] for name in ("servers", "sentences", "equal", "dropped", "flags")]  # type: ignore[literal-required]
    assert counts == [2, 4, 2, 6, 6]
    assert (both["since"][:10], both["until"][:10]) == ("2026-01-01", "2026-02-03")
    assert both["champion"]["confusion"] == [1, 1, 1, 3]
    assert both["champion"]["mcc"] == pytest.approx(float(mcc_from_counts([1, 1, 1, 3])))
    assert (both["champion"]["p50_ms"], both["champion"]["p99_ms"]) == (7.0, 9.0)
    assert both["challenger"]["version"] == "2"
    assert describe_shadow(both).endswith("; 2 servers; until 2026-02-03 00:00 UTC")


def test_one_summary_is_itself_and_the_order_of_several_does_not_matter() -> None:
    each = [summary(1, 4.0, 9.0, [0, 0, 0, 0]), summary(2, 5.0, 6.0, [3, 1, 0, 2]), summary(4, 1.0, 2.0, [1, 1, 1, 1])]
    assert merge_summaries(each[:1]) == each[0]
    assert each[0]["champion"]["mcc"] is None
    assert merge_summaries(each) == merge_summaries(each[::-1])


def test_servers_without_a_sentence_have_figures_too() -> None:
    none = summary(1, 4.0, 9.0, [0, 0, 0, 1])
    none |= {"sentences": 0, "equal": 0}
    assert merge_summaries([none, none])["champion"]["p50_ms"] == 4.0


def test_summaries_of_other_versions_are_not_merged() -> None:
    other = summary(1, 4.0, 9.0, [0, 0, 0, 1], champion=side_figures("3", 1.0, 1.0, [0, 0, 0, 0]))
    for summaries in ([], [summary(1, 4.0, 9.0, [0, 0, 0, 1]), other]):
        with pytest.raises(ValueError, match="expected those of one"):
            merge_summaries(summaries)
