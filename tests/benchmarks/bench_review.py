"""A person's day with real data: two really different models, one judged against the other, approved and taken back.

    python tests/benchmarks/bench_review.py --data DIR [--epochs 1 4] [--home DIR] [--out FILE]

Runs the commands as one types them, in stores of its own, and records what each printed as JSON and how long it took.
"""

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from bench_ingestion import cpu_name

from tasks.core.provenance import git_commit, library_versions


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="folder with CoLA's files")
    parser.add_argument("--epochs", type=int, nargs=2, default=[1, 4])
    parser.add_argument("--home", default="", help="folder of the stores, which then stay to be looked at")
    parser.add_argument("--out", default="")
    parser.add_argument("--commit", default="")
    options = parser.parse_args()
    with contextlib.nullcontext(options.home) if options.home else tempfile.TemporaryDirectory() as home:
        steps = day(options, home)
    result = {
        "benchmark": "two models on real CoLA, judged, approved and taken back",
        "hardware": f"{cpu_name()}, {os.cpu_count()} CPU cores",
        "versions": library_versions(),
        "commit": options.commit or git_commit(),
        "steps": steps,
    }
    if options.out:
        Path(options.out).write_text(json.dumps(result, indent=2) + "\n")


def day(options: argparse.Namespace, home: str) -> list[dict[str, Any]]:
    """Train twice, compare, let a person decide where the policy does not, go back, and read the record."""
    steps: list[dict[str, Any]] = []

    def say(*command: str) -> Any:
        started = time.perf_counter()
        done = subprocess.run(
            [sys.executable, "-m", "flows.cli.app", *command, "--json"],
            env=os.environ | {"VERDICT_HOME": home, "VERDICT_ACTOR": "reviewer"},
            capture_output=True,
            text=True,
        )
        answer = json.loads(done.stdout) if done.stdout.strip() else None
        step = {"command": " ".join(command).replace(options.data, "DIR"), "exit": done.returncode}
        step |= {
            "seconds": round(time.perf_counter() - started, 1),
            "answer": shown(answer),
            "error": done.stderr[-300:],
        }
        if done.returncode == 0:
            del step["error"]
        steps.append(step)
        print(json.dumps(step), flush=True)
        return answer

    training = ("--profile", "cola-small", "--data", options.data, "--set", "finetune.corruptions=1")
    threshold = ("--set", "judge.threshold=0.0")  # one epoch is meant to be bad, and to reign all the same
    say("retrain", *training, *threshold, "--set", f"finetune.epochs={options.epochs[0]}")
    second = say("retrain", *training, *threshold, "--set", f"finetune.epochs={options.epochs[1]}")
    say("compare", "2", "1")
    if second and second["decision"] == "HOLD":
        say("approve", "2", "--reason", "better on most sentences that differ")
    say("rollback", "--reason", "trying the way back", "--dry-run")
    say("rollback", "--reason", "trying the way back")
    say("history")
    say("status")
    return steps


def shown(answer: Any) -> Any:
    """Leave out what is long: sentences, and where things happen to lie."""
    if isinstance(answer, list):
        return [shown(item) for item in answer[:10]]
    if not isinstance(answer, dict):
        return answer
    left_out = {"report", "store", "run", "job", "differing", "sentences", "probabilities", "bundle", "runs"}
    return {key: shown(value) for key, value in answer.items() if key not in left_out}


if __name__ == "__main__":
    main()
