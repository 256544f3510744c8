#!/usr/bin/env bash
# Optuna 5.0.0. Python 3.11 or later.
#
# Behaviour: a process that is killed while it writes to a journal file leaves the journal's lock behind, and the next
# one waits 30 seconds for it, in silence for the first 10 of them; which trial the killed process had is still RUNNING
# afterwards. A lock of the operating system (fcntl, flock) would have ended with its process. `grace_period` of
# JournalFileSymlinkLock and JournalFileOpenLock shortens the wait; below 3 s they warn.
#
# Seen:
#   killed by signal 9; left: trials.log, trials.log.lock
#   default lock: opened after more than 25 s, trials RUNNING
#   grace period of 3 s: opened after less than 10 s, trials RUNNING
set -euo pipefail
script=$(realpath "$0") && dir=$(mktemp -d) && trap 'rm -rf "$dir"' EXIT && cd "$dir"
"${PYTHON:-python3}" -m venv env || exit 2
env/bin/pip install --quiet --disable-pip-version-check optuna==5.0.0 || exit 2
cat > show.py <<'PY'
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

KILLED = """
import os, signal, sys
import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend, JournalFileSymlinkLock
optuna.logging.set_verbosity(optuna.logging.ERROR)
study = optuna.create_study(storage=JournalStorage(JournalFileBackend(sys.argv[1])))
study.ask()
JournalFileSymlinkLock.release = lambda self: os.kill(os.getpid(), signal.SIGKILL)
study.ask()
"""
journal = str(Path("journal/trials.log").absolute())
Path("journal").mkdir()
ended = subprocess.run([sys.executable, "-c", KILLED, journal])
print(f"killed by signal {-ended.returncode}; left: {', '.join(sorted(os.listdir('journal')))}")
shutil.copytree("journal", "copy", symlinks=True)

import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend, JournalFileSymlinkLock

optuna.logging.set_verbosity(optuna.logging.ERROR)


def resume(name, lock, expected):
    shutil.rmtree("journal")
    shutil.copytree("copy", "journal", symlinks=True)
    started = time.monotonic()
    [held] = optuna.get_all_study_names(JournalStorage(JournalFileBackend(journal, lock)))
    study = optuna.load_study(study_name=held, storage=JournalStorage(JournalFileBackend(journal, lock)))
    study.set_user_attr("seen", True)
    seconds = time.monotonic() - started
    states = ", ".join({trial.state.name for trial in study.trials})
    limit = next((text for text, holds in expected if holds(seconds)), f"{seconds:.0f} s")
    print(f"{name}: opened after {limit}, trials {states}")


resume("default lock", None, [("more than 25 s", lambda seconds: seconds > 25)])
grace = JournalFileSymlinkLock(journal, 3)
resume("grace period of 3 s", grace, [("less than 10 s", lambda seconds: seconds < 10)])
PY
env/bin/python show.py | tee seen
diff seen <(sed -n '/^# Seen:/,/^set/s/^#   //p' "$script")
