"""Which graphs of trained models ship: trains with the recipe of the profile `cola`, exports, and counts.

    python tests/benchmarks/bench_shipping.py --data DIR --encoders DIR2 DIR3 --out FILE
    python tests/benchmarks/bench_shipping.py --rows 200 --epochs 1 --members 1 --seeds 11      a trial

DIR holds CoLA's book files. A seed is that of the split too, so that validation sentences differ. `export_seconds` is
the whole step as a run has it: a subprocess that makes the graphs, and all comparisons with torch; `--only VARIANT`
makes and compares one variant in this process. The file is written after each training, and trainings that it has
already are kept.
"""

import argparse
import json
import logging
import os
import tempfile
import time
import tomllib
from pathlib import Path
from typing import Any

import torch
from bench_ingestion import cpu_name

from tasks.core.finetune_settings import FinetuneSettings
from tasks.core.provenance import git_commit, library_versions
from tasks.data.snapshots import count_rows, read_snapshot, write_snapshot
from tasks.data.sources import locate_sources
from tasks.data.splitting import split_snapshot
from tasks.export import bundle_export
from tasks.export.bundle_export import export_bundle
from tasks.export.feature_sizes import choose_inputs
from tasks.export.onnx_export import choose_source, write_variant
from tasks.export.shipping_rule import Attempt
from tasks.export.subprocess_call import start_forkserver
from tasks.export.torch_reference import torch_reference
from tasks.inference.bundle import VARIANTS, ModelInfo, Origin
from tasks.training.device import device_name, resolve_device
from tasks.training.finetune import fine_tune
from tasks.training.model import LABELS
from tasks.training.pretrained import locate_encoder
from tasks.training.recipe import resolve_recipe

PROFILE = Path(__file__).parents[2] / "tasks" / "core" / "profiles" / "cola.toml"


