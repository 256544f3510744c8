"""What the variants of a bundle cost: trains, exports, and gives parity with torch and holdout MCC of each variant.

    python tests/benchmarks/bench_variants.py --data DIR --encoder DIR2 --epochs 4 --device cuda --out FILE

fp32 and int8 are measured on the CPU or the GPU as they would serve, fp16 on the GPU where there is one.
"""

import argparse
import json
import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ablate_finetune import COMMON
from bench_inference import origin
from bench_ingestion import cpu_name

from tasks.core.finetune_settings import FinetuneSettings
from tasks.core.provenance import git_commit, library_versions
from tasks.data.snapshots import read_snapshot, write_snapshot
from tasks.data.sources import locate_sources
from tasks.data.splitting import split_snapshot
from tasks.evaluation.metrics import mcc
from tasks.export.bundle_export import export_bundle
from tasks.inference.bundle import DEVICE_VARIANT, VARIANTS
from tasks.inference.classifier import Classifier
from tasks.training.device import device_name, resolve_device
from tasks.training.finetune import fine_tune
from tasks.training.pretrained import locate_encoder
from tasks.training.recipe import resolve_recipe


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="sample")
    parser.add_argument("--encoder", nargs="+", default=["packaged"])
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--learning-rate", type=float, default=5e-5)
    parser.add_argument("--device", default="auto", choices=["auto", "cuda", "cpu"])
    parser.add_argument("--out", default="")
    parser.add_argument("--commit", default="")
    options = parser.parse_args()
    device = resolve_device(options.device)
    result: dict[str, Any] = {
        "benchmark": "variants of a bundle",
        "hardware": f"{device_name(device)}, {cpu_name()}, {os.cpu_count()} CPU cores",
        "versions": library_versions() | {"cuda": torch.version.cuda},
        "commit": options.commit or git_commit(),
        "settings": {"epochs": options.epochs, "learning_rate": options.learning_rate},
        "encoders": [],
    }
    for encoder in options.encoder:
        with tempfile.TemporaryDirectory() as scratch:
            result["encoders"].append(compare(encoder, options, device, scratch))
        print(json.dumps(result["encoders"][-1]), flush=True)
    if options.out:
        Path(options.out).write_text(json.dumps(result, indent=2) + "\n")


def compare(name: str, options: argparse.Namespace, device: str, scratch: str) -> dict[str, Any]:
    """Train an encoder once and measure every variant of its bundle."""
    encoder = locate_encoder(name)
    sources = locate_sources([options.data], "", "", scratch)
    snapshots = {name: write_snapshot(sources[name], scratch)["path"] for name in ("train", "holdout")}
    train, validation, _ = split_snapshot(snapshots["train"], [snapshots["holdout"]], scratch, 0.1, 1)
    chosen: dict[str, Any] = COMMON | {"epochs": options.epochs, "learning_rate": options.learning_rate}
    settings = FinetuneSettings(seed=1, device=device, layer_decay=0.9, **chosen)  # type: ignore[arg-type]
    model = f"{scratch}/model"
    fine_tune(train, validation, resolve_recipe(settings, encoder["folder"]), model)
    exported = export_bundle(model, scratch, origin(model), validation)
    rows = read_snapshot(snapshots["holdout"])
    labels = rows["label"].to_numpy(np.int64)
    found: dict[str, dict[str, Any]] = {}
    for variant in VARIANTS:
        if variant in exported["left_out"]:
            found[variant] = {"left_out": exported["left_out"][variant]}
            continue
        place = "cpu" if variant == DEVICE_VARIANT["cpu"] else device
        classifier = Classifier.from_bundle(exported["bundle"], place, variant)
        predictions = classifier.logits(rows["sentence"].tolist()).argmax(axis=1)
        found[variant] = {"provider": classifier.provider, "mcc": round(mcc(labels, predictions), 4)}
        found[variant] |= dict(exported["variants"][variant])
        found[variant]["megabytes"] = round((Path(exported["bundle"]) / VARIANTS[variant]).stat().st_size / 1e6, 1)
    return {"encoder": encoder["name"], "holdout": len(rows), "fused": exported["fused"], "variants": found}


if __name__ == "__main__":
    main()
