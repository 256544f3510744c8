"""Measures `verdict score` in one process and on a Ray cluster: rows a second, the driver's memory, equal rows.

    make bench BENCH=scale_out ARGS="--rows 1000000 --growth 100000 10000000 --out FILE --plot FILE.png"
    make bench BENCH=scale_out ARGS="--device cuda --bundle DIR --rows 4000000 --gpus 1 2 --workers 1 2 4 --out FILE"

On a CPU the cluster is two nodes of one CPU each on loopback, and each worker computes with one thread. It is compared
with one process that has one CPU to itself; one that has all of them reads and tokenises while the model computes. Two
processes that know nothing of each other, with a CPU and half of the sentences each, show what two CPUs can give. The
tiny encoder is trained on a toy corpus.
On GPUs each node has one of them and an equal share of the CPUs to itself, as a machine of its own would, whole cores
where they have two threads; so does the one process. `--workers` is how many share a GPU and its CPUs, with each number
of GPUs. `--cluster-only` leaves out the one process, which is
slowest, for more sentences.
Every run is a process of its own; `seconds` are those of the whole run, connecting, copying and merging included,
`scoring` those between the first chunk and the last, the start of workers included, and `steady` how many sentences a
second were scored after the first quarter of the chunks, when all workers have started. The digest is that of all rows
of the output.
"""

import argparse
import contextlib
import hashlib
import json
import os
import random
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from bench_ingestion import cpu_name
from pandas.util import hash_pandas_object

from tasks.core.provenance import git_commit, library_versions
from tasks.inference.bundle import read_manifest
from tasks.training.device import device_name

sys.path.insert(0, str(Path(__file__).parents[1] / "support"))

CHILD = """
import json, os, sys, time
from pathlib import Path
from tasks.inference.classifier import Classifier
from tasks.serving.batch_scoring import score_to_file
from tasks.serving.part_merge import PartMerger
from tasks.serving.ray_scoring import score_on_ray
from tasks.serving.score_parts import Scorer
from tasks.data.sentences import open_source
path, out, bundle, device, address, workers, cpus = sys.argv[1:]
if cpus:
    os.sched_setaffinity(0, map(int, cpus.split(",")))
finished, add = [], PartMerger.add
PartMerger.add = lambda *given: finished.append(time.perf_counter()) or add(*given)
started = time.perf_counter()
if address:
    rest = (bundle, "1", device, "", "", False, "", address)
    outcome = score_on_ray(path, out, *rest, workers=int(workers))
else:
    classifier = Classifier.from_bundle(bundle, device, threads=0 if device == "cuda" else 1)
    outcome = score_to_file(open_source(path), Path(out), Scorer(classifier, "1"))
seconds = time.perf_counter() - started
# Not ru_maxrss: that starts at the memory of the process which started this one.
peak = int(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0]) / 1e3
quarter = len(finished) // 4
steady = outcome["rows_in"] * (1 - quarter / len(finished)) / (finished[-1] - finished[quarter - 1]) if quarter else 0
print(json.dumps({"seconds": seconds, "scoring": outcome["scored"] / outcome["sentences_per_second"], "steady": steady,
                  "rows_in": outcome["rows_in"], "provider": outcome["provider"], "driver_mb": peak}))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=100_000, help="sentences of the comparison")
    parser.add_argument("--growth", type=int, nargs="*", default=[], help="further sizes, for the driver's memory")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--gpus", type=int, nargs="+", default=[1], help="with --device cuda [1]")
    parser.add_argument("--cluster-only", action="store_true", help="with --device cuda")
    parser.add_argument("--encoder", choices=["tiny", "packaged"], default="tiny")
    parser.add_argument("--bundle", default="", help="measure this bundle instead")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--out", default="")
    parser.add_argument("--plot", default="")
    parser.add_argument(
        "--recorded", default="", help="only draw --plot of what was recorded of GPUs, rows with encoder"
    )
    parser.add_argument("--commit", default="")
    options = parser.parse_args()
    if options.recorded:
        plot_gpus(json.loads(Path(options.recorded).read_text())["rows"], options.plot)
        return
    with tempfile.TemporaryDirectory() as scratch:
        bundle = options.bundle or make_bundle(options.encoder, Path(scratch))
        given = (Path(scratch), bundle, options.device)
        rows = list((measure_on_gpus if options.device == "cuda" else measure_on_cpus)(given, options))
    result = {
        "benchmark": "scale out",
        "hardware": f"{device_name(options.device)}, {cpu_name()}, {os.cpu_count()} CPU cores",
        "encoder": read_manifest(Path(options.bundle))["encoder"] if options.bundle else options.encoder,
        "versions": library_versions(),
        "commit": options.commit or git_commit(),
        "rows": rows,
    } | summarise(rows, options.rows)
    print(json.dumps({name: result[name] for name in ("overhead", "speedup", "driver_mb_growth")}, indent=2))
    if options.out:
        Path(options.out).write_text(json.dumps(result, indent=2) + "\n")
    if options.plot:
        plot(rows, options.plot)
    digests = {row["digest"] for row in rows if row["sentences"] == options.rows and row["digest"]}
    assert len(digests) == 1, "rows differ"


def measure_on_cpus(given: tuple[Path, str, str], options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Yield rows of one process, with one CPU and with all, and of workers on two nodes of one CPU."""
    with cluster([{}, {}], 1, OMP_NUM_THREADS="1", RAYON_NUM_THREADS="1") as (address, environ):
        yield measure(*given, environ, options.rows, "", cpus=sorted(os.sched_getaffinity(0))[:1])
        yield measure(*given, environ, options.rows, "")
        yield measure_apart(*given, environ, options.rows)
        for workers in options.workers:
            yield measure(*given, environ, options.rows, address, workers, nodes=2)
        for count in options.growth:
            yield measure(*given, environ, count, address, max(options.workers), nodes=2)


