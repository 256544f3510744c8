"""Times fine-tuning side by side in one process: the book's loop, the Hugging Face Trainer, and ours.

    make bench BENCH=finetune ARGS="--data DIR --encoder DIR2 --device cuda --out FILE"
    make bench BENCH=finetune ARGS="--data DIR --random base --systems verdict --batch-sizes 32 128 512 --device cuda"

The Trainer needs accelerate (pip install accelerate). DIR holds CoLA-format files. `--random` takes a BERT of that size
with random weights, where only speed counts.
`seconds` is all epochs with validation, after everything is loaded, tokenised and captured; that is `setup_seconds`.
"""

import argparse
import gc
import json
import logging
import math
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from bench_ingestion import cpu_name
from torch.utils.data import DataLoader, TensorDataset
from transformers import BertConfig, BertModel, get_linear_schedule_with_warmup

from tasks.core.provenance import git_commit, library_versions
from tasks.data.snapshots import read_snapshot, write_snapshot
from tasks.data.splitting import split_snapshot
from tasks.evaluation.metrics import mcc
from tasks.inference.tokenization import load_tokenizer, pad, tokenise
from tasks.training.dataset import TokenDataset
from tasks.training.device import device_name, resolve_device
from tasks.training.model import load_classifier
from tasks.training.pretrained import locate_encoder
from tasks.training.recipe import resolve_precision
from tasks.training.train_step import StepConfig
from tasks.training.trainer import train_epochs, validate

SIZES = {
    "base": {},
    "large": {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096},
    "tiny": {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 128},
}
PAD = 128  # tokens; what the book pads to
# Bytes a second and bf16 operations a second that a device was seen to reach; what nothing can be faster than.
REACHED = {"NVIDIA H200": (4.3e12, 790e12)}
BYTES_A_WEIGHT = 28  # that a step of AdamW moves: gradient, weight, two moments in; weight, copy, two moments out

Sentences = tuple[list[np.ndarray], np.ndarray]


def main() -> None:
    options = parse_options()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    device = resolve_device(options.device)
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        encoder = write_random(options, scratch) if options.random else locate_encoder(options.encoder)["folder"]
        parts = read_parts(options.data, encoder, scratch, options.times, whole=options.whole)
        for batch_size in options.batch_sizes:
            for seed in options.seeds:
                for system in options.systems:
                    run: Callable[..., dict[str, float]] = SYSTEMS[system]
                    rows.append({"system": system, "seed": seed, "batch_size": batch_size})
                    rows[-1] |= measure(run, encoder, parts, options, batch_size, seed, device)
                    print(json.dumps(rows[-1]), flush=True)
    result = {
        "benchmark": "fine-tuning",
        "hardware": f"{device_name(device)}, {cpu_name()}, {os.cpu_count()} CPU cores",
        "versions": library_versions() | {"cuda": torch.version.cuda},
        "commit": options.commit or git_commit(),
        "settings": {
            key: Path(value).name if key in ("encoder", "vocabulary") else value
            for key, value in vars(options).items()
            if key not in ("out", "commit", "data")
        },
        "sentences": len(parts["train"][1]),
        "tokens": int(sum(map(len, parts["train"][0]))),
        "rows": rows,
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
    parser.add_argument("--systems", nargs="+", choices=sorted(SYSTEMS), default=["book", "trainer", "verdict"])
    parser.add_argument("--device", default="auto", choices=["auto", "cuda", "cpu"])
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[32])
    parser.add_argument("--learning-rate", type=float, default=2e-5)
    parser.add_argument("--layer-decay", type=float, default=1.0)
    parser.add_argument(
        "--whole", action="store_true", help="train on every row of the training file, validate on the holdout"
    )
    parser.add_argument("--times", type=int, default=1, help="how often the training sentences are repeated")
    parser.add_argument("--seeds", type=int, nargs="+", default=[2018])
    parser.add_argument("--out", default="")
    parser.add_argument("--commit", default="")
    return parser.parse_args()


