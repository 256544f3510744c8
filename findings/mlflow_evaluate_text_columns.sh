#!/usr/bin/env bash
# mlflow 3.17.2 with pandas 3.1.1, which its requirements admit (pandas<4).
#
# Behaviour: `mlflow.models.evaluate` of a table that holds labels and predictions fails as soon as the table has a
# column of text, say the sentences that were classified. There is no model that could be explained, and the package
# shap is not installed; the evaluator for explanations looks at the types of the columns before it looks for either,
# and numpy does not know the type that pandas 3 gives to text. The metrics had been computed and logged to the run, but
# the caller gets an exception in place of the result. It passes with the same column as objects, or with `log_model_explainability` off.
#
# Seen:
#   text: TypeError: Cannot interpret '<StringDtype(na_value=nan)>' as a data type
#   text: 9 metrics in the run
#   objects: accuracy 0.75
#   explanations off: accuracy 0.75
set -euo pipefail
script=$(realpath "$0") && dir=$(mktemp -d) && trap 'rm -rf "$dir"' EXIT && cd "$dir"
"${PYTHON:-python3}" -m venv env
env/bin/pip install --quiet --disable-pip-version-check mlflow==3.17.2 pandas==3.1.1 numpy==2.4.6 'setuptools<81' \
  > pip.log 2>&1 || { cat pip.log; exit 2; }
export MLFLOW_DISABLE_TELEMETRY=true MLFLOW_TRACKING_URI="sqlite:///$dir/mlflow.db"
cat > show.py <<'PY'
import mlflow, pandas
frame = pandas.DataFrame({"sentence": ["A.", "B.", "C.", "D."] * 5, "label": [1, 0, 1, 0] * 5, "answer": [1, 0, 0, 0] * 5})
off = {"log_model_explainability": False}
cases = (("text", frame, {}), ("objects", frame.astype({"sentence": object}), {}), ("explanations off", frame, off))
for name, table, config in cases:
    with mlflow.start_run() as run:
        try:
            found = mlflow.models.evaluate(
                data=table, targets="label", predictions="answer", model_type="classifier", evaluator_config=config
            )
            print(f"{name}: accuracy {found.metrics['accuracy_score']}")
        except TypeError as error:
            print(f"{name}: TypeError: {error}")
            print(f"{name}: {len(mlflow.get_run(run.info.run_id).data.metrics)} metrics in the run")
PY
env/bin/python show.py 2> warnings | tee seen
diff seen <(sed -n 's/^#   \(text\|objects\|explanations\)/\1/p' "$script")
