"""What helps the holdout MCC: recipes side by side on real CoLA, several seeds each.

    python tests/benchmarks/ablate_finetune.py --data DIR --encoder DIR2 --device cuda --seeds 1 2 3 --out FILE

Recipes are to be compared by their validation MCC; the holdout's is printed beside it and chooses nothing. `soup` is
the mean of the seeds' weights (all start from one head), `ensemble` the mean of their probabilities.
"""

import argparse
import json
import math
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from bench_finetune import encoded, read_parts
from bench_ingestion import cpu_name

from tasks.batching import sorted_batches
from tasks.device import resolve_device
from tasks.encoded import Encoded
from tasks.encoder import locate_encoder
from tasks.epochs import train_epochs
from tasks.finetune import device_name, load_classifier
from tasks.metrics import mcc
from tasks.provenance import git_commit, versions
from tasks.stepper import Recipe

# learning rate, epochs, layer decay, batch size, warm-up
RECIPES: dict[str, tuple[float, int, float, int, float]] = {
    "book: 2e-5, 4 epochs": (2e-5, 4, 1.0, 32, 0.1),
    "3e-5, 4 epochs": (3e-5, 4, 1.0, 32, 0.1),
    "5e-5, 4 epochs": (5e-5, 4, 1.0, 32, 0.1),
    "5e-5, layer decay 0.9, 4 epochs": (5e-5, 4, 0.9, 32, 0.1),
    "5e-5, layer decay 0.9, 8 epochs": (5e-5, 8, 0.9, 32, 0.1),
    "1e-4, layer decay 0.8, 8 epochs": (1e-4, 8, 0.8, 32, 0.1),
    "3e-5, layer decay 0.95, 8 epochs": (3e-5, 8, 0.95, 32, 0.1),
    "3e-5, layer decay 0.9, batch 16, 6 epochs": (3e-5, 6, 0.9, 16, 0.1),
}
HEAD_SEED = 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="sample")
    parser.add_argument("--encoder", default="packaged")
    parser.add_argument("--device", default="auto", choices=["auto", "cuda", "cpu"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--recipes", nargs="+", default=list(RECIPES))
    parser.add_argument("--out", default="")
    parser.add_argument("--commit", default="")
    options = parser.parse_args()
    device = resolve_device(options.device)
    encoder = locate_encoder(options.encoder)
    with tempfile.TemporaryDirectory() as scratch:
        parts = read_parts(options.data, encoder["folder"], scratch, 1)
    rows = []
    for name in options.recipes:
        rows.append({"recipe": name} | measure(RECIPES[name], encoder["folder"], parts, options.seeds, device))
        print(json.dumps(rows[-1]), flush=True)
    result = {
        "benchmark": "recipes of fine-tuning",
        "hardware": f"{device_name(device)}, {cpu_name()}, {os.cpu_count()} CPU cores",
        "versions": versions() | {"cuda": torch.version.cuda},
        "commit": options.commit or git_commit(),
        "encoder": encoder["name"],
        "seeds": options.seeds,
        "rows": rows,
    }
    if options.out:
        Path(options.out).write_text(json.dumps(result, indent=2) + "\n")


def measure(
    values: tuple[float, int, float, int, float], encoder: str, parts: dict[str, Any], seeds: list[int], device: str
) -> dict[str, Any]:
    """Train one recipe with every seed; return validation and holdout MCC of each, of their soup and their ensemble."""
    rate, epochs, layer_decay, batch_size, warmup = values
    found: dict[str, list[float]] = {"validation": [], "holdout": []}
    kept, answers = [], []
    started = time.perf_counter()
    for seed in seeds:
        torch.manual_seed(HEAD_SEED)
        model = load_classifier(encoder).to(device)
        torch.manual_seed(seed)
        sets = {name: encoded(part, model, device) for name, part in parts.items()}
        steps = epochs * math.ceil(sets["train"].count / batch_size)
        recipe = Recipe(steps, batch_size, rate, warmup, 0.01, 1.0, layer_decay)
        course = train_epochs(model, sets["train"], sets["validation"], recipe, epochs=epochs, seed=seed)
        found["validation"].append(max(epoch["validation_mcc"] for epoch in course.epochs))
        answers.append({name: probabilities(model, sets[name]) for name in found})
        found["holdout"].append(score(answers[-1]["holdout"], sets["holdout"]))
        kept.append({name: value.detach().clone() for name, value in model.state_dict().items()})
    model.load_state_dict(
        {name: sum(state[name] for state in kept) / len(kept) if kept[0][name].is_floating_point() else kept[0][name]
         for name in kept[0]}
    )  # fmt: skip
    return {
        "seconds_a_seed": round((time.perf_counter() - started) / len(seeds), 2),
        **{
            name: {
                "seeds": [round(value, 4) for value in values],
                "mean": round(statistics.mean(values), 4),
                "spread": round(statistics.stdev(values), 4) if len(values) > 1 else None,
                "soup": round(score(probabilities(model, sets[name]), sets[name]), 4),
                "ensemble": round(score(np.mean([each[name] for each in answers], axis=0), sets[name]), 4),
            }
            for name, values in found.items()
        },
    }


@torch.inference_mode()
def probabilities(model: Any, data: Encoded) -> np.ndarray:
    """Return the probability of acceptable [N]."""
    model.eval()
    found = np.zeros(data.count)
    for rows in sorted_batches(data.lengths, 256):
        batch = data.batch(rows)
        del batch["labels"]
        found[rows] = model(**batch).logits.float().softmax(-1)[:, 1].cpu().numpy()
    return found


def score(probability: np.ndarray, data: Encoded) -> float:
    """Return the MCC of the labels that are more probable."""
    return mcc(data.labels, (probability > 0.5).astype(np.int64))


if __name__ == "__main__":
    main()
