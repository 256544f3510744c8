#!/usr/bin/env bash
# pytest 9.2.0 with pytest-xdist 3.8.0; the control is the same with pytest 9.1.1. xdist's requirements admit both.
#
# Behaviour: with pytest 9.2 `--dist loadgroup` groups nothing, without a warning: tests of one `xdist_group` are shared
# out among all workers, so that what they must not do side by side (one port, one database) is done side by side.
# xdist appends the group to `item._nodeid`; pytest 9.2 keeps the id of an item under another name and reads that.
#
# Seen:
#   pytest 9.2.0: 8 tests of one group ran on 2 workers
#   pytest 9.1.1: 8 tests of one group ran on 1 worker
set -euo pipefail
script=$(realpath "$0") && dir=$(mktemp -d) && trap 'rm -rf "$dir"' EXIT && cd "$dir"
"${PYTHON:-python3}" -m venv env
cat > test_group.py <<'PY'
import os
import time

import pytest


@pytest.mark.parametrize("number", range(8))
@pytest.mark.xdist_group("one")
def test_which_worker_it_runs_on(number):
    time.sleep(0.2)
    with open("workers", "a") as file:
        file.write(os.environ["PYTEST_XDIST_WORKER"] + "\n")
PY
for pytest in 9.2.0 9.1.1; do
  env/bin/pip install --quiet --disable-pip-version-check "pytest==$pytest" pytest-xdist==3.8.0 \
    > pip.log 2>&1 || { cat pip.log; exit 2; }
  rm -f workers
  env/bin/python -m pytest --quiet --numprocesses 2 --dist loadgroup test_group.py > pytest.log || { cat pytest.log; exit 1; }
  count=$(sort -u workers | wc -l)
  echo "pytest $pytest: $(wc -l < workers) tests of one group ran on $count worker$([ "$count" = 1 ] || echo s)" | tee -a seen
done
diff seen <(sed -n 's/^#   \(pytest\)/\1/p' "$script")
