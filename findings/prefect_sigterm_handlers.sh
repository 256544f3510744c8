#!/usr/bin/env bash
# Prefect 3.8.8, on Linux. Python 3.11 to 3.13.
#
# Behaviour: while a flow runs, the process's own handler of SIGTERM is not called. Prefect puts its own in its place,
# which raises TerminationSignal: neither an Exception nor a KeyboardInterrupt, with an empty message. Once the flow has
# ended, Prefect sets the old handler again and sends the process the signal a second time. Where that is the default
# one, the process ends there: what was registered with atexit is not called, although the flow's own finally is, and the
# server that Prefect started for the flow lives on.
#
# Seen:
#   own handler: the flow sees TerminationSignal ''
#   own handler: an Exception False, a KeyboardInterrupt False
#   own handler: called after the flow, once
#   own handler: at exit
#   own handler: exit code 0, nothing is left
#   default handler: the flow sees TerminationSignal ''
#   default handler: an Exception False, a KeyboardInterrupt False
#   default handler: exit code 143, its server lives on
set -euo pipefail
script=$(realpath "$0") && dir=$(mktemp -d) && trap 'rm -rf "$dir"' EXIT && cd "$dir"
export PREFECT_HOME="$dir/prefect" PREFECT_LOGGING_LEVEL=CRITICAL PREFECT_SERVER_ANALYTICS_ENABLED=false
export PREFECT_SERVER_LOGGING_LEVEL=CRITICAL
cat > show.py <<'PY'
import atexit
import os
import signal
import sys
import time

from prefect import flow

which = sys.argv[1]
running, calls = True, []


def say(text):
    print(f"{which} handler: {text}", flush=True)


def handle(*_):
    calls.append("in the flow" if running else "after the flow")
    raise KeyboardInterrupt("asked to stop")


@flow
def stopped():
    global running
    try:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(60)
    except BaseException as error:
        say(f"the flow sees {type(error).__name__} {str(error)!r}")
        say(f"an Exception {isinstance(error, Exception)}, a KeyboardInterrupt {isinstance(error, KeyboardInterrupt)}")
        raise
    finally:
        running = False


if which == "own":
    signal.signal(signal.SIGTERM, handle)
atexit.register(say, "at exit")
try:
    stopped()
except KeyboardInterrupt:
    say(f"called {', '.join(calls)}, {'once' if len(calls) == 1 else len(calls)}")
PY
"${PYTHON:-python3}" -m venv env
env/bin/pip install --quiet --disable-pip-version-check prefect==3.8.8 sqlalchemy==2.0.58 fastapi==0.150.0 > pip.log 2>&1 \
  || { cat pip.log; exit 2; }
for which in own default; do
  code=0
  setsid env/bin/python show.py "$which" > out 2> log &
  wait $! || code=$?
  sleep 3
  cat out
  if kill -0 -- "-$!" 2> log; then left='its server lives on'; else left='nothing is left'; fi
  kill -- "-$!" 2> log || true
  echo "$which handler: exit code $code, $left"
done > seen
cat seen
diff seen <(sed -n '/^# Seen:/,/^set/s/^#   //p' "$script")
