"""Times a training, and what it takes of memory, with several times as many sentences as a corpus has.

    python tests/benchmarks/bench_scale.py --data DIR --random base --vocabulary DIR2 --device cuda --out FILE
    python tests/benchmarks/bench_scale.py --random tiny --device cpu --times 1 10 --epochs 1 1

DIR holds CoLA-format files. Further sentences are those of the training file with some words replaced by others of the
corpus, so that lengths stay. Each size is a process of its own: it reads, splits and trains one seed, as a run does.
`seconds` is all of that; `epoch_microseconds` is one epoch's time a training sentence, with validation on a set that
grows too. For two GPUs: bench_parallel.py --batch-sizes 256 1024.
"""

import argparse
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from bench_finetune import SIZES, write_random
from bench_ingestion import cpu_name

from tasks.core.finetune_settings import FinetuneSettings
from tasks.core.provenance import git_commit, library_versions
from tasks.data.snapshots import write_snapshot
from tasks.data.sources import locate_sources
from tasks.data.splitting import split_snapshot
from tasks.training.device import device_name, resolve_device
from tasks.training.finetune import fine_tune
from tasks.training.pretrained import locate_encoder
from tasks.training.recipe import resolve_recipe

TRAIN, HOLDOUT = "in_domain_train.tsv", "out_of_domain_dev.tsv"
REPLACED = 0.2  # share of the words of a further sentence; at least one


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="sample")
    parser.add_argument("--encoder", default="packaged")
    parser.add_argument("--random", choices=sorted(SIZES), default="")
    parser.add_argument("--vocabulary", default="")
    parser.add_argument("--device", default="auto", choices=["auto", "cuda", "cpu"])
    parser.add_argument("--times", type=int, nargs="+", default=[1, 10, 100])
    parser.add_argument("--epochs", type=int, nargs="+", default=[4, 4, 1], help="of each size")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--out", default="")
    parser.add_argument("--commit", default="")
    parser.add_argument("--child", nargs=3, metavar=("FOLDER", "ENCODER", "EPOCHS"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        folder, encoder, epochs = options.child
        print(json.dumps(train(folder, encoder, int(epochs), options.batch_size, options.device)))
        return
    device = resolve_device(options.device)
    with tempfile.TemporaryDirectory() as scratch:
        encoder = write_random(options, scratch) if options.random else locate_encoder(options.encoder)["folder"]
        rows = []
        for times, epochs in zip(options.times, options.epochs, strict=True):
            folder = multiply(options.data, times, Path(scratch, f"corpus-{times}"))
            rows.append({"times": times} | start(folder, encoder, epochs, options.batch_size, device, scratch))
            print(json.dumps(rows[-1]), flush=True)
    result = {
        "benchmark": "a training with several times as many sentences",
        "hardware": f"{device_name(device)}, {cpu_name()}, {os.cpu_count()} CPU cores",
        "versions": library_versions() | {"cuda": torch.version.cuda},
        "commit": options.commit or git_commit(),
        "encoder": options.random or Path(encoder).name,
        "batch_size": options.batch_size,
        "rows": rows,
    }
    if options.out:
        Path(options.out).write_text(json.dumps(result, indent=2) + "\n")


def multiply(data: str, times: int, folder: Path) -> Path:
    """Write the corpus with `times` as many training sentences; all of them differ."""
    with tempfile.TemporaryDirectory() as scratch:
        sources = locate_sources([data], "", "", scratch)
        paths = {role: Path(sources[role][0]) for role in ("train", "holdout")}  # type: ignore[literal-required]
        lines = [line.split("\t") for line in paths["train"].read_text(encoding="utf-8").splitlines()]
        holdout = paths["holdout"].read_bytes()
    rng = random.Random(0)
    words = [word for line in lines for word in line[3].split()]
    known = {line[3] for line in lines}
    further = []
    while len(further) < (times - 1) * len(lines):
        source, label, mark, sentence = lines[len(further) % len(lines)]
        changed = sentence.split()
        while (text := " ".join(changed)) in known:
            for position in rng.sample(range(len(changed)), max(1, round(REPLACED * len(changed)))):
                changed[position] = rng.choice(words)
        known.add(text)
        further.append([source, label, mark, text])
    folder.mkdir()
    (folder / TRAIN).write_text("".join("\t".join(line) + "\n" for line in lines + further), encoding="utf-8")
    (folder / HOLDOUT).write_bytes(holdout)
    return folder


def start(folder: Path, encoder: str, epochs: int, batch_size: int, device: str, scratch: str) -> dict[str, Any]:
    """Train in a process of its own; the first one compiles the kernels."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "TRITON_CACHE_DIR": f"{scratch}/kernels"}
    child = ["--child", str(folder), encoder, str(epochs), "--batch-size", str(batch_size), "--device", device]
    done = subprocess.run(
        [sys.executable, __file__, *child], env=environment, stdout=subprocess.PIPE, text=True, check=True
    )
    row: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return row


def train(folder: str, encoder: str, epochs: int, batch_size: int, device: str) -> dict[str, Any]:
    """Read, split and train; return seconds and the largest amounts of memory."""
    started = time.perf_counter()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with tempfile.TemporaryDirectory() as scratch:
        sources = locate_sources([folder], "", "", scratch)
        taken = {role: write_snapshot(sources[role], scratch)["path"] for role in ("train", "holdout")}  # type: ignore[literal-required]
        read = time.perf_counter()
        rows, validation, _ = split_snapshot(taken["train"], [taken["holdout"]], scratch, 0.1, 2018)
        split = time.perf_counter()
        settings = FinetuneSettings(epochs=epochs, batch_size=batch_size, learning_rate=2e-5, restarts=0, device=device)  # type: ignore[arg-type]
        result = fine_tune(str(rows), str(validation), resolve_recipe(settings, encoder), f"{scratch}/model")
    ended = time.perf_counter()
    count = len(result["step_losses"]) / epochs * batch_size
    trained = sum(epoch["seconds"] for epoch in result["epochs"])
    return {
        "sentences": round(count),
        "epochs": epochs,
        "seconds": round(ended - started, 2),
        "steps": {
            "read": round(read - started, 2),
            "split": round(split - read, 2),
            "tokenise, load, prepare, save": round(ended - split - trained, 2),
            "epochs": round(trained, 2),
        },
        "epoch_microseconds": round(1e6 * trained / epochs / count, 1),
        "peak_host_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
        "host_mb_before": round(before / 1024),
        "peak_gpu_mb": round(torch.cuda.max_memory_reserved() / 2**20) if device == "cuda" else None,
    }


if __name__ == "__main__":
    main()
