"""What helps MCC: recipes side by side on real CoLA, several seeds each, through `fine_tune` as a run calls it.

    python tests/benchmarks/ablate_finetune.py --data DIR --encoder DIR2 --family base --text FILE2 --device cuda \\
        --out FILE
    python tests/benchmarks/ablate_finetune.py --data DIR --encoder DIR2 --family marked seeds --split source \\
        --fold 0 1 2 3 4 --seeds 1 --workers 6 --minutes 9 --device cuda --out FILE

What is kept for validation, `--split`: "hash", a tenth of the sentences, as `data.group = sentence` does (a seed is
that of the split too); "source", one of `--groups` of whole sources; "both", such a group and as many other sentences
by the hash, so that one training is judged by both. `--fold` chooses the tenth or the group; "by_source" counts the
answers to each of the group's sources. Recipes are to be compared by their validation MCC; the holdouts' (`holdout`:
out_of_domain_dev, `secondary`: in_domain_dev) and the minimal pairs' stand beside it and choose nothing. "at_threshold"
is the holdout's MCC where the validation sentences choose the decision threshold. "more text" needs `--text FILE`, such
as `gather_text.py` writes. "try" names something of tried.py, with its argument; "whole" trains on the validation
sentences too, which then say nothing about the result; "inner" is the share of the training rows whose sources choose
the epoch instead of what validates. A row's "difference" is that to the first recipe of its family, of trainings with
the same seed and fold, with its 95% interval.

`--workers N` trains N runs at the same time in processes of their own; `--minutes` ends all of them. The result is
written after each run, and what FILE has already is not run again. `--shard 0 2` takes every second run, for two GPUs
side by side; `--merge FILE...` writes the tables of several such files into one.
"""

import argparse
import atexit
import contextlib
import functools
import json
import multiprocessing
import os
import queue
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa
import torch
from bench_ingestion import cpu_name
from numpy.typing import NDArray
from scipy.stats import t as student_t
from sklearn.model_selection import GroupKFold
from tried import TRIED, best_threshold
from tried_corruptions import KINDS

from tasks.core.files import write_json
from tasks.core.finetune_settings import FinetuneSettings
from tasks.core.provenance import git_commit, library_versions
from tasks.data.ingestion import ingest_text
from tasks.data.normalization import normalise_all
from tasks.data.snapshots import read_snapshot, write_snapshot
from tasks.data.sources import locate_sources
from tasks.data.splitting import drop_labelled, hash_fraction, split_rows
from tasks.data.table_format import TableFormat
from tasks.evaluation.metrics import mcc
from tasks.evaluation.minimal_pairs import load_pairs
from tasks.inference.tokenization import load_tokenizer
from tasks.training.dataset import encode_rows
from tasks.training.device import device_name, resolve_device
from tasks.training.finetune import fine_tune
from tasks.training.model import load_classifier, pad_token_id
from tasks.training.pretrained import locate_encoder
from tasks.training.recipe import resolve_recipe
from tasks.training.trainer import EVALUATION_BATCH, compute_logits

