"""Times a cold start: from a new process to the end of its first training step.

    make bench BENCH=start ARGS="--device cpu --runs 3 --out FILE"
    make bench BENCH=start ARGS="--random base --device cuda --out FILE"

Each run is a process of its own. `--random` takes a BERT of that size with random weights. The first run starts with
an empty Triton cache, so that on a GPU it compiles the kernels; it is reported apart from the others' median.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from bench_finetune import SIZES, write_random
from bench_ingestion import cpu_name

from tasks.core.provenance import git_commit, library_versions
from tasks.training.device import device_name, resolve_device
from tasks.training.pretrained import locate_encoder

SENTENCES = 2_000  # random ones, of 4 to 30 tokens
CHILD = """
import json, os, sys, time
started = float(os.environ["STARTED"])
marks = {"interpreter": time.time() - started}
import numpy as np
import torch
from tasks.training.model import load_classifier
from tasks.training.dataset import TokenDataset
from tasks.core.finetune_settings import FinetuneSettings
from tasks.training.cuda_graph_step import make_train_step
from tasks.training.kernel_compiler import compile_for_training
from tasks.training.recipe import resolve_precision, resolve_recipe
from tasks.training.train_step import StepConfig
marks["imports"] = time.time() - started
encoder, device, count = sys.argv[1:]
kernels = compile_for_training(resolve_recipe(FinetuneSettings(device=device), encoder))
marks["kernels known"] = time.time() - started
model = load_classifier(encoder).to(device)
marks["model"] = time.time() - started
rng = np.random.default_rng(0)
ids = [rng.integers(1000, 2000, rng.integers(4, 31)) for _ in range(int(count))]
data = TokenDataset(ids, rng.integers(0, 2, len(ids)), 0, device)
marks["data"] = time.time() - started
if kernels:
    kernels.wait()
marks["kernels compiled"] = time.time() - started
precision = resolve_precision("auto", device)
step = make_train_step(model, data, StepConfig(100, 32, 2e-5, 0.1, 0.01, 1.0, precision=precision))
marks["captured"] = time.time() - started
step.run([np.arange(32)], 0, lambda: None).losses.tolist()
marks["first step"] = time.time() - started
print(json.dumps(marks))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--encoder", default="packaged")
    parser.add_argument("--random", choices=sorted(SIZES), default="")
    parser.add_argument("--vocabulary", default="")
    parser.add_argument("--device", default="auto", choices=["auto", "cuda", "cpu"])
    parser.add_argument("--runs", type=int, default=4)
    parser.add_argument("--out", default="")
    parser.add_argument("--commit", default="")
    options = parser.parse_args()
    device = resolve_device(options.device)
    with tempfile.TemporaryDirectory() as scratch:
        encoder = write_random(options, scratch) if options.random else locate_encoder(options.encoder)["folder"]
        runs = [run(encoder, device, f"{scratch}/kernels") for _ in range(options.runs)]
    result = {
        "benchmark": "seconds from a new process to marks on the way to its first training step",
        "hardware": f"{device_name(device)}, {cpu_name()}, {os.cpu_count()} CPU cores",
        "versions": library_versions() | {"cuda": torch.version.cuda},
        "commit": options.commit or git_commit(),
        "first": runs[0],
        "median": {name: round(statistics.median(each[name] for each in runs[1:] or runs), 2) for name in runs[0]},
        "runs": runs,
    }
    print(json.dumps({"first": result["first"], "median": result["median"]}))
    if options.out:
        Path(options.out).write_text(json.dumps(result, indent=2) + "\n")


def run(encoder: str, device: str, kernels: str) -> dict[str, float]:
    """Start a process whose compiled kernels are kept in a folder; return seconds to each mark."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "TRITON_CACHE_DIR": kernels}
    environment["STARTED"] = str(time.time())
    done = subprocess.run(
        [sys.executable, "-c", CHILD, encoder, device, str(SENTENCES)],
        env=environment,
        check=True,
        capture_output=True,
        text=True,
    )
    marks: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return {name: round(seconds, 2) for name, seconds in marks.items()}


if __name__ == "__main__":
    main()
