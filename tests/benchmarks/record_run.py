"""Records a whole run and what the machine did meanwhile, as MLflow's monitor sampled it: CPU, memory, GPU, power.

    VERDICT_HOME=DIR verdict retrain --device cuda --json ... > OUTCOME
    python tests/benchmarks/record_run.py --home DIR --outcome OUTCOME --hardware NAME --out FILE

The home's own store is read, a SQLite file.
"""

import argparse
import json
from pathlib import Path

from tasks.registry.mlflow_client import connect
from tasks.registry.store import MlflowStore

KEPT = ("decision", "mcc", "mcc_low", "mcc_high", "provider", "variant", "mcc_by_variant", "holdout_rows", "seconds")
PACKAGES = ("python", "torch", "transformers", "onnxruntime-gpu", "onnxruntime", "prefect", "mlflow")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--home", required=True, help="VERDICT_HOME of the run")
    parser.add_argument("--outcome", required=True, help="what the run printed")
    parser.add_argument("--hardware", required=True)
    parser.add_argument("--commit", default="")
    parser.add_argument("--out", required=True)
    options = parser.parse_args()
    outcome = json.loads(Path(options.outcome).read_text())
    store = MlflowStore(uri=f"sqlite:///{Path(options.home).resolve()}/mlflow.db", artifacts="")
    with connect(store) as client:
        run = client.get_run(outcome["run"])
        curves = {
            name.removeprefix("system/"): [
                [round((entry.timestamp - run.info.start_time) / 1e3, 1), entry.value]
                for entry in client.get_metric_history(outcome["run"], name)
            ]
            for name in sorted(run.data.metrics)
            if name.startswith("system/")
        }
    settings = {
        key: value for key, value in run.data.params.items() if key.startswith("finetune.") or key == "data.text"
    }
    settings["finetune.encoder"] = Path(settings["finetune.encoder"]).name
    result = {
        "benchmark": "a whole run, and what the machine did",
        "hardware": options.hardware,
        "versions": {name: run.data.tags[name] for name in PACKAGES if name in run.data.tags},
        "commit": options.commit or run.data.tags["git_commit"],
        "settings": settings,
        "outcome": {key: outcome[key] for key in KEPT},
        "seconds_and_values": curves,
    }
    Path(options.out).write_text(json.dumps(result, indent=2) + "\n")
    for name, points in curves.items():
        values = [value for _, value in points]
        print(f"{name:34} mean {sum(values) / len(values):10.1f}   largest {max(values):10.1f}")


if __name__ == "__main__":
    main()
