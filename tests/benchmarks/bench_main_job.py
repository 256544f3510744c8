"""Measures the main job's computing steps, without orchestration and registry: data, training, export, measurement.

    make bench BENCH=main_job                               the bundled sample, packaged encoder, this machine
    make bench BENCH=main_job ARGS="--data DIR --encoder DIR --device cuda --epochs 4 --seeds 1 2 3 --out FILE"

Needs torch, transformers, onnx, onnxruntime, pandas, pyarrow. Each seed is one whole job; what is printed is what was
measured in this process, imports not counted.
"""

import argparse
import json
import logging
import os
import platform
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from tasks.core.finetune_settings import FinetuneSettings
from tasks.core.policy import load_policy
from tasks.core.provenance import git_commit, library_versions
from tasks.data.ingestion import ingest
from tasks.data.sources import locate_sources
from tasks.data.splitting import split_snapshot
from tasks.data.table_format import TableFormat
from tasks.evaluation.evidence import gather_evidence
from tasks.evaluation.judge import judge
from tasks.export.bundle_export import export_bundle
from tasks.training.device import device_name, resolve_device
from tasks.training.finetune import fine_tune
from tasks.training.model import LABELS
from tasks.training.pretrained import locate_encoder
from tasks.training.recipe import resolve_recipe


def main() -> None:
    options = parse_options()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    device = resolve_device(options.device)
    rows = [run_job(options, device, seed) for seed in options.seeds]
    result = {
        "benchmark": "main job",
        "hardware": f"{device_name(device)}, {os.cpu_count()} CPU cores, {platform.machine()}",
        "versions": library_versions() | {"cuda": torch.version.cuda},
        "commit": options.commit or git_commit(),
        "settings": {
            key: _name(value) for key, value in vars(options).items() if key not in ("seeds", "out", "commit")
        },
        "rows": rows,
    }
    text = json.dumps(result, indent=2)
    if options.out:
        Path(options.out).write_text(text + "\n")
    for row in rows:
        seconds = ", ".join(f"{name} {taken:.1f} s" for name, taken in row["seconds"].items())
        print(
            f"seed {row['seed']}: holdout MCC {row['mcc']:.3f} ({row['low']:.3f} to {row['high']:.3f}), "
            f"{row['provider']}; {seconds}"
        )


def _name(value: Any) -> Any:
    """Name a folder without where it lies on this machine."""
    return Path(value).name if isinstance(value, str) else value


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="sample", help="folder with CoLA-format files, or sample")
    parser.add_argument("--encoder", default="packaged", help="folder or hub id, or packaged")
    parser.add_argument("--device", default="auto", choices=["auto", "cuda", "cpu"])
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--learning-rate", type=float, default=1e-4)
    parser.add_argument("--max-length", type=int, default=64)
    parser.add_argument("--seeds", type=int, nargs="+", default=[2018])
    parser.add_argument("--out", help="JSON file to write")
    parser.add_argument("--commit", help="commit to record where there is no repository")
    return parser.parse_args()


def run_job(options: argparse.Namespace, device: str, seed: int) -> dict[str, Any]:
    seconds: dict[str, float] = {}

    def timed(name: str, function: Any, *args: Any, **kwargs: Any) -> Any:
        started = time.perf_counter()
        result = function(*args, **kwargs)
        seconds[name] = round(time.perf_counter() - started, 2)
        return result

    with tempfile.TemporaryDirectory() as folder:
        sources = locate_sources([options.data], "", "", folder)
        data = timed("read", ingest, sources, folder, TableFormat(), 0.2)
        encoder = timed("encoder", locate_encoder, options.encoder)
        holdouts = [data[name]["path"] for name in ("holdout", "secondary") if data[name]]
        train, validation, counts = timed("split", split_snapshot, data["train"]["path"], holdouts, folder, 0.1, seed)
        settings = FinetuneSettings(
            epochs=options.epochs, batch_size=options.batch_size, learning_rate=options.learning_rate,
            max_length=options.max_length, seed=seed, device=device,  # type: ignore[arg-type]
        )  # fmt: skip
        recipe = resolve_recipe(settings, encoder["folder"])
        training = timed("fine-tune", fine_tune, train, validation, recipe, f"{folder}/model", holdouts=holdouts)
        facts = {
            "labels": LABELS,
            "max_length": options.max_length,
            "encoder": encoder["name"],
            "dataset": data["digest"],
        }
        exported = timed("export", export_bundle, f"{folder}/model", folder, {**facts, "git_commit": git_commit()})
        policy = load_policy()
        circumstances = {
            "champion_state": "none", "holdout_uses": 0, "drift": [], "training_digest": data["train"]["digest"],
            "policy": policy.model_dump(),
        }  # fmt: skip
        evidence = timed(
            "measure", gather_evidence, exported["bundle"], data["holdout"], data["secondary"], None,
            split=counts, training=[train, validation], context=circumstances, device=device, resamples=10_000,
        )  # fmt: skip
        verdict = judge(evidence, policy)
    return {
        "seed": seed,
        "mcc": evidence["candidate"]["interval"]["mcc"],
        "low": evidence["candidate"]["interval"]["low"],
        "high": evidence["candidate"]["interval"]["high"],
        "secondary_mcc": evidence["secondary"]["interval"]["mcc"] if evidence["secondary"] else None,
        "provider": evidence["candidate"]["provider"],
        "decision": verdict["decision"],
        "best_epoch": training["best_epoch"],
        "epochs": training["epochs"],
        "parity": exported["parity"],
        "split": counts,
        "dataset": data["digest"],
        "seconds": seconds,
    }


if __name__ == "__main__":
    main()
