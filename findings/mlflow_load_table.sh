#!/usr/bin/env bash
# mlflow 3.17.2 (here mlflow-skinny of the same version, with a file store).
#
# Behaviour: `MlflowClient(tracking_uri=A).log_table(...)` writes to A, as every method of that client does. Its
# counterpart `MlflowClient(tracking_uri=A).load_table(...)` searches the runs with `mlflow.search_runs`, at the address of
# the process: the table that was just written is not found, or that of another store is. Where the process has no
# address, the default one is opened, and a store is made in the working directory.
#
# Seen:
#   written: [{'path': 'table.json', 'type': 'table'}]
#   load_table of the same client: No runs found with the corresponding table artifact.
#   load_table once the process has that address: [{'sentence': 'A cat.'}]
set -euo pipefail
script=$(realpath "$0") && dir=$(mktemp -d) && trap 'rm -rf "$dir"' EXIT && cd "$dir"
"${PYTHON:-python3}" -m venv env
env/bin/pip install --quiet --disable-pip-version-check mlflow-skinny==3.17.2 pandas==3.1.1 numpy==2.4.6 \
  > pip.log 2>&1 || { cat pip.log; exit 2; }
export MLFLOW_DISABLE_TELEMETRY=true MLFLOW_ALLOW_FILE_STORE=true MLFLOW_TRACKING_URI="file://$dir/of-the-process"
cat > show.py <<'PY'
import json, sys, mlflow
from mlflow.exceptions import MlflowException
client = mlflow.MlflowClient(tracking_uri=f"file://{sys.argv[1]}/of-the-client")
run = client.create_run("0").info.run_id
client.log_table(run, {"sentence": ["A cat."]}, "table.json")
print("written:", json.loads(client.get_run(run).data.tags["mlflow.loggedArtifacts"]))
try:
    print("load_table of the same client:", client.load_table("0", "table.json").to_dict("records"))
except MlflowException as error:
    print("load_table of the same client:", error)
mlflow.set_tracking_uri(f"file://{sys.argv[1]}/of-the-client")
print("load_table once the process has that address:", client.load_table("0", "table.json").to_dict("records"))
PY
env/bin/python show.py "$dir" 2> warnings | tee seen
diff seen <(sed -n 's/^#   \(written\|load_table\)/\1/p' "$script")
