"""The teacher of a training is found before it starts; that it may have read the holdout is said."""

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import pytest
from toy import facts

from flows.jobs.teacher import locate_teacher
from tasks.inference.bundle import write_manifest

ROWS = "d" * 64


@pytest.mark.parametrize(("learned", "said"), [(ROWS, ""), ("e" * 64, "eeeeeeee"), ("", "unknown")])
def test_a_teacher_that_learned_other_training_rows_is_used_with_a_warning(
    learned: str, said: str, exported: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    bundle = Path(shutil.copytree(exported["bundle"], tmp_path / "bundle"))
    if learned:
        (bundle / "data.json").write_text(json.dumps({"dataset": learned}))
    manifest = write_manifest(bundle, facts(max_length=16), {})
    with caplog.at_level(logging.WARNING, "tasks.retrain"):
        found = locate_teacher(str(bundle), ROWS, str(tmp_path))
    assert (found.bundle, found.manifest_digest) == (str(bundle), manifest["manifest_digest"])
    expected = [f"finetune.teacher {bundle} learned other training rows ({said}, not dddddddd); if sentences of this"]
    assert [message.partition(" holdout")[0] for message in caplog.messages] == (expected if said else [])
