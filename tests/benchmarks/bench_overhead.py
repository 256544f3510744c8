"""What orchestration costs: a whole run less the sum of its steps, with an embedded Prefect server and an external one.

    python tests/benchmarks/bench_overhead.py [--repeats 3] [--out FILE]

Each run is the command as one types it, on the bundled sample for one epoch, another seed each time so that none ends
as unchanged. The first run of a home makes its databases and is not counted. "start" is imports and, embedded, the
server's start, before the flow begins; "rest" is what the flow itself spends outside of its steps.
"""

import argparse
import contextlib
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bench_ingestion import cpu_name

from tasks.core.provenance import git_commit, library_versions


def main() -> None:
    """Measure both, and write medians as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", default="")
    options = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as home:
        for server, address in (("embedded", contextlib.nullcontext("")), ("external", external_server(home))):
            with address as url:
                runs = [measure(home, url, 100 * len(url) + seed) for seed in range(options.repeats + 1)][1:]
            row = {name: statistics.median(run[name] for run in runs) for name in runs[0]}
            rows.append({"server": server, "runs": len(runs), **{name: round(taken, 2) for name, taken in row.items()}})
            print(json.dumps(rows[-1]), flush=True)
    result = {
        "benchmark": "seconds of a whole run, of its steps, and of neither; medians",
        "hardware": f"{cpu_name()}, {os.cpu_count()} CPU cores",
        "versions": library_versions(),
        "commit": git_commit(),
        "rows": rows,
    }
    if options.out:
        Path(options.out).write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


def measure(home: str, url: str, seed: int) -> dict[str, float]:
    """Run the command once; return seconds of the whole, of start, steps and rest."""
    chosen = ("--set", "finetune.epochs=1", "--set", f"finetune.seed={seed}")
    environment = os.environ | {"VERDICT_HOME": home} | ({"PREFECT_API_URL": url} if url else {})
    done = subprocess.run(
        [sys.executable, "-m", "flows.cli.app", "retrain", *chosen, "--json"],
        env=environment,
        stdout=subprocess.PIPE,
        check=True,
    )
    taken: dict[str, float] = json.loads(done.stdout)["seconds"]
    whole, start = taken.pop("total"), taken.pop("start")
    steps = sum(taken.values())
    return {"whole": whole, "start": start, "steps": steps, "rest": whole - start - steps}


@contextlib.contextmanager
def external_server(home: str) -> Iterator[str]:
    """Run a Prefect server on loopback; yield its address."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command: list[Any] = [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", port]
    server = subprocess.Popen(
        [str(word) for word in command],
        env=os.environ | {"PREFECT_HOME": f"{home}/prefect"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        while True:
            with contextlib.suppress(OSError):
                urllib.request.urlopen(f"http://127.0.0.1:{port}/api/health", timeout=5).close()
                break
            time.sleep(0.2)
        yield f"http://127.0.0.1:{port}/api"
    finally:
        server.terminate()
        server.wait(30)


if __name__ == "__main__":
    main()
