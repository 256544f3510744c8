#!/usr/bin/env bash
# pyarrow 25.0.1, datasets 5.2.0. Python 3.11 or later.
#
# Behaviour: `Dataset.save_to_disk` writes files that end in .arrow and hold Arrow's stream format, which the reader of Arrow
# files refuses, and `pyarrow.dataset` with it. A stream that breaks off between two batches, as a copy may, is read without
# an error: the rows behind are gone, silently, in pyarrow as in `load_from_disk`. Its last eight bytes would tell.
#
# Seen:
#   save_to_disk writes data-00000-of-00001.arrow
#   as an Arrow file: ArrowInvalid: Not an Arrow file
#   as a dataset: ArrowInvalid: Error creating dataset. Could not read schema from
#   as a stream: 4000 rows
#   broken off after 2 of 4 batches: 2000 rows
#   load_from_disk of it: 2000 rows
#   ends as a stream must: whole True, broken off False
set -euo pipefail
script=$(realpath "$0") && dir=$(mktemp -d) && trap 'rm -rf "$dir"' EXIT && cd "$dir"
"${PYTHON:-python3}" -m venv env || exit 2
env/bin/pip install --quiet --disable-pip-version-check pyarrow==25.0.1 datasets==5.2.0 || exit 2
export HF_HUB_OFFLINE=1 HF_HOME=$dir/home HF_DATASETS_DISABLE_PROGRESS_BARS=1
cat > show.py <<'PY'
import struct
from pathlib import Path

import pyarrow as pa
import pyarrow.dataset
from datasets import Dataset, load_from_disk

Dataset.from_dict({"text": [f"Number {number}." for number in range(4_000)]}).save_to_disk("saved")
(file,) = Path("saved").glob("*.arrow")
print("save_to_disk writes", file.name)


def attempt(name, read):
    try:
        print(f"{name}:", read())
    except Exception as error:
        print(f"{name}: {type(error).__name__}:", str(error).split(" '")[0].splitlines()[0])


attempt("as an Arrow file", lambda: pa.ipc.open_file(str(file)).num_record_batches)
attempt("as a dataset", lambda: pa.dataset.dataset("saved/" + file.name, format="arrow").count_rows())


def rows_of(path):
    with pa.OSFile(str(path)) as stream:
        return f"{pa.ipc.open_stream(stream).read_all().num_rows} rows"


attempt("as a stream", lambda: rows_of(file))
whole = file.read_bytes()
with pa.OSFile(str(file)) as stream:
    ends = [stream.tell() for _ in pa.ipc.MessageReader.open_stream(stream)]
file.write_bytes(whole[: ends[2]])  # the schema, and two batches
attempt(f"broken off after 2 of {len(ends) - 1} batches", lambda: rows_of(file))
attempt("load_from_disk of it", lambda: f"{len(load_from_disk('saved'))} rows")
end = struct.pack("<iI", -1, 0)
print(f"ends as a stream must: whole {whole.endswith(end)}, broken off {file.read_bytes().endswith(end)}")
PY
env/bin/python show.py 2>/dev/null | tee seen
diff seen <(sed -n '/^# Seen:/,/^set/s/^#   //p' "$script")
