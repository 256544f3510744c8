"""Times ways to make the graph for CPUs side by side, and counts the labels that differ from torch's.

    make bench BENCH=int8 ARGS="--model DIR2 --data DIR --out FILE"

DIR holds CoLA-format files and DIR2 is what `fine_tune` wrote. From tokens to logits, like lengths together:

    plain            the graph of standard operators in fp32
    by blocks        8-bit weights in blocks of 32
    rows, fused      a scale and a zero for each token, normalisations fused
    by rows          the same with the normalisations taken apart: what is shipped where it answers like torch
    by rows, crowd   the same graph, each batch on one core
"""

import argparse
import json
import os
import tempfile
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from bench_inference import Run, in_torch, read_rows, typical
from bench_ingestion import cpu_name
from onnxruntime.transformers.onnx_model import OnnxModel
from timing import best_of, percentiles, time_each

from tasks.core.provenance import git_commit, library_versions
from tasks.data.snapshots import read_snapshot
from tasks.export.encoder_families import load_encoder
from tasks.export.encoder_graph import write_encoder
from tasks.export.int8 import quantise_rows
from tasks.export.module_writer import CPU_TARGET
from tasks.export.onnx_export import write_fp32, write_int8_blockwise, write_int8_per_token
from tasks.inference.batch_pool import BatchPool
from tasks.inference.classifier import CPU_BATCH
from tasks.inference.cpu_limits import available_cores
from tasks.inference.runner import Runner
from tasks.inference.sessions import open_session
from tasks.inference.tokenization import TokenIds, load_tokenizer, sorted_batches, tokenise

MAX_LENGTH = 128


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--data", default="sample")
    parser.add_argument("--sentences", type=int, default=4_096)
    parser.add_argument("--out", default="")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        texts = read_snapshot(read_rows(options, scratch))["sentence"].tolist()[: options.sentences]
        tokens = tokenise(load_tokenizer(options.model, MAX_LENGTH), texts)
        batches = [tokens.batch(rows, 0) for rows in sorted_batches(tokens.lengths, CPU_BATCH)]
        single = [tokens.batch(rows, 0) for rows in typical(tokens, 1)]
        result: dict[str, Any] = {
            "benchmark": "int8",
            "hardware": f"{cpu_name()}, {available_cores()} of {os.cpu_count()} CPU cores",
            "versions": library_versions(),
            "commit": git_commit(),
            "model": Path(options.model).parent.name,
            "sentences": len(texts),
            "rows": [],
        }
        run = in_torch(options.model, "cpu")
        expected = np.concatenate([run(*batch).numpy() for batch in batches])
        seconds = best_of(lambda: [run(*batch) for batch in batches])
        result["rows"].append({"way": "torch fp32", **speed(seconds, len(texts)), **latency(run, single)})
        for way, runner in open_ways(options.model, scratch).items():
            found = np.concatenate(list(runner.run_batches(batches)))
            seconds = best_of(lambda runner=runner: list(runner.run_batches(batches)))  # type: ignore[misc]
            row = {"way": way, **speed(seconds, len(texts))}
            if isinstance(runner, Runner):
                row |= latency(runner.logits, single)
            row["largest_difference"] = round(float(np.abs(found - expected).max()), 4)
            row["equal_labels"] = round(float((found.argmax(1) == expected.argmax(1)).mean()), 4)
            result["rows"].append(row)
    print(json.dumps(result, indent=2))
    if options.out:
        Path(options.out).write_text(json.dumps(result, indent=2) + "\n")


def speed(seconds: float, sentences: int) -> dict[str, Any]:
    return {"sentences_per_second": round(sentences / seconds)}


def latency(run: Run, batches: list[tuple[TokenIds, TokenIds]]) -> dict[str, float]:
    return percentiles(time_each([partial(run, *batch) for batch in batches], 2))


def open_ways(model: str, scratch: str) -> dict[str, Runner | BatchPool]:
    """Write a model's graphs and open every way to run it on a CPU."""
    encoder = load_encoder(model)
    fused = OnnxModel(write_encoder(encoder, replace(CPU_TARGET, fused_norm=True)))
    quantise_rows(fused)
    made = {
        "plain": write_fp32(encoder),
        "by blocks": write_int8_blockwise(encoder),
        "rows, fused": fused.model,
        "by rows": write_int8_per_token(encoder),
    }
    ways: dict[str, Runner | BatchPool] = {}
    for way, graph in made.items():
        path = Path(scratch) / "graph.onnx"
        onnx.save_model(graph, path)
        ways[way] = Runner(open_session(path, "cpu"), "cpu")
    alone = Runner(open_session(path, "cpu", threads=1), "cpu")
    ways["by rows, crowd"] = BatchPool(lambda: alone, alone, available_cores())
    return ways


if __name__ == "__main__":
    main()
