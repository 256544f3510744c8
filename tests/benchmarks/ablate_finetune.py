"""What helps MCC: recipes side by side on real CoLA, several seeds each, through `fine_tune` as a run calls it.

    python tests/benchmarks/ablate_finetune.py --data DIR --encoder DIR2 --family base --text FILE2 --device cuda \\
        --out FILE

A seed is that of the split too, so that validation sentences differ. Recipes are to be compared by their validation
MCC; the holdout's stands beside it and chooses nothing. "at_threshold" is the holdout's MCC where the validation
sentences choose the decision threshold. "more text" needs `--text FILE`, such as `gather_text.py` writes. "try" names
something of tried.py, with its argument; "whole" trains on the validation sentences too, which then say nothing about
the result. `--shard 0 2` takes every second run, for two GPUs side by side; `--merge FILE...` writes the tables of
several such files into one.
"""

import argparse
import contextlib
import json
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from bench_ingestion import cpu_name
from tried import TRIED, best_threshold

from tasks.core.finetune_settings import FinetuneSettings
from tasks.core.provenance import git_commit, library_versions
from tasks.data.ingestion import ingest_text
from tasks.data.snapshots import read_snapshot, write_snapshot
from tasks.data.sources import locate_sources
from tasks.data.splitting import drop_labelled, split_snapshot
from tasks.data.table_format import TableFormat
from tasks.evaluation.metrics import mcc
from tasks.inference.tokenization import load_tokenizer
from tasks.training.dataset import encode_rows
from tasks.training.device import device_name, resolve_device
from tasks.training.finetune import fine_tune
from tasks.training.model import load_classifier, pad_token_id
from tasks.training.pretrained import locate_encoder
from tasks.training.recipe import resolve_recipe
from tasks.training.trainer import EVALUATION_BATCH, compute_logits

COMMON: dict[str, Any] = {
    "batch_size": 32, "warmup_ratio": 0.1, "weight_decay": 0.01, "max_length": 128, "max_grad_norm": 1.0,
    "restarts": 2, "checkpoint_seconds": 3600.0,
}  # fmt: skip
ALL = {"label_smoothing": 0.1, "r_drop": 1.0}
# Family of encoders -> recipe -> settings; each recipe changes the first one's.
RECIPES: dict[str, dict[str, dict[str, Any]]] = {
    "rates": {
        "book: 2e-5, 4 epochs": {"learning_rate": 2e-5, "layer_decay": 1.0, "epochs": 4},
        "3e-5, 4 epochs": {"learning_rate": 3e-5},
        "5e-5, 4 epochs": {"learning_rate": 5e-5},
        "5e-5, layer decay 0.9, 4 epochs": {"learning_rate": 5e-5, "layer_decay": 0.9},
        "5e-5, layer decay 0.9, 8 epochs": {"learning_rate": 5e-5, "layer_decay": 0.9, "epochs": 8},
        "1e-4, layer decay 0.8, 8 epochs": {"learning_rate": 1e-4, "layer_decay": 0.8, "epochs": 8},
        "3e-5, layer decay 0.95, 8 epochs": {"learning_rate": 3e-5, "layer_decay": 0.95, "epochs": 8},
        "3e-5, layer decay 0.9, batch 16, 6 epochs": {
            "learning_rate": 3e-5,
            "layer_decay": 0.9,
            "epochs": 6,
            "batch_size": 16,
        },
    },
    "base": {
        "5e-5, layer decay 0.9, 8 epochs": {"learning_rate": 5e-5, "layer_decay": 0.9, "epochs": 8},
        "+ label smoothing 0.1": {"label_smoothing": 0.1},
        "+ R-Drop 1": {"r_drop": 1.0},
        "+ spoiled 2": {"corruptions": 2},
        "+ all three": ALL | {"corruptions": 2},
        "+ all three, spoiled 10": ALL | {"corruptions": 10},
        "+ mean of the last 3 epochs": {"try": ["averaged_epochs", 3]},
        "+ class weights": {"try": ["class_weights"]},
        "+ new top layer": {"try": ["new_top_layers", 1]},
        "+ all three, mean of the last 3 epochs": ALL | {"corruptions": 2, "try": ["averaged_epochs", 3]},
        "+ all three, mean of 3 seeds": ALL | {"corruptions": 2, "seeds": 3},
        "+ all three, more text": ALL | {"corruptions": 2, "text_corruptions": 1},
        "+ all three, more text, mean of 3 seeds": ALL | {"corruptions": 2, "text_corruptions": 1, "seeds": 3},
        "+ all three, all sentences": ALL | {"corruptions": 2, "whole": True},
        "+ all three, mean of 3 seeds, all sentences": ALL | {"corruptions": 2, "seeds": 3, "whole": True},
    },
    "cpu": {
        "5e-5, 4 epochs, fp32": {"learning_rate": 5e-5, "layer_decay": 1.0, "epochs": 4, "precision": "fp32"},
        "the same in bf16": {"precision": "bf16"},
    },
    "small": {
        "1e-4, 8 epochs": {"learning_rate": 1e-4, "layer_decay": 1.0, "epochs": 8},
        "+ label smoothing 0.1": {"label_smoothing": 0.1},
        "+ R-Drop 1": {"r_drop": 1.0},
        "+ spoiled 20": {"corruptions": 20},
        "+ mean of the last 3 epochs": {"try": ["averaged_epochs", 3]},
        "+ class weights": {"try": ["class_weights"]},
        "+ new top layer": {"try": ["new_top_layers", 1]},
        "+ all three": ALL | {"corruptions": 20},
        "+ all three, more text": ALL | {"corruptions": 20, "text_corruptions": 2},
        "+ all three, more text, mean of 3 seeds": ALL | {"corruptions": 20, "text_corruptions": 2, "seeds": 3},
        "+ all three, mean of 3 seeds": ALL | {"corruptions": 20, "seeds": 3},
    },
}


