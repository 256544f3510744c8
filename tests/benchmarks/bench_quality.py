"""Whole runs of chosen recipes, each judged once, as `verdict retrain` does it but without Prefect and MLflow.

    python tests/benchmarks/bench_quality.py --data DIR --encoder DIR2 --device cuda --recipes NAME ... \\
        --seeds 11 21 31 --workers 3 --out tests/benchmarks/results/quality.json

Split, training, export, and measurement through ONNX Runtime of the variant that `--measure-on` serves. Recipes are
those of a family of `ablate_finetune.py`, with its `--text`; a seed is that of the split, too. "validation" is the MCC
of the model that was kept, which validation chose; "behaviour" the share of minimal pairs; "seconds" those of training.
The holdout chooses nothing: a recipe is looked at here once it is chosen. Each run is written as it ends; what FILE has
is not run again. Needs torch, transformers, onnx, onnxruntime, pandas, pyarrow.
"""

import argparse
import contextlib
import json
import os
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from ablate_finetune import RECIPES, Job, count_text, resolve, run_all, write
from bench_ingestion import cpu_name
from tried import TRIED

from tasks.core.finetune_settings import FinetuneSettings
from tasks.core.provenance import git_commit, library_versions
from tasks.data.ingestion import ingest, ingest_text
from tasks.data.snapshots import read_snapshot
from tasks.data.sources import locate_sources
from tasks.data.splitting import drop_labelled, split_snapshot
from tasks.data.table_format import TableFormat
from tasks.evaluation.evidence import measure_candidate
from tasks.export.bundle_export import export_bundle
from tasks.training.device import device_name, resolve_device
from tasks.training.finetune import fine_tune
from tasks.training.model import LABELS
from tasks.training.pretrained import locate_encoder
from tasks.training.recipe import resolve_recipe
from tasks.training.teacher import read_teacher
from tasks.training.training_job import Teacher

VALIDATION_SHARE, RESAMPLES = 0.1, 1000
KEYS = ("encoder", "recipe", "group", "text_sentences")
FIGURES = ("seed", "out_of_domain_dev", "in_domain_dev", "behaviour", "validation", "seconds", "variant")


def main() -> None:
    options = parse_options()
    recipes = RECIPES[options.family]
    jobs = [Job(name, "", resolve(recipes, name), seed, 0) for seed in options.seeds for name in options.recipes]
    if not options.teacher and any("taught" in job.settings for job in jobs):
        raise SystemExit("recipes that are taught need --teacher BUNDLE; name others: --recipes NAME ...")
    out = Path(options.out)
    runs: list[dict[str, Any]] = json.loads(out.read_text())["runs"] if out.is_file() else []
    encoder = options.name or locate_encoder(options.encoder)["name"]
    known = {(*(run[key] for key in KEYS), run["seed"]) for run in runs}
    jobs = [
        job
        for job in jobs
        if (encoder, job.recipe, options.group, count_text(job.settings, options.text), job.seed) not in known
    ]
    for run in run_all(jobs, options, time.monotonic() + 60 * options.minutes, run_job):
        runs.append({"encoder": encoder} | run)
        print(json.dumps(run), flush=True)
        result = {
            "benchmark": "whole runs of chosen recipes",
            "hardware": f"{device_name(resolve_device(options.device))}, {cpu_name()}, {os.cpu_count()} CPU cores",
            "versions": library_versions() | {"cuda": torch.version.cuda},
            "commit": options.commit or git_commit(),
            "rows": summarise(runs),
            "runs": runs,
        }
        write(options.out, result)


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="sample")
    parser.add_argument("--encoder", default="packaged")
    parser.add_argument("--name", default="", help="of the encoder in the result [that of its folder]")
    parser.add_argument("--family", default="final", choices=sorted(RECIPES), help="[final]")
    parser.add_argument("--recipes", nargs="+", required=True)
    parser.add_argument("--group", default="source", choices=["sentence", "source"], help="data.group [source]")
    parser.add_argument("--text", default="", help="file of sentences, one a line, for recipes with more text")
    parser.add_argument("--device", default="auto", choices=["auto", "cuda", "cpu"])
    parser.add_argument("--measure-on", default="cpu", choices=["cuda", "cpu"], help="[cpu]")
    parser.add_argument("--seeds", type=int, nargs="+", default=[11, 21, 31])
    parser.add_argument("--epochs", type=int, default=0, help="of every recipe, to try the script")
    parser.add_argument("--workers", type=int, default=1, help="runs at the same time [1]")
    parser.add_argument("--minutes", type=float, default=1e6, help="after which all runs end")
    parser.add_argument("--teacher", default="", help="bundle for recipes that are taught; {seed}: the run's")
    parser.add_argument("--keep", default="", help="folder for the bundles, SEED-RECIPE each")
    parser.add_argument("--out", required=True)
    parser.add_argument("--commit", default="")
    return parser.parse_args()


