#!/usr/bin/env bash
# torch 2.13.0, safetensors 0.8.0. Python 3.11 or later.
#
# Behaviour: `torch.save` writes the name of the file into it, as the folder that every entry of the archive lies in: equal
# weights saved as a.pt and b.pt have different bytes, and a digest of the file says that they differ. A file that was renamed
# keeps its first name. The folder where it lies does not matter, and a file object gives the name "archive". What safetensors
# writes depends on the tensors alone.
#
# Seen, SHA-256 of the same dictionary of one tensor, saved five times:
#   torch.save to a.pt and b.pt: different, entries below a/ and b/
#   torch.save to one/a.pt and two/a.pt: equal
#   torch.save to a.pt and to a buffer: different, entries below a/ and archive/
#   a.pt renamed to c.pt and saved again as c.pt: different, entries below a/ and c/
#   safetensors to a and b: equal
set -euo pipefail
script=$(realpath "$0") && dir=$(mktemp -d) && trap 'rm -rf "$dir"' EXIT && cd "$dir"
"${PYTHON:-python3}" -m venv env || exit 2
env/bin/pip install --quiet --disable-pip-version-check torch==2.13.0 safetensors==0.8.0 numpy==2.4.6 || exit 2
cat > show.py <<'PY'
import hashlib
import zipfile
from pathlib import Path

import torch
from safetensors.torch import save_file

WEIGHTS = {"weight": torch.arange(12.0)}


def saved(path):
    Path(path).parent.mkdir(exist_ok=True)
    torch.save(WEIGHTS, path)
    return Path(path)


def below(path):
    (name,) = {entry.split("/")[0] for entry in zipfile.ZipFile(path).namelist()}
    return f"{name}/"


def show(title, first, second, entries=True):
    digests = {hashlib.sha256(path.read_bytes()).hexdigest() for path in (first, second)}
    folders = f", entries below {below(first)} and {below(second)}" if entries and len(digests) > 1 else ""
    print(f"{title}: {'equal' if len(digests) == 1 else 'different'}{folders}")


show("torch.save to a.pt and b.pt", saved("a.pt"), saved("b.pt"))
show("torch.save to one/a.pt and two/a.pt", saved("one/a.pt"), saved("two/a.pt"))
with open("buffer", "wb") as file:
    torch.save(WEIGHTS, file)
show("torch.save to a.pt and to a buffer", saved("a.pt"), Path("buffer"))
renamed = saved("a.pt").rename("renamed.pt")
show("a.pt renamed to c.pt and saved again as c.pt", renamed, saved("c.pt"))
for name in ("a", "b"):
    save_file(WEIGHTS, name)
show("safetensors to a and b", Path("a"), Path("b"), entries=False)
PY
env/bin/python show.py | tee seen
diff seen <(sed -n '/^# Seen, /,/^set/s/^#   //p' "$script")
