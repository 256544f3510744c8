#!/usr/bin/env bash
# rich 15.0.0. Python 3.11 or later.
#
# Behaviour: a `Live` or `Progress` on a console of standard error also takes over standard output while it is shown. What
# the program prints then is written to standard error, and a pipe or file at standard output stays empty, without an
# error. It happens where standard error is a terminal, so a test or a job without one does not see it, and not with
# `redirect_stdout=False`.
#
# Seen:
#   standard error is a file: standard output has 3 rows
#   standard error is a terminal: standard output has 0 rows, the terminal has 3
#   standard error is a terminal, redirect_stdout=False: standard output has 3 rows
set -euo pipefail
script=$(realpath "$0") && dir=$(mktemp -d) && trap 'rm -rf "$dir"' EXIT && cd "$dir"
"${PYTHON:-python3}" -m venv env || exit 2
env/bin/pip install --quiet --disable-pip-version-check rich==15.0.0 || exit 2
cat > export.py <<'PY'
import sys

from rich.console import Console
from rich.progress import Progress

options = {"redirect_stdout": False} if "plain" in sys.argv else {}
with Progress(console=Console(stderr=True), **options) as progress:
    for row in progress.track(range(3), description="export"):
        print(f"row {row}")
PY
cat > terminal.py <<'PY'
import os
import pty
import subprocess
import sys

main, end = pty.openpty()
environment = os.environ | {"TERM": "xterm"}
with open("rows", "wb") as rows:
    program = subprocess.Popen(["env/bin/python", "export.py", *sys.argv[1:]], stdout=rows, stderr=end, env=environment)
os.close(end)
with open("shown", "wb") as shown:
    while True:
        try:
            shown.write(os.read(main, 65536))
        except OSError:  # the other end was closed
            break
sys.exit(program.wait())
PY
count() { grep --count --text --only-matching 'row [0-9]' "$1" || true; }
env/bin/python export.py > rows 2> shown
echo "standard error is a file: standard output has $(count rows) rows" | tee seen
env/bin/python terminal.py
echo "standard error is a terminal: standard output has $(count rows) rows, the terminal has $(count shown)" | tee -a seen
env/bin/python terminal.py plain
echo "standard error is a terminal, redirect_stdout=False: standard output has $(count rows) rows" | tee -a seen
diff seen <(sed -n '/^# Seen:/,/^set/s/^#   //p' "$script")
