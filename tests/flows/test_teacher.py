"""The teacher of a training is found before it starts; what it may have read is said."""

import logging
from pathlib import Path
from typing import Any

import pytest
from toy import origin

from flows.jobs.teacher import locate_teacher

DATA = origin()["dataset"]


@pytest.mark.parametrize(("dataset", "warned"), [(DATA, False), ("e" * 64, True)])
def test_a_teacher_that_learned_other_data_is_used_with_a_warning(
    dataset: str, warned: bool, exported: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "tasks.retrain"):
        found = locate_teacher(exported["bundle"], dataset, str(tmp_path))
    assert found.bundle == exported["bundle"]
    assert (
        "learned other data (dddddddd, not eeeeeeee); if it read sentences of this holdout" in caplog.text
    ) == warned