def measure(
    run: Callable[..., dict[str, float]],
    encoder: str,
    parts: dict[str, Sentences],
    options: argparse.Namespace,
    batch_size: int,
    seed: int,
    device: str,
) -> dict[str, Any]:
    """Run one system from a fresh model; return times, memory and the holdout MCC."""
    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    torch.manual_seed(seed)
    started = time.perf_counter()
    model = load_classifier(encoder).to(device)
    loading = time.perf_counter() - started
    measured = run(model, parts, options, batch_size, seed, device)
    holdout = encoded(parts["holdout"], model, device)
    answer = validate(model, holdout)
    floor = floor_seconds(model, parts, options.epochs, batch_size, device)
    steps = options.epochs * math.ceil(len(parts["train"][1]) / batch_size)
    tokens = options.epochs * sum(map(len, parts["train"][0]))
    return {
        "seconds": round(measured["seconds"], 3),
        "setup_seconds": round(measured["setup_seconds"] + loading, 3),
        "ms_per_step": round(1000 * measured["seconds"] / steps, 3),
        "tokens_per_second": round(tokens / measured["seconds"]),
        "floor_seconds": round(floor, 3) if floor else None,
        "floor_share": round(floor / measured["seconds"], 3) if floor else None,
        "peak_bytes": torch.cuda.max_memory_allocated() if device == "cuda" else None,
        "validation_mcc": measured.get("validation_mcc"),
        "mcc": answer["validation_mcc"],
    }


def floor_seconds(model: Any, parts: dict[str, Sentences], epochs: int, batch_size: int, device: str) -> float | None:
    """Return what AdamW's memory traffic and the matrix products take at the least; None for unknown devices."""
    if device_name(device) not in REACHED:
        return None
    bytes_a_second, operations_a_second = REACHED[device_name(device)]
    weights = sum(parameter.numel() for parameter in model.parameters())
    multiplied = sum(
        parameter.numel() for name, parameter in model.named_parameters() if parameter.ndim > 1 and "embed" not in name
    )
    steps = epochs * math.ceil(len(parts["train"][1]) / batch_size)
    tokens = epochs * sum(map(len, parts["train"][0]))
    return steps * BYTES_A_WEIGHT * weights / bytes_a_second + 6 * multiplied * tokens / operations_a_second


def run_book(
    model: Any, parts: dict[str, Sentences], options: argparse.Namespace, batch_size: int, seed: int, device: str
) -> dict[str, float]:
    """The notebook's loop: fp32, everything padded to 128, a DataLoader, the loss fetched each step."""
    ids, labels = parts["train"]
    padded = np.zeros((len(ids), PAD), np.int64)
    for row, sentence in enumerate(ids):
        padded[row, : len(sentence)] = sentence
    data = TensorDataset(*(torch.from_numpy(array) for array in (padded, (padded > 0).astype(np.float32), labels)))
    loader = DataLoader(data, batch_size=batch_size, shuffle=True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=options.learning_rate)
    schedule = get_linear_schedule_with_warmup(optimizer, 0, len(loader) * options.epochs)
    started = time.perf_counter()
    for _ in range(options.epochs):
        model.train()
        for batch in loader:
            tokens, mask, answers = (tensor.to(device) for tensor in batch)
            optimizer.zero_grad()
            loss = model(tokens, attention_mask=mask, labels=answers).loss
            loss.backward()
            optimizer.step()
            schedule.step()
            loss.item()
        model.eval()
        validate(model, encoded(parts["validation"], model, device))
    return {"seconds": time.perf_counter() - started, "setup_seconds": 0.0}


