"""Scores an input on a Ray cluster: its chunks by the same functions, into the same parts, as one process does.

The driver divides the input before Ray is connected; a thread of it merges the parts, in the order of the input, while
others are still scored. Workers read, score and write; a chunk goes to another worker where its own is lost, up to
RETRIES times, but not where it raises an error. Input and output lie where every node sees them.
"""

import functools
import gc
import os
import platform
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from operator import itemgetter
from pathlib import Path
from typing import Any, NamedTuple

from tasks.cluster.connection import check_cluster, connected
from tasks.cluster.gpu_memory import min_gpu_memory
from tasks.cluster.installation import Installation, check_here, describe_installation, missing_code
from tasks.core.errors import UsageError, VerdictError, first_line
from tasks.data.object_store import is_remote
from tasks.data.sentence_chunks import Chunk
from tasks.data.sentences import STDIO, SentenceSource
from tasks.inference.bundle import Manifest, verify
from tasks.inference.classifier import Classifier
from tasks.serving.batch_scoring import check_paths, write_scores
from tasks.serving.chunk_scoring import ScoredChunk, score_chunk
from tasks.serving.score_counts import ScoreCounts, ScoreResult
from tasks.serving.score_parts import PART_ROWS, Scorer, Stamp

RETRIES = 3  # of a chunk whose worker was lost: one that ends each worker must not run for ever
GPU_WORKERS = 8  # that share a GPU, where it has CPUs and memory for them: tokenising takes longer than the GPU
GPU_WORKER_BYTES = 4 << 30  # of its memory for each; with a 110 M model one takes 3.7 GB
CHUNKS_AHEAD = 2  # chunks that each worker may have: one waits while another is scored
BUNDLE_COPY = "bundle"  # in the parts' folder


class RayWork(NamedTuple):
    """What each worker of a run gets, besides its chunks."""

    source: SentenceSource
    folder: Path
    manifest_digest: str
    version: str | None
    device: str
    refuse_truncated: bool
    size: int
    installation: Installation


class Share(NamedTuple):
    """What one worker gets of the cluster, and how many workers there are."""

    cpus: int
    gpus: float
    workers: int


def score_in_worker(work: RayWork, threads: int, number: int, chunk: Chunk) -> tuple[ScoredChunk, ScoreCounts, str]:
    """Write the parts of a chunk, in a process of a cluster; return it with its counts, and where the model runs.

    Raises:
        VerdictError: if this node does not see input or output, or runs other code.
    """
    os.environ["RAYON_NUM_THREADS"] = str(threads)  # of the tokenizer, which reads it once
    check_here(work.installation)
    if not work.folder.is_dir():
        raise VerdictError(
            f"node {platform.node()} has no folder {work.folder}; expected an output on storage of all nodes"
        )
    counts = ScoreCounts(work.source.name)
    model = _load(work.folder / BUNDLE_COPY, work.manifest_digest, work.device, threads)
    scorer = Scorer(model, work.version, work.refuse_truncated)
    scored = score_chunk(work.source, number, chunk, work.folder, scorer, work.size, counts)
    return scored, counts, model.provider


@functools.lru_cache(maxsize=1)
def _load(bundle: Path, manifest_digest: str, device: str, threads: int) -> Classifier:
    """Return the model; a process of the cluster keeps it for its next chunk."""
    model = Classifier.from_bundle(bundle, device, spin=False, expected=manifest_digest, threads=threads)
    gc.freeze()  # each full collection would look through what Ray keeps here: half of the time with a tiny model
    return model


def score_on_ray(
    path: str,
    out: str,
    bundle: str,
    version: str | None,
    device: str,
    columns: str,
    form: str,
    refuse_truncated: bool,
    manifest_digest: str,
    address: str,
    workers: int = 0,
    size: int = PART_ROWS,
) -> ScoreResult:
    """Score an input on a cluster; finished parts of a run that was killed are used, whoever scored them.

    Args:
        path: file, folder or address; what is not an address lies on storage that all nodes share.
        out: Parquet file on such storage.
        bundle: folder, which is copied there for the time of the run.
        version: its registered version; None where it is not registered.
        device: cuda, cpu, or auto: cuda where the cluster has GPUs.
        columns: text=NAME, where the column has no usual name.
        form: format of the input; empty: by the file's extension.
        refuse_truncated: quarantine sentences of more tokens than the model reads.
        manifest_digest: of the bundle that it has to be; empty: any.
        address: of the cluster; see `tasks.cluster.connection`.
        workers: maximum number, on GPUs rounded up to the same number on each; 0: one per CPU, or up to GPU_WORKERS
            per GPU, as many as its memory holds.
        size: records of a part.

    Raises:
        UsageError: if input, output or address are invalid, or the cluster has no such device.
        DataRejected: if no row could be scored, or the input is damaged.
        VerdictError: if the cluster cannot be used, a chunk is lost too often, or the disk is full.
    """
    check_ray(path, out, address)
    source = _absolute(check_paths(path, out, columns, form))
    manifest = verify(Path(bundle), manifest_digest)
    stamp = Stamp(version, manifest["digest"])
    providers: set[str] = set()

    def score_chunks(chunks: Sequence[Chunk], folder: Path, counts: ScoreCounts) -> Iterator[ScoredChunk]:
        work = RayWork(
            source, folder.resolve(), manifest["manifest_digest"], version, device, refuse_truncated, size,
            describe_installation(),
        )  # fmt: skip
        with connected(address):
            _copy_bundle(Path(bundle), folder / BUNDLE_COPY, manifest)
            yield from _run(work, chunks, workers, counts, providers)

    counts, quarantine = write_scores(source, Path(out), stamp, score_chunks, size)
    return counts.result(stamp, ", ".join(sorted(providers)), out, quarantine)


