"""What a chunk of `verdict score` costs, step by step, in one process and in several at the same time.

    make bench BENCH=score_steps ARGS="--bundle DIR --device cuda --processes 1 4 8 --out FILE"

Processes do what a worker of a cluster does, without Ray, each with its chunks of a file of generated sentences and as
many threads: one on a CPU, with a GPU an equal share of the CPUs. `wall_ms` and `cpu_ms` (all threads) are means a
chunk of 10,000 sentences, after WARM_UP chunks: reading, the digest, tokens, model, the table of answers, and writing.
"""

import argparse
import gc
import json
import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pyarrow as pa
import pyarrow.parquet as pq
from bench_ingestion import cpu_name
from bench_scale_out import make_bundle, write_sentences

from tasks.core.files import write_json
from tasks.core.provenance import git_commit, library_versions
from tasks.data.sentence_chunks import Chunk, plan_chunks, read_chunk
from tasks.data.sentences import open_source
from tasks.inference.classifier import Classifier
from tasks.serving.score_parts import PART_ROWS, Scorer, write_part
from tasks.training.device import device_name

WARM_UP = 3  # chunks
STEPS = ("read", "digest", "tokens", "answer", "score", "write")  # answer has tokens in it, score has answer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", default="", help="[a tiny model, trained on a toy corpus]")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--chunks", type=int, default=20, help="of each process, timed [20]")
    parser.add_argument("--parquet", action="store_true", help="sentences in Parquet instead of text")
    parser.add_argument("--processes", type=int, nargs="+", default=[1])
    parser.add_argument("--out", default="")
    parser.add_argument("--commit", default="")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        bundle = options.bundle or make_bundle("tiny", Path(scratch))
        rows = [row for count in options.processes for row in measure(Path(scratch), bundle, count, options)]
    result = {
        "benchmark": "steps of scoring",
        "hardware": f"{device_name(options.device)}, {cpu_name()}, {os.cpu_count()} CPU cores",
        "versions": library_versions(),
        "commit": options.commit or git_commit(),
        "rows": rows,
    }
    if options.out:
        write_json(Path(options.out), result)


def measure(folder: Path, bundle: str, processes: int, options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Yield a row for each step, of so many processes at the same time."""
    path, each = folder / f"{processes}.txt", WARM_UP + options.chunks
    write_sentences(path, processes * each * PART_ROWS)
    if options.parquet:
        lines, path = path.read_text(encoding="utf-8").splitlines(), path.with_suffix(".parquet")
        pq.write_table(pa.table({"sentence": lines}), path, row_group_size=PART_ROWS)
    chunks = list(plan_chunks(open_source(str(path)), PART_ROWS))
    threads = max(1, len(os.sched_getaffinity(0)) // processes) if options.device == "cuda" else 1
    os.environ["RAYON_NUM_THREADS"] = str(threads)  # of the tokenizer, in the processes that start now
    context = multiprocessing.get_context("spawn")
    with context.Pool(processes) as pool:
        barrier = context.Manager().Barrier(processes)
        parts = [chunks[number * each : (number + 1) * each] for number in range(processes)]
        given = [
            (path, part, folder / f"part-{number}", bundle, options.device, threads, barrier)
            for number, part in enumerate(parts)
        ]
        found = pool.starmap(time_steps, given, chunksize=1)
    for name in ("chunk", *STEPS):
        wall, cpu = (sum(times[name][kind] for times in found) / processes for kind in (0, 1))
        row = {
            "processes": processes, "threads": threads, "step": name,
            "wall_ms": round(1e3 * wall, 1), "cpu_ms": round(1e3 * cpu, 1),
        }  # fmt: skip
        print(json.dumps(row), flush=True)
        yield row


def time_steps(
    path: Path, chunks: list[Chunk], part: Path, bundle: str, device: str, threads: int, barrier: Any
) -> dict[str, list[float]]:
    """Score chunks; return the mean seconds, by the clock and of the processor, of each step."""
    source = open_source(str(path))
    scorer = Scorer(Classifier.from_bundle(bundle, device, spin=False, threads=threads), "1")
    gc.freeze()  # as a worker does
    times = {name: [0.0, 0.0] for name in ("chunk", *STEPS)}

    def timed(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            started = time.perf_counter(), time.process_time()
            result = function(*arguments)
            times[name][0] += time.perf_counter() - started[0]
            times[name][1] += time.process_time() - started[1]
            return result

        return call

    def score(chunk: Chunk) -> None:
        records = timed("read", lambda: list(read_chunk(source, chunk)))()
        key = timed("digest", scorer.key)(records)
        table = timed("score", scorer.score)(records)
        timed("write", write_part)(part, table, key)

    with (
        patch.object(Classifier, "_tokenise", timed("tokens", Classifier._tokenise)),
        patch.object(Classifier, "answer", timed("answer", Classifier.answer)),
    ):
        for number, chunk in enumerate(chunks):
            if number == WARM_UP:
                barrier.wait()
                times |= {name: [0.0, 0.0] for name in times}
            timed("chunk", score)(chunk)
    return {name: [total / (len(chunks) - WARM_UP) for total in both] for name, both in times.items()}


if __name__ == "__main__":
    main()
