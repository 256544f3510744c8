"""However a settings file or a bundle is damaged, it is taken or refused in one line, in little time and memory."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
# A process without torch and its threads, which forks.
PROGRAM = """
import argparse, json, sys
from pathlib import Path
import faults_mutate
folder, bundle = Path(sys.argv[1]), Path(sys.argv[2])
print(json.dumps([
    faults_mutate.summarise(faults_mutate.settings_outcomes(24, folder)),
    faults_mutate.summarise(faults_mutate.bundle_outcomes(24, bundle, folder)),
]))
"""


def test_damaged_settings_and_bundles_are_taken_or_refused_in_one_line(tmp_path: Path, exported: Any) -> None:
    paths = [ROOT, ROOT / "tests" / "support", ROOT / "tests" / "benchmarks"]
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path), exported["bundle"]],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(map(str, paths))},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    for found in json.loads(done.stdout.splitlines()[-1]):
        assert found["faults"] == {}
        assert found["refused"] >= 12
        assert found["most_megabytes"] <= 300