def main() -> None:
    options = parse_options()
    if options.merge:
        parts = [json.loads(Path(path).read_text()) for path in options.merge]
        runs = [{"commit": part["commit"]} | run for part in parts for run in part["runs"]]
        write(options.out, parts[0] | {"runs": runs, "rows": summarise(runs)})
        return
    device = resolve_device(options.device)
    encoder = locate_encoder(options.encoder)
    recipes = RECIPES[options.family]
    wanted = [(name, seed) for name in options.recipes or recipes for seed in options.seeds]
    if not options.text and any("text_corruptions" in recipes[name] for name, _ in wanted):
        raise SystemExit('the recipes "more text" need --text FILE; name others: --recipes NAME ...')
    first = next(iter(recipes.values()))
    runs = []
    for name, seed in wanted[options.shard[0] :: options.shard[1]]:
        runs.append({"recipe": name} | measure(first | recipes[name], seed, encoder["folder"], options, device))
        print(json.dumps(runs[-1]), flush=True)
        result = {
            "benchmark": "recipes of fine-tuning",
            "hardware": f"{device_name(device)}, {cpu_name()}, {os.cpu_count()} CPU cores",
            "versions": library_versions() | {"cuda": torch.version.cuda},
            "commit": options.commit or git_commit(),
            "encoder": encoder["name"],
            "rows": summarise(runs),
            "runs": runs,
        }
        write(options.out, result)


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="sample")
    parser.add_argument("--encoder", default="packaged")
    parser.add_argument("--family", default="small", choices=sorted(RECIPES))
    parser.add_argument("--text", default="", help='file of sentences, one a line, for the recipe "more text"')
    parser.add_argument("--device", default="auto", choices=["auto", "cuda", "cpu"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--recipes", nargs="+", default=[])
    parser.add_argument("--shard", type=int, nargs=2, default=[0, 1])
    parser.add_argument("--merge", nargs="+", default=[])
    parser.add_argument("--out", default="")
    parser.add_argument("--commit", default="")
    return parser.parse_args()


def measure(
    settings: dict[str, Any], seed: int, encoder: str, options: argparse.Namespace, device: str
) -> dict[str, Any]:
    """Train once; return validation and holdout MCC, and those of the members where there are several."""
    with tempfile.TemporaryDirectory() as scratch:
        sources = locate_sources([options.data], "", "", scratch)
        snapshots = {role: write_snapshot(sources[role], scratch)["path"] for role in ("train", "holdout")}  # type: ignore[literal-required]
        train, validation, _ = split_snapshot(snapshots["train"], [snapshots["holdout"]], scratch, 0.1, seed)
        folder = f"{scratch}/model"
        started = time.perf_counter()
        chosen: dict[str, Any] = COMMON | settings
        what, *how = chosen.pop("try", [""])
        whole = chosen.pop("whole", False)
        text = ""
        if "text_corruptions" in chosen:
            text = ingest_text(options.text, scratch, TableFormat())["path"]
            text, _ = drop_labelled(text, [train, validation, snapshots["holdout"]], scratch)
        if whole:
            train = join(train, validation, f"{scratch}/whole.parquet")
        with TRIED[what](*how) if what else contextlib.nullcontext():
            recipe = resolve_recipe(FinetuneSettings(seed=seed, device=device, **chosen), encoder)  # type: ignore[arg-type]
            training = fine_tune(train, validation, recipe, folder, text=text)
        seconds = time.perf_counter() - started
        model = load_classifier(folder).to(device)
        tokenizer = load_tokenizer(folder, COMMON["max_length"])
        pad_id = pad_token_id(folder)
        encoded = [
            encode_rows(read_snapshot(path), tokenizer, pad_id, device) for path in (validation, snapshots["holdout"])
        ]
    labels = [part.labels for part in encoded]
    logits = [compute_logits(model, part, np.arange(part.count), EVALUATION_BATCH[device]).numpy() for part in encoded]
    margins = [part[:, 1] - part[:, 0] for part in logits]
    limit = best_threshold(labels[0], margins[0])
    unseen = {
        "validation_mcc": mcc(labels[0], logits[0].argmax(-1)),
        "threshold": round(limit, 3),
        "at_threshold_mcc": mcc(labels[1], (margins[1] > limit).astype(np.int64)),
    }
    return {
        "seed": seed,
        "seconds": round(seconds, 1),
        "holdout_mcc": mcc(labels[1], logits[1].argmax(-1)),
        **({} if whole else unseen),
        "averaged": training["averaged"],
        "members": [member["validation_mcc"] for member in training["seeds"]],
        "epochs": [epoch["validation_mcc"] for epoch in training["epochs"]],
    }


def join(first: str, second: str, path: str) -> str:
    """Write the rows of two snapshots into one file."""
    pd.concat([read_snapshot(first), read_snapshot(second)], ignore_index=True).to_parquet(path)
    return path


def summarise(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return mean and spread of each recipe's runs."""
    rows = []
    for name in dict.fromkeys(run["recipe"] for run in runs):
        own = sorted((run for run in runs if run["recipe"] == name), key=lambda run: run["seed"])
        row: dict[str, Any] = {"recipe": name, "seeds": [run["seed"] for run in own]}
        row["seconds"] = round(statistics.mean(run["seconds"] for run in own), 1)
        for part in ("validation", "holdout", "at_threshold"):
            values = [run[f"{part}_mcc"] for run in own if f"{part}_mcc" in run]
            if not values:
                continue
            row[part] = {
                "values": [round(value, 4) for value in values],
                "mean": round(statistics.mean(values), 4),
                "spread": round(statistics.stdev(values), 4) if len(values) > 1 else None,
            }
        rows.append(row)
    return rows


def write(path: str, result: dict[str, Any]) -> None:
    if path:
        Path(path).write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
