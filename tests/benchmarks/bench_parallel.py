"""Times training in one process and in several, and several seeds side by side against one after another.

    python tests/benchmarks/bench_parallel.py --data DIR --random base --device cuda --processes 2 --out FILE
    python tests/benchmarks/bench_parallel.py --random tiny --device cpu --processes 2 --batch-sizes 32 --epochs 1

`seconds` is all epochs with validation, after everything is loaded and captured; that is `setup_seconds`. Times are
taken with dropout, losses compared without it: each process drops others on purpose. A single process, too, is started
for its work: this one trains nothing.
"""

import argparse
import contextlib
import gc
import json
import logging
import math
import os
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from bench_finetune import SIZES, Sentences, encoded, read_parts, write_random
from bench_ingestion import cpu_name
from transformers import AutoConfig

from tasks.core.finetune_settings import FinetuneSettings
from tasks.core.provenance import git_commit, library_versions
from tasks.training.device import device_name, resolve_device
from tasks.training.kernel_compiler import compile_for_training
from tasks.training.launcher import launch
from tasks.training.model import load_classifier
from tasks.training.pretrained import locate_encoder
from tasks.training.process_group import ProcessGroup
from tasks.training.recipe import resolve_precision, resolve_recipe
from tasks.training.train_step import StepConfig
from tasks.training.trainer import TrainingHistory, train_epochs


class Job(NamedTuple):
    """What a training process needs to know; `still` is the encoder's folder with its dropout set to 0."""

    encoder: str
    still: str
    parts: dict[str, Sentences]
    device: str
    batch_sizes: list[int]
    epochs: int
    compared_epochs: int
    learning_rate: float
    seed: int


def main() -> None:
    options = parse_options()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    device = resolve_device(options.device)
    with tempfile.TemporaryDirectory() as scratch:
        encoder = write_random(options, scratch) if options.random else locate_encoder(options.encoder)["folder"]
        parts = read_parts(options.data, encoder, scratch, options.times)
        job = Job(
            encoder, without_dropout(encoder, scratch), parts, device, options.batch_sizes, options.epochs,
            options.compared_epochs, options.learning_rate, options.seed,
        )  # fmt: skip
        if kernels := compile_for_training(resolve_recipe(FinetuneSettings(device=device), encoder)):  # type: ignore[arg-type]
            kernels.wait()
        rows = compare(job, options.processes) if options.batch_sizes else []
        seeds = side_by_side(job._replace(batch_sizes=[options.seeds_batch_size]), options.processes)
    result = {
        "benchmark": "training in several processes",
        "hardware": f"{options.processes} x {device_name(device)}, {cpu_name()}, {os.cpu_count()} CPU cores",
        "versions": library_versions() | {"cuda": torch.version.cuda, "nccl": nccl_version(device)},
        "commit": options.commit or git_commit(),
        "settings": {
            key: Path(value).name if key in ("encoder", "vocabulary") else value
            for key, value in vars(options).items()
            if key not in ("out", "commit", "data")
        },
        "sentences": len(parts["train"][1]),
        "tokens": int(sum(map(len, parts["train"][0]))),
        "rows": rows,
        "seeds": seeds,
    }
    if options.out:
        Path(options.out).write_text(json.dumps(result, indent=2) + "\n")


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="sample")
    parser.add_argument("--encoder", default="packaged")
    parser.add_argument("--random", choices=sorted(SIZES), default="")
    parser.add_argument(
        "--vocabulary", default="", help="folder with the tokenizer.json of --random [packaged encoder]"
    )
    parser.add_argument("--device", default="auto", choices=["auto", "cuda", "cpu"])
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--batch-sizes", type=int, nargs="*", default=[32, 64, 128, 256, 512, 1024])
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--compared-epochs", type=int, default=1, help="without dropout, to compare losses; 0: none")
    parser.add_argument("--learning-rate", type=float, default=2e-5)
    parser.add_argument("--times", type=int, default=1, help="how often the training sentences are repeated")
    parser.add_argument("--seed", type=int, default=2018)
    parser.add_argument("--seeds-batch-size", type=int, default=32, help="of the seeds side by side")
    parser.add_argument("--out", default="")
    parser.add_argument("--commit", default="")
    return parser.parse_args()


def compare(job: Job, processes: int) -> list[dict[str, Any]]:
    """Train with each batch size in one process and in several; return times and how far the losses are apart."""
    alone = launch(train_sizes, 1, job, device=job.device, on_message=say)[0]
    together = launch(train_sizes, processes, job, device=job.device, on_message=say)[0]
    rows = []
    for batch_size, one, several in zip(job.batch_sizes, alone, together, strict=True):
        row = {
            "batch_size": batch_size,
            "processes": processes,
            "alone": one["timed"],
            "together": several["timed"],
            "speedup": round(one["timed"]["seconds"] / several["timed"]["seconds"], 3),
            "losses": apart(one["losses"], several["losses"]),
        }
        rows.append(row)
        say(row)
    return rows


