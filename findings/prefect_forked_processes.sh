#!/usr/bin/env bash
# Prefect 3.8.8, on Linux. Python 3.11 to 3.13.
#
# Behaviour: once a flow has run in a process, every process that multiprocessing forks from it ends with exit code 1,
# whatever its function did, and prints nothing. Prefect's background services register a function with
# threading._register_atexit; multiprocessing calls such functions at the end of a forked process too, where the thread
# that they would stop does not exist. Processes by spawn or forkserver end with 0.
#
# Seen:
#   before a flow: fork 0
#   after a flow: fork 1, said 'work done'
#   after a flow: spawn 0, said 'work done'
set -euo pipefail
script=$(realpath "$0") && dir=$(mktemp -d) && trap 'rm -rf "$dir"' EXIT && cd "$dir"
export PREFECT_HOME="$dir/prefect" PREFECT_LOGGING_LEVEL=CRITICAL PREFECT_SERVER_ANALYTICS_ENABLED=false
export PREFECT_SERVER_LOGGING_LEVEL=CRITICAL
cat > show.py <<'PY'
import multiprocessing

from prefect import flow


def work(sending):
    sending.send("work done")


def run(method):
    context = multiprocessing.get_context(method)
    receiving, sending = context.Pipe(duplex=False)
    process = context.Process(target=work, args=(sending,))
    process.start()
    said = receiving.recv()
    process.join()
    return process.exitcode, said


@flow
def nothing():
    return 1


if __name__ == "__main__":
    print("before a flow: fork", run("fork")[0], flush=True)
    nothing()
    for method in ("fork", "spawn"):
        code, said = run(method)
        print(f"after a flow: {method} {code}, said {said!r}", flush=True)
PY
"${PYTHON:-python3}" -m venv env
env/bin/pip install --quiet --disable-pip-version-check prefect==3.8.8 sqlalchemy==2.0.58 fastapi==0.150.0 > pip.log 2>&1 \
  || { cat pip.log; exit 2; }
env/bin/python show.py 2> log | tee seen
diff seen <(sed -n '/^# Seen:/,/^set/s/^#   //p' "$script")
