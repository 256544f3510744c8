"""Times a sweep of real CoLA on CPUs: the wall time of its trials against the sum of their times over the workers.

    python tests/benchmarks/bench_sweep.py COLA --out tests/benchmarks/results/sweep.json
    python tests/benchmarks/bench_sweep.py COLA --out FILE --ray local       # trials as tasks of a Ray cluster

Twelve trials of the packaged encoder (four learning rates, three batch sizes) on the first rows of the training file,
whole holdout; the winner is trained, exported, judged and registered like any other. Stores are a temporary folder.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from bench_ingestion import cpu_name

SPACE = ("finetune.learning_rate=5e-5,1e-4,2e-4,4e-4", "finetune.batch_size=16,32,64")
ONCE = "finetune.restarts=0"  # a trial that learns nothing is not made again, so that all take as long
TRAIN, HOLDOUTS = "in_domain_train.tsv", ("out_of_domain_dev.tsv", "in_domain_dev.tsv")


def main() -> None:
    """Run the sweep, and write a row of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder of CoLA's .tsv files")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--rows", type=int, default=3_000, help="first rows of the training file")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--trials", type=int, default=12)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--ray", default="", help="address as of verdict sweep --ray; processes without it")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        data = take_rows(arguments.data, Path(scratch) / "cola", arguments.rows)
        row = time_sweep(arguments, data, Path(scratch) / "home")
    arguments.out.write_text(json.dumps({"cpu": cpu_name(), "cores": os.cpu_count(), "rows": [row]}, indent=2) + "\n")
    print(json.dumps(row, indent=2))


def take_rows(source: Path, folder: Path, rows: int) -> Path:
    """Copy CoLA with the first rows of its training file."""
    folder.mkdir()
    for name in HOLDOUTS:
        shutil.copy(source / name, folder / name)
    lines = (source / TRAIN).read_text(encoding="utf-8").splitlines(keepends=True)
    (folder / TRAIN).write_text("".join(lines[:rows]), encoding="utf-8")
    return folder


def time_sweep(arguments: argparse.Namespace, data: Path, home: Path) -> dict[str, Any]:
    """Run `verdict sweep` and return what it took."""
    options = ["--data", str(data), "--device", "cpu", "--trials", str(arguments.trials), "--json"]
    options += ["--workers", str(arguments.workers), "--set", f"finetune.epochs={arguments.epochs}"]
    options += [word for assignment in (*SPACE, ONCE) for word in ("--set", assignment)]
    options += ["--ray", arguments.ray] if arguments.ray else []
    started = time.perf_counter()
    process = subprocess.run(
        [sys.executable, "-m", "flows.cli.app", "sweep", *options],
        env=os.environ | {"VERDICT_HOME": str(home)}, stdout=subprocess.PIPE, text=True, check=True,
    )  # fmt: skip
    command = time.perf_counter() - started
    outcome = json.loads(process.stdout)
    total = sum(trial["seconds"] for trial in outcome["trials"])
    wall, verdict = outcome["trial_seconds"], outcome["retrain"]
    return {
        "trials_as": "Ray tasks" if arguments.ray else "processes",
        "workers": arguments.workers,
        "training_rows": arguments.rows,
        "epochs": arguments.epochs,
        "trials": len(outcome["trials"]),
        "pruned": sum(trial["state"] == "pruned" for trial in outcome["trials"]),
        "sum_of_trials_s": round(total, 1),
        "wall_s": wall,
        "wall_by_sum_over_workers": round(wall * arguments.workers / total, 3),
        "command_s": round(command, 1),
        "best": outcome["best"],
        "validation_mcc": outcome["trials"][0]["mcc"],
        "verdict": verdict["decision"],
        "holdout_mcc": verdict["mcc"],
    }


if __name__ == "__main__":
    main()
