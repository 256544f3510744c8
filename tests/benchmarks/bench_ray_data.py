"""Compares `verdict score --ray` with a pipeline of Ray Data: seconds, order, and what a killed run loses.

    OMP_NUM_THREADS=1 make bench BENCH=ray_data ARGS="--rows 300000 --out FILE"

Both read one Parquet file of row groups of 10,000 rows, score it with the same bundle in two workers of one thread, and
write Parquet, on a Ray node that counts four CPUs: two for Ray Data's actors, and two for its tasks that read, filter
and write. Each run is a process of its own; `seconds` are those of the whole, from connecting on; `in order` whether
rows are in the input's order. Then each is killed once a third of its rows lie on disk, and run again: `scored` are the
rows that the second run scored, `rows` and `different` those of the output.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from bench_ingestion import cpu_name
from bench_scale_out import cluster, make_bundle, write_sentences

from tasks.core.provenance import git_commit, library_versions

GROUP = 10_000  # rows of a row group, of a part and of a batch
PARTS, PIPELINE = "verdict score --ray", "Ray Data"
SYSTEMS = (PARTS, PIPELINE, f"{PIPELINE}, in order", f"{PIPELINE}, checkpoints", f"{PIPELINE}, both")

CHILD = """
import json, os, sys, time
from pathlib import Path
system, path, out, bundle, address, marks = sys.argv[1:]
started = time.perf_counter()
if system == "verdict score --ray":
    from tasks.serving.ray_scoring import score_on_ray
    outcome = score_on_ray(path, out, bundle, "1", "cpu", "", "", False, "", address, workers=2)
    Path(marks, "own").write_text(str(outcome["scored"] - outcome["reused"]))
else:
    import pyarrow as pa, ray
    from ray.data.checkpoint import CheckpointConfig
    from tasks.inference.classifier import Classifier

    class Judge:
        def __init__(self):
            self.model, self.rows = Classifier.from_bundle(bundle, "cpu", threads=1), 0
        def __call__(self, batch):
            answers = self.model.answer(batch["sentence"].to_pylist())
            self.rows += batch.num_rows
            Path(marks, str(os.getpid())).write_text(str(self.rows))
            labels = pa.array(self.model.manifest["labels"]).take(pa.array(answers.labels))
            return batch.append_column("label", labels).append_column("probability", pa.array(answers.probabilities))

    ray.init(address, logging_level="error")
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.execution_options.preserve_order = system.endswith(("in order", "both"))
    if system.endswith(("checkpoints", "both")):
        context.checkpoint_config = CheckpointConfig("line", f"{out}.checkpoint", delete_checkpoint_on_success=False)
    rows = ray.data.read_parquet(path)
    judged = rows.map_batches(Judge, batch_size=10_000, batch_format="pyarrow", num_cpus=1,
                              compute=ray.data.ActorPoolStrategy(size=2))
    judged.write_parquet(out)
print(json.dumps(time.perf_counter() - started))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=300_000)
    parser.add_argument("--systems", nargs="+", default=SYSTEMS, choices=SYSTEMS)
    parser.add_argument("--out", default="")
    options = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        bundle = make_bundle("tiny", folder)
        path = write_input(folder, options.rows)
        with cluster([{}], 4, OMP_NUM_THREADS="1", RAYON_NUM_THREADS="1") as (address, environ):
            run = Run(folder, str(path), bundle, address, environ)
            for system in options.systems:
                rows.append({"system": system, "sentences": options.rows} | run.whole(system) | run.killed(system))
                print(json.dumps(rows[-1]), flush=True)
    result = {
        "benchmark": "Ray Data",
        "hardware": f"{cpu_name()}, {os.cpu_count()} CPU cores",
        "versions": library_versions() | {"ray": __import__("ray").__version__},
        "commit": git_commit(),
        "rows": rows,
    }
    if options.out:
        Path(options.out).write_text(json.dumps(result, indent=2) + "\n")


def write_input(folder: Path, count: int) -> Path:
    """Write a Parquet file of numbered sentences."""
    write_sentences(folder / "in.txt", count)
    sentences = [line or "the cat sees" for line in (folder / "in.txt").read_text().splitlines()]
    table = pa.table({"line": pa.array(range(1, count + 1), pa.int64()), "sentence": sentences})
    pq.write_table(table, folder / "in.parquet", row_group_size=GROUP)
    return folder / "in.parquet"


class Run:
    """Runs of the systems on one input and cluster."""

    def __init__(self, folder: Path, path: str, bundle: str, address: str, environ: dict[str, str]) -> None:
        self._folder, self._path, self._bundle = folder, path, bundle
        self._address, self._environ = address, environ

    def whole(self, system: str) -> dict[str, Any]:
        """Return how long a run takes, and whether its rows are in order."""
        out = self._prepare()
        child = self._start(system, out)
        seconds = float((child.communicate()[0] or "nan").splitlines()[-1])
        lines = read_lines(out)
        return {"seconds": round(seconds, 1), "in order": lines == sorted(lines)}

    def killed(self, system: str) -> dict[str, Any]:
        """Kill a run once a third of its rows lie on disk, run it again, and return what that did."""
        out = self._prepare()
        child = self._start(system, out)
        wanted = pq.read_metadata(self._path).num_rows / 3
        wait_for(lambda: count_rows(out) >= wanted or child.poll() is not None)
        child.kill()
        child.wait()
        time.sleep(5)  # what the cluster ends after its driver
        before = count_rows(out)
        for mark in self._marks.iterdir():
            mark.unlink()
        self._start(system, out).communicate()
        lines = read_lines(out)
        return {
            "on disk at the kill": before,
            "scored": sum(int(mark.read_text()) for mark in self._marks.iterdir()),
            "rows": len(lines),
            "different": len(set(lines)),
        }

    @property
    def _marks(self) -> Path:
        return self._folder / "marks"

    def _prepare(self) -> Path:
        """Delete what the run before wrote; return the output."""
        for name in ("out.parquet", "out.parquet.parts", "out.parquet.checkpoint", "marks"):
            shutil.rmtree(self._folder / name, ignore_errors=True)
        (self._folder / "out.parquet").unlink(missing_ok=True)
        self._marks.mkdir()
        return self._folder / "out.parquet"

    def _start(self, system: str, out: Path) -> subprocess.Popen[str]:
        command = [
            sys.executable,
            "-c",
            CHILD,
            system,
            self._path,
            str(out),
            self._bundle,
            self._address,
            str(self._marks),
        ]
        return subprocess.Popen(command, env=self._environ, cwd=self._folder, stdout=subprocess.PIPE, text=True)


def files_of(out: Path) -> list[Path]:
    """Return the Parquet files of an output: parts of an unfinished one, in the order of their names."""
    parts = Path(f"{out}.parts")
    return [out] if out.is_file() else sorted([*out.glob("*.parquet"), *parts.glob("part-*.parquet")])


def count_rows(out: Path) -> int:
    total = 0
    for path in files_of(out):
        try:
            total += pq.read_metadata(path).num_rows
        except (OSError, pa.ArrowException):  # half written
            continue
    return total


def read_lines(out: Path) -> list[int]:
    """Return the line of each row of an output, one file after the other."""
    lines: list[int] = []
    for path in files_of(out):
        lines += pq.read_table(path, columns=["line"])["line"].to_pylist()
    return lines


def wait_for(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 300
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.05)


if __name__ == "__main__":
    main()
