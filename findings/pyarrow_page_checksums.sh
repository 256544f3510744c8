#!/usr/bin/env bash
# pyarrow 25.0.1, pandas 3.1.1, polars 2.1.0. Python 3.11 or later.
#
# Behaviour: the Parquet files that pyarrow and pandas write have no checksums, although the format has them (a CRC in the header
# of each page). One bit that changes in a column of numbers is another number, read without an error. With
# `write_page_checksum=True` there are checksums; the reader looks at none, and answers with the wrong number, unless it is
# opened with `page_checksum_verification=True`. polars does not look at them either.
#
# Seen, the middle of 1,000 whole numbers with one bit changed:
#   written by default: pyarrow reads 999 of 1000 numbers right, no error
#   written by pandas: pyarrow reads 999 of 1000 numbers right, no error
#   with write_page_checksum: pyarrow reads 999 of 1000 numbers right, no error
#   with write_page_checksum: polars reads 999 of 1000 numbers right, no error
#   with write_page_checksum, read with page_checksum_verification: OSError: could not verify page integrity, CRC checksum verification failed
set -euo pipefail
script=$(realpath "$0") && dir=$(mktemp -d) && trap 'rm -rf "$dir"' EXIT && cd "$dir"
"${PYTHON:-python3}" -m venv env || exit 2
env/bin/pip install --quiet --disable-pip-version-check pyarrow==25.0.1 pandas==3.1.1 polars==2.1.0 || exit 2
cat > show.py <<'PY'
from pathlib import Path

import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

NUMBERS = [number * number for number in range(1_000)]
PLAIN = {"compression": "none", "use_dictionary": False}


def damage(path):
    """Change one bit of the number in the middle of the data page."""
    chunk = pq.read_metadata(path).row_group(0).column(0)
    content = bytearray(Path(path).read_bytes())
    content[chunk.data_page_offset + chunk.total_compressed_size - 8 * len(NUMBERS) // 2] ^= 4
    Path(path).write_bytes(content)


def show(title, read):
    try:
        found = read()
        right = sum(ours == theirs for ours, theirs in zip(NUMBERS, found, strict=True))
        print(f"{title} {right} of {len(NUMBERS)} numbers right, no error")
    except OSError as error:
        print(f"{title} {type(error).__name__}: {str(error).partition(' for ')[0]}")


table = pa.table({"number": NUMBERS})
pq.write_table(table, "default.parquet", **PLAIN)
table.to_pandas().to_parquet("pandas.parquet", **PLAIN)
pq.write_table(table, "checked.parquet", write_page_checksum=True, **PLAIN)
for path in ("default.parquet", "pandas.parquet", "checked.parquet"):
    damage(path)
show("written by default: pyarrow reads", lambda: pq.read_table("default.parquet")["number"].to_pylist())
show("written by pandas: pyarrow reads", lambda: pd.read_parquet("pandas.parquet")["number"].tolist())
show("with write_page_checksum: pyarrow reads", lambda: pq.read_table("checked.parquet")["number"].to_pylist())
show("with write_page_checksum: polars reads", lambda: pl.read_parquet("checked.parquet")["number"].to_list())
show(
    "with write_page_checksum, read with page_checksum_verification:",
    lambda: pq.read_table("checked.parquet", page_checksum_verification=True)["number"].to_pylist(),
)
PY
env/bin/python show.py | tee seen
diff seen <(sed -n '/^# Seen, /,/^set/s/^#   //p' "$script")