def run_job(job: Job, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Train, export and measure once."""
    started, device = time.perf_counter(), resolve_device(options.device)
    settings = dict(job.settings) | ({"epochs": options.epochs} if options.epochs else {})
    what, *how = settings.pop("try", [""])
    teacher = Teacher(options.teacher.format(seed=job.seed)) if settings.pop("taught", False) else None
    taught_by = read_teacher(teacher)["manifest_digest"] if teacher else ""
    with tempfile.TemporaryDirectory() as folder:
        data = ingest(locate_sources([options.data], "", "", folder), folder, TableFormat(), 0.2)
        holdouts = [snapshot["path"] for snapshot in (data["holdout"], data["secondary"]) if snapshot]
        path = data["train"]["path"]
        train, validation, _ = split_snapshot(path, holdouts, folder, VALIDATION_SHARE, job.seed, options.group)
        text = ""
        if "text_corruptions" in settings:
            snapshot = ingest_text(options.text, folder, TableFormat())["path"]
            text, _ = drop_labelled(snapshot, [train, validation, *holdouts], folder)
        encoder = locate_encoder(options.encoder)
        with TRIED[what](*how) if what else contextlib.nullcontext():
            chosen = FinetuneSettings(seed=job.seed, device=device, **settings)  # type: ignore[arg-type]
            recipe = resolve_recipe(chosen, encoder["folder"])
            training = fine_tune(
                train, validation, recipe, f"{folder}/model", text=text, teacher=teacher, holdouts=holdouts
            )
        origin = {
            "labels": LABELS, "max_length": recipe.max_length, "encoder": encoder["name"], "dataset": data["digest"],
            "git_commit": options.commit or git_commit(),
        }  # fmt: skip
        exported = export_bundle(f"{folder}/model", folder, origin, validation, options.measure_on)  # type: ignore[arg-type]
        rows = read_snapshot(data["holdout"]["path"])
        if options.keep:
            shutil.copytree(exported["bundle"], Path(options.keep) / f"{job.seed}-{job.recipe}")
        measured = measure_candidate(exported["bundle"], rows, data["secondary"], options.measure_on, RESAMPLES)
    curve = training["epochs"][training["best_epoch"] - 1]["validation_mcc"]
    secondary = measured.secondary
    run = {
        "recipe": job.recipe, "group": options.group, "text_sentences": count_text(job.settings, options.text),
        "seed": job.seed, "variant": measured.variant,
        "out_of_domain_dev": measured.variants[measured.variant]["interval"]["mcc"],
        "in_domain_dev": secondary["interval"]["mcc"] if secondary else None,
        "behaviour": measured.minimal_pairs["share"],
        "validation": training["soup_mcc"] if training["averaged"] else curve,
        "seconds": training["seconds"], "whole_seconds": round(time.perf_counter() - started, 1),
        "by_variant": {name: measure["interval"]["mcc"] for name, measure in measured.variants.items()},
        "averaged": training["averaged"], "members": [member["validation_mcc"] for member in training["seeds"]],
        "settings": job.settings, "teacher": taught_by,
    }  # fmt: skip
    return [run]


def summarise(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return a row for each encoder, recipe, way to split and text, with the figures of all its seeds."""
    rows = []
    for keys in dict.fromkeys(tuple(run[key] for key in KEYS) for run in runs):
        own = sorted((run for run in runs if tuple(run[key] for key in KEYS) == keys), key=lambda run: run["seed"])
        row: dict[str, Any] = dict(zip(KEYS, keys, strict=True))
        for name in FIGURES:
            row["seeds" if name == "seed" else name] = [run[name] for run in own]
        rows.append(row)
    return rows


if __name__ == "__main__":
    main()
