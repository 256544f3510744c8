"""Times the compilation of the kernels of a training for a GPU; the machine needs none.

    make bench BENCH=kernels ARGS="--model-type bert mpnet --threads 1 2 --out FILE"

Each row is a process with an empty cache. `seconds` is from the end of the imports to the last kernel, `cpu_seconds` is
this process and its compilers; `launches_seconds` is the part in which a step runs without values, to know them.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from bench_ingestion import cpu_name

from tasks.core.provenance import git_commit, library_versions

CHILD = """
import json, os, sys, time
from transformers import AutoConfig
from triton.backends.compiler import GPUTarget
from tasks.core.finetune_settings import FinetuneSettings
from tasks.training.kernel_compiler import compile_kernels, kernel_launches, specialise
kind, threads, capability = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
encoder, target = AutoConfig.for_model(kind), GPUTarget("cuda", capability, 32)
used, started = os.times(), time.perf_counter()
launches = kernel_launches(encoder, FinetuneSettings(r_drop=1.0), (0.0,))
known = time.perf_counter()
made = specialise(launches, target)
compile_kernels(made, target, threads, launchers=False).wait()
ended, spent = time.perf_counter(), os.times()
print(json.dumps({
    "launches": len(launches),
    "kernels": len(made),
    "seconds": round(ended - started, 2),
    "launches_seconds": round(known - started, 2),
    "cpu_seconds": round(sum(spent[:4]) - sum(used[:4]), 2),
}))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model-type", nargs="+", default=["bert", "mpnet"])
    parser.add_argument("--threads", nargs="+", type=int, default=[1, os.cpu_count() or 1])
    parser.add_argument("--capability", type=int, default=90)
    parser.add_argument("--out", default="")
    options = parser.parse_args()
    rows = [run(kind, threads, options.capability) for kind in options.model_type for threads in options.threads]
    result = {
        "benchmark": f"compilation of the kernels of a training, for a GPU of compute capability {options.capability}",
        "hardware": f"{cpu_name()}, {os.cpu_count()} CPU cores",
        "versions": library_versions(),
        "commit": git_commit(),
        "rows": rows,
    }
    if options.out:
        Path(options.out).write_text(json.dumps(result, indent=2) + "\n")


def run(kind: str, threads: int, capability: int) -> dict[str, Any]:
    """Start a process that compiles; return what it measured."""
    with tempfile.TemporaryDirectory() as cache:
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "TRITON_CACHE_DIR": cache}
        command = [sys.executable, "-c", CHILD, kind, str(threads), str(capability)]
        done = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True)
    row: dict[str, Any] = {"model_type": kind, "threads": threads} | json.loads(done.stdout.splitlines()[-1])
    print(json.dumps(row), flush=True)
    return row


if __name__ == "__main__":
    main()
