#!/usr/bin/env bash
# onnx 1.23.2, numpy 2.4.6.
#
# Behaviour: save_model with external data is documented to raise FileExistsError where the data file exists already. It
# looks for that file in the working directory, not beside the model. So a model that is saved a second time to the same
# place keeps all earlier weights in its data file, which grows by the size of the model each time, without a word; the
# graph reads the last ones. And a file of that name in the working directory keeps a model from being saved to an empty
# folder. The default name, a new one for each save, leaves the data files of earlier saves behind.
#
# Seen:
#   saved once: 4194304 bytes of weights
#   saved twice: 8388608 bytes of weights, the first ones among them: True, read: 2.0
#   saved three times: 12582912 bytes of weights, the first ones among them: True, read: 3.0
#   from the folder of the model: FileExistsError
#   to an empty folder, from a folder with a file of that name: FileExistsError
#   by the default name, twice: 2 data files
set -euo pipefail
script=$(realpath "$0") && dir=$(mktemp -d) && trap 'rm -rf "$dir"' EXIT && cd "$dir"
"${PYTHON:-python3}" -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check onnx==1.23.2 numpy==2.4.6 > pip.log 2>&1 \
  || { cat pip.log; exit 2; }
cat > save.py <<'PY'
import os
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

TIMES = ("once", "twice", "three times")


def save(folder, value, location="model.data"):
    weights = numpy_helper.from_array(np.full((1024, 1024), value, np.float32), "weights")
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 1024]) for name in ("x", "y")]
    node = helper.make_node("MatMul", ["x", "weights"], ["y"])
    graph = helper.make_graph([node], "graph", ends[:1], ends[1:], [weights])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save_model(model, folder / "model.onnx", save_as_external_data=True, location=location)


def attempt(folder, value):
    try:
        save(folder, value)
        return "saved"
    except FileExistsError:
        return "FileExistsError"


home = Path.cwd()
models, empty, unnamed = home / "models", home / "empty", home / "unnamed"
for folder in (models, empty, unnamed):
    folder.mkdir()
for number, times in enumerate(TIMES, 1):
    save(models, float(number))
    data = (models / "model.data").read_bytes()
    first = np.full(1024 * 1024, 1.0, np.float32).tobytes()
    [read] = onnx.load(models / "model.onnx").graph.initializer
    more = f", the first ones among them: {first in data}, read: {numpy_helper.to_array(read)[0, 0]}"
    print(f"saved {times}: {len(data)} bytes of weights" + (more if number > 1 else ""))
os.chdir(models)
print(f"from the folder of the model: {attempt(models, 4.0)}")
print(f"to an empty folder, from a folder with a file of that name: {attempt(empty, 5.0)}")
for value in (6.0, 7.0):
    save(unnamed, value, location=None)
print(f"by the default name, twice: {len(list(unnamed.glob('*'))) - 1} data files")
PY
venv/bin/python save.py | tee seen
diff seen <(sed -n 's/^#   //p' "$script")
