#!/usr/bin/env bash
# Ray 2.60.0, on Linux, with CPython 3.11.7.
#
# Behaviour: with RAY_AUTH_MODE=token a process reads RAY_AUTH_TOKEN once. After `ray.shutdown()` another `ray.init` with another token
# starts a node that has the new one, while the process still sends the first, so that `ray.init` fails after 20 s and says nothing of
# tokens. With the first token it starts again. `AuthenticationTokenLoader.instance().reset_cache()` of the private module
# `ray._raylet` lets it read the variable again.
#
# Seen, clusters that one process starts one after another:
#   token a: started
#   token b: RuntimeError: Failed to start GCS
#   token a: started
#   after reset_cache()
#   token b: started
set -euo pipefail
script=$(realpath "$0") && dir=$(mktemp -d) && trap 'rm -rf "$dir"' EXIT && cd "$dir"
mkdir home
cat > show.py <<'PY'
import logging
import os

import ray
from ray._raylet import AuthenticationTokenLoader


def start(letter):
    os.environ["RAY_AUTH_TOKEN"] = letter * 64
    try:
        ray.init("local", num_cpus=1, include_dashboard=False, logging_level=logging.ERROR, log_to_driver=False)
        found = "started"
    except RuntimeError as error:
        found = f"RuntimeError: {str(error).partition('.')[0]}"
    finally:
        ray.shutdown()
    print(f"token {letter}: {found}", flush=True)


start("a")
start("b")
start("a")
AuthenticationTokenLoader.instance().reset_cache()
print("after reset_cache()")
start("b")
PY
"${PYTHON:-python3}" -m venv env
env/bin/pip install --quiet --disable-pip-version-check 'ray==2.60.0' > pip.log 2>&1 || { cat pip.log; exit 2; }
export HOME="$dir/home" RAY_TMPDIR="$dir" RAY_USAGE_STATS_ENABLED=0 RAY_AUTH_MODE=token
env/bin/python show.py 2> errors | tee seen
diff seen <(sed -n '/^# Seen, /,/^set/s/^#   //p' "$script") || { tail -3 errors; exit 1; }
