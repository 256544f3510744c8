"""Compares what Great Expectations can run the gate's row checks on: sentences in pandas, in DuckDB, or their measures.

    python tests/benchmarks/bench_gate_engines.py --rows 1000000 --out FILE

Each engine runs in a process of its own from the same snapshot, with expectations that ask the same. DuckDB is tried
where duckdb and duckdb-engine are installed; what it answers is reported, also when that is an error.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path

from bench_ingestion import cpu_name, write_rows

from tasks.core.provenance import git_commit, library_versions
from tasks.data.snapshots import write_snapshot

CHILD = """
import json, resource, sys, time, warnings
warnings.simplefilter("ignore")
import great_expectations as gx, great_expectations.expectations as gxe
import pyarrow.parquet as pq
engine, path = sys.argv[1:]
started = time.perf_counter()
shared = [
    gxe.ExpectTableRowCountToBeBetween(min_value=100),
    gxe.ExpectColumnDistinctValuesToEqualSet(column="label", value_set=[0, 1]),
    gxe.ExpectColumnMeanToBeBetween(column="label", min_value=0.2, max_value=0.9),
]
on_sentences = [
    gxe.ExpectColumnValuesToNotBeNull(column="sentence"),
    gxe.ExpectColumnValueLengthsToBeBetween(column="sentence", min_value=1, max_value=1000, mostly=0.99),
    gxe.ExpectColumnValuesToNotMatchRegex(column="sentence", regex="[\\\\x00-\\\\x1f]", mostly=0.99),
    gxe.ExpectColumnValuesToBeUnique(column="sentence", mostly=0.95),
]
context = gx.get_context(mode="ephemeral")
context.variables.progress_bars = gx.data_context.types.base.ProgressBarsConfig(globally=False)
if engine == "DuckDB":
    import duckdb
    with duckdb.connect(path + ".db") as database:
        database.execute(f"create table rows as select * from '{path}'")
    source = context.data_sources.add_sql("rows", connection_string=f"duckdb:///{path}.db")
    batch = source.add_table_asset("rows", table_name="rows").add_batch_definition_whole_table("all").get_batch()
    expectations = shared + on_sentences
else:
    if engine == "measures":
        from tasks.data.row_features import compute_row_features, flag_duplicates
        from tasks.core.settings import GateSettings
        from tasks.data.expectations import TRAIN_CHECKS, row_expectations
        rows = compute_row_features(path)
        flag_duplicates(rows)
        expectations = row_expectations(TRAIN_CHECKS, GateSettings())  # more than the others ask
    else:
        rows, expectations = pq.read_table(path).to_pandas(), shared + on_sentences
    asset = context.data_sources.add_pandas("rows").add_dataframe_asset("rows")
    batch = asset.add_batch_definition_whole_dataframe("all").get_batch({"dataframe": rows})
result = batch.validate(gx.ExpectationSuite(name="rows", expectations=expectations), result_format="SUMMARY")
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
print(json.dumps({"seconds": round(time.perf_counter() - started, 2), "peak_bytes": peak,
                  "expectations": len(expectations), "held": sum(bool(entry.success) for entry in result.results)}))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--out", default="")
    options = parser.parse_args()
    answers = {}
    with tempfile.TemporaryDirectory() as scratch:
        write_rows(Path(scratch) / "rows.tsv", options.rows, 1, damaged=False)
        snapshot = write_snapshot([f"{scratch}/rows.tsv"], scratch)["path"]
        for engine in ("sentences in pandas", "DuckDB", "measures"):
            done = subprocess.run(
                [sys.executable, "-c", CHILD, engine, snapshot], capture_output=True, text=True, check=False
            )
            answers[engine] = (
                {"error": done.stderr.strip().splitlines()[-1]}
                if done.returncode
                else json.loads(next(line for line in done.stdout.splitlines() if line.startswith("{")))
            )
            print(engine, answers[engine], flush=True)
    result = {
        "benchmark": "engines of the gate",
        "hardware": f"{cpu_name()}, {os.cpu_count()} CPU cores, {platform.machine()}",
        "versions": library_versions(),
        "commit": git_commit(),
        "train_rows": options.rows,
        "engines": answers,
    }
    if options.out:
        Path(options.out).write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
