#!/usr/bin/env bash
# Gradio 6.31.0. Python 3.11 or later.
#
# Behaviour: the first import writes a file with a random number into the installed package. pip does not know it, so that
# the folder stays when Gradio is uninstalled, and Python takes such a folder for a package: `import gradio` continues
# without an error and without Gradio's contents, and importlib.util.find_spec says that it is there.
#
# Seen:
#   written by the first import: hash_seed.txt
#   written by the second import: nothing
#   after pip uninstall: import gradio succeeds, Blocks is missing
#   after pip uninstall: find_spec finds it, with origin None
#   after pip uninstall: importlib.metadata does not find it
set -euo pipefail
script=$(realpath "$0") && dir=$(mktemp -d) && trap 'rm -rf "$dir"' EXIT && cd "$dir"
"${PYTHON:-python3}" -m venv env || exit 2
env/bin/pip install --quiet --disable-pip-version-check gradio==6.31.0 || exit 2
export HOME="$dir" GRADIO_ANALYTICS_ENABLED=False HF_HUB_OFFLINE=1
installed=$(env/bin/python -c 'import importlib.util; print(importlib.util.find_spec("gradio").submodule_search_locations[0])')
list() { (cd "$installed" && find . -maxdepth 1 -type f -printf '%f\n' | sort); }
for import in first second; do
    list > before
    env/bin/python -c 'import gradio'
    list > after
    new=$(comm -13 before after)
    echo "written by the $import import: ${new:-nothing}"
done | tee seen
env/bin/pip uninstall --quiet --yes --disable-pip-version-check gradio
cat > show.py <<'PY'
import importlib.metadata
import importlib.util

import gradio

print("after pip uninstall: import gradio succeeds, Blocks is", "there" if hasattr(gradio, "Blocks") else "missing")
spec = importlib.util.find_spec("gradio")
print("after pip uninstall: find_spec", "finds it, with origin " + str(spec.origin) if spec else "does not find it")
try:
    importlib.metadata.version("gradio")
    print("after pip uninstall: importlib.metadata finds it")
except importlib.metadata.PackageNotFoundError:
    print("after pip uninstall: importlib.metadata does not find it")
PY
env/bin/python show.py | tee -a seen
diff seen <(sed -n '/^# Seen:/,/^set/s/^#   //p' "$script")
