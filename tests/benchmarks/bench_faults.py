"""Breaks the product on purpose and counts what does not hold; each part may run alone.

    make bench BENCH=faults                                 every part
    make bench BENCH=faults ARGS="serve --quick"            one part, its short form
    make bench BENCH=faults ARGS="serve --bundle DIR"       with a trained bundle

Part NAME is the module faults_NAME.py beside this one, whose `measure(options)` returns what is written under that name
to results/faults.json; the entries of other parts stay. Exit code 1: a part misses an aim (its `aims_missed`).
"""

import argparse
import importlib
import json
import os
import platform
import time
from pathlib import Path
from typing import Any

from tasks.core.provenance import git_commit, library_versions

PARTS = {
    "mutate": "mutated bundles and settings files: tracebacks, hangs, memory",
    "kills": "commands killed at random moments, and run again: duplicates, stuck records, runs left running",
    "kills_postgresql": "the same on PostgreSQL",
    "starts": "ten retrain at once in a fresh home",
    "serve": "400 clients while the alias moves four times: failures, latency, memory",
}
COMMANDS = ("retrain", "approve", "rollback", "prune", "score")
RESULTS = Path(__file__).with_name("results") / "faults.json"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--quick", action="store_true", help="the short form of each part; no aim is judged by it")
    parser.add_argument(
        "--kills", type=int, default=60, help="kills of retrain, and a third as many of each other command"
    )
    parser.add_argument(
        "--minutes", type=float, default=120, help="most minutes of the kills of a store, in equal shares"
    )
    parser.add_argument("--workers", type=int, default=1, help="homes side by side that share the kills")
    parser.add_argument(
        "--commands",
        nargs="+",
        choices=COMMANDS,
        default=COMMANDS,
        help="to kill; the counts of others stay",
    )
    parser.add_argument("--commit", default="", help="of this tree, where git does not know it")
    parser.add_argument("--bundle", default="", help="folder of a trained bundle; a tiny one is made without it")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    if unknown := set(options.parts) - PARTS.keys():
        parser.error(f"no part {sorted(unknown)}; expected some of {list(PARTS)}")
    missed = [part for part in options.parts or PARTS if run(part, options)]
    raise SystemExit(f"aims missed: {missed}" if missed else 0)


def run(part: str, options: argparse.Namespace) -> list[str]:
    """Measure one part and write its entry; return the aims that it missed."""
    print(f"{part}: {PARTS[part]}", flush=True)
    started = time.perf_counter()
    result: dict[str, Any] = importlib.import_module(f"faults_{part}").measure(options)
    missed: list[str] = result.get("aims_missed", [])
    print(json.dumps(result, indent=2), flush=True)
    known = json.loads(options.out.read_text()) if options.out.exists() else {"benchmark": "faults", "parts": {}}
    counted_before = known["parts"].get(part, {}) if len(options.commands) < len(COMMANDS) else {}
    known["parts"][part] = {
        **counted_before,
        "hardware": f"{cpu_name()}, {os.cpu_count()} CPU cores, {platform.machine()}",
        "versions": library_versions(),
        "commit": options.commit or git_commit(),
        "quick": options.quick,
        "wall_seconds": round(time.perf_counter() - started, 1),
        **result,
    }
    options.out.write_text(json.dumps(known, indent=2) + "\n")
    return [] if options.quick else missed


def cpu_name() -> str:
    """Return what the system calls its processor."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").is_file() else []
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())


if __name__ == "__main__":
    main()
