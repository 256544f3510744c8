#!/usr/bin/env bash
# onnxruntime 1.32.0 and 1.31.1 for Linux from PyPI with multiprocessing of Python 3.11 or later.
#
# Behaviour: the modules of onnxruntime.transformers import each other by bare names; the package appends its own folder
# to sys.path when it is imported, once a process. A process that multiprocessing's forkserver forks is given the parent's
# sys.path, but keeps the modules that the server has imported (set_forkserver_preload). So the package, preloaded, is
# found there without its folder: whatever of it was not imported beforehand cannot be imported any more. Without the
# preload, with spawn and with fork the same function works. Preloading a package breaks imports from it.
#
# Seen:
#   1.31.1 fork: imported
#   1.31.1 spawn: imported
#   1.31.1 forkserver: imported
#   1.31.1 forkserver, preloaded: ModuleNotFoundError, folder on sys.path: False
#   1.32.0 fork: imported
#   1.32.0 spawn: imported
#   1.32.0 forkserver: imported
#   1.32.0 forkserver, preloaded: ModuleNotFoundError, folder on sys.path: False
set -euo pipefail
script=$(realpath "$0") && dir=$(mktemp -d) && trap 'rm -rf "$dir"' EXIT && cd "$dir"
cat > later.py <<'PY'
import multiprocessing
import sys


def import_a_fusion(_: None) -> str:
    import onnxruntime.transformers as package

    try:
        import onnxruntime.transformers.fusion_biasgelu  # has `from fusion_utils import NumpyHelper`
    except ModuleNotFoundError as error:
        return f"{type(error).__name__}, folder on sys.path: {package.__path__[0] in sys.path}"
    return "imported"


if __name__ == "__main__":
    method, _, preload = sys.argv[1].partition(", ")
    context = multiprocessing.get_context(method)
    if preload:
        context.set_forkserver_preload(["onnxruntime.transformers"])
    elif method == "forkserver":
        context.set_forkserver_preload(["json"])
    with context.Pool(1) as pool:
        print(pool.map(import_a_fusion, [None])[0])
PY
for version in 1.31.1 1.32.0; do
  "${PYTHON:-python3}" -m venv "env-$version"
  "env-$version/bin/pip" install --quiet --disable-pip-version-check "onnxruntime==$version" onnx==1.23.2 \
    > pip.log 2>&1 || { cat pip.log; exit 2; }
  for way in fork spawn forkserver "forkserver, preloaded"; do
    echo "$version $way: $(ORT_DISABLE_TELEMETRY=1 "env-$version/bin/python" later.py "$way" 2> log | tail -1)" | tee -a seen
  done
done
diff seen <(sed -n 's/^#   \(1\.\)/\1/p' "$script")