class Remarks(logging.Handler):
    """Keeps what the export logs."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


def main() -> None:
    options = parse_options()
    device = resolve_device(options.device)
    recipe = tomllib.loads(PROFILE.read_text())["finetune"] | {
        name: value
        for name, value in (
            ("epochs", options.epochs),
            ("seeds", options.members),
            ("corruptions", options.corruptions),
        )
        if value is not None
    }
    result: dict[str, Any] = {
        "benchmark": "shipping of variants",
        "hardware": f"{device_name(device)}, {cpu_name()}, {os.cpu_count()} CPU cores",
        "versions": library_versions() | {"cuda": torch.version.cuda},
        "commit": options.commit or git_commit(),
        "recipe": {name: value for name, value in recipe.items() if name != "encoder"} | {"rows": options.rows},
        "shipped": {},
        "trainings": read_trainings(options.out),
    }
    done = {(training["encoder"], training["seed"]) for training in result["trainings"]}
    start_forkserver()
    for name in options.encoders:
        encoder = locate_encoder(name)
        for seed in options.seeds:
            if (encoder["name"], seed) in done:
                continue
            settings = FinetuneSettings(**recipe | {"seed": seed, "device": device, "encoder": name})
            with tempfile.TemporaryDirectory() as scratch:
                training = {"encoder": encoder["name"]} | run(settings, encoder["folder"], options, scratch)
            result["trainings"].append(training)
            result["shipped"] = count_shipped(result["trainings"])
            print(json.dumps(training), flush=True)
            if options.out:
                Path(options.out).write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result["shipped"]))


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="sample")
    parser.add_argument("--encoders", nargs="+", default=["packaged"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[11, 21, 31, 41, 51])
    parser.add_argument("--members", type=int, help="models of each training, of which the average may be kept [3]")
    parser.add_argument("--epochs", type=int, help="[8]")
    parser.add_argument("--corruptions", type=int, help="corrupted copies a sentence for the first stage [2]")
    parser.add_argument("--only", default="", choices=list(VARIANTS))
    parser.add_argument("--rows", type=int, default=0, help="training sentences; 0 for all")
    parser.add_argument("--device", default="auto", choices=["auto", "cuda", "cpu"])
    parser.add_argument("--out", default="")
    parser.add_argument("--commit", default="")
    return parser.parse_args()


def read_trainings(path: str) -> list[dict[str, Any]]:
    """Return the trainings that a file has from an earlier call."""
    if not path or not Path(path).exists():
        return []
    found: list[dict[str, Any]] = json.loads(Path(path).read_text())["trainings"]
    return found


def run(settings: FinetuneSettings, encoder: str, options: argparse.Namespace, scratch: str) -> dict[str, Any]:
    """Train once and export; return what was measured of each variant."""
    sources = locate_sources([options.data], "", "", scratch)
    snapshots = {role: write_snapshot(sources[role], scratch)["path"] for role in ("train", "holdout")}  # type: ignore[literal-required]
    train, validation, _ = split_snapshot(snapshots["train"], [snapshots["holdout"]], scratch, 0.1, settings.seed)
    if options.rows:
        read_snapshot(train).head(options.rows).to_parquet(train)
    model = f"{scratch}/model"
    started = time.perf_counter()
    training = fine_tune(train, validation, resolve_recipe(settings, encoder), model)
    trained = time.perf_counter()
    done = {
        "seed": settings.seed,
        "kept": "average" if training["averaged"] else f"seed {training['seed']}",
        "validation_sentences": count_rows(validation),
        "train_seconds": round(trained - started, 1),
    }
    if options.only:
        return done | make_one(options.only, model, validation, settings.max_length, scratch)
    origin = Origin(labels=LABELS, max_length=settings.max_length, encoder=settings.encoder, dataset="", git_commit="")
    logger, remarks = logging.getLogger(bundle_export.__name__), Remarks()
    logger.setLevel(logging.INFO)
    logger.addHandler(remarks)
    try:
        exported = export_bundle(model, scratch, origin, validation)
    finally:
        logger.removeHandler(remarks)
    return done | {
        "export_seconds": round(time.perf_counter() - trained, 2),
        "exporter": exported["exporter"],
        "fused": exported["fused"],
        "remarks": remarks.lines,
        "variants": {
            variant: describe(exported["attempts"][variant], Path(exported["bundle"]) / VARIANTS[variant])
            for variant in VARIANTS
        },
    }


def make_one(variant: str, model: str, validation: str, max_length: int, scratch: str) -> dict[str, Any]:
    """Make and compare one variant as the export does."""
    started = time.perf_counter()
    reference = torch_reference(model, max_length, validation)
    source, _ = choose_source(model, choose_inputs(reference.real))
    facts = ModelInfo(
        labels=LABELS, max_length=max_length, encoder="", dataset="", git_commit="", pad_id=reference.pad_id
    )
    path = Path(scratch) / VARIANTS[variant]
    written = write_variant(variant, source.makers[variant], path, facts, reference)
    return {
        "exporter": source.exporter,
        "export_seconds": round(time.perf_counter() - started, 2),
        "seconds": {name: round(seconds, 2) for name, seconds in written.seconds.items()},
        "variants": {variant: describe(written.attempts, path)},
    }


def describe(attempts: list[Attempt], file: Path) -> dict[str, Any]:
    """Return whether a variant shipped, and what was measured of every way of making it."""
    fault = attempts[-1]["fault"]
    found: dict[str, Any] = {"shipped": fault is None, "why_not": fault}
    found["megabytes"] = round(file.stat().st_size / 1e6, 1) if file.exists() else None
    for attempt in attempts:
        found.setdefault("ways", []).append({"maker": attempt["maker"], "fault": attempt["fault"]})
        parity = attempt["parity"]
        if parity is None:
            continue
        found["ways"][-1] |= {
            "provider": parity["provider"],
            "sentences": parity["sentences"],
            "labels_equal": round(1 - parity["changed"] / max(1, parity["sentences"]), 6),
            "mcc": round(parity["mcc"], 6),
            "mcc_fp32": round(parity["torch_mcc"], 6),
            "mcc_loss_low": round(parity["mcc_loss_low"], 6),
            "difference": parity["difference"].get("sentences"),
            "difference_random": max(
                (size for name, size in parity["difference"].items() if name != "sentences"), default=None
            ),
            "torch_half": parity["half"],
        }
    return found


def count_shipped(trainings: list[dict[str, Any]]) -> dict[str, str]:
    """Count the trainings of which each variant shipped."""
    return {
        variant: f"{sum(training['variants'][variant]['shipped'] for training in trainings)} of {len(trainings)}"
        for variant in trainings[0]["variants"]
    }


if __name__ == "__main__":
    main()
