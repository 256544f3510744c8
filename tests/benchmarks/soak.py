"""A retraining run every minute for a quarter of an hour, with a killed worker and a restarted server.

    python tests/benchmarks/soak.py [--minutes 15] [--out FILE]

PostgreSQL, S3 store, servers and worker are those of the services' tests. The data stays the same but for two changes,
so most runs end as NothingNew. While the first change trains, worker and run are killed: the run has to be marked
crashed and a later one to go on. What is looked for: runs that never end, slots that leak, more than one champion,
and memory of the servers that grows.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).parents[1] / "support"), str(Path(__file__).parents[1] / "services")]

from bench_ingestion import cpu_name  # noqa: E402
from stage import ROOT, Stage  # noqa: E402
from toy import write_toy_data  # noqa: E402

from tasks.core.provenance import git_commit, library_versions  # noqa: E402

FINAL = {"COMPLETED", "FAILED", "CRASHED", "CANCELLED"}
KILLED, RESTARTED, CHANGED = 4, 8, 11  # minutes


def main() -> None:
    """Run, and write what was seen as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=15)
    parser.add_argument("--out", default=str(Path(__file__).parent / "results" / "soak.json"))
    chosen = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="verdict-soak-"))
    data = write_toy_data(folder / "data")
    encoder = build_encoder(folder / "encoder")
    stage = Stage(folder)
    try:
        seen = soak(stage, data, encoder, chosen.minutes)
    finally:
        stage.close()
        shutil.rmtree(folder, ignore_errors=True)
    text = json.dumps(seen, indent=2) + "\n"
    Path(chosen.out).write_text(text, encoding="utf-8")
    print(text)


def soak(stage: Stage, data: Path, encoder: Path, minutes: float) -> dict[str, Any]:
    """Let the schedule fire each minute, disturb it, and count."""
    stage.start("prefect", "mlflow")
    accounts = [sys.executable, str(ROOT / "infra" / "images" / "accounts.py")]
    subprocess.run(accounts, env=stage.places.accounts, check=True, capture_output=True)
    stage.start("worker")
    deploy = [sys.executable, "-m", "flows.cli.app", "deploy"]
    subprocess.run(deploy, env=stage.places.environment, cwd=ROOT, check=True, capture_output=True)
    held = stage.prefect("GET", "/deployments/name/retrain/retrain")
    every_minute = {"cron": "* * * * *", "timezone": "UTC"}
    schedule = {"schedule": every_minute, "active": True, "parameters": form(data, encoder)}
    [made] = stage.prefect("POST", f"/deployments/{held['id']}/schedules", items=[schedule])
    memory = [measure(stage)]
    started = time.monotonic()
    events = {KILLED: lambda: kill_training(stage, data), RESTARTED: lambda: restart(stage, "prefect")}
    events[CHANGED] = lambda: write_toy_data(data, seed=2)
    while (now := (time.monotonic() - started) / 60) < minutes:
        for minute in [minute for minute in events if now >= minute]:
            events.pop(minute)()
        time.sleep(1)
    memory.append(measure(stage))
    runs = all_runs(stage, held["id"])
    stage.prefect("DELETE", f"/deployments/{held['id']}/schedules/{made['id']}")
    stage.wait(lambda: not open_runs(stage, held["id"]), "the last run ends", 180)
    runs = [run for run in all_runs(stage, held["id"]) if run["state"]["type"] in FINAL] or runs
    return summarise(stage, held["id"], runs, memory, minutes)