def run_trainer(
    model: Any, parts: dict[str, Sentences], options: argparse.Namespace, batch_size: int, seed: int, device: str
) -> dict[str, float]:
    """The Hugging Face Trainer: bf16, batches padded to their longest sentence, validation MCC each epoch."""
    from transformers import Trainer, TrainingArguments

    def collate(rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        ids, mask = pad([row["ids"] for row in rows], model.config.pad_token_id or 0)
        labels = np.array([row["label"] for row in rows])
        return {
            name: torch.from_numpy(a) for name, a in (("input_ids", ids), ("attention_mask", mask), ("labels", labels))
        }

    sets = {
        name: [{"ids": ids, "label": label} for ids, label in zip(*part, strict=True)] for name, part in parts.items()
    }
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as scratch:
        arguments = TrainingArguments(
            scratch, num_train_epochs=options.epochs, per_device_train_batch_size=batch_size,
            per_device_eval_batch_size=256, learning_rate=options.learning_rate, weight_decay=0.01, warmup_steps=0.1,
            bf16=device == "cuda", eval_strategy="epoch", save_strategy="no", report_to=[], disable_tqdm=True,
            remove_unused_columns=False, seed=seed, use_cpu=device == "cpu", logging_steps=10**9,
        )  # fmt: skip
        trainer = Trainer(
            model, arguments, train_dataset=sets["train"], eval_dataset=sets["validation"], data_collator=collate,  # type: ignore[arg-type]
            compute_metrics=lambda answer: {"mcc": mcc(answer.label_ids, answer.predictions.argmax(-1))},
        )  # fmt: skip
        setup = time.perf_counter() - started
        started = time.perf_counter()
        trainer.train()
    return {"seconds": time.perf_counter() - started, "setup_seconds": setup}


def run_verdict(
    model: Any, parts: dict[str, Sentences], options: argparse.Namespace, batch_size: int, seed: int, device: str
) -> dict[str, float]:
    """Ours: what `verdict retrain` calls."""
    started = time.perf_counter()
    train, validation = (encoded(parts[name], model, device) for name in ("train", "validation"))
    steps = options.epochs * math.ceil(train.count / batch_size)
    precision = resolve_precision("auto", device)
    recipe = StepConfig(
        steps, batch_size, options.learning_rate, 0.1, 0.01, 1.0, options.layer_decay, precision=precision
    )
    course = train_epochs(model, train, validation, recipe, epochs=options.epochs, seed=seed)
    seconds = sum(epoch["seconds"] for epoch in course.epochs)
    best = max(epoch["validation_mcc"] for epoch in course.epochs)
    return {"seconds": seconds, "setup_seconds": time.perf_counter() - started - seconds, "validation_mcc": best}


SYSTEMS = {"book": run_book, "trainer": run_trainer, "verdict": run_verdict}


def read_parts(data: str, encoder: str, scratch: str, times: int, *, whole: bool = False) -> dict[str, Sentences]:
    """Read, split and tokenise: token ids and labels of train, validation and holdout.

    With `whole` nothing is split: every row trains, and the holdout validates, for figures of speed alone.
    """
    from tasks.data.sources import locate_sources

    sources = locate_sources([data], "", "", scratch)
    snapshots = {role: write_snapshot(sources[role], scratch)["path"] for role in ("train", "holdout")}  # type: ignore[literal-required]
    if whole:
        train, validation = snapshots["train"], snapshots["holdout"]
    else:
        train, validation, _ = split_snapshot(snapshots["train"], [snapshots["holdout"]], scratch, 0.1, 2018)
    tokenizer = load_tokenizer(encoder, PAD)
    parts: dict[str, Sentences] = {}
    for name, path in {"train": train, "validation": validation, "holdout": snapshots["holdout"]}.items():
        rows = read_snapshot(path)
        repeated = times if name == "train" else 1
        parts[name] = (
            tokenise(tokenizer, rows["sentence"].tolist()).rows() * repeated,
            np.tile(rows["label"].to_numpy(np.int64), repeated),
        )
    return parts


def encoded(part: Sentences, model: Any, device: str) -> TokenDataset:
    """Bring sentences to the device."""
    return TokenDataset(part[0], part[1], model.config.pad_token_id or 0, device)


def write_random(options: argparse.Namespace, scratch: str) -> str:
    """Write a BERT with random weights."""
    folder = Path(scratch) / f"bert-{options.random}"
    torch.manual_seed(0)
    BertModel(BertConfig(**SIZES[options.random])).save_pretrained(folder)
    vocabulary = Path(options.vocabulary or locate_encoder("packaged")["folder"])
    (folder / "tokenizer.json").write_bytes((vocabulary / "tokenizer.json").read_bytes())
    return str(folder)


if __name__ == "__main__":
    main()
