"""Scores an input on a Ray cluster: its chunks by the same functions, into the same parts, as one process does.

The driver divides the input before Ray is connected, and merges the parts in their order at the end. Workers read,
score and write; a chunk goes to another worker where its own is lost, up to RETRIES times, but not where it raises an
error. Input and output lie where every node sees them.
"""

import os
import platform
import shutil
import time
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from tasks.cluster.connection import check_cluster, connected
from tasks.cluster.installation import Installation, check_here, describe_installation
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

if TYPE_CHECKING:
    from ray.actor import ActorHandle

RETRIES = 3  # of a chunk whose worker was lost: one that ends each worker must not run for ever
GPU_WORKERS = 4  # that share a GPU, where there are CPUs for them: reading and writing rows take longer than the GPU
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


class ChunkWorker:
    """Scores chunks in a process of a cluster."""

    def __init__(self, work: RayWork, threads: int) -> None:
        os.environ["RAYON_NUM_THREADS"] = str(threads)  # of the tokenizer, which reads it once
        self._work, self._threads = work, threads

    def score(self, number: int, chunk: Chunk) -> tuple[ScoredChunk, ScoreCounts, str]:
        """Write the parts of a chunk; return it with its counts, and where the model runs.

        Raises:
            VerdictError: if this node does not see input or output, or runs other code.
        """
        work, counts = self._work, ScoreCounts(self._work.source.name)
        scored = score_chunk(work.source, number, chunk, work.folder, self._scorer, work.size, counts)
        return scored, counts, self._scorer.classifier.provider

    @cached_property
    def _scorer(self) -> Scorer:
        """The model; not loaded by the constructor, whose errors Ray would not hand on."""
        work = self._work
        check_here(work.installation)
        if not work.folder.is_dir():
            raise VerdictError(
                f"node {platform.node()} has no folder {work.folder}; expected an output on storage of all nodes"
            )
        bundle = work.folder / BUNDLE_COPY
        threads = 0 if work.device == "cuda" else self._threads
        classifier = Classifier.from_bundle(bundle, work.device, expected=work.manifest_digest, threads=threads)
        return Scorer(classifier, work.version, work.refuse_truncated)


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
    workers: int | None = None,
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
        workers: at most so many; None for one on each CPU, or GPU_WORKERS on each GPU.
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
        _copy_bundle(Path(bundle), folder / BUNDLE_COPY, manifest)
        work = RayWork(
            source, folder.resolve(), manifest["manifest_digest"], version, device, refuse_truncated, size,
            describe_installation(),
        )  # fmt: skip
        with connected(address):
            yield from _run(work, chunks, workers, counts, providers)

    counts, quarantine = write_scores(source, Path(out), stamp, score_chunks, size)
    return counts.result(stamp, ", ".join(sorted(providers)), out, quarantine)


def check_ray(path: str, out: str, address: str) -> None:
    """Check that a cluster can do it, before anything starts.

    Raises:
        ModuleNotFoundError: if Ray is not installed.
        UsageError: if input or output are a stream, or the address is invalid.
        UnreachableError: if no cluster answers.
    """
    if STDIO in (path, out):
        raise UsageError(
            "--ray cannot read or write a stream; expected IN as file, folder or s3://BUCKET/KEY, OUT as file"
        )
    check_cluster(address)


def _run(
    work: RayWork, chunks: Sequence[Chunk], workers: int | None, counts: ScoreCounts, providers: set[str]
) -> Iterator[ScoredChunk]:
    """Yield chunks as they are finished; add their counts in the order of the input."""
    import ray
    from ray.util import ActorPool

    share = _share(ray.nodes(), work.device)
    work = work._replace(device="cuda" if share.gpus else "cpu")
    actor = ray.remote(
        num_cpus=share.cpus, num_gpus=share.gpus, max_restarts=-1, max_task_retries=RETRIES
    )(ChunkWorker)  # fmt: skip
    number = min(workers or share.workers, share.workers, len(chunks))
    actors = [actor.remote(work, share.cpus) for _ in range(number)]
    started, found = time.perf_counter(), []
    try:
        for scored, counted, provider in ActorPool(actors).map_unordered(_submit, list(enumerate(chunks, 1))):
            found.append((scored.number, counted))
            providers.add(provider)
            yield scored
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, (VerdictError, OSError)):
            raise error.cause from error
        raise
    except ray.exceptions.RayError as error:
        raise VerdictError(
            f"a worker of the cluster was lost {RETRIES + 1} times with one chunk ({first_line(error, 200)}); "
            "finished parts are kept: see ray status, then run the same command again"
        ) from error
    finally:
        for _, counted in sorted(found, key=lambda pair: pair[0]):
            counts.merge(counted)
        counts.seconds = time.perf_counter() - started


def _submit(actor: "ActorHandle", numbered: tuple[int, Chunk]) -> Any:
    return actor.score.remote(*numbered)


def _share(nodes: list[dict[str, Any]], device: str) -> Share:
    """Return what each worker gets: one CPU and one thread, or a part of a GPU with as large a part of the CPUs.

    Raises:
        UsageError: if the cluster has no such device.
    """
    resources = [node["Resources"] for node in nodes if node["Alive"]]
    with_gpus = [(int(held["GPU"]), int(held.get("CPU", 0))) for held in resources if held.get("GPU", 0) >= 1]
    if with_gpus and device != "cpu":
        cpus = max(1, min(cpus // gpus for gpus, cpus in with_gpus))  # of each GPU
        sharing = min(GPU_WORKERS, cpus)
        return Share(cpus // sharing, 1 / sharing, sharing * sum(gpus for gpus, _ in with_gpus))
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
