#!/usr/bin/env bash
# onnxruntime 1.32.0 and 1.31.1 for Linux from PyPI; the control is 1.27.0. Python 3.11 or later.
#
# Behaviour: since 1.28 the first session of a process writes a lasting device id and a database of events to the user's
# cache folder (and looks up a telemetry host, which needs no network to be seen here). Only ORT_DISABLE_TELEMETRY in the
# environment before the library is loaded keeps it from that: set between the import and the first session it is too
# late, and onnxruntime.disable_telemetry_events(), whose documentation speaks of all telemetry, changes nothing. Where
# a variable of a CI system is set (GITHUB_ACTIONS, GITLAB_CI ...) it keeps quiet too: a test in CI does not see it.
#
# Seen:
#   1.27.0 as it is: no files
#   1.31.1 as it is: deviceid onnxruntime.db
#   1.31.1 as it is, where GITHUB_ACTIONS is set: no files
#   1.31.1 disable_telemetry_events(): deviceid onnxruntime.db
#   1.31.1 variable set after the import: deviceid onnxruntime.db
#   1.31.1 variable set before the import: no files
#   1.32.0 as it is: deviceid onnxruntime.db
#   1.32.0 as it is, where GITHUB_ACTIONS is set: no files
#   1.32.0 disable_telemetry_events(): deviceid onnxruntime.db
#   1.32.0 variable set after the import: deviceid onnxruntime.db
#   1.32.0 variable set before the import: no files
set -euo pipefail
unset GITHUB_ACTIONS
script=$(realpath "$0") && dir=$(mktemp -d) && trap 'rm -rf "$dir"' EXIT && cd "$dir"
cat > session.py <<'PY'
import os
import sys

way = sys.argv[1]
if way == "variable set before the import":
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"
import onnxruntime
from onnx import TensorProto, helper

if way == "variable set after the import":
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"
if way == "disable_telemetry_events()":
    onnxruntime.disable_telemetry_events()
x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in "xy")
graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "graph", [x], [y])
model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
PY
run() { # VERSION WAY
  rm -rf home && mkdir home
  env -i HOME="$dir/home" PATH="$PATH" ${GITHUB_ACTIONS:+GITHUB_ACTIONS="$GITHUB_ACTIONS"} "env-$1/bin/python" session.py "$2" > log 2>&1 || { cat log; exit 1; }
  left=$(find home -type f -printf '%f\n' | sed '/-wal$\|-shm$\|-journal$/d' | sort | paste -sd ' ')
  echo "$1 $2: ${left:-no files}" | tee -a seen
}
for version in 1.27.0 1.31.1 1.32.0; do
  "${PYTHON:-python3}" -m venv "env-$version"
  "env-$version/bin/pip" install --quiet --disable-pip-version-check "onnxruntime==$version" onnx==1.23.2 \
    > pip.log 2>&1 || { cat pip.log; exit 2; }
  run "$version" "as it is"
  [ "$version" = 1.27.0 ] && continue
  GITHUB_ACTIONS=true run "$version" "as it is, where GITHUB_ACTIONS is set"
  for way in "disable_telemetry_events()" "variable set after the import" "variable set before the import"; do
    run "$version" "$way"
  done
done
diff seen <(sed -n 's/^#   \(1\.\)/\1/p' "$script")