HASH_FOLDS = 10
COMMON: dict[str, Any] = {
    "batch_size": 32, "warmup_ratio": 0.1, "weight_decay": 0.01, "max_length": 128, "max_grad_norm": 1.0,
    "restarts": 2, "checkpoint_seconds": 3600.0,
}  # fmt: skip
ALL = {"label_smoothing": 0.1, "r_drop": 1.0}
STAGE = {"learning_rate": 5e-5, "layer_decay": 0.9, "epochs": 8, "label_smoothing": 0.1, "corruptions": 2}
MARKED = STAGE | {"corruptions": 6, "token_loss": 20.0}
SMALL = {"learning_rate": 1e-4, "layer_decay": 1.0, "epochs": 5, "label_smoothing": 0.1, "corruptions": 4}
MPNET = {
    "learning_rate": 1e-5, "layer_decay": 1.0, "epochs": 10, "batch_size": 16, "warmup_ratio": 0.06,
    "weight_decay": 0.1, "adam_beta2": 0.98, "adam_eps": 1e-6, "max_grad_norm": 0.0,
}  # fmt: skip
TAUGHT = {"taught": True, "text_corruptions": 1, "batch_size": 128, "learning_rate": 3e-4}
NEW_KINDS = list(KINDS)
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
    # The encoder's own recipe: microsoft/MPNet, README of its GLUE runs.
    "optimiser": {
        "5e-5, layer decay 0.9, 8 epochs": {"learning_rate": 5e-5, "layer_decay": 0.9, "epochs": 8},
        "3e-5, 4 epochs": {"learning_rate": 3e-5, "layer_decay": 1.0, "epochs": 4},
        "MPNet's own": MPNET,
        "MPNet's own, 2e-5": MPNET | {"learning_rate": 2e-5},
        "MPNet's own, 3e-5": MPNET | {"learning_rate": 3e-5},
        "MPNet's own, clipped": MPNET | {"max_grad_norm": 1.0},
        "MPNet's own, 2e-5, batch 32": MPNET | {"learning_rate": 2e-5, "batch_size": 32},
        "MPNet's own, layer decay 0.9, 3e-5": MPNET | {"learning_rate": 3e-5, "layer_decay": 0.9},
        "MPNet's own, corruptions 2": MPNET | {"corruptions": 2},
        "MPNet's own, corruptions 2, R-Drop 1": MPNET | {"corruptions": 2, "r_drop": 1.0},
        "betas and eps alone": {"adam_beta2": 0.98, "adam_eps": 1e-6},
        "weight decay 0.1": {"weight_decay": 0.1},
        "no clipping": {"max_grad_norm": 0.0},
        "1e-5, 3 epochs": {"learning_rate": 1e-5, "layer_decay": 1.0, "epochs": 3},
        "1e-4, layer decay 0.8, 8 epochs": {"learning_rate": 1e-4, "layer_decay": 0.8},
        "5e-5, batch 64, 3 epochs": {"batch_size": 64, "epochs": 3},
    },
    "tokens": {
        "corruptions 2": STAGE,
        "token loss 1": {"token_loss": 1.0},
        "token loss 5": {"token_loss": 5.0},
        "token loss 20": {"token_loss": 20.0},
        "token loss 50": {"token_loss": 50.0},
        "corruptions 6": {"corruptions": 6},
        "corruptions 6, token loss 5": {"corruptions": 6, "token_loss": 5.0},
        "corruptions 6, token loss 20": {"corruptions": 6, "token_loss": 20.0},
        "all three": ALL,
        "all three, token loss 5": ALL | {"token_loss": 5.0},
        "all three, token loss 20": ALL | {"token_loss": 20.0},
    },
    "text": {
        "corruptions 2, more text": STAGE | {"text_corruptions": 1},
        "more text, token loss 5": {"token_loss": 5.0},
        "more text, token loss 20": {"token_loss": 20.0},
        "all three, more text": ALL,
        "all three, more text, token loss 5": ALL | {"token_loss": 5.0},
        "more text, all new kinds": {"try": ["corruption_kinds", *NEW_KINDS]},
        "all three, more text, all new kinds, token loss 5": ALL
        | {"token_loss": 5.0, "try": ["corruption_kinds", *NEW_KINDS]},
    },
    "corruptions": {
        "corruptions 4": STAGE | {"corruptions": 4},
        **{f"+ {kind}": {"try": ["corruption_kinds", kind]} for kind in NEW_KINDS},
        "+ all new kinds": {"try": ["corruption_kinds", *NEW_KINDS]},
        "+ all new kinds, token loss 5": {"token_loss": 5.0, "try": ["corruption_kinds", *NEW_KINDS]},
    },
    "combined": {
        "marked: corruptions 6, token loss 20": MARKED,
        "marked, corruptions 10": {"corruptions": 10},
        "marked, corruptions 10, all new kinds": {"corruptions": 10, "try": ["corruption_kinds", *NEW_KINDS]},
        "marked, more text, all new kinds": {"text_corruptions": 1, "try": ["corruption_kinds", *NEW_KINDS]},
        "marked, more text, SiFT 1": {"text_corruptions": 1, "sift": 1.0},
        "marked, more text, R-Drop 1": {"text_corruptions": 1, "r_drop": 1.0},
        "marked, more text, 10 epochs": {"text_corruptions": 1, "epochs": 10},
        "marked, more text, 6 epochs": {"text_corruptions": 1, "epochs": 6},
        "marked, more text, 8e-5": {"text_corruptions": 1, "learning_rate": 8e-5},
        "marked, more text twice": {"text_corruptions": 2},
        "marked, more text, corruptions 2": {"text_corruptions": 1, "corruptions": 2},
        "marked, SiFT 1, R-Drop 1": {"sift": 1.0, "r_drop": 1.0},
        "marked, SiFT 1, 10 epochs": {"sift": 1.0, "epochs": 10},
    },
    # The profile cola-small: what adds nothing to its time on a CPU.
    "small_marked": {
        "profile cola-small": SMALL,
        "small, token loss 5": {"token_loss": 5.0},
        "small, token loss 20": {"token_loss": 20.0},
        "small, token loss 50": {"token_loss": 50.0},
        "small, token loss 20, layer decay 0.9": {"token_loss": 20.0, "layer_decay": 0.9},
        "small, token loss 20, 2e-4": {"token_loss": 20.0, "learning_rate": 2e-4},
        "small, token loss 20, corruptions 5, 4 epochs": {"token_loss": 20.0, "corruptions": 5, "epochs": 4},
        "small, token loss 20, no label smoothing": {"token_loss": 20.0, "label_smoothing": 0.0},
        "small, token loss 20, more text": {"token_loss": 20.0, "text_corruptions": 1},
        "small, token loss 20, SiFT 1": {"token_loss": 20.0, "sift": 1.0},
    },
    # Whether the authors that chose the epoch should be trained on in the end: what judges has chosen nothing here.
    "refit": {
        "marked, epoch by inner sources": MARKED | {"inner": 0.1},
        "marked, last epoch, without the inner sources": {"try": ["averaged_epochs", 1]},
        "marked, last epoch, with the inner sources": {"inner": 0.0, "try": ["averaged_epochs", 1]},
    },
    # For whole runs, see bench_quality.py.
    "final": {
        "marked, whole": MARKED,
        "marked, 3 seeds, whole": {"seeds": 3},
        "marked, more text, whole": {"text_corruptions": 1},
        "marked, more text, 3 seeds, whole": {"text_corruptions": 1, "seeds": 3},
        "marked, larger text, whole": {"text_corruptions": 1},
        "marked, larger text, 3 seeds, whole": {"text_corruptions": 1, "seeds": 3},
        "marked, taught, larger text, 3 passes, whole": TAUGHT | {"epochs": 3, "learning_rate": 1e-4},
        "profile cola": ALL | {"corruptions": 2, "token_loss": 0.0, "seeds": 3},
        "profile cola-small, whole": SMALL | {"token_loss": 0.0},
        "small, token loss 20, whole": SMALL,
        "small, token loss 20, more text, whole": SMALL | {"text_corruptions": 1},
        # Students of bundles that --keep left of another recipe's runs, of the same seeds, so of the same splits.
        "small, taught, larger text, 4 passes, whole": SMALL | TAUGHT | {"token_loss": 0.0, "epochs": 4},
        "small, taught, larger text, 8 passes, whole": SMALL | TAUGHT | {"token_loss": 0.0, "epochs": 8},
        "small, taught, larger text, 4 passes, no stage, whole": SMALL
        | TAUGHT
        | {"token_loss": 0.0, "epochs": 4, "try": ["no_corruption_stage"]},
    },
    "sift": {
        "corruptions 2, for SiFT": STAGE,
        "SiFT 1": {"sift": 1.0},
        "SiFT 5": {"sift": 5.0},
        "SiFT 1, R-Drop 1": {"sift": 1.0, "r_drop": 1.0},
    },
    # The best of "tokens", changed in one way each.
    "marked": {
        "marked: corruptions 6, token loss 20": MARKED,
        "marked, 3e-5": {"learning_rate": 3e-5},
        "marked, 8e-5": {"learning_rate": 8e-5},
        "marked, layer decay 1, 3e-5": {"learning_rate": 3e-5, "layer_decay": 1.0},
        "marked, layer decay 1, 5e-5": {"layer_decay": 1.0},
        "marked, 6 epochs": {"epochs": 6},
        "marked, 10 epochs": {"epochs": 10},
        "marked, no label smoothing": {"label_smoothing": 0.0},
        "marked, R-Drop 1": {"r_drop": 1.0},
        "marked, SiFT 1": {"sift": 1.0},
        "marked, SiFT 5": {"sift": 5.0},
        "marked, SiFT 1, step 1e-4": {"sift": 1.0, "try": ["sift_step", 1e-4]},
        "marked, all new kinds": {"try": ["corruption_kinds", *NEW_KINDS]},
        "marked, more text": {"text_corruptions": 1},
        "marked, larger text": {"text_corruptions": 1},  # --text of gather_text.py --corpora
    },
    # Each training gives one row for every way to make one model of ten seeds; see `tried.selections`.
    "seeds": {
        "marked: corruptions 6, token loss 20": MARKED,
        "marked, of 10 seeds": {"seeds": 10, "try": ["selections"]},
        "marked, more text, of 10 seeds": {"text_corruptions": 1, "seeds": 10, "try": ["selections"]},
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
        merged = [{"commit": part["commit"]} | run for part in parts for run in part["runs"]]
        write(options.out, parts[0] | {"runs": merged, "rows": summarise(merged)})
        return
    recipes = {name: RECIPES[family] for family in options.family for name in RECIPES[family]}
    names = options.recipes or list(recipes)
    jobs = [Job(name, next(iter(recipes[name])), resolve(recipes[name], name), seed, fold)
            for seed in options.seeds for fold in options.fold for name in names]  # fmt: skip
    if not options.text and any("text_corruptions" in job.settings for job in jobs):
        raise SystemExit('the recipes "more text" need --text FILE; name others: --recipes NAME ...')
    if any("taught" in job.settings for job in jobs):
        raise SystemExit("recipes that are taught are run by bench_quality.py; name others: --recipes NAME ...")
    done = json.loads(Path(options.out).read_text())["runs"] if options.out and Path(options.out).is_file() else []
    known = {(run["recipe"], run["seed"], run["fold"], run["split"]) for run in done}
    jobs = [job for job in jobs if (job.recipe, job.seed, job.fold, options.split) not in known]
    runs: list[dict[str, Any]] = list(done)
    device = resolve_device(options.device)
    end = time.monotonic() + 60 * options.minutes
    for run in run_all(jobs[options.shard[0] :: options.shard[1]], options, end, measure):
        runs.append(run)
        print(json.dumps(run), flush=True)
        result = {
            "benchmark": "recipes of fine-tuning",
            "hardware": f"{device_name(device)}, {cpu_name()}, {os.cpu_count()} CPU cores",
            "versions": library_versions() | {"cuda": torch.version.cuda},
            "commit": options.commit or git_commit(),
            "encoder": locate_encoder(options.encoder)["name"],
            "workers": options.workers,
            "rows": summarise(runs),
            "runs": runs,
        }
        write(options.out, result)


class Job(NamedTuple):
    """One training: a recipe, what it is compared with, its settings, the seed, and which fold validates."""

    recipe: str
    base: str
    settings: dict[str, Any]
    seed: int
    fold: int


def resolve(family: dict[str, dict[str, Any]], name: str) -> dict[str, Any]:
    """Return a recipe's settings: those of the first of its family, changed by its own."""
    return COMMON | next(iter(family.values())) | family[name]


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="sample")
    parser.add_argument("--encoder", default="packaged")
    parser.add_argument("--family", nargs="+", default=["small"], choices=sorted(RECIPES))
    parser.add_argument("--text", default="", help='file of sentences, one a line, for the recipe "more text"')
    parser.add_argument("--device", default="auto", choices=["auto", "cuda", "cpu"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--recipes", nargs="+", default=[])
    parser.add_argument("--split", default="hash", choices=["hash", "source", "both"])
    parser.add_argument("--fold", type=int, nargs="+", default=[0], help="of 10 by hash, of --groups by source [0]")
    parser.add_argument("--groups", type=int, default=5, help="of sources [5]")
    parser.add_argument("--epochs", type=int, default=0, help="of every recipe, to try the script")
    parser.add_argument("--workers", type=int, default=1, help="trainings at the same time [1]")
    parser.add_argument("--minutes", type=float, default=1e6, help="after which all trainings end")
    parser.add_argument("--shard", type=int, nargs=2, default=[0, 1])
    parser.add_argument("--merge", nargs="+", default=[])
    parser.add_argument("--out", default="")
    parser.add_argument("--commit", default="")
    return parser.parse_args()


def run_all(
    jobs: list[Job], options: argparse.Namespace, end: float, run: Callable[[Job, Any], list[dict[str, Any]]]
) -> Iterator[dict[str, Any]]:
    """Run jobs in their order, several at a time; yield their results, and stop at `end`, in seconds of the clock."""
    if options.workers == 1:
        for job in jobs:
            if time.monotonic() < end:
                yield from run(job, options)
        return
    context = multiprocessing.get_context("spawn")
    waiting, results = context.Queue(), context.Queue()
    for entry in [*jobs, *[None] * options.workers]:
        waiting.put(entry)
    workers = [context.Process(target=work, args=(waiting, results, options, run)) for _ in range(options.workers)]
    for worker in workers:
        worker.start()
    missing = len(jobs)
    while missing and (left := end - time.monotonic()) > 0 and any(worker.is_alive() for worker in workers):
        with contextlib.suppress(queue.Empty):
            result = results.get(timeout=min(left, 1.0))
            missing -= 1
            if "error" in result:
                print(json.dumps(result), flush=True)
            else:
                yield from result["runs"]
    for worker in workers:
        worker.terminate()
        worker.join()
    if missing:
        print(f"{missing} of {len(jobs)} runs are left out", flush=True)


def work(waiting: Any, results: Any, options: argparse.Namespace, run: Callable[[Job, Any], Any]) -> None:
    """Run jobs until there is none; a job that fails does not end the others."""
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // options.workers))
    while job := waiting.get():
        try:
            results.put({"runs": run(job, options)})
        except Exception as error:
            results.put({"error": f"{type(error).__name__}: {error}", "recipe": job.recipe, "fold": job.fold})


@functools.cache
def read_data(data: str, text: str) -> dict[str, Any]:
    """Return usable training rows, the rows and snapshots of the holdouts, and the text without labelled sentences."""
    scratch = tempfile.mkdtemp(prefix="ablate-")
    atexit.register(shutil.rmtree, scratch, ignore_errors=True)
    sources = locate_sources([data], "", "", scratch)
    roles = [role for role in ("train", "holdout", "secondary") if sources[role]]
    paths = {role: write_snapshot(sources[role], scratch)["path"] for role in roles}  # type: ignore[literal-required]
    rows = {role: read_snapshot(path) for role, path in paths.items()}
    known = [sentence for role in roles[1:] for sentence in rows[role]["sentence"]]
    usable, _, _ = split_rows(rows.pop("train"), known, 0.0, 0)
    if text:
        text, _ = drop_labelled(ingest_text(text, scratch, TableFormat())["path"], list(paths.values()), scratch)
    return {"train": usable, "holdouts": rows, "paths": [paths[role] for role in roles[1:]], "text": text}


def divide(
    rows: pd.DataFrame, split: str, fold: int, seed: int, count: int
) -> tuple[pd.DataFrame, dict[str, pd.DataFrame]]:
    """Return the rows to train on, and those that validate, by what chose them."""
    keys = normalise_all(pa.array(rows["sentence"], pa.string()))
    drawn = pd.Series([hash_fraction(key, str(seed)) for key in keys], index=rows.index)
    if split == "hash":
        chosen = {"hash": (drawn * HASH_FOLDS).astype(int) == fold}
    else:
        groups = list(GroupKFold(count).split(rows, groups=rows["source"]))
        chosen = {"source": pd.Series(rows.index.isin(rows.index[groups[fold][1]]), index=rows.index)}
    if split == "both":
        rest = drawn[~chosen["source"]].sort_values(kind="stable").index
        chosen["hash"] = pd.Series(rows.index.isin(rest[: chosen["source"].sum()]), index=rows.index)
    kept = ~np.logical_or.reduce([part.to_numpy() for part in chosen.values()])
    return rows[kept].reset_index(drop=True), {name: rows[part].reset_index(drop=True) for name, part in chosen.items()}


def measure(job: Job, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Train once; return the figures of the model, and of each that "try" made beside it of the same training."""
    device = resolve_device(options.device)
    data = read_data(options.data, options.text)
    train, validation = divide(data["train"], options.split, job.fold, job.seed, options.groups)
    settings = dict(job.settings) | ({"epochs": options.epochs} if options.epochs else {})
    what, *how = settings.pop("try", [""])
    whole, inner = settings.pop("whole", False), settings.pop("inner", 0.0)
    with tempfile.TemporaryDirectory() as scratch:
        parts = {"train": pd.concat([train, *validation.values()]) if whole else train}
        parts["validation"] = pd.concat(list(validation.values()))
        if inner:
            parts["train"], parts["validation"], _ = split_rows(train, [], inner, job.seed, "source")
        for name, rows in parts.items():
            rows.reset_index(drop=True).to_parquet(f"{scratch}/{name}.parquet")
        folder = f"{scratch}/model"
        encoder = locate_encoder(options.encoder)["folder"]
        started = time.perf_counter()
        with TRIED[what](*how) if what else contextlib.nullcontext() as further:
            recipe = resolve_recipe(FinetuneSettings(seed=job.seed, device=device, **settings), encoder)  # type: ignore[arg-type]
            text = data["text"] if "text_corruptions" in settings else ""
            train_path, validation_path = (f"{scratch}/{name}.parquet" for name in ("train", "validation"))
            training = fine_tune(train_path, validation_path, recipe, folder, text=text, holdouts=data["paths"])
        seconds = time.perf_counter() - started
        shared = {
            "base": job.base, "text_sentences": count_text(job.settings, options.text),
            "seed": job.seed, "split": options.split, "fold": job.fold, "rows": len(parts["train"]),
            "seconds": round(seconds, 1), "averaged": training["averaged"],
            "members": [member["validation_mcc"] for member in training["seeds"]],
            "epochs": [epoch["validation_mcc"] for epoch in training["epochs"]],
        }  # fmt: skip
        model = load_classifier(folder).to(device)
        runs = []
        for name, weights in {"": model.state_dict(), **(further or {})}.items():
            model.load_state_dict(weights)
            margins = answer(model, folder, validation | data["holdouts"], device)
            figures = score(margins, {} if whole else validation, data["holdouts"])
            if "source" in validation and not whole:
                figures["by_source"] = count_by_source(validation["source"], margins["source"] > 0)
            runs.append({"recipe": f"{job.recipe}: {name}" if name else job.recipe} | shared | figures)
    return runs


def count_text(settings: dict[str, Any], path: str) -> int:
    """Return how many sentences without labels a recipe reads, those included that have a label and are left out."""
    if "text_corruptions" not in settings:
        return 0
    with Path(path).open(encoding="utf-8") as file:
        return sum(1 for _ in file)


def score(
    margins: dict[str, NDArray[Any]], validation: dict[str, pd.DataFrame], holdouts: dict[str, pd.DataFrame]
) -> dict[str, Any]:
    """Return MCC and counts on what validates and on the holdouts, and the share of minimal pairs."""
    run: dict[str, Any] = {}
    labels = {name: rows["label"].to_numpy() for name, rows in (validation | holdouts).items()}
    for name in labels:
        run |= {f"{name}_mcc": mcc(labels[name], (margins[name] > 0).astype(np.int64))}
        run |= {f"{name}_counts": confusion(labels[name], margins[name] > 0)}
    if validation:
        known = np.concatenate([margins[name] for name in validation])
        truth = np.concatenate([labels[name] for name in validation])
        limit = best_threshold(truth, known)
        run |= {"validation_mcc": mcc(truth, (known > 0).astype(np.int64)), "threshold": round(limit, 3)}
        for name in holdouts:
            above = (margins[name] > limit).astype(np.int64)
            run["at_threshold_mcc" if name == "holdout" else f"{name}_at_threshold_mcc"] = mcc(labels[name], above)
    return run | {"pairs": float((margins["pairs"][::2] > margins["pairs"][1::2]).mean())}


def answer(model: Any, folder: str, parts: dict[str, pd.DataFrame], device: str) -> dict[str, NDArray[Any]]:
    """Return by how much a model finds sentences acceptable, [N] of each part, and of the minimal pairs, good first."""
    sentences = [sentence for pair in load_pairs() for sentence in (pair.good, pair.bad)]
    pairs = pd.DataFrame({"sentence": sentences, "label": 0})
    tokenizer, pad_id = load_tokenizer(folder, COMMON["max_length"]), pad_token_id(folder)
    found = {}
    for name, rows in (parts | {"pairs": pairs}).items():
        encoded = encode_rows(rows, tokenizer, pad_id, device)
        logits = compute_logits(model, encoded, np.arange(encoded.count), EVALUATION_BATCH[device]).numpy()
        found[name] = logits[:, 1] - logits[:, 0]
    return found


def confusion(labels: NDArray[Any], accepted: NDArray[np.bool_]) -> list[int]:
    """Return how many unacceptable sentences were rejected and accepted, and how many acceptable ones."""
    return [int(((labels == label) & (accepted == answer)).sum()) for label in (0, 1) for answer in (False, True)]


def count_by_source(rows: pd.DataFrame, accepted: NDArray[np.bool_]) -> dict[str, list[int]]:
    """Return what `confusion` counts of the rows of each source."""
    labels = rows["label"].to_numpy()
    found = rows.groupby("source").indices.items()
    return {str(source): confusion(labels[at], accepted[at]) for source, at in found}


def summarise(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return mean and spread of each recipe's runs, and the MCC of all folds' sentences together."""
    rows = []
    for name, split in dict.fromkeys((run["recipe"], run.get("split", "hash")) for run in runs):
        own = [run for run in runs if (run["recipe"], run.get("split", "hash")) == (name, split)]
        own.sort(key=lambda run: (run["seed"], run.get("fold", 0)))
        row: dict[str, Any] = {"recipe": name, "split": split, "seeds": [run["seed"] for run in own]}
        row["folds"] = [run.get("fold", 0) for run in own]
        row["seconds"] = round(statistics.mean(run["seconds"] for run in own), 1)
        for part in ("validation", "hash", "source", "holdout", "secondary", "at_threshold", "pairs"):
            key = part if part == "pairs" else f"{part}_mcc"
            values = [run[key] for run in own if key in run]
            if not values:
                continue
            row[part] = {
                "values": [round(value, 4) for value in values],
                "mean": round(statistics.mean(values), 4),
                "spread": round(statistics.stdev(values), 4) if len(values) > 1 else None,
            }
            counts = [run[f"{part}_counts"] for run in own if f"{part}_counts" in run]
            if part in ("hash", "source") and counts:
                row[part]["pooled"] = round(mcc_of_counts(np.sum(counts, axis=0)), 4)
        row["difference"] = compare(own, runs)
        rows.append(row)
    return rows


def compare(own: list[dict[str, Any]], runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Return by how much a recipe's runs are better than those of its base with the same seed, split and fold."""
    base, keys = own[0].get("base"), ("seed", "split", "fold")
    others = {tuple(run.get(key) for key in keys): run for run in runs if run["recipe"] == base}
    pairs = [(run, others[at]) for run in own if (at := tuple(run.get(key) for key in keys)) in others]
    found: dict[str, Any] = {"from": base}
    if own[0]["recipe"] == base or not pairs:
        return found
    for part in ("source_mcc", "hash_mcc", "validation_mcc"):
        gains = [run[part] - other[part] for run, other in pairs if part in run and part in other]
        if len(gains) > 1:
            reach = float(student_t.ppf(0.975, len(gains) - 1)) * statistics.stdev(gains) / len(gains) ** 0.5
            mean = statistics.mean(gains)
            found[part.removesuffix("_mcc")] = [round(value, 4) for value in (mean, mean - reach, mean + reach)]
    return found


def mcc_of_counts(counts: NDArray[Any]) -> float:
    """Return the MCC of what `confusion` counted."""
    labels, answers = np.repeat([0, 0, 1, 1], counts), np.repeat([0, 1, 0, 1], counts)
    return mcc(labels, answers)


def write(path: str, result: dict[str, Any]) -> None:
    if path:
        write_json(Path(path), result)


if __name__ == "__main__":
    main()