def measure_on_gpus(given: tuple[Path, str, str], options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Yield rows of one process with one GPU, and of workers on nodes of one GPU each."""
    most, by_core = max(options.gpus), cpus_by_core()
    cpus = len(by_core) // most
    shares = [by_core[number * cpus : (number + 1) * cpus] for number in range(most)]
    devices = [{"CUDA_VISIBLE_DEVICES": str(number)} for number in range(most)]
    environ = os.environ | devices[0] | {"PYTHONPATH": with_root()}
    if not options.cluster_only:
        yield measure(*given, environ, options.rows, "", cpus=shares[0])
    for nodes in options.gpus:
        with cluster(devices[:nodes], cpus, shares) as (address, environ):
            for workers in options.workers:
                yield measure(*given, environ, options.rows, address, nodes * workers, nodes=nodes)


@contextlib.contextmanager
def cluster(
    environs: list[dict[str, str]], cpus: int, shares: Sequence[Sequence[int]] = (), **environ: str
) -> Iterator[tuple[str, dict[str, str]]]:
    """Yield address and environment of a cluster on loopback, with a node of so many CPUs for each environment.

    Args:
        environs: of the nodes.
        cpus: of each node, as Ray counts them.
        shares: the CPUs that each node may use; empty for all.
        environ: of all nodes.
    """
    from ray_nodes import RayNodes

    with RayNodes(PYTHONPATH=with_root(), **environ) as nodes:
        for number, own in enumerate(environs):
            before = os.sched_getaffinity(0)
            os.sched_setaffinity(0, shares[number] if shares else before)  # its processes inherit it
            try:
                nodes.add(cpus, **own)
            finally:
                os.sched_setaffinity(0, before)
        yield nodes.address, nodes.environ


def cpus_by_core() -> list[int]:
    """Return the CPUs that this process may use, threads of a core next to each other."""
    siblings = "/sys/devices/system/cpu/cpu{}/topology/thread_siblings_list"

    def first_of_core(cpu: int) -> int:
        path = Path(siblings.format(cpu))
        return int(re.split("[,-]", path.read_text().strip())[0]) if path.exists() else cpu

    return sorted(os.sched_getaffinity(0), key=lambda cpu: (first_of_core(cpu), cpu))


def with_root() -> str:
    """Return a PYTHONPATH on which this repository comes first."""
    return os.pathsep.join(filter(None, [str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")]))


def make_bundle(encoder: str, folder: Path) -> str:
    """Train the tiny encoder on the toy corpus, or give the packaged one a new head; return the bundle's folder."""
    if encoder == "packaged":
        from bench_score import make_bundle as make_untrained

        return make_untrained("packaged", folder)
    from toy import origin, recipe, write_quick_encoder, write_toy_data

    from tasks.data.ingestion import ingest
    from tasks.data.sources import Sources
    from tasks.data.splitting import split_snapshot
    from tasks.data.table_format import TableFormat
    from tasks.export.bundle_export import export_bundle
    from tasks.training.finetune import fine_tune

    data = write_toy_data(folder / "data")
    train, holdout = (str(data / name) for name in ("in_domain_train.tsv", "out_of_domain_dev.tsv"))
    found = ingest(Sources(train=[train], holdout=[holdout], secondary=[]), str(folder), TableFormat(), 0.2)
    paths = split_snapshot(found["train"]["path"], [found["holdout"]["path"]], str(folder), 0.2, 0)
    quick = recipe(write_quick_encoder(folder / "encoder"), epochs=4, batch_size=40, learning_rate=1e-2)
    fine_tune(*paths[:2], quick, str(folder / "model"))
    return export_bundle(str(folder / "model"), str(folder / "export"), origin())["bundle"]


def write_sentences(path: Path, count: int) -> None:
    """Write toy sentences of 3 to 9 words, one a line; one in a thousand is empty."""
    from toy import SIGN, WORDS

    rng = random.Random(count)
    ready = [" ".join(rng.choices([*WORDS, SIGN], k=rng.randint(3, 9))) for _ in range(50_000)]
    with path.open("w", encoding="utf-8") as file:
        for number in range(count):
            file.write("\n" if number % 1000 == 500 else f"{ready[int(rng.random() * 50_000)]}\n")


def measure(
    folder: Path,
    bundle: str,
    device: str,
    environ: dict[str, str],
    count: int,
    address: str,
    workers: int = 0,
    nodes: int = 0,
    cpus: Sequence[int] = (),
) -> dict[str, Any]:
    """Score generated sentences in a process of its own; without an address, in that process alone.

    Args:
        folder: for input and output.
        bundle: that scores.
        device: cpu or cuda.
        environ: of the process.
        count: of sentences.
        address: of a cluster.
        workers: of the cluster.
        nodes: of the cluster.
        cpus: that the process may use; empty for all.
    """
    out = folder / "out.parquet"
    found = finish(start(folder, out, bundle, device, environ, count, address, workers, cpus))
    assert found["rows_in"] == count
    job = "score on Ray" if address else f"score in one process{', one CPU' if len(cpus) == 1 else ''}"
    return show(job, device, count, [found], [out], digest_rows(out), workers, nodes)


def measure_apart(folder: Path, bundle: str, device: str, environ: dict[str, str], count: int) -> dict[str, Any]:
    """Score half of as many sentences in each of two processes at the same time, on a CPU each."""
    cpus = sorted(os.sched_getaffinity(0))[:2]
    outs = [folder / f"out-{cpu}.parquet" for cpu in cpus]
    processes = [
        start(folder, out, bundle, device, environ, count // 2, "", 0, [cpu])
        for cpu, out in zip(cpus, outs, strict=True)
    ]
    found = [finish(process) for process in processes]
    return show("score in two processes, one CPU each", device, count, found, outs)


def show(
    job: str,
    device: str,
    count: int,
    found: Sequence[dict[str, Any]],
    outs: Sequence[Path],
    digest: str = "",
    workers: int = 0,
    nodes: int = 0,
) -> dict[str, Any]:
    """Print and return the row of a job, of what its processes found at the same time and wrote."""
    most = {name: max(each[name] for each in found) for name in ("seconds", "scoring", "driver_mb")}
    row = {
        "job": job,
        "device": "gpu" if device == "cuda" else "cpu",
        "nodes": nodes,
        "workers": workers,
        "sentences": count,
        "sentences_per_second": round(count / most["seconds"]),
        "driver_mb": round(most["driver_mb"]),
        "seconds": round(most["seconds"], 1),
        "scoring": round(most["scoring"], 1),
        "steady": round(sum(each["steady"] for each in found)),
        "provider": found[0]["provider"],
        "digest": digest,
        "out_bytes": sum(out.stat().st_size for out in outs),
    }
    print(json.dumps(row), flush=True)
    return row


def start(
    folder: Path,
    out: Path,
    bundle: str,
    device: str,
    environ: dict[str, str],
    count: int,
    address: str,
    workers: int,
    cpus: Sequence[int],
) -> subprocess.Popen[str]:
    """Start a process that scores so many sentences; see `measure`."""
    path = folder / f"{count}.txt"
    if not path.exists():
        write_sentences(path, count)
    given = [str(path), str(out), bundle, device, address, str(workers), ",".join(map(str, cpus))]
    command = [sys.executable, "-c", CHILD, *given]
    return subprocess.Popen(command, env=environ, cwd=folder, stdout=subprocess.PIPE, text=True)


def finish(process: subprocess.Popen[str]) -> dict[str, Any]:
    """Return what a process printed in its last line."""
    output, _ = process.communicate()
    assert process.returncode == 0, output
    found: dict[str, Any] = json.loads(output.splitlines()[-1])
    return found


def digest_rows(path: Path) -> str:
    """Return a digest of all rows of a file of scores, in their order."""
    total = hashlib.sha256()
    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(10_000):
            total.update(hash_pandas_object(batch.to_pandas()).to_numpy().tobytes())
    return total.hexdigest()[:16]


def summarise(rows: list[dict[str, Any]], count: int) -> dict[str, Any]:
    """Return what the cluster costs at one worker, and what further ones gain, over the whole run and while scoring."""
    kinds = ("seconds", "scoring")
    clustered = [row for row in rows if row["workers"] and row["sentences"] == count]
    first = clustered[0]
    return {
        "overhead": {kind: round(first[kind] / rows[0][kind] - 1, 3) for kind in kinds} if rows[0] != first else None,
        "speedup": {
            f"nodes {row['nodes']}, workers {row['workers']}": {
                kind: round(first[kind] / row[kind], 2) for kind in kinds
            }
            | ({"steady": round(row["steady"] / first["steady"], 2)} if first["steady"] else {})
            for row in clustered
        },
        "driver_mb_growth": {row["sentences"]: row["driver_mb"] for row in rows if row["workers"]},
    }


def plot(rows: list[dict[str, Any]], path: str) -> None:
    """Draw sentences a second by workers, and the driver's memory by sentences."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 3.5), layout="constrained")
    left, right = figure.subplots(1, 2)
    compared = [row for row in rows if row["sentences"] == rows[0]["sentences"]]
    names = [
        f"Ray, {row['workers']} worker{'s' * (row['workers'] > 1)}"
        if row["workers"]
        else row["job"].removeprefix("score in ")
        for row in compared
    ]
    bars = left.barh(names, [row["sentences_per_second"] for row in compared], color="#4477aa")
    left.bar_label(bars, fmt="{:,.0f}", label_type="center", color="white")
    left.invert_yaxis()
    left.locator_params(axis="x", nbins=4)
    left.set_title(f"sentences a second ({rows[0]['sentences']:,})")
    grown = sorted({row["sentences"]: row["driver_mb"] for row in rows if row["workers"]}.items())
    right.plot(*zip(*grown, strict=True), "o-", color="#4477aa")
    right.set(
        title="memory of the driver, MB", xlabel="sentences", xscale="log", ylim=(0, 1.2 * max(dict(grown).values()))
    )
    figure.savefig(path, dpi=120)


def plot_gpus(rows: list[dict[str, Any]], path: str) -> None:
    """Draw sentences a second by GPUs, after the start and as whole commands, of each encoder with several numbers."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 3.5), layout="constrained")
    axes = figure.subplots(1, 2)
    for encoder, color in zip(dict.fromkeys(row["encoder"] for row in rows), ("#4477aa", "#ee6677"), strict=True):
        most = max(row["sentences"] for row in rows if row["encoder"] == encoder)
        points = [row for row in rows if row["encoder"] == encoder and row["sentences"] == most]
        numbers = [row["nodes"] for row in points]
        for axis, name in zip(axes, ("steady", "sentences_per_second"), strict=True):
            rates = [row[name] for row in points]
            axis.plot(numbers, rates, "o-", color=color, label=f"{encoder.partition(',')[0]}, {most:,} sentences")
            axis.plot(numbers, [rates[0] * number for number in numbers], ":", color=color)
    for axis, title in zip(axes, ("after the first quarter of the chunks", "the whole command"), strict=True):
        axis.set(title=f"sentences a second, {title}", xlabel="GPUs", xticks=[1, 2, 4], ylim=(0, None))
        axis.yaxis.set_major_formatter("{x:,.0f}")
    axes[0].legend()
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    main()
