#!/usr/bin/env bash
# Prefect 3.8.8, on Linux. Python 3.11 to 3.13.
#
# Behaviour: DO_NOT_TRACK=1 keeps the import of Prefect from writing anything, but not the definition of the first flow,
# nor its run: each records a milestone, and the first of them leaves a lasting device id in PREFECT_HOME (by default
# ~/.prefect), where standard output or standard error is a terminal. The variable is read again before an event is sent, so
# none should be; without a terminal nothing is written at all, which is why tests and containers do not see it.
#
# Seen, with DO_NOT_TRACK=1:
#   no terminal: nothing
#   terminal, import: nothing
#   terminal, import and flow: device_id, milestones.json (first_flow_defined)
set -euo pipefail
script=$(realpath "$0") && dir=$(mktemp -d) && trap 'rm -rf "$dir"' EXIT && cd "$dir"
cat > show.py <<'PY'
import json
import os
import pty
import subprocess
import sys
import tempfile
from pathlib import Path

FLOW = "from prefect import flow\n@flow\ndef nothing():\n    return 1\n"


def run(program, terminal):
    """Run a program with an empty Prefect home; return what lies there for telemetry."""
    with tempfile.TemporaryDirectory() as home:
        kept = {name: os.environ[name] for name in ("PATH", "LANG") if name in os.environ}  # no variable of a CI service
        environment = kept | {"HOME": home, "DO_NOT_TRACK": "1", "PREFECT_SERVER_ANALYTICS_ENABLED": "false"}
        here, there = pty.openpty()
        stderr = there if terminal else subprocess.DEVNULL
        command = [sys.executable, "-c", program]
        subprocess.run(command, env=environment, stdout=subprocess.DEVNULL, stderr=stderr, check=True)
        os.close(there)
        os.close(here)
        found = sorted(path for path in Path(home).rglob(".sdk_telemetry/*"))
        reached = [name for path in found if path.suffix == ".json" for name in json.loads(path.read_text())]
        return ", ".join(path.name for path in found) + (f" ({', '.join(reached)})" if reached else "") or "nothing"


print("no terminal:", run(FLOW, terminal=False))
print("terminal, import:", run("import prefect", terminal=True))
print("terminal, import and flow:", run(FLOW, terminal=True))
PY
"${PYTHON:-python3}" -m venv env
env/bin/pip install --quiet --disable-pip-version-check prefect==3.8.8 sqlalchemy==2.0.58 fastapi==0.150.0 > pip.log 2>&1 \
  || { cat pip.log; exit 2; }
env/bin/python show.py | tee seen
diff seen <(sed -n '/^# Seen, /,/^set/s/^#   //p' "$script")
