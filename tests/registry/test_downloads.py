"""What is downloaded from a registry is deleted: at the end of the process, or by the next one where it was killed."""

import os
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
DOWNLOAD = """
import os, sys
from pathlib import Path
from tasks.registry.downloads import is_download, new_download
first, second = Path(new_download()), Path(new_download())
assert first != second and is_download(first) and is_download(second / "model") and not is_download(Path("/"))
if pid := os.fork():
    os.waitpid(pid, 0)
    assert first.is_dir() and second.is_dir(), "the end of a forked process deleted them"
    print("there", flush=True)
    sys.stdin.readline()
"""


def start(folder: Path) -> subprocess.Popen[str]:
    environ = os.environ | {"TMPDIR": str(folder)}
    process = subprocess.Popen(
        [sys.executable, "-c", DOWNLOAD],
        env=environ,
        cwd=ROOT,
        text=True,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "there\n"
    return process


def end(process: subprocess.Popen[str]) -> None:
    process.communicate("end\n")
    assert process.returncode == 0


def test_they_are_gone_with_their_process_and_those_of_a_killed_one_with_the_next(tmp_path: Path) -> None:
    killed, lives = start(tmp_path), start(tmp_path)
    killed.kill()
    killed.communicate()
    folders = set(tmp_path.iterdir())
    assert len(folders) == 2
    end(start(tmp_path))
    assert set(tmp_path.iterdir()) == folders  # both are young, and may not be locked yet
    for folder in folders:
        os.utime(folder, (time.time() - 100,) * 2)
    end(start(tmp_path))
    (left,) = tmp_path.iterdir()  # of the process that lives
    end(lives)
    assert not left.exists()
