"""Several `verdict retrain` at once in a fresh home, each of another seed: all end well, or wait for each other."""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from faults_home import CommandHome

STARTS, QUICK_STARTS = 10, 2


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Start them, with and without the empty databases that an installation makes; count how they ended."""
    count = QUICK_STARTS if options.quick else STARTS
    with tempfile.TemporaryDirectory() as folder:
        results = {name: start(Path(folder, name), count, name == "templates") for name in ("templates", "migrations")}
    missed = [name for name, result in results.items() if result["ended_well"] < count]
    return {"starts": count, **results, "aims_missed": [f"{name}: not all ended well" for name in missed]}


def start(folder: Path, count: int, templates: bool) -> dict[str, Any]:
    """Start the runs at once; return how many ended well, the errors of the others, the seconds, and what is left."""
    home = CommandHome(folder)
    hidden = "" if templates else "database_templates.DATABASE_TEMPLATES = Path('/nowhere')\n"
    code = (
        "from pathlib import Path\nfrom tasks.core import database_templates\n"
        f"{hidden}database_templates.copy_template.__defaults__ = (database_templates.DATABASE_TEMPLATES,)\n"
        "from flows.cli.app import main\nmain()"
    )
    began = time.monotonic()
    runs = [
        subprocess.Popen(
            [sys.executable, "-c", code, *home.retrain(seed)],
            env=os.environ | home.environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for seed in range(count)
    ]
    errors = [run.communicate()[1] for run in runs]
    return {
        "ended_well": sum(run.returncode == 0 for run in runs),
        "errors": [error[-300:] for run, error in zip(runs, errors, strict=True) if run.returncode],
        "seconds": round(time.monotonic() - began),
        "processes_left": len(home.processes()),
        **home.faults(),
    }
