#!/usr/bin/env bash
# prefect 3.8.8 with SQLAlchemy 2.1.9; the control is the same with SQLAlchemy 2.0.58. Both are admitted: prefect 3.8.8
# requires sqlalchemy[asyncio]<3.0.0,>=2.0, so a plain `pip install prefect==3.8.8` brings 2.1.
#
# Behaviour: with SQLAlchemy 2.1 the server starts, answers /health, takes deployments and shows their schedules as
# active, and no schedule ever fires: the scheduler plans no run. At bulk inserts SQLAlchemy 2.1 hands each value that
# is named like a hybrid property to a hook of that property; Prefect inserts runs with a value `state`, and the
# property of that name has no such hook. So each turn of the scheduler raises InvalidRequestError. The task runner
# inside the server logs it and tries again at the next turn; no client is told, the deployment has no runs ahead.
#
# Seen (a schedule of one run a minute; the scheduler takes a turn every five seconds instead of every sixty):
#   SQLAlchemy 2.1.9: health 200, schedule active True, runs planned: none, turns failed: several
#   SQLAlchemy 2.0.58: health 200, schedule active True, runs planned: some, turns failed: none
set -euo pipefail
script=$(realpath "$0") && dir=$(mktemp -d) && cd "$dir" && server=
finish() { [ -z "$server" ] || { kill "$server" 2> /dev/null && wait "$server"; } || true; server=; }
trap 'finish; rm -rf "$dir"' EXIT
"${PYTHON:-python3}" -m venv env
cat > ask.py <<'PY'
import os, pathlib, sys, time, httpx, sqlalchemy
ask = httpx.Client(base_url=os.environ["PREFECT_API_URL"], timeout=30)
def until(true, seconds):
    end = time.monotonic() + seconds
    while not (answer := true()) and time.monotonic() < end:
        time.sleep(0.5)
    return answer
def health():
    try:
        return ask.get("/health").status_code
    except httpx.TransportError:
        return None
def call(method, path, **options):  # a server whose database is busy answers 503, and Prefect's clients try again
    answers = lambda: (answer := ask.request(method, path, **options)).status_code != 503 and answer
    return (until(answers, 60) or sys.exit(f"{path} stays 503")).raise_for_status().json()
assert until(health, 90), "the server does not start"
flow = call("POST", "/flows/", json={"name": "flow"})["id"]
deployment = {"name": "d", "flow_id": flow, "schedules": [{"active": True, "schedule": {"interval": 60}}]}
made = call("POST", "/deployments/", json=deployment)["id"]
planned = lambda: call("POST", "/flow_runs/count", json={})
failed = lambda: pathlib.Path("server.log").read_text().count("InvalidRequestError: Can't evaluate bulk DML statement")
until(lambda: planned() or failed() >= 3, 60)
active = call("GET", "/deployments/" + made)["schedules"][0]["active"]
print(f"SQLAlchemy {sqlalchemy.__version__}: health {health()}, schedule active {active}, runs planned: "
      f"{'some' if planned() else 'none'}, turns failed: {'several' if failed() >= 3 else failed() or 'none'}")
PY
export DO_NOT_TRACK=1 PREFECT_SERVER_ANALYTICS_ENABLED=false PREFECT_SERVER_SERVICES_SCHEDULER_LOOP_SECONDS=5
for sqlalchemy in 2.1.9 2.0.58; do
  env/bin/pip install --quiet --disable-pip-version-check prefect==3.8.8 fastapi==0.150.0 "sqlalchemy==$sqlalchemy" \
    > pip.log 2>&1 || { cat pip.log; exit 2; }
  port=$(env/bin/python -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
  export PREFECT_HOME="$dir/$sqlalchemy" PREFECT_API_URL="http://127.0.0.1:$port/api"
  env/bin/prefect server start --host 127.0.0.1 --port "$port" > server.log 2>&1 & server=$!
  env/bin/python ask.py | tee -a seen
  finish
done
diff seen <(sed -n 's/^#   \(SQLAlchemy\)/\1/p' "$script")
