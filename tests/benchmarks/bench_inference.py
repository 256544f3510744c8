"""Times inference side by side in one process: torch, ONNX Runtime on the plain export, and ours.

    make bench BENCH=inference ARGS="--data DIR --random base --device cuda --out FILE"
    make bench BENCH=inference ARGS="--device cpu"

DIR holds CoLA-format files; `--random` takes a BERT of that size with random weights, where only speed counts, and
`--model` a folder that `fine_tune` wrote. All systems get the same tokens from host memory and bring logits back to it:
sentences sorted by length, as many at a time as the row says ("bulk": as many as suit the system; ours side by side,
and to compare batch by batch: `one_by_one_...`). `p50_ms` and its like are of such a batch at CoLA's lengths. Ours is
timed from text as well, tokenising included: `text_...`. `--attention` names sets of kernels, as in bench_shapes.py.

    torch    the model in bf16 on a GPU, in fp32 on a CPU, eager
    naive    model.onnx, the fp32 export, in a session with default options
    verdict  the variant that serves on the device, as `tasks.inference.classifier` runs it
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from bench_finetune import SIZES, write_random
from bench_ingestion import cpu_name
from bench_shapes import open_classifier
from timing import best_of, percentiles, time_each

from tasks.core.provenance import git_commit, library_versions
from tasks.data.snapshots import read_snapshot, write_snapshot
from tasks.data.sources import locate_sources
from tasks.export.bundle_export import export_bundle
from tasks.inference.bundle import Origin
from tasks.inference.classifier import CPU_BATCH, Classifier
from tasks.inference.packed_shapes import packed_batches
from tasks.inference.sessions import CPU, CUDA, uses_cuda_graphs
from tasks.inference.tokenization import (
    TokenIds,
    TokenizedText,
    load_tokenizer,
    sorted_batches,
    tokenise,
)
from tasks.training.device import device_name, resolve_device
from tasks.training.model import LABELS, load_classifier
from tasks.training.pretrained import locate_encoder

MAX_LENGTH = 128
Run = Callable[[TokenIds, TokenIds], Any]


def main() -> None:
    options = parse_options()
    device = resolve_device(options.device)
    with tempfile.TemporaryDirectory() as scratch:
        model = options.model or write_model(options, scratch)
        rows = read_rows(options, scratch)
        exported = export_bundle(model, scratch, origin(model), rows)
        texts = read_snapshot(rows)["sentence"].tolist()
        texts = (texts * -(-options.sentences // len(texts)))[: options.sentences]
        tokens = tokenise(load_tokenizer(model, MAX_LENGTH), texts)
        started = time.perf_counter()
        classifier = Classifier.from_bundle(exported["bundle"], device)
        loaded = time.perf_counter() - started
        classifier.logits(texts[:1])
        first = time.perf_counter() - started
        systems: dict[str, tuple[Run, Classifier]] = {
            "torch": (in_torch(model, device), classifier),
            "naive": (in_naive_session(f"{exported['bundle']}/model.onnx", device), classifier),
            "verdict": (classifier._runner.logits, classifier),
        }
        for kernels in options.attention:
            other = open_classifier(exported["bundle"], device, kernels)
            systems[f"verdict, attention {kernels}"] = other._runner.logits, other
        found: list[dict[str, Any]] = []
        result = {
            "benchmark": "inference",
            "hardware": f"{device_name(device)}, {cpu_name()}, {os.cpu_count()} CPU cores",
            "versions": library_versions() | {"cuda": torch.version.cuda},
            "commit": options.commit or git_commit(),
            "model": options.random or Path(model).name,
            "variant": classifier.variant,
            "provider": classifier.provider,
            "captures": uses_cuda_graphs(classifier._runner._session),
            "sentences": len(texts),
            "mean_tokens": round(float(tokens.lengths.mean()), 2),
            "fused": exported["fused"],
            "parity": exported["variants"],
            "left_out": exported["left_out"],
            "load_seconds": round(loaded, 3),
            "first_answer_seconds": round(first, 3),
            "rows": found,
        }
        for batch in [*options.batches, "bulk"]:
            for name, (run, own) in systems.items():
                system = name.partition(",")[0]
                if system not in options.systems:
                    continue
                row = {"system": name, "batch": batch} | measure(system, run, batch, tokens, own)
                if system == "verdict":
                    row |= from_text(own, texts, batch, options.repeats)
                found.append(row)
                print(json.dumps(row), flush=True)
    if options.out:
        Path(options.out).write_text(json.dumps(result, indent=2) + "\n")


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="sample")
    parser.add_argument("--encoder", default="packaged")
    parser.add_argument("--model", default="", help="folder that a training run wrote, instead of --encoder")
    parser.add_argument("--random", choices=sorted(SIZES), default="")
    parser.add_argument("--vocabulary", default="", help="folder with the tokenizer.json of --random")
    parser.add_argument("--device", default="auto", choices=["auto", "cuda", "cpu"])
    parser.add_argument("--systems", nargs="+", default=["torch", "naive", "verdict"])
    parser.add_argument("--attention", type=int, nargs="*", default=[], help="more sets of kernels for ours")
    parser.add_argument("--batches", type=int, nargs="*", default=[1, 8, 32, 256])
    parser.add_argument("--sentences", type=int, default=4_096, help="of the bulk")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", default="")
    parser.add_argument("--commit", default="")
    return parser.parse_args()


def write_model(options: argparse.Namespace, scratch: str) -> str:
    """Give an encoder an untrained head and write it as a training run would."""
    encoder = write_random(options, scratch) if options.random else locate_encoder(options.encoder)["folder"]
    folder = Path(scratch) / "model"
    torch.manual_seed(0)
    load_classifier(encoder).save_pretrained(folder)
    load_tokenizer(encoder, MAX_LENGTH).save(str(folder / "tokenizer.json"))
    return str(folder)


def read_rows(options: argparse.Namespace, scratch: str) -> str:
    """Return the training sentences' snapshot."""
    sources = locate_sources([options.data], "", "", scratch)
    return write_snapshot(sources["train"], scratch)["path"]


