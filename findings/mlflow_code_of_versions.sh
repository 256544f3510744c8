#!/usr/bin/env bash
# mlflow-skinny 3.17.2 (the same code as mlflow 3.17.2; there it was seen with versions of a registered model too).
#
# Behaviour: a model that is saved with `code_paths` carries its code, so two versions seem to be independent of each
# other and of the process that loads them. `load_model` only puts the model's folder `code` in front of sys.path, and
# Python looks into sys.modules first. So within one process
#   - the version loaded second answers with the code of the first and its own data: a mixture that nobody tested,
#     without an error or a warning, and which version wins depends on the order of loading;
#   - a process that has imported a package of that name cannot load the model at all: the error says that a module is
#     missing which the model does carry.
# A service that follows an alias from version to version meets the first; tests that start a process for each version
# do not. The documentation names a limitation of `code_paths` with models of equal module names.
#
# Seen:
#   load 1, then 2: ['code 1, data 1', 'code 1, data 2']
#   load 2, then 1: ['code 2, data 2', 'code 2, data 1']
#   load 2 alone:   ['code 2, data 2']
#   with a package `tasks` of its own: ModuleNotFoundError: No module named 'tasks.loader'
set -euo pipefail
script=$(realpath "$0") && dir=$(mktemp -d) && trap 'rm -rf "$dir"' EXIT && cd "$dir"
"${PYTHON:-python3}" -m venv env
env/bin/pip install --quiet --disable-pip-version-check mlflow-skinny==3.17.2 pandas==3.1.1 numpy==2.4.6 \
  > pip.log 2>&1 || { cat pip.log; exit 2; }
export MLFLOW_DISABLE_TELEMETRY=true
for n in 1 2; do
  mkdir -p "source$n/tasks"
  touch "source$n/tasks/__init__.py"
  echo "data $n" > "data$n"
  cat > "source$n/tasks/loader.py" <<PY
class Model:
    def __init__(self, path):
        self.data = open(path).read().strip()
    def predict(self, rows):
        return "code $n, " + self.data
def _load_pyfunc(path):
    return Model(path)
PY
  env/bin/python -c "import mlflow.pyfunc
mlflow.pyfunc.save_model('version$n', loader_module='tasks.loader', data_path='data$n',
                         code_paths=['source$n/tasks'], pip_requirements=[])" 2> save.log || { cat save.log; exit 2; }
done
cat > load.py <<'PY'
import sys, mlflow.pyfunc
try:
    print([mlflow.pyfunc.load_model("version" + n).predict(["row"]) for n in sys.argv[1:]])
except ModuleNotFoundError as error:
    print(f"{type(error).__name__}: {error}")
PY
mkdir -p own/tasks && touch own/tasks/__init__.py
{
  echo "load 1, then 2: $(env/bin/python load.py 1 2 2>> warnings)"
  echo "load 2, then 1: $(env/bin/python load.py 2 1 2>> warnings)"
  echo "load 2 alone:   $(env/bin/python load.py 2 2>> warnings)"
  echo "with a package \`tasks\` of its own: $(
    PYTHONPATH=own env/bin/python -c 'import tasks; exec(open("load.py").read())' 1 2>> warnings)"
} | tee seen
echo "warnings: $(wc -l < warnings)"
diff seen <(sed -n 's/^#   \(load\|with\)/\1/p' "$script") && ! grep -iE 'tasks|code' warnings
