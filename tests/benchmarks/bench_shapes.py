"""Times the first and the second run of each batch of `verdict score` on a GPU: what a shape costs that is new.

    make bench BENCH=shapes ARGS="--bundle DIR --text FILE --out FILE2"

A text has one sentence a line, such as `gather_text.py` writes. Parts of 10,000 sentences are scored one after another,
as `verdict score` does, so that later parts meet shapes of earlier ones; at the end some sentences are answered one by
one. `--attention` names sets of kernels, as ONNX Runtime's provider option `sdpa_kernel` counts them (1 Flash, 2
efficient, 8 cuDNN, 16 unfused, 119 those that sessions use; 0: its own choice). Each set and text has a process of its
own, one after another, and nothing else is on the GPU.
"""

import argparse
import json
import multiprocessing
import os
import time
from pathlib import Path
from statistics import median
from typing import Any
from unittest.mock import patch

from bench_ingestion import cpu_name

from tasks.core.files import write_json
from tasks.core.provenance import git_commit, library_versions
from tasks.inference.classifier import Classifier
from tasks.inference.sessions import GPU_OPTIONS, uses_cuda_graphs
from tasks.training.device import device_name

PART = 10_000  # sentences
SINGLE = 300  # sentences answered one by one, each twice


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", required=True)
    parser.add_argument("--text", nargs="+", required=True)
    parser.add_argument("--parts", type=int, default=5)
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    shipped = int(GPU_OPTIONS["sdpa_kernel"])
    parser.add_argument("--attention", type=int, nargs="+", default=[shipped], help=f"[{shipped}]")
    parser.add_argument("--out", default="")
    parser.add_argument("--commit", default="")
    options = parser.parse_args()
    rows = []
    for text in options.text:
        for kernels in options.attention:
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                rows += pool.apply(measure, (options.bundle, options.device, text, options.parts, kernels))
    result = {
        "benchmark": "first runs of shapes",
        "hardware": f"{device_name(options.device)}, {cpu_name()}, {os.cpu_count()} CPU cores",
        "versions": library_versions(),
        "commit": options.commit or git_commit(),
        "rows": rows,
    }
    for row in rows:
        print(json.dumps(row))
    if options.out:
        write_json(Path(options.out), result)


def measure(bundle: str, device: str, text: str, parts: int, kernels: int) -> list[dict[str, Any]]:
    """Return a row for each batch of the parts, and one for single sentences, with a set of kernels of attention."""
    sentences = [line for line in Path(text).read_text(encoding="utf-8").splitlines() if line]
    classifier = open_classifier(bundle, device, kernels)
    what = {
        "encoder": classifier.manifest["encoder"], "variant": classifier.variant, "text": Path(text).stem,
        "attention": kernels, "captures": uses_cuda_graphs(classifier._runner._session),
    }  # fmt: skip
    classifier.logits(sentences[-100:])  # what is loaded at first use, of sentences in no part
    rows = []
    for number in range(parts):
        part = sentences[number * PART : (number + 1) * PART]
        rows += [what | {"part": number + 1} | row for row in time_batches(classifier, part)]
    return [*rows, what | time_single(classifier, sentences[:SINGLE])]


def open_classifier(bundle: str, device: str, kernels: int) -> Classifier:
    """Load a bundle with a set of kernels of attention."""
    with patch.dict(GPU_OPTIONS, {"sdpa_kernel": str(kernels)}):
        return Classifier.from_bundle(bundle, device)


def time_single(classifier: Classifier, sentences: list[str]) -> dict[str, float]:
    """Answer sentences one by one, twice; return the median and the slowest of both times, in milliseconds."""
    found = {}
    for name in ("first", "second"):
        taken = []
        for sentence in sentences:
            started = time.perf_counter()
            classifier.logits([sentence])
            taken.append(1e3 * (time.perf_counter() - started))
        found |= {f"single_{name}_ms": round(median(taken), 3), f"single_{name}_slowest_ms": round(max(taken), 1)}
    return found


def time_batches(classifier: Classifier, sentences: list[str]) -> list[dict[str, Any]]:
    """Run each batch of a part twice; return its shape and the milliseconds of both runs."""
    tokens = classifier._tokenise(sentences)
    rows = []
    for indices in classifier._batch_indices(tokens.lengths):
        batch = tokens.batch(indices, classifier.manifest["pad_id"])
        taken = []
        for _ in range(2):
            started = time.perf_counter()
            classifier._runner.logits(*batch)
            taken.append(round(1e3 * (time.perf_counter() - started), 1))
        rows.append(
            {"sentences": len(indices), "tokens": batch[0].shape[1], "first_ms": taken[0], "second_ms": taken[1]}
        )
    return rows


if __name__ == "__main__":
    main()
