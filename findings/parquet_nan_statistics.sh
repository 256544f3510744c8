#!/usr/bin/env bash
# pyarrow 25.0.1, pandas 3.1.1, DuckDB 2.0.1. Python 3.11 or later. (polars 2.1.0 answers alike from memory and file.)
#
# Behaviour: the statistics of a Parquet file leave NaN out, so that the smallest and largest number of a column say nothing
# about it; readers skip row groups, or take them whole, by these two alone. A filter that keeps NaN in memory loses those
# rows when it is given to the reader: pyarrow's `!=` and negated comparisons, pandas' `filters`, DuckDB's `!=`, `>` and even
# isnan(). pyarrow's count_rows with a filter counts a NaN that the same filter does not read.
#
# Seen, rows of three that a filter keeps, in memory and from the file that the table was written to:
#   pyarrow, p != 1.0 of [1.0, 1.0, nan]: 1 in memory, 0 from the file
#   pandas, p != 1.0 of [1.0, 1.0, nan]: 1 in memory, 0 from the file
#   pyarrow, not p >= 0.5 of [0.7, 0.9, nan]: 1 in memory, 0 from the file
#   pyarrow, is_nan(p) of [0.7, 0.9, nan]: 1 in memory, 1 from the file
#   pyarrow, p in [0.7] of [0.7, 0.7, nan]: 2 in memory, 2 from the file, 3 by count_rows
#   DuckDB, p > 0.95 of [0.7, 0.9, nan]: 1 in memory, 0 from the file
#   DuckDB, isnan(p) of [0.7, 0.9, nan]: 1 in memory, 0 from the file
#   without statistics, pyarrow, not p >= 0.5 of [0.7, 0.9, nan]: 1 in memory, 1 from the file
set -euo pipefail
script=$(realpath "$0") && dir=$(mktemp -d) && trap 'rm -rf "$dir"' EXIT && cd "$dir"
"${PYTHON:-python3}" -m venv env || exit 2
env/bin/pip install --quiet --disable-pip-version-check pyarrow==25.0.1 pandas==3.1.1 duckdb==2.0.1 || exit 2
cat > show.py <<'PY'
import duckdb
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.parquet as pq

NAN = float("nan")
P = pc.field("p")


def by_pyarrow(title, values, kept, count=False, **options):
    table = pa.table({"p": values})
    pq.write_table(table, "p.parquet", **options)
    counted = f", {ds.dataset('p.parquet').count_rows(filter=kept)} by count_rows" if count else ""
    read = pq.read_table("p.parquet", filters=kept).num_rows
    print(f"{title} of {values}: {table.filter(kept).num_rows} in memory, {read} from the file{counted}")


def by_pandas(title, values):
    frame = pd.DataFrame({"p": values})
    frame.to_parquet("p.parquet")
    read = pd.read_parquet("p.parquet", filters=[("p", "!=", 1.0)])
    print(f"{title} of {values}: {len(frame[frame['p'] != 1.0])} in memory, {len(read)} from the file")


def by_duckdb(title, values, kept):
    answers = pa.table({"p": values})
    pq.write_table(answers, "p.parquet")
    memory = len(duckdb.sql(f"select p from answers where {kept}").fetchall())
    file = len(duckdb.sql(f"select p from 'p.parquet' where {kept}").fetchall())
    print(f"{title} of {values}: {memory} in memory, {file} from the file")


by_pyarrow("pyarrow, p != 1.0", [1.0, 1.0, NAN], P != 1.0)
by_pandas("pandas, p != 1.0", [1.0, 1.0, NAN])
by_pyarrow("pyarrow, not p >= 0.5", [0.7, 0.9, NAN], ~(P >= 0.5))
by_pyarrow("pyarrow, is_nan(p)", [0.7, 0.9, NAN], pc.is_nan(P))
by_pyarrow("pyarrow, p in [0.7]", [0.7, 0.7, NAN], P.isin([0.7]), count=True)
by_duckdb("DuckDB, p > 0.95", [0.7, 0.9, NAN], "p > 0.95")
by_duckdb("DuckDB, isnan(p)", [0.7, 0.9, NAN], "isnan(p)")
by_pyarrow("without statistics, pyarrow, not p >= 0.5", [0.7, 0.9, NAN], ~(P >= 0.5), write_statistics=False)
PY
env/bin/python show.py | tee seen
diff seen <(sed -n '/^# Seen, /,/^set/s/^#   //p' "$script")
