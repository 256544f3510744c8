"""Measures reading, snapshot and gate on generated files of 10^4 to 10^7 rows: seconds and peak memory.

    make bench BENCH=ingestion                              all sizes, then 2,000 mutated files
    make bench BENCH=ingestion ARGS="--rows 10000 --fuzz 0 --out FILE"

Each size runs what `verdict check` does in a process of its own, whose peak memory the system reports, twice: on a
clean file, whose blocks are all read the fast way, and with one damaged row in a thousand. No mutated file may end in
a traceback, and rows in = kept + quarantined holds for each.
"""

import argparse
import collections
import json
import os
import platform
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from tasks.core.provenance import git_commit, library_versions

SIZES = (10_000, 100_000, 1_000_000, 10_000_000)
HALVES = 200_000  # half-sentences; pairs of them hardly ever repeat
DAMAGED = ("x\t1\tthree fields\n", "x\tyes\t\tA word as a label.\n", "x\t1\t\t\n")

CHILD = """
import json, resource, sys, time
from pathlib import Path
from flows.commands import check
from tasks.core.settings_loader import load_settings
home, folder = sys.argv[1:]
settings = load_settings("sample", {"data.path": folder}, {}).settings
started = time.perf_counter()
data = check.read_data(settings.data, home)
read = time.perf_counter()
Path(home, "report").mkdir()
gate = check.run_gate(data, settings, home + "/report", check.find_tokenizer(settings), None)
seconds = {"read and snapshot": read - started, "gate": time.perf_counter() - read}
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
print(json.dumps({"seconds": seconds, "peak_bytes": peak, "passed": gate["passed"],
                  "rows_in": gate["rows_in"], "kept": gate["kept"], "quarantined": gate["quarantined"]}))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="*", default=list(SIZES))
    parser.add_argument("--out", default="")
    parser.add_argument("--fuzz", type=int, default=2_000)
    options = parser.parse_args()
    rows = [measure(count, damaged) for count in options.rows for damaged in (False, True)]
    result = {
        "benchmark": "ingestion",
        "hardware": f"{cpu_name()}, {os.cpu_count()} CPU cores, {platform.machine()}",
        "versions": library_versions(),
        "commit": git_commit(),
        "rows": rows,
        "fuzz": fuzz(options.fuzz) if options.fuzz else None,
    }
    if options.out:
        Path(options.out).write_text(json.dumps(result, indent=2) + "\n")


def measure(count: int, damaged: bool) -> dict[str, Any]:
    """Check one generated data set in a process of its own."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "data"
        folder.mkdir()
        write_rows(folder / "in_domain_train.tsv", count, 1, damaged)
        write_rows(folder / "out_of_domain_dev.tsv", max(count // 20, 100), 2, damaged)
        size = sum(path.stat().st_size for path in folder.iterdir())
        started = time.perf_counter()
        done = subprocess.run(
            [sys.executable, "-c", CHILD, str(Path(scratch) / "home"), str(folder)],
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise SystemExit(done.stderr)
        row = json.loads(done.stdout) | {"train_rows": count, "damaged": damaged, "file_bytes": size}
        row["seconds"]["process, imports included"] = time.perf_counter() - started
        row["seconds"] = {name: round(seconds, 2) for name, seconds in row["seconds"].items()}
    print(
        f"{count:>9} rows, {'1 in 1000 damaged' if damaged else 'clean':<17} {size / 1e6:7.1f} MB: "
        + ", ".join(f"{name} {seconds:.1f} s" for name, seconds in row["seconds"].items())
        + f"; peak {row['peak_bytes'] / 1e9:.2f} GB",
        flush=True,
    )
    return row


def write_rows(path: Path, count: int, seed: int, damaged: bool) -> None:
    """Write sentences of 4 to 14 made-up words, two thirds of them acceptable."""
    rng = random.Random(seed)
    letters = "abcdefghijklmnopqrstuvwxyz"
    vocabulary = ["".join(rng.choices(letters, k=rng.randint(2, 9))) for _ in range(20_000)]
    halves = [" ".join(rng.choices(vocabulary, k=rng.randint(2, 7))) for _ in range(HALVES)]
    sources = ["gj04", "bc01", "ks08", "l-93"]
    with path.open("w", encoding="utf-8") as file:
        for number in range(count):
            if damaged and number % 1000 == 500:
                file.write(rng.choice(DAMAGED))
                continue
            left, right = halves[int(rng.random() * HALVES)], halves[int(rng.random() * HALVES)]
            label = 1 if rng.random() < 0.67 else 0
            file.write(f"{sources[number % 4]}\t{label}\t{'' if label else '*'}\t{left} {right}.\n")


def fuzz(count: int) -> dict[str, int]:
    """Read mutated files and count how they ended; the law rows in = kept + quarantined is checked for each."""
    sys.path.insert(0, str(Path(__file__).parents[1] / "support"))
    from fuzzing import check_file, mutated_files

    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as scratch:
        ends = collections.Counter(
            check_file(path, Path(scratch) / "snapshots") for path in mutated_files(count, 0, Path(scratch) / "files")
        )
    print(f"{count} mutated files in {time.perf_counter() - started:.0f} s, no traceback: {dict(ends)}")
    return dict(ends)


def cpu_name() -> str:
    """Return what the system calls its processor."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").is_file() else []
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())


if __name__ == "__main__":
    main()
