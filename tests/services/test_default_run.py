"""The README's first command as it stands: bundled sample, packaged encoder, embedded server, a fresh home.

It trains for a minute on all cores, so it runs here, where the tests beside it mostly wait. Its home folder is empty,
so that what libraries leave there is seen.
"""

import contextlib
import json
import os
import pty
import re
import subprocess
import sys
import termios
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from stage import ROOT, Clock

from flows.cli.run import FIRST_SENTENCES

NOT_INHERITED = (
    "PREFECT_", "COLUMNS", "LINES", "OMP_NUM_THREADS", "XDG_", "MPLCONFIGDIR", "HF_", "ORT_", "MLFLOW_", "DO_NOT_TRACK",
)  # fmt: skip

pytestmark = [pytest.mark.services, pytest.mark.timeout(900)]


@contextlib.contextmanager
def terminal() -> Iterator[tuple[int, Callable[[], str]]]:
    """Yield a pseudo terminal of 80 columns, and what returns all that was written to it once its writers ended."""
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (40, 80))
    parts: list[bytes] = []

    def read() -> None:
        with contextlib.suppress(OSError):  # Linux's end of a terminal
            while part := os.read(ours, 65_536):
                parts.append(part)

    thread = threading.Thread(target=read, daemon=True)
    thread.start()

    def written() -> str:
        os.close(theirs)
        thread.join(10)
        return b"".join(parts).decode()

    yield theirs, written
    os.close(ours)


def test_the_default_run_ends_with_a_champion_that_answers(tmp_path: Path, clock: Clock) -> None:
    home = tmp_path / "home"
    home.mkdir()
    kept = {name: value for name, value in os.environ.items() if not name.startswith(NOT_INHERITED)}
    environment = kept | {"VERDICT_HOME": str(tmp_path / "stores"), "HOME": str(home), "TERM": "xterm-256color"}

    def run(*arguments: str, stderr: int = subprocess.PIPE) -> Any:
        command = [sys.executable, "-m", "flows.cli.app", *arguments, "--json"]
        done = subprocess.run(
            command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=stderr, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    with clock("verdict retrain, default"), terminal() as (screen, written):
        outcome = run("retrain", stderr=screen)
    # The steps stood on the terminal from the beginning, with the bar, and are gone.
    shown = written()
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown)
    assert "12 register" in text.partition("read data     done")[0]
    assert "epoch 1 of 2: loss" in text
    assert re.search(r"fine-tuning .* \d+/\d+ left \d:\d\d:\d\d", text)
    assert shown.endswith("\x1b[1A\x1b[2K" * 12)
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
