#!/usr/bin/env bash
# mlflow 3.17.2
#
# Behaviour: a run that was deleted stays deleted while its experiment lives. Once the experiment is deleted and restored,
# the run is active again, in every list and search, although nobody restored it: MLflow marks all runs of the experiment
# when it is deleted, and unmarks all of them when it is restored.
#
# Seen:
#   one of two runs deleted: active deleted
#   experiment deleted and restored: active active
set -euo pipefail
script=$(realpath "$0") && dir=$(mktemp -d) && trap 'rm -rf "$dir"' EXIT && cd "$dir"
"${PYTHON:-python3}" -m venv env
cat > check.py <<'PY'
import mlflow

client = mlflow.MlflowClient("sqlite:///mlflow.db")
experiment = client.create_experiment("e")
runs = [client.create_run(experiment).info.run_id for _ in "ab"]
stages = lambda: [client.get_run(run).info.lifecycle_stage for run in runs]
client.delete_run(runs[1])
print("one of two runs deleted:", *stages())
client.delete_experiment(experiment)
client.restore_experiment(experiment)
print("experiment deleted and restored:", *stages())
PY
env/bin/pip install --quiet --disable-pip-version-check mlflow==3.17.2 > pip.log 2>&1 || { cat pip.log; exit 2; }
MLFLOW_DISABLE_TELEMETRY=true env/bin/python -W ignore check.py 2> log | tee seen
diff seen <(sed -n -E 's/^#   ((one|experiment) )/\1/p' "$script")
