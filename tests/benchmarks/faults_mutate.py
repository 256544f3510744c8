"""The part `mutate` of bench_faults.py: 2,000 mutated settings files and 2,000 mutated bundles."""

import argparse
import functools
import os
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "support"))

from mutated_inputs import Outcome, mutate_bundle, mutate_settings, observe, own_megabytes, read_bundle, read_settings

FILES, QUICK_FILES = 2_000, 60
MOST_MEGABYTES = 300


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Return how many inputs of each kind were taken, refused and at fault, with times, memory and the aims missed."""
    count = QUICK_FILES if options.quick else FILES
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        source = Path(options.bundle) if options.bundle else make_bundle(folder / "made")
        result: dict[str, Any] = {"megabytes_of_the_libraries": own_megabytes()}
        result["settings"] = summarise(settings_outcomes(count, folder))
        result["bundles"] = summarise(bundle_outcomes(count, source, folder))
    result["aims_missed"] = [
        f"{kind}: {found}"
        for kind in ("settings", "bundles")
        for found in (*result[kind]["faults"], *heavy(result[kind]["most_megabytes"]))
    ]
    return result


def settings_outcomes(count: int, folder: Path) -> Iterator[Outcome]:
    for number in range(count):
        path = folder / "settings.toml"
        mutate_settings(number, path)
        yield observe(functools.partial(read_settings, number, path))


def bundle_outcomes(count: int, source: Path, folder: Path) -> Iterator[Outcome]:
    for number in range(count):
        damaged = folder / "bundle"
        mutate_bundle(number, source, damaged)
        yield observe(functools.partial(read_bundle, damaged))
        shutil.rmtree(damaged)


def summarise(outcomes: Iterator[Outcome]) -> dict[str, Any]:
    """Count outcomes by answer; faults are all but taken and refused."""
    found = list(outcomes)
    answers = Counter(outcome.answer for outcome in found)
    faults = {answer: times for answer, times in answers.items() if answer not in ("taken", "refused")}
    return {
        "files": len(found),
        "taken": answers["taken"],
        "refused": answers["refused"],
        "faults": faults,
        "most_seconds": max(outcome.seconds for outcome in found),
        "most_megabytes": max(outcome.megabytes for outcome in found),
    }


def heavy(megabytes: int) -> list[str]:
    return [f"{megabytes} MB"] if megabytes > MOST_MEGABYTES else []


def make_bundle(folder: Path) -> Path:
    """Train and export a tiny model; a process of its own keeps torch out of this one."""
    program = (
        "import sys; from pathlib import Path; from toy import *\n"
        "from tasks.data.ingestion import ingest\nfrom tasks.data.sources import Sources\n"
        "from tasks.data.splitting import split_snapshot\nfrom tasks.data.table_format import TableFormat\n"
        "from tasks.export.bundle_export import export_bundle\nfrom tasks.training.finetune import fine_tune\n"
        "folder = Path(sys.argv[1]); data = write_toy_data(folder / 'data')\n"
        "files = [str(data / name) for name in ('in_domain_train.tsv', 'out_of_domain_dev.tsv')]\n"
        "found = ingest(Sources(train=files[:1], holdout=files[1:], secondary=[]), str(folder), TableFormat(), 0.2)\n"
        "paths = split_snapshot(found['train']['path'], [found['holdout']['path']], str(folder), 0.2, 0)\n"
        "encoder = write_quick_encoder(folder / 'encoder')\n"
        "fine_tune(*paths[:2], recipe(encoder), str(folder / 'model'))\n"
        "export_bundle(str(folder / 'model'), str(folder), origin())\n"
    )
    folder.mkdir()
    support = Path(__file__).parents[1] / "support"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(support), str(support.parents[1])])}
    subprocess.run([sys.executable, "-c", program, str(folder)], env=environment, check=True)
    return folder / "bundle"
