#!/usr/bin/env bash
# Ray 2.60.0, on Linux. Python 3.11 to 3.13.
#
# Behaviour: ray.init(address="HOST:PORT") where nothing listens, which the system refuses at once, tries for a quarter of an
# hour before it raises ConnectionError, and takes no time limit as an argument: 20 attempts, each of about 40 seconds. The
# number of attempts is RAY_gcs_server_port_wait_time_s (it is named for seconds, and taken as such elsewhere), the length of
# an attempt RAY_py_gcs_connect_timeout_s; both are read from the environment, the latter when Ray is imported.
#
# Seen, for one attempt, then one with the shorter limit (rounded to 10 s), and the attempts by default:
#   one attempt: ConnectionError after 40 s
#   one attempt with a limit of 1 s: ConnectionError after 10 s
#   attempts by default: 20
set -euo pipefail
script=$(realpath "$0") && dir=$(mktemp -d) && trap 'rm -rf "$dir"' EXIT && cd "$dir"
cat > show.py <<'PY'
import logging
import time

import ray

started = time.monotonic()
try:
    ray.init(address="127.0.0.1:1", logging_level=logging.ERROR)
except ConnectionError as error:
    print(type(error).__name__, "after", 10 * round((time.monotonic() - started) / 10), "s")
PY
"${PYTHON:-python3}" -m venv env
env/bin/pip install --quiet --disable-pip-version-check 'ray==2.60.0' > pip.log 2>&1 || { cat pip.log; exit 2; }
export HOME="$dir" RAY_USAGE_STATS_ENABLED=0 RAY_gcs_server_port_wait_time_s=1
{
  echo "one attempt: $(env/bin/python show.py 2> errors)"
  echo "one attempt with a limit of 1 s: $(RAY_py_gcs_connect_timeout_s=1 env/bin/python show.py 2> errors)"
  echo "attempts by default: $(env/bin/python -c 'from ray._private import ray_constants as c; print(c.NUM_REDIS_GET_RETRIES)')"
} | tee seen
diff seen <(sed -n '/^# Seen, /,/^set/s/^#   //p' "$script")