def side_by_side(job: Job, processes: int) -> dict[str, Any]:
    """Train as many seeds as processes one after another in one process, then all at once; a process a seed."""
    seconds, answers = {}, {}
    for name, started in (("one_after_another", 1), ("side_by_side", processes)):
        before = time.perf_counter()
        found = launch(train_seeds, started, job, processes, device=job.device, on_message=say, synchronised=False)
        seconds[name] = round(time.perf_counter() - before, 3)
        answers[name] = [answer for each in found for answer in each]
    trained = {name: [answer["seconds"] for answer in each] for name, each in answers.items()}
    result = {
        "seeds": processes,
        "batch_size": job.batch_sizes[0],
        "wall_seconds": seconds,
        "training_seconds": {
            "one_after_another": round(sum(trained["one_after_another"]), 3),
            "side_by_side": max(trained["side_by_side"]),
        },
        "same_losses": sorted(answer["losses"] for answer in answers["one_after_another"])
        == sorted(answer["losses"] for answer in answers["side_by_side"]),
        "validation_mcc": [answer["validation_mcc"] for answer in answers["side_by_side"]],
    }
    say(result)
    return result


def train_sizes(team: ProcessGroup, job: Job) -> list[dict[str, Any]]:
    """Train with each batch size; one process alone trains without a team, as `verdict retrain` does."""
    found = []
    for batch_size in job.batch_sizes:
        used = team if team.size > 1 else None
        timed = train(used, job, job.encoder, batch_size, job.epochs, job.seed)
        timed.pop("losses")
        losses = None
        if job.compared_epochs:
            losses = train(used, job, job.still, batch_size, job.compared_epochs, job.seed)["losses"]
        found.append({"timed": timed, "losses": losses})
        if team.rank == 0:
            team.notify_parent({"processes": team.size, "batch_size": batch_size} | timed)
    return found


def train_seeds(team: ProcessGroup, job: Job, seeds: int) -> list[dict[str, Any]]:
    """Train this process's share of the seeds, each as if there was no other process."""
    return [
        train(None, job, job.encoder, job.batch_sizes[0], job.epochs, job.seed + number)
        for number in range(team.rank, seeds, team.size)
    ]


def train(team: ProcessGroup | None, job: Job, encoder: str, batch_size: int, epochs: int, seed: int) -> dict[str, Any]:
    """Train a fresh model; return times, memory, losses and the best validation MCC."""
    gc.collect()
    if job.device == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    torch.manual_seed(seed)
    started = time.perf_counter()
    model = load_classifier(encoder).to(job.device)
    data, validation = (encoded(job.parts[name], model, job.device) for name in ("train", "validation"))
    steps = epochs * math.ceil(data.count / batch_size)
    precision = resolve_precision("auto", job.device)
    recipe = StepConfig(steps, batch_size, job.learning_rate, 0.1, 0.01, 1.0, precision=precision)
    course: TrainingHistory = train_epochs(model, data, validation, recipe, epochs=epochs, seed=seed, group=team)
    seconds = sum(epoch["seconds"] for epoch in course.epochs)
    return {
        "seconds": round(seconds, 3),
        "setup_seconds": round(time.perf_counter() - started - seconds, 3),
        "ms_per_step": round(1000 * seconds / steps, 3),
        "peak_bytes": torch.cuda.max_memory_allocated() if job.device == "cuda" else None,
        "validation_mcc": max(epoch["validation_mcc"] for epoch in course.epochs),
        "losses": course.step_losses,
    }


def apart(one: list[float] | None, other: list[float] | None) -> dict[str, float] | None:
    """Return how far two loss curves are apart."""
    if one is None or other is None:
        return None
    gap = np.abs(np.array(one, float) - np.array(other, float))
    return {
        "steps": len(gap),
        "first_gap": float(gap[0]),
        "mean_gap": float(gap.mean()),
        "largest_gap": float(gap.max()),
        "first_loss": one[0],
        "last_loss": one[-1],
    }


def without_dropout(folder: str, scratch: str) -> str:
    """Return a folder with the same model, whose configuration drops nothing."""
    still = Path(scratch) / "still"
    config = AutoConfig.from_pretrained(folder)
    for name, value in config.to_dict().items():
        if "dropout" in name and isinstance(value, float):
            setattr(config, name, 0.0)
    config.save_pretrained(still)
    for path in Path(folder).iterdir():
        with contextlib.suppress(FileExistsError):  # its configuration
            (still / path.name).symlink_to(path.resolve())
    return str(still)


def nccl_version(device: str) -> str | None:
    """Return NCCL's version where it is used."""
    return ".".join(map(str, torch.cuda.nccl.version())) if device == "cuda" else None  # type: ignore[no-untyped-call]


def say(message: Any) -> None:
    """Print a result as it comes."""
    print(json.dumps(message), flush=True)


if __name__ == "__main__":
    main()
