#!/usr/bin/env bash
# supervisor 4.3.0
#
# Behaviour: `startretries` and the growing pauses between starts count exits within `startsecs` only. A program that fails a
# moment later is started again at once, for ever, and never becomes FATAL; with the default of one second that is
# every service that imports for longer than it takes to find its database missing.
#
# Seen:
#   fails after 0.1 s: FATAL after 2 starts
#   fails after 1.5 s: still started again after 4 starts
set -euo pipefail
script=$(realpath "$0") && dir=$(mktemp -d) && trap 'rm -rf "$dir"' EXIT && cd "$dir"
"${PYTHON:-python3}" -m venv env
env/bin/pip install --quiet --disable-pip-version-check supervisor==4.3.0 > pip.log 2>&1 || { cat pip.log; exit 2; }
cat > supervisord.conf <<'CONF'
[supervisord]
logfile = supervisord.log
[program:early]
command = sh -c "sleep 0.1; exit 1"
autorestart = true
startretries = 1
[program:late]
command = sh -c "sleep 1.5; exit 1"
autorestart = true
startretries = 1
CONF
timeout 60 env/bin/supervisord --nodaemon --configuration supervisord.conf > log 2>&1 &
until [ "$(grep -c "spawned: 'late'" log)" -ge 4 ]; do sleep 0.2; done
kill %1 && wait || true
{
  grep -q "gave up: early entered FATAL" log && echo "fails after 0.1 s: FATAL after $(grep -c "spawned: 'early'" log) starts"
  grep -q "gave up: late" log || echo "fails after 1.5 s: still started again after $(grep -c "spawned: 'late'" log) starts"
} | tee seen
diff seen <(sed -n -E 's/^#   (fails )/\1/p' "$script")
