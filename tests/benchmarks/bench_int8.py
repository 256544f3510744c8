"""Times ways to make the graph for CPUs side by side, and counts the labels that differ from torch's.

    make bench BENCH=int8 ARGS="--model DIR2 --data DIR --out FILE"

DIR holds CoLA-format files and DIR2 is what `fine_tune` wrote. From tokens to logits, like lengths together:

    plain            the graph of standard operators in fp32
    by blocks        8-bit weights in blocks of 32
    rows, fused      a scale for each token, normalisations fused
    by rows          the same with the normalisations taken apart: what is shipped where it answers like torch
    before           a graph that another checkout exported (`--before FILE`)
    ..., each core   the same graph, each batch on one core

The ways take turns; the fastest of the rounds counts, and `ratio` is the median of the rounds' ratios to `before`.
"""

import argparse
import json
import os
import tempfile
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from bench_inference import Run, in_torch, read_rows, typical
from bench_ingestion import cpu_name
from numpy.typing import NDArray
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
from tasks.inference.cpu_limits import available_cpus
from tasks.inference.runner import Runner
from tasks.inference.sessions import open_session
from tasks.inference.tokenization import TokenIds, load_tokenizer, sorted_batches, tokenise
from tasks.training.model import pad_token_id

MAX_LENGTH = 128


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--data", default="sample")
    parser.add_argument("--sentences", type=int, default=4_096)
    parser.add_argument("--before", default="", help="model.cpu.onnx of a bundle that another checkout exported")
    parser.add_argument("--before-commit", default="dcfa1bf")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--out", default="")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        texts = read_snapshot(read_rows(options, scratch))["sentence"].tolist()[: options.sentences]
        tokens = tokenise(load_tokenizer(options.model, MAX_LENGTH), texts)
        pad_id = pad_token_id(options.model)
        batches = [tokens.batch(rows, pad_id) for rows in sorted_batches(tokens.lengths, CPU_BATCH)]
        single = [tokens.batch(rows, pad_id) for rows in typical(tokens, 1)]
        run = in_torch(options.model, "cpu")
        expected = np.concatenate([run(*batch).numpy() for batch in batches])
        seconds = best_of(lambda: [run(*batch) for batch in batches])
        rows = [{"way": "torch fp32", **speed(seconds, len(texts)), **latency(run, single)}]
        rows += measure(open_ways(options, scratch), batches, single, expected, options.rounds)
    result: dict[str, Any] = {
        "benchmark": "int8",
        "hardware": f"{cpu_name()}, {available_cpus()} of {os.cpu_count()} CPU cores",
        "versions": library_versions(),
        "commit": git_commit(),
        "baseline_commit": options.before_commit if options.before else None,
        "model": Path(options.model).parent.name,
        "sentences": len(texts),
        "rows": rows,
    }
    print(json.dumps(result, indent=2))
    if options.out:
        Path(options.out).write_text(json.dumps(result, indent=2) + "\n")


Batches = list[tuple[TokenIds, TokenIds]]


def measure(
    ways: dict[str, Runner | BatchPool], batches: Batches, single: Batches, expected: NDArray[np.float32], rounds: int
) -> list[dict[str, Any]]:
    """Time all ways in turn, and compare their answers with torch's."""
    bulk: dict[str, list[float]] = {way: [] for way in ways}
    processor: dict[str, list[float]] = {way: [] for way in ways}
    alone: dict[str, list[dict[str, float]]] = {way: [] for way in ways}
    rows = []
    for way, runner in ways.items():
        found = np.concatenate(list(runner.run_batches(batches)))
        equal = round(float((found.argmax(1) == expected.argmax(1)).mean()), 4)
        rows.append({"way": way, "largest_difference": round(float(np.abs(found - expected).max()), 4)})
        rows[-1]["equal_labels"] = equal
    for _ in range(rounds):
        for way, runner in ways.items():
            started, busy = time.perf_counter(), time.process_time()
            list(runner.run_batches(batches))
            bulk[way].append(time.perf_counter() - started)
            processor[way].append(time.process_time() - busy)
            if isinstance(runner, Runner):
                alone[way].append(latency(runner.logits, single))
    for row in rows:
        way = str(row["way"])
        row |= speed(min(bulk[way]), len(expected)) | {
            "cpu_ms_per_sentence": round(1e3 * min(processor[way]) / len(expected), 3)
        }
        row |= min(alone[way], key=lambda times: times["p50_ms"], default={})
        before = "before" if isinstance(ways[way], Runner) else "before, each core"
        if before in ways:
            row["ratio"] = median_ratio(bulk[before], bulk[way])
            row["cpu_ratio"] = median_ratio(processor[before], processor[way])
    return rows


def median_ratio(before: list[float], now: list[float]) -> float:
    return round(float(np.median(np.array(before) / np.array(now))), 3)


def speed(seconds: float, sentences: int) -> dict[str, Any]:
    return {"sentences_per_second": round(sentences / seconds)}


def latency(run: Run, batches: list[tuple[TokenIds, TokenIds]]) -> dict[str, float]:
    return percentiles(time_each([partial(run, *batch) for batch in batches], 2))


def open_ways(options: argparse.Namespace, scratch: str) -> dict[str, Runner | BatchPool]:
    """Write a model's graphs and open every way to run it on a CPU."""
    encoder = load_encoder(options.model)
    fused = OnnxModel(write_encoder(encoder, replace(CPU_TARGET, fused_norm=True)))
    quantise_rows(fused)
    made = {
        "plain": write_fp32(encoder),
        "by blocks": write_int8_blockwise(encoder),
        "rows, fused": fused.model,
        "by rows": write_int8_per_token(encoder),
    }
    if options.before:
        made["before"] = onnx.load(options.before)
    ways: dict[str, Runner | BatchPool] = {}
    for way, graph in made.items():
        path = Path(scratch) / "graph.onnx"
        onnx.save_model(graph, path)
        ways[way] = Runner(open_session(path, "cpu"), MAX_LENGTH, "cpu")
        if way in ("by blocks", "by rows", "before"):
            alone = Runner(open_session(path, "cpu", threads=1), MAX_LENGTH, "cpu")
            ways[f"{way}, each core"] = BatchPool(partial(_same, alone), alone, available_cpus())
    return ways


def _same(runner: Runner) -> Runner:
    return runner


if __name__ == "__main__":
    main()