def check_ray(path: str, out: str, address: str) -> None:
    """Check that a cluster can do it, before anything starts.

    Raises:
        ModuleNotFoundError: if Ray is not installed.
        UsageError: if input or output are a stream, or the address is invalid.
        UnreachableError: if no cluster answers.
        VerdictError: if there is too little shared memory.
    """
    if STDIO in (path, out):
        raise UsageError(
            "--ray cannot read or write a stream; expected IN as file, folder or s3://BUCKET/KEY, OUT as file"
        )
    check_cluster(address)


def _run(
    work: RayWork, chunks: Sequence[Chunk], workers: int, counts: ScoreCounts, providers: set[str]
) -> Iterator[ScoredChunk]:
    """Yield chunks as they are finished; add their counts in the order of the input."""
    import ray

    share = _share(ray.nodes(), work.device, workers, min_gpu_memory)
    # By default Ray starts a process for each task that uses a GPU.
    task = ray.remote(num_cpus=share.cpus, num_gpus=share.gpus, max_retries=RETRIES, max_calls=0)(score_in_worker)
    shared = ray.put(work._replace(device="cuda" if share.gpus else "cpu"))
    ahead = workers if workers and not share.gpus else CHUNKS_AHEAD * share.workers
    waiting = iter(enumerate(chunks, 1))
    started, found = time.perf_counter(), []
    try:
        running = [task.remote(shared, share.cpus, *each) for each in islice(waiting, ahead)]
        while running:
            (done,), running = ray.wait(running)
            scored, counted, provider = ray.get(done)
            running += [task.remote(shared, share.cpus, *each) for each in islice(waiting, 1)]
            found.append((scored.number, counted))
            providers.add(provider)
            yield scored
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, (VerdictError, OSError)):
            raise error.cause from error
        if missing := missing_code(error):
            raise missing from error
        raise
    except ray.exceptions.RayError as error:
        raise VerdictError(
            f"workers of the cluster were lost {RETRIES + 1} times with one chunk ({first_line(error, 200)}); "
            "finished parts are kept: see ray status, then run the same command again"
        ) from error
    finally:
        for _, counted in sorted(found, key=itemgetter(0)):
            counts.merge(counted)
        counts.seconds = time.perf_counter() - started


def _share(nodes: list[dict[str, Any]], device: str, workers: int, gpu_memory: Callable[[], int]) -> Share:
    """Return what each of so many workers gets: one CPU and one thread, or a part of a GPU and of its CPUs.

    Args:
        nodes: of the cluster, as Ray lists them.
        device: cuda, cpu, or auto.
        workers: see `score_on_ray`.
        gpu_memory: returns the bytes of the smallest GPU.

    Raises:
        UsageError: if the cluster has no such device.
    """
    resources = [node["Resources"] for node in nodes if node["Alive"]]
    with_gpus = [(int(held["GPU"]), int(held.get("CPU", 0))) for held in resources if held.get("GPU", 0) >= 1]
    if with_gpus and device != "cpu":
        count = sum(gpus for gpus, _ in with_gpus)
        cpus = max(1, min(cpus // gpus for gpus, cpus in with_gpus))  # of each GPU
        wanted = -(-workers // count) if workers else max(1, min(GPU_WORKERS, gpu_memory() // GPU_WORKER_BYTES))
        sharing = min(wanted, cpus)
        return Share(cpus // sharing, 1 / sharing, sharing * count)
    cpus = sum(int(held.get("CPU", 0)) for held in resources)
    if device == "cuda" or not cpus:
        missing, option = ("GPU", "--device cpu") if device == "cuda" else ("CPU", "nodes with --num-cpus")
        raise UsageError(f"the Ray cluster has no {missing}; expected a node with one, or {option}: ray status")
    return Share(1, 0, cpus)


def _absolute(source: SentenceSource) -> SentenceSource:
    """Return a source whose paths hold in other working directories."""
    path, *parts = [each if is_remote(each) else str(Path(each).absolute()) for each in (source.path, *source.parts)]
    return source._replace(path=path, parts=tuple(parts))


def _copy_bundle(bundle: Path, copy: Path, manifest: Manifest) -> None:
    """Copy the bundle where workers see it; one of a run that was killed may be another, or cut."""
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(bundle, copy)
    verify(copy, manifest["manifest_digest"])
