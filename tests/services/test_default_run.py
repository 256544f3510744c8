"""The README's first command as it stands: bundled sample, packaged encoder, embedded server, a fresh home.

It trains for a minute on all cores, so it runs here, where no other test does meanwhile. Its home folder is empty, so
that what libraries leave there is seen.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from stage import ROOT, Clock

from flows.cli.run import FIRST_SENTENCES

NOT_INHERITED = ("PREFECT_", "OMP_NUM_THREADS", "XDG_", "MPLCONFIGDIR", "HF_", "ORT_", "MLFLOW_", "DO_NOT_TRACK")

pytestmark = [pytest.mark.services, pytest.mark.timeout(900)]


def test_the_default_run_ends_with_a_champion_that_answers(tmp_path: Path, clock: Clock) -> None:
    home = tmp_path / "home"
    home.mkdir()
    kept = {name: value for name, value in os.environ.items() if not name.startswith(NOT_INHERITED)}
    environment = kept | {"VERDICT_HOME": str(tmp_path / "stores"), "HOME": str(home)}

    def run(*arguments: str) -> Any:
        command = [sys.executable, "-m", "flows.cli.app", *arguments, "--json"]
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    with clock("verdict retrain, default"):
        outcome = run("retrain")
    assert outcome["decision"] == "PROMOTE"
    assert 0.5 < outcome["mcc"] < 0.95
    assert outcome["holdout_rows"] == 800
    again = run("retrain")
    assert again["unchanged"]
    assert again["version"] == outcome["version"]
    answers = run("predict", *FIRST_SENTENCES)
    assert [answer["label"] for answer in answers] == ["acceptable", "unacceptable"]
    assert [set(answer) for answer in answers] == [{"sentence", "label", "probability", "truncated", "version"}] * 2
    status = run("status")
    assert status["champion"]["version"] == outcome["version"]
    assert status["runs"][0]["verdict"] == "PROMOTE"
    assert [path.relative_to(home) for path in home.rglob("*") if path.is_file()] == []
