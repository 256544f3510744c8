"""A missing alias means two things."""

import pytest

from tasks.evaluation.incumbency import champion_state


@pytest.mark.parametrize(
    ("champion", "promotions", "expected"),
    [(True, 0, "active"), (True, 3, "active"), (False, 0, "none"), (False, 1, "lost")],
)
def test_who_reigned_once_and_is_gone_has_vanished(champion: bool, promotions: int, expected: str) -> None:
    assert champion_state(champion, promotions) == expected
