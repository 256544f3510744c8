"""Times training steps on a CPU: threads, order of the sentences, frozen embeddings, bf16.

    make bench BENCH=cpu ARGS="--data DIR --out FILE"          # DIR: CoLA-format files; without: the bundled sample

Every variant trains the same steps from the same model, one after the other, `--rounds` times over; the median of a
step is given, and what four epochs of the data would take.
"""

import argparse
import json
import math
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from bench_finetune import Sentences, encoded, read_parts
from bench_ingestion import cpu_name

from tasks.core.provenance import git_commit, library_versions
from tasks.inference.tokenization import shuffled_batches
from tasks.training.model import load_classifier
from tasks.training.pretrained import locate_encoder
from tasks.training.train_step import EagerStep, Rows, StepConfig

BATCH = 32
EPOCHS = 4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="sample")
    parser.add_argument("--encoder", default="packaged")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", default="")
    options = parser.parse_args()
    encoder = locate_encoder(options.encoder)
    with tempfile.TemporaryDirectory() as scratch:
        part = read_parts(options.data, encoder["folder"], scratch, 1)["train"]
    cores = os.cpu_count() or 1
    variants: dict[str, dict[str, Any]] = {
        f"{cores} threads": {"threads": cores},
        "1 thread": {"threads": 1},
        f"{2 * cores} threads": {"threads": 2 * cores},
        f"{cores} threads, sentences in random order": {"threads": cores, "order": random_batches},
        f"{cores} threads, embeddings frozen": {"threads": cores, "frozen": True},
        f"{cores} threads, bf16 autocast": {"threads": cores, "bf16": True},
    }
    found: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(options.rounds):
        for name, variant in variants.items():
            found[name].append(measure(encoder["folder"], part, options.steps, **variant))
            print(f"{name}: {found[name][-1]:.3f} s a step", flush=True)
    steps = EPOCHS * math.ceil(len(part[1]) / BATCH)
    rows = [
        {
            "variant": name,
            "seconds_a_step": round(statistics.median(values), 4),
            "four_epochs": round(steps * statistics.median(values), 1),
        }
        for name, values in found.items()
    ]
    result = {
        "benchmark": "training steps on a CPU",
        "hardware": f"{cpu_name()}, {cores} cores",
        "versions": library_versions(),
        "commit": git_commit(),
        "encoder": encoder["name"],
        "sentences": len(part[1]),
        "rows": rows,
    }
    print(json.dumps(rows, indent=1))
    if options.out:
        Path(options.out).write_text(json.dumps(result, indent=2) + "\n")


def random_batches(lengths: np.ndarray, batch_size: int, rng: np.random.Generator) -> list[Rows]:
    """Divide sentences into batches whatever their length."""
    order = rng.permutation(len(lengths))
    return [order[i : i + batch_size] for i in range(0, len(order), batch_size)]


def measure(
    encoder: str,
    part: Sentences,
    steps: int,
    *,
    threads: int,
    order: Callable[..., list[Rows]] = shuffled_batches,
    frozen: bool = False,
    bf16: bool = False,
) -> float:
    """Return the mean seconds of a step, after a few that do not count."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    model = load_classifier(encoder)
    if frozen:
        for name, parameter in model.named_parameters():
            parameter.requires_grad_("embedding" not in name)
    data = encoded(part, model, "cpu")
    batches = order(data.lengths, BATCH, np.random.default_rng(0))[: steps + 5]
    stepper = EagerStep(model, data, StepConfig(len(batches), BATCH, 5e-5, 0.1, 0.01, 1.0))
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        stepper.run(batches[:5], 0, lambda: None)
        started = time.perf_counter()
        stepper.run(batches[5:], 5, lambda: None)
        seconds = time.perf_counter() - started
    torch.set_num_threads(before)
    return seconds / len(batches[5:])


if __name__ == "__main__":
    main()