def origin(model: str) -> Origin:
    return Origin(
        labels=LABELS, max_length=MAX_LENGTH, encoder=Path(model).name, dataset="benchmark", git_commit=git_commit()
    )


def in_torch(folder: str, device: str) -> Run:
    """Return torch's model, eager."""
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    model = load_classifier(folder).to(device, dtype).eval()

    @torch.inference_mode()
    def run(ids: TokenIds, mask: TokenIds) -> Any:
        inputs = {"input_ids": ids, "attention_mask": mask}
        return (
            model(**{name: torch.from_numpy(array).to(device) for name, array in inputs.items()}).logits.float().cpu()
        )

    return run


def in_naive_session(graph: str, device: str) -> Run:
    """Return a session with default options."""
    session = onnxruntime.InferenceSession(graph, providers=[CUDA, CPU] if device == "cuda" else [CPU])
    inputs = {node.name for node in session.get_inputs()}

    def run(ids: TokenIds, mask: TokenIds) -> Any:
        feed = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
        return session.run(None, {name: feed[name] for name in inputs})[0]

    return run


def measure(name: str, run: Run, batch: int | str, tokens: TokenizedText, classifier: Classifier) -> dict[str, float]:
    """Time batches of tokens: sentences a second over all of them, or a batch's percentiles."""
    if batch == "bulk":
        places = bulk_batches(name, tokens, classifier)

        def rate(answers: Callable[[Iterator[tuple[TokenIds, TokenIds]]], Iterable[Any]]) -> int:
            seconds = best_of(lambda: list(answers(tokens.batch(rows, 0) for rows in places)))
            return round(len(tokens.lengths) / seconds)

        one_by_one = rate(lambda batches: (run(*batch) for batch in batches))
        if name != "verdict" or not classifier._pool:
            return {"sentences_per_second": one_by_one}
        return {
            "sentences_per_second": rate(classifier._pool.run_batches),
            "one_by_one_sentences_per_second": one_by_one,
        }
    drawn = typical(tokens, int(batch))
    milliseconds = time_each([lambda rows=rows: run(*tokens.batch(rows, 0)) for rows in drawn], 2)  # type: ignore[misc]
    return percentiles(milliseconds) | {"sentences_per_second": round(1e3 * int(batch) / statistics.mean(milliseconds))}


def from_text(classifier: Classifier, texts: list[str], batch: int | str, repeats: int) -> dict[str, float]:
    """Time ours from sentences to logits."""
    if batch == "bulk":
        seconds = best_of(lambda: classifier.logits(texts), repeats)
        return {"text_sentences_per_second": round(len(texts) / seconds)}
    rng = np.random.default_rng(0)
    drawn = [
        [texts[i] for i in rng.integers(0, len(texts), int(batch))] for _ in range(200 if int(batch) < 256 else 30)
    ]
    milliseconds = time_each([partial(classifier.logits, part) for part in drawn], 2)
    return {f"text_{name}": value for name, value in percentiles(milliseconds).items()}


def bulk_batches(name: str, tokens: TokenizedText, classifier: Classifier) -> list[TokenIds]:
    """Divide sentences as suits a system."""
    if classifier.provider == CUDA:
        return packed_batches(tokens.lengths) if name == "verdict" else sorted_batches(tokens.lengths, 256)
    return sorted_batches(tokens.lengths, CPU_BATCH)


def typical(tokens: TokenizedText, batch: int) -> list[TokenIds]:
    """Draw batches of neighbours in the order of length, across all lengths."""
    order = np.argsort(tokens.lengths, kind="stable")
    rng = np.random.default_rng(0)
    starts = rng.integers(0, len(order) - batch + 1, 200 if batch < 256 else 30)
    return [order[start : start + batch] for start in starts]


if __name__ == "__main__":
    main()
