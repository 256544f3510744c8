"""A missing alias means two things."""

import pytest

from tasks.evaluation.incumbency import find_incumbency


@pytest.mark.parametrize(
    ("champion", "promotions", "expected"),
    [(True, 0, "reigning"), (True, 3, "reigning"), (False, 0, "never"), (False, 1, "vanished")],
)
def test_who_reigned_once_and_is_gone_has_vanished(champion: bool, promotions: int, expected: str) -> None:
    assert find_incumbency(champion, promotions) == expected