def summarise(
    stage: Stage, deployment: str, runs: list[dict[str, Any]], memory: list[dict[str, int]], minutes: float
) -> dict[str, Any]:
    """Collect what the soak is for."""
    now = stage.prefect("GET", f"/deployments/{deployment}")
    registered = stage.mlflow("reader", "GET", "model-versions/search", filter="name = 'acceptability'").json()
    alias = stage.mlflow("reader", "GET", "registered-models/alias", name="acceptability", alias="champion").json()
    return {
        "benchmark": "a retraining run every minute, one of them killed with its worker, Prefect's server restarted",
        "hardware": f"{cpu_name()}, {os.cpu_count()} CPU cores",
        "versions": library_versions(),
        "commit": git_commit(),
        "minutes": minutes,
        "runs": len(runs),
        "states": dict(Counter(run["state"]["name"] for run in runs)),
        "stuck": [run["name"] for run in open_runs(stage, deployment)],
        "leaked_slots": now["global_concurrency_limit"]["active_slots"],
        "registered": len(registered.get("model_versions", [])),
        "champion": alias["model_version"]["version"],
        "megabytes": {"begin": memory[0], "end": memory[-1]},
        "overhead_seconds": sorted(
            round(overhead(stage, run), 1) for run in runs if run["state"]["name"] == "Completed"
        ),
    }


def overhead(stage: Stage, run: dict[str, Any]) -> float:
    """Return what a run took beside its steps: imports of the process, and the servers."""
    steps = stage.prefect("POST", "/task_runs/filter", flow_runs={"id": {"any_": [run["id"]]}})
    return float(run["total_run_time"] - sum(step["total_run_time"] for step in steps))


def kill_training(stage: Stage, data: Path) -> None:
    """Change the data; when the next run trains on it, kill run and worker by SIGKILL, and start another worker."""
    write_toy_data(data, seed=1)
    began = time.time()
    stage.wait(lambda: any(path.stat().st_mtime > began for path in stage.home.glob("runs/*/split.json")), "training")
    restart(stage, "worker")


def restart(stage: Stage, name: str) -> None:
    stage.kill(name)
    stage.start(name)


def all_runs(stage: Stage, deployment: str) -> list[dict[str, Any]]:
    chosen = {"deployments": {"id": {"any_": [deployment]}}}
    return list(stage.prefect("POST", "/flow_runs/filter", **chosen, limit=200))


def open_runs(stage: Stage, deployment: str) -> list[dict[str, Any]]:
    """Return the runs that were begun and have not ended."""
    begun = {"PENDING", "RUNNING", "CANCELLING"}
    return [run for run in all_runs(stage, deployment) if run["state"]["type"] in begun]


def measure(stage: Stage) -> dict[str, int]:
    """Return the resident memory of each service with its children, in MB."""
    found: Counter[str] = Counter()
    for name, process in stage.services.items():
        for path in Path("/proc").glob("[0-9]*/status"):
            try:
                lines = dict(line.split(":", 1) for line in path.read_text().splitlines() if ":" in line)
            except OSError:
                continue
            if lines.get("NSsid", "").strip() == str(process.pid):
                found[name] += int(lines.get("VmRSS", "0 kB").split()[0])
    return {name: kilobytes // 1024 for name, kilobytes in found.items()}


def build_encoder(folder: Path) -> Path:
    """Write the tiny encoder of the tests."""
    import torch
    from toy import write_tokenizer
    from transformers import BertConfig, BertModel

    write_tokenizer(folder)
    torch.manual_seed(0)
    sizes = {"vocab_size": 20, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    sizes |= {"intermediate_size": 64, "max_position_embeddings": 80}
    BertModel(BertConfig(**sizes, initializer_range=0.2)).save_pretrained(folder)
    return folder


def form(data: Path, encoder: Path) -> dict[str, Any]:
    """Return the parameters of a run that is over as fast as can be."""
    finetune = {"encoder": str(encoder), "epochs": 2, "seed": 1, "device": "cpu", "learning_rate": 3e-3}
    return {
        "profile": "sample",
        "data": {"path": [str(data)], "validation_share": 0.2},
        "finetune": finetune | {"batch_size": 16, "max_length": 16},
        "judge": {"resamples": 200, "threshold": -1},
    }


if __name__ == "__main__":
    main()
