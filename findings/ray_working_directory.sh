#!/usr/bin/env bash
# Ray 2.60.0, on Linux. Python 3.11 to 3.13.
#
# Behaviour: the processes of a cluster have the working directory of the program that uses it at the front of their path,
# before PYTHONPATH and installed packages, although that program itself has not (it lies elsewhere, and was not started by
# python -m). One import statement is then two modules: a file in the folder where somebody happens to stand is what
# workers run.
#
# Seen, for a module `recipe` on PYTHONPATH, and another of that name in the working directory:
#   driver: from PYTHONPATH
#   worker: from the working directory
set -euo pipefail
script=$(realpath "$0") && dir=$(mktemp -d) && trap 'rm -rf "$dir"' EXIT && cd "$dir"
mkdir program library folder home
echo 'FOUND = "from PYTHONPATH"' > library/recipe.py
echo 'FOUND = "from the working directory"' > folder/recipe.py
cat > program/show.py <<'PY'
import logging

import ray


def found():
    import recipe

    return recipe.FOUND


print("driver:", found())
ray.init(num_cpus=1, include_dashboard=False, logging_level=logging.ERROR, log_to_driver=False)
print("worker:", ray.get(ray.remote(found).remote()))
ray.shutdown()
PY
"${PYTHON:-python3}" -m venv env
env/bin/pip install --quiet --disable-pip-version-check 'ray==2.60.0' > pip.log 2>&1 || { cat pip.log; exit 2; }
cd folder
HOME="$dir/home" PYTHONPATH="$dir/library" RAY_TMPDIR="$dir" RAY_USAGE_STATS_ENABLED=0 \
  ../env/bin/python ../program/show.py 2> ../errors | tee ../seen
diff ../seen <(sed -n '/^# Seen, /,/^set/s/^#   //p' "$script")
