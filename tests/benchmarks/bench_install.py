"""Measures installations: what a fresh environment takes on disk and in seconds, by extra.

    python tests/benchmarks/bench_install.py [EXTRAS ...]      such as train,cpu; default: cpu alone, and with each role

uv installs what constraints.txt pins, as `make install` does, from its cache where that has the wheels: clear it
(`uv cache clean`) to measure the download too. What Python compiles at the first import comes on top. `--backend cpu`
chooses torch's build where pip has no index of its own configured, as `make install GPU=0` does.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
UV = ROOT / ".venv" / "tools" / "bin" / "uv"
DEFAULT = ("cpu", "serve,cpu", "schedule,cpu", "train,cpu", "all,cpu")


def measure(extras: str, backend: str, uv: Path) -> dict[str, Any]:
    """Install some extras into a new environment; return its size and the seconds."""
    with tempfile.TemporaryDirectory() as folder:
        python = Path(folder) / "bin" / "python"
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
        pins = ["--constraint", "constraints.txt", "--build-constraint", "constraints.txt"]
        command = [sys.executable, "infra/uv_like_pip.py", uv, "pip", "install", "--quiet", "--python", python, *pins]
        started = time.perf_counter()
        environment = os.environ | {"TORCH_BACKEND": backend}
        subprocess.run([*command, f".[{extras}]"], cwd=ROOT, env=environment, check=True)
        seconds = time.perf_counter() - started
        script = "import importlib.metadata as m; print(*sorted(f'{d.name}=={d.version}' for d in m.distributions()))"
        held = subprocess.run([python, "-c", script], capture_output=True, text=True, check=True).stdout.split()
        size = subprocess.run(["du", "-sk", Path(folder) / "lib"], capture_output=True, text=True, check=True).stdout
    shown = [name for name in held if name.startswith(("torch==", "onnxruntime", "mlflow", "prefect=="))]
    return {
        "gb": round(int(size.split()[0]) * 1024 / 1e9, 2),
        "seconds": round(seconds),
        "packages": len(held),
        "versions": shown,
    }


def main() -> None:
    """Measure and print JSON."""
    parser = argparse.ArgumentParser()
    parser.add_argument("extras", nargs="*", default=DEFAULT)
    parser.add_argument("--backend", default="cpu")
    parser.add_argument("--uv", type=Path, default=UV)
    options = parser.parse_args()
    found = {extras: measure(extras, options.backend, options.uv) for extras in options.extras}
    machine = {"python": platform.python_version(), "machine": platform.machine(), "cores": os.cpu_count()}
    print(json.dumps({"machine": machine, "installations": found}, indent=2))


if __name__ == "__main__":
    main()
