#!/usr/bin/env bash
# Ray 2.60.0, on Linux, with CPython 3.11.7.
#
# Behaviour: a task computes at niceness 15, whatever niceness the program has that starts Ray and asks for the task. Beside another
# process that computes on the same core it gets less than a tenth of it: the CPU of `num_cpus=1` means nothing to the kernel.
# RAY_worker_niceness in the environment in which the node starts changes that.
#
# Seen, a task and another process that both compute on one core for ten seconds:
#   by default: niceness 15, less than a tenth of the core
#   with RAY_worker_niceness=0: niceness 0, more than a third of the core
set -euo pipefail
script=$(realpath "$0") && dir=$(mktemp -d) && trap 'rm -rf "$dir"' EXIT && cd "$dir"
mkdir home
cat > show.py <<'PY'
import logging
import os
import subprocess
import sys
import time

import ray

BUSY = "import time\nend = time.monotonic() + 30\nwhile time.monotonic() < end: pass"
SECONDS = 10


def compute():
    os.sched_setaffinity(0, [core])
    started, used = time.monotonic(), time.process_time()
    while time.monotonic() < started + SECONDS:
        pass
    return os.nice(0), (time.process_time() - used) / SECONDS


core = min(os.sched_getaffinity(0))
ray.init(num_cpus=1, include_dashboard=False, logging_level=logging.ERROR, log_to_driver=False)
task = ray.remote(compute)
other = subprocess.Popen(["taskset", "-c", str(core), sys.executable, "-c", BUSY])
niceness, share = ray.get(task.remote())
other.kill()
print(f"{share:.3f} of the core", file=sys.stderr)
bounds = {"less than a tenth": share < 0.1, "more than a third": share > 1 / 3}
print(f"{sys.argv[1]}: niceness {niceness}, {next((text for text, holds in bounds.items() if holds), share)} of the core")
ray.shutdown()
PY
"${PYTHON:-python3}" -m venv env
env/bin/pip install --quiet --disable-pip-version-check 'ray==2.60.0' > pip.log 2>&1 || { cat pip.log; exit 2; }
export HOME="$dir/home" RAY_TMPDIR="$dir" RAY_USAGE_STATS_ENABLED=0
{
    env/bin/python show.py "by default"
    RAY_worker_niceness=0 env/bin/python show.py "with RAY_worker_niceness=0"
} 2> errors | tee seen
diff seen <(sed -n '/^# Seen, /,/^set/s/^#   //p' "$script") || { tail -3 errors; exit 1; }
