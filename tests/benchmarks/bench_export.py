"""Times the export step of a run, of this checkout and of an earlier one, in turn on the same machine.

    git worktree add DIR COMMIT                                 the checkout to compare with
    make bench BENCH=export ARGS="--before DIR --out FILE"
    python tests/benchmarks/bench_export.py --before DIR --encoder DIR2 --data DIR3 --device cuda --out FILE

DIR2 is an encoder, which is fine-tuned for an epoch on `--rows` sentences first; `--model FOLDER` takes what a training
wrote. Every export has a process of its own in the state that a training leaves: torch and transformers are imported, a
GPU is in use, and the server of subprocesses has done its imports (`import_seconds`, beside training in a run).

`seconds` is the step: torch's answers, all graphs, their comparisons, digests, files on disk. `cpu_seconds` counts the
subprocess too, `peak_mb` is the sum of the proportional set sizes of all processes. `parts` has what this checkout
records in export.json; variants are made side by side, so parts overlap. The file keeps one run for each device and
encoder: the same FILE serves both devices.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
MAX_LENGTH = 128


def main() -> None:
    options = parse_options()
    if options.worker:
        export(options)
        return
    if options.device == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    with tempfile.TemporaryDirectory() as scratch:
        result = compare(options, Path(scratch))
    print(json.dumps(result["fastest_seconds"]))
    if options.out:
        write(Path(options.out), result)


def write(path: Path, result: dict[str, Any]) -> None:
    """Write a run to a file, beside those of other devices and encoders."""
    runs = json.loads(path.read_text())["runs"] if path.is_file() else []
    kept = [run for run in runs if any(run[key] != result[key] for key in ("device", "encoder"))]
    path.write_text(json.dumps({"benchmark": "export step", "runs": [*kept, result]}, indent=2) + "\n")


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="sample")
    parser.add_argument("--encoder", default="packaged")
    parser.add_argument("--model", default="", help="folder that a training wrote, instead of --encoder")
    parser.add_argument("--rows", type=int, default=400, help="training sentences; 0 for all")
    parser.add_argument("--device", default="cpu", choices=["cuda", "cpu"])
    parser.add_argument("--before", default="", help="folder of an earlier checkout")
    parser.add_argument("--before-commit", default="dcfa1bf")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--timeout", type=float, default=550.0, help="seconds for one export")
    parser.add_argument("--commit", default="")
    parser.add_argument("--out", default="")
    for name in ("--worker", "--validation", "--folder"):  # what a process is started with
        parser.add_argument(name, default="", help=argparse.SUPPRESS)
    return parser.parse_args()


def compare(options: argparse.Namespace, scratch: Path) -> dict[str, Any]:
    """Train once, then export with each system in turn."""
    from bench_ingestion import cpu_name

    from tasks.core.provenance import git_commit, library_versions
    from tasks.data.snapshots import count_rows
    from tasks.inference.cpu_limits import available_cpus
    from tasks.training.device import device_name
    from tasks.training.pretrained import locate_encoder

    options.given = bool(options.model)
    options.model, options.validation = train(options, scratch)
    rows: list[dict[str, Any]] = []
    systems = {"before": options.before, "verdict": str(ROOT)} if options.before else {"verdict": str(ROOT)}
    for number in range(options.rounds):
        for system, tree in systems.items():
            folder = scratch / f"{system}-{number}"
            folder.mkdir()
            rows.append({"system": system} | run(options, tree, folder))
            print(json.dumps(rows[-1]), flush=True)
    best = {
        system: min((row["seconds"] for row in rows if row["system"] == system and "seconds" in row), default=None)
        for system in systems
    }
    return {
        "device": options.device,
        "gpu": device_name(options.device),
        "cpu": f"{cpu_name()}, {available_cpus()} of {os.cpu_count()} cores",
        "versions": library_versions(),
        "commit": options.commit or git_commit(),
        "baseline_commit": options.before_commit if options.before else None,
        "encoder": Path(options.model).name if options.given else locate_encoder(options.encoder)["name"],
        "validation_sentences": count_rows(options.validation),
        "fastest_seconds": best,
        "rows": rows,
    }


def train(options: argparse.Namespace, scratch: Path) -> tuple[str, str]:
    """Return the folder of a fine-tuned model and its validation sentences."""
    from tasks.core.finetune_settings import FinetuneSettings
    from tasks.data.snapshots import read_snapshot, write_snapshot
    from tasks.data.sources import locate_sources
    from tasks.data.splitting import split_snapshot
    from tasks.training.finetune import fine_tune
    from tasks.training.pretrained import locate_encoder
    from tasks.training.recipe import resolve_recipe

    sources = locate_sources([options.data], "", "", str(scratch))
    snapshots = {role: write_snapshot(sources[role], str(scratch))["path"] for role in ("train", "holdout")}  # type: ignore[literal-required]
    rows, validation, _ = split_snapshot(snapshots["train"], [snapshots["holdout"]], str(scratch), 0.1, 1)
    if options.model:
        return options.model, validation
    if options.rows:
        read_snapshot(rows).head(options.rows).to_parquet(rows)
    settings = FinetuneSettings(
        encoder=options.encoder, epochs=1, seeds=1, corruptions=0, device=options.device, max_length=MAX_LENGTH
    )
    folder = str(scratch / "model")
    fine_tune(rows, validation, resolve_recipe(settings, locate_encoder(options.encoder)["folder"]), folder)
    return folder, validation


def run(options: argparse.Namespace, tree: str, folder: Path) -> dict[str, Any]:
    """Export in a process with its own tree on the path; return its row, or why there is none."""
    command = [sys.executable, __file__, "--worker", "export", "--model", options.model, "--folder", str(folder)]
    command += ["--validation", options.validation, "--device", options.device]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, [tree, os.environ.get("PYTHONPATH", "")]))}
    errors = folder / "errors"
    with errors.open("w") as stream:
        process = subprocess.Popen(command, env=environment, cwd=tree, stdout=subprocess.PIPE, stderr=stream, text=True)
        memory = watch_memory(process.pid)
        try:
            output, _ = process.communicate(timeout=options.timeout)
        except subprocess.TimeoutExpired:
            process.kill()
            return {"error": f"not done in {options.timeout:g} s"}
        finally:
            peak = memory() if memory else None
    if process.returncode:
        return {"error": (errors.read_text().strip().splitlines() or ["no message"])[-1][:300]}
    row: dict[str, Any] = json.loads(output.splitlines()[-1])
    return row | {"peak_mb": peak}


def watch_memory(pid: int) -> Any:
    """Sample the memory of a process and its children; return what ends that and gives the peak in MB."""
    try:
        from bench_cold_start import Sampler
    except ImportError:  # psutil is missing
        return None
    watch = Sampler(pid)
    watch.start()

    def stop() -> int:
        watch.stop()
        return round(watch.peak / 1e6)

    return stop


def export(options: argparse.Namespace) -> None:
    """Export once, in a process of one system, and print the row."""
    import torch
    import transformers.modeling_utils  # noqa: F401  as after training

    if options.device == "cuda":
        torch.ones(8, 8, device="cuda") @ torch.ones(8, 8, device="cuda")
    started = time.perf_counter()
    try:
        from tasks.export.bundle_export import export_bundle
        from tasks.export.subprocess_call import run_in_subprocess
    except ImportError:  # the earlier checkout's layout
        from tasks.apart import run_apart as run_in_subprocess  # type: ignore[import-not-found,no-redef]

        from tasks.export import export_bundle  # type: ignore[attr-defined,no-redef]
    run_in_subprocess("the import", 600, os.getpid)
    imported = time.perf_counter() - started
    origin: Any = {
        "labels": ["unacceptable", "acceptable"], "max_length": MAX_LENGTH, "encoder": "benchmark", "dataset": "",
        "git_commit": "",
    }  # fmt: skip
    before, started = cpu_seconds(), time.perf_counter()
    exported = export_bundle(options.model, options.folder, origin, options.validation)
    row = {
        "seconds": round(time.perf_counter() - started, 2),
        "cpu_seconds": round(cpu_seconds() - before, 2),
        "import_seconds": round(imported, 2),
        "parts": exported.get("seconds"),
        "exporter": exported["exporter"],
        "shipped": list(exported["variants"]),
        "left_out": exported["left_out"],
        "digest": exported["digest"],
    }
    print(json.dumps(row))


def cpu_seconds() -> float:
    """Return the processor time of this process, the server of subprocesses, and its subprocesses that ended."""
    from multiprocessing import forkserver

    server = forkserver._forkserver._forkserver_pid  # type: ignore[attr-defined]
    fields = Path(f"/proc/{server}/stat").read_text().rpartition(")")[2].split()
    return sum(os.times()[:2]) + sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")


if __name__ == "__main__":
    main()
