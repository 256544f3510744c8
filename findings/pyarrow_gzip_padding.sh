#!/usr/bin/env bash
# pyarrow 25.0.1. Python 3.11 or later.
#
# Behaviour: zeros behind the end of a gzip file, which tapes and block-wise copies leave and gzip's own program, Python's
# module and pandas skip, are an error for `CompressedInputStream`, and for what reads through it: CSV by the ending .gz.
# Two gzip members one after the other are read by all.
#
# Seen:
#   gzip program: 2 lines
#   Python's gzip: 2 lines
#   pyarrow's stream: OSError: zlib inflate failed: unknown compression method
#   pyarrow.csv: OSError: zlib inflate failed: unknown compression method
#   pyarrow's stream, two members without zeros: 4 lines
set -euo pipefail
script=$(realpath "$0") && dir=$(mktemp -d) && trap 'rm -rf "$dir"' EXIT && cd "$dir"
"${PYTHON:-python3}" -m venv env || exit 2
env/bin/pip install --quiet --disable-pip-version-check pyarrow==25.0.1 || exit 2
cat > show.py <<'PY'
import gzip
import subprocess
from pathlib import Path

import pyarrow as pa
import pyarrow.csv

packed = gzip.compress(b"text\nA.\n")
Path("padded.csv.gz").write_bytes(packed + b"\0" * 512)
Path("twice.csv.gz").write_bytes(packed * 2)


def attempt(name, read):
    try:
        print(f"{name}: {read().count(bytes([10]))} lines")
    except Exception as error:
        print(f"{name}: {type(error).__name__}: {error}")


def stream(path):
    with pa.CompressedInputStream(pa.OSFile(path), "gzip") as opened:
        return opened.read()


def table(path):
    return b"\n" * (pa.csv.read_csv(path).num_rows + 1)


attempt("gzip program", lambda: subprocess.run(["gzip", "-dc", "padded.csv.gz"], capture_output=True).stdout)
attempt("Python's gzip", lambda: gzip.open("padded.csv.gz").read())
attempt("pyarrow's stream", lambda: stream("padded.csv.gz"))
attempt("pyarrow.csv", lambda: table("padded.csv.gz"))
attempt("pyarrow's stream, two members without zeros", lambda: stream("twice.csv.gz"))
PY
env/bin/python show.py | tee seen
diff seen <(sed -n '/^# Seen:/,/^set/s/^#   //p' "$script")
