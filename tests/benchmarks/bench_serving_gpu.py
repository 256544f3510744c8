"""Compares what serves on a GPU: this tree, an earlier one, and torch in bf16, on one machine in one call.

    git archive dcfa1bf tasks | tar x -C BEFORE
    python tests/benchmarks/bench_serving_gpu.py --data DIR --trained ENCODER... --random bert modernbert deberta \\
        --before BEFORE --out FILE

DIR holds CoLA-format files. Each ENCODER is fine-tuned once, with four epochs of the `cola` recipe; `--model FOLDER`
takes the result of an earlier training instead. Random weights are of base size, where only speed counts. Every system
runs in a process of its own, one after another:

    verdict  a bundle that this tree exports, and the variant that it serves on a GPU
    before   the same for the tree in BEFORE
    torch    the model in bf16, eager, in batches of 256 sentences of similar length

`text_per_second` is sentences a second from text in host memory to logits in host memory, `tokens_per_second` sentences
a second from token ids. `p50_ms` and `p99_ms` are of one sentence, from text. `labels_equal` is the share of the
labelled sentences with the label that torch gives them in fp32, `mcc` and `mcc_fp32` are this system's and torch's.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from timing import best_of, percentiles, time_each

ROOT = Path(__file__).parents[2]
MAX_LENGTH = 128
ROWS, ROW_TOKENS, TORCH_BATCH = 256, 128, 256
SINGLE, SINGLE_ROUNDS = 300, 3  # sentences that are answered one by one; the fastest of so many rounds counts
RECIPE: dict[str, Any] = {
    "epochs": 4, "batch_size": 32, "learning_rate": 5e-5, "layer_decay": 0.9, "warmup_ratio": 0.1, "weight_decay": 0.01,
    "label_smoothing": 0.1, "max_length": MAX_LENGTH,
}  # fmt: skip
RANDOM: dict[str, tuple[str, dict[str, Any]]] = {
    "bert": ("BertConfig", {}),
    "mpnet": ("MPNetConfig", {}),
    "modernbert": ("ModernBertConfig", {}),
    "deberta": (
        "DebertaV2Config",
        {
            "vocab_size": 128_100, "hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12,
            "intermediate_size": 3072, "relative_attention": True, "position_buckets": 256,
            "norm_rel_ebd": "layer_norm",
            "share_att_key": True, "pos_att_type": ["p2c", "c2p"], "position_biased_input": False,
            "type_vocab_size": 0, "layer_norm_eps": 1e-7, "pooler_hidden_size": 768,
        },
    ),
}  # fmt: skip


def main() -> None:
    options = parse_options()
    if options.worker:
        WORKERS[options.worker](options)
        return
    with tempfile.TemporaryDirectory() as scratch:
        result = compare(options, Path(scratch))
    if options.out:
        Path(options.out).write_text(json.dumps(result, indent=2) + "\n")


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="sample")
    parser.add_argument("--trained", nargs="*", default=[], help="encoders, each fine-tuned once")
    parser.add_argument("--model", nargs="*", default=[], help="folders that a training wrote")
    parser.add_argument("--random", nargs="*", choices=sorted(RANDOM), default=[])
    parser.add_argument("--vocabulary", default="", help="folder with the tokenizer.json of --random")
    parser.add_argument("--before", default="", help="folder of an earlier tree")
    parser.add_argument("--before-commit", default="dcfa1bf")
    parser.add_argument("--systems", nargs="+", default=["torch", "before", "verdict"])
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--sentences", type=int, default=65_536)
    parser.add_argument("--seed", type=int, default=11)
    parser.add_argument("--timeout", type=float, default=200.0, help="seconds for a system to export and measure")
    parser.add_argument("--out", default="")
    parser.add_argument("--commit", default="")
    for name in ("--worker", "--folder", "--rows", "--labelled", "--bundle"):  # what a system's process is started with
        parser.add_argument(name, default="", help=argparse.SUPPRESS)
    return parser.parse_args()


def compare(options: argparse.Namespace, scratch: Path) -> dict[str, Any]:
    """Prepare each model and run each system on it."""
    from tasks.core.provenance import git_commit, library_versions
    from tasks.data.snapshots import write_snapshot
    from tasks.data.sources import locate_sources
    from tasks.data.splitting import split_snapshot
    from tasks.training.device import device_name

    sources = locate_sources([options.data], "", "", str(scratch))
    holdout = write_snapshot(sources["holdout"], str(scratch))["path"]
    everything = write_snapshot(sources["train"], str(scratch))["path"]
    train, validation, _ = split_snapshot(everything, [holdout], str(scratch), 0.1, options.seed)
    options.rows, options.labelled = validation, holdout
    found: list[dict[str, Any]] = []
    for name, weights, folder in prepare_models(options, scratch, train):
        for system in options.systems:
            row = {"encoder": name, "weights": weights, "system": system}
            row |= run_system(options, system, folder, scratch / f"{name}-{system}")
            found.append(row)
            print(json.dumps(row), flush=True)
        fill_agreement([row for row in found if row["encoder"] == name])
    return {
        "gpu": device_name(options.device),
        "host_cores": os.cpu_count(),
        "versions": library_versions(),
        "commit": options.commit or git_commit(),
        "baseline_commit": options.before_commit,
        "sentences": options.sentences,
        "rows": found,
    }


def prepare_models(options: argparse.Namespace, scratch: Path, rows: str) -> list[tuple[str, str, str]]:
    """Return name, kind of weights and folder of each model."""
    models = [(Path(folder).name, "trained", folder) for folder in options.model]
    for encoder in options.trained:
        models.append((Path(encoder).name, "trained", train(options, encoder, scratch, rows)))
    for name in options.random:
        models.append((f"{name}-base", "random", write_random(options, name, scratch)))
    return models


def train(options: argparse.Namespace, encoder: str, scratch: Path, rows: str) -> str:
    """Fine-tune an encoder and return its folder."""
    from tasks.core.finetune_settings import FinetuneSettings
    from tasks.training.finetune import fine_tune
    from tasks.training.pretrained import locate_encoder
    from tasks.training.recipe import resolve_recipe

    settings = FinetuneSettings(encoder=encoder, device=options.device, seed=options.seed, **RECIPE)
    folder = str(scratch / f"trained-{Path(encoder).name}")
    fine_tune(rows, options.rows, resolve_recipe(settings, locate_encoder(encoder)["folder"]), folder)
    return folder


def write_random(options: argparse.Namespace, name: str, scratch: Path) -> str:
    """Write a classifier of base size with random weights."""
    import torch
    import transformers

    from tasks.inference.tokenization import load_tokenizer
    from tasks.training.model import LABELS
    from tasks.training.pretrained import locate_encoder

    kind, changes = RANDOM[name]
    torch.manual_seed(0)
    config = getattr(transformers, kind)(**changes, num_labels=len(LABELS), pad_token_id=0)
    folder = scratch / f"random-{name}"
    transformers.AutoModelForSequenceClassification.from_config(config).save_pretrained(folder)
    vocabulary = options.vocabulary or locate_encoder("packaged")["folder"]
    load_tokenizer(vocabulary, MAX_LENGTH).save(str(folder / "tokenizer.json"))
    return str(folder)


def run_system(options: argparse.Namespace, system: str, folder: str, work: Path) -> dict[str, Any]:
    """Run one system in a process with its own tree on the path; return its row, or why there is none."""
    work.mkdir()
    tree = options.before if system == "before" else str(ROOT)
    command = [sys.executable, __file__, "--worker", system, "--folder", folder, "--rows", options.rows]
    command += ["--labelled", options.labelled]
    command += ["--bundle", str(work), "--device", options.device, "--sentences", str(options.sentences)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, [tree, os.environ.get("PYTHONPATH", "")]))}
    try:
        done = subprocess.run(
            command, env=environment, cwd=tree, capture_output=True, text=True, timeout=options.timeout
        )
    except subprocess.TimeoutExpired:
        return {"error": f"not done in {options.timeout:g} s"}
    if done.returncode:
        return {"error": done.stderr.strip().splitlines()[-1][:300] if done.stderr.strip() else "no message"}
    row: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    row["answers"] = str(work / "answers.npz")
    return row


def fill_agreement(rows: list[dict[str, Any]]) -> None:
    """Replace each system's answers by their agreement with torch's in fp32."""
    reference = next((np.load(row["answers"]) for row in rows if row["system"] == "torch" and "answers" in row), None)
    for row in rows:
        path = row.pop("answers", None)
        if path is None or reference is None:
            continue
        labels, expected = reference["labels"], reference["fp32"]
        answers = np.load(path)["logits"]
        row["labels_equal"] = round(float((answers.argmax(1) == expected.argmax(1)).mean()), 5)
        row["largest_difference"] = round(float(np.abs(answers - expected).max()), 5)
        row["mcc"], row["mcc_fp32"] = (round(mcc(labels, each.argmax(1)), 4) for each in (answers, expected))


def mcc(labels: np.ndarray, answers: np.ndarray) -> float:
    """Return the Matthews correlation coefficient; 0 where one class is missing."""
    with np.errstate(invalid="ignore"):
        found = float(np.corrcoef(labels, answers)[0, 1])
    return found if np.isfinite(found) else 0.0


def read_rows(path: str, count: int) -> tuple[list[str], list[str], np.ndarray]:
    """Return `count` sentences for the bulk, and a snapshot's sentences with their labels."""
    import pandas as pd

    rows = pd.read_parquet(path, columns=["sentence", "label"])
    sentences = rows["sentence"].tolist()
    return (sentences * -(-count // len(sentences)))[:count], sentences, rows["label"].to_numpy(np.int64)


def measure(logits: Callable[[list[str]], Any], texts: list[str], from_tokens: Callable[[], Any]) -> dict[str, Any]:
    """Time a system in bulk and one by one."""
    bulk = best_of(lambda: logits(texts))
    tokens = best_of(from_tokens)
    singles = [partial(logits, [sentence]) for sentence in texts[:SINGLE]]
    rounds = [time_each(singles) for _ in range(1 + SINGLE_ROUNDS)]
    single = min(rounds[1:], key=lambda times: float(np.median(times)))  # the first round captures and warms up
    return {
        "text_per_second": round(len(texts) / bulk),
        "tokens_per_second": round(len(texts) / tokens),
    } | percentiles(single, (50, 99))


def run_torch(options: argparse.Namespace) -> None:
    """Measure torch, and its answers in fp32."""
    import torch

    from tasks.inference.tokenization import load_tokenizer, sorted_batches, tokenise
    from tasks.training.model import load_classifier

    texts, sentences, labels = read_rows(options.labelled, options.sentences)
    tokenizer = load_tokenizer(options.folder, MAX_LENGTH)
    model = load_classifier(options.folder).to(options.device).eval()
    pad = model.config.pad_token_id or 0

    @torch.inference_mode()
    def run(tokens: Any) -> np.ndarray:
        result = np.zeros((len(tokens.lengths), 2), np.float32)
        for rows in sorted_batches(tokens.lengths, TORCH_BATCH):
            ids, mask = (torch.from_numpy(array).to(options.device) for array in tokens.batch(rows, pad))
            result[rows] = model(input_ids=ids, attention_mask=mask).logits.float().cpu().numpy()
        return result

    def logits(batch: list[str]) -> np.ndarray:
        return run(tokenise(tokenizer, batch))

    fp32 = logits(sentences)
    model.to(torch.bfloat16)
    tokens = tokenise(tokenizer, texts)
    row = {"variant": "bf16"} | measure(logits, texts, lambda: run(tokens))
    np.savez(Path(options.bundle) / "answers.npz", labels=labels, fp32=fp32, logits=logits(sentences))
    print(json.dumps(row))


def run_bundle(options: argparse.Namespace) -> None:
    """Export with the tree on the path, and measure the bundle."""
    try:
        from tasks.export.bundle_export import export_bundle
        from tasks.inference.classifier import Classifier
        from tasks.inference.packed_shapes import packed_batches
        from tasks.inference.tokenization import sorted_batches, tokenise
    except ModuleNotFoundError:  # the modules' names before dcfa1bf's packages
        from tasks.batching import row_batches, sorted_batches, tokenise  # type: ignore[import-not-found,no-redef]
        from tasks.predict import Classifier  # type: ignore[import-not-found,no-redef]

        from tasks.export import export_bundle  # type: ignore[attr-defined,no-redef]

        packed_batches = partial(row_batches, rows=ROWS, row=ROW_TOKENS)
    texts, sentences, _ = read_rows(options.labelled, options.sentences)
    origin = {
        "labels": ["unacceptable", "acceptable"], "max_length": MAX_LENGTH, "encoder": "benchmark", "dataset": "",
        "git_commit": "unknown",
    }  # fmt: skip
    started = time.perf_counter()
    exported = export_bundle(options.folder, options.bundle, origin, options.rows)  # type: ignore[arg-type]
    seconds = time.perf_counter() - started
    classifier: Any = Classifier.from_bundle(exported["bundle"], options.device)
    tokens = tokenise(classifier._tokenizer, texts)
    on_gpu = options.device == "cuda"
    batches = packed_batches(tokens.lengths) if on_gpu else sorted_batches(tokens.lengths, 32)
    pool = getattr(classifier, "_pool", None) or getattr(classifier, "_crowd", None) or classifier._runner
    run = getattr(pool, "run_batches", None) or pool.answers
    pad = classifier.manifest["pad_id"]
    row = {"variant": classifier.variant, "exporter": exported["exporter"], "export_seconds": round(seconds, 1)}
    row |= {"left_out": exported["left_out"], "provider": classifier.provider}
    row |= measure(classifier.logits, texts, lambda: list(run(tokens.batch(rows, pad) for rows in batches)))
    np.savez(Path(options.bundle) / "answers.npz", logits=classifier.logits(sentences))
    print(json.dumps(row))


WORKERS = {"torch": run_torch, "before": run_bundle, "verdict": run_bundle}

if __name__ == "__main__":
    main()
