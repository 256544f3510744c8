"""Damages bundles, whose checksums fit again, and settings files, and counts tracebacks, hangs and memory.

A part of bench_faults.py. The files are the same ones for the same seed. Every bundle is opened by `verdict predict`,
each fourth also by `serve`, `score` and `export-triton`. Each kind has a process of its own, for its memory.
"""

import argparse
import json
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
SEED, FILES, QUICK_FILES = 0, 2_000, 100
MOST_SECONDS, MOST_MB = 5.0, 300.0
SENTENCES = ["The child has eaten the apple.", "", "zz " * 600]
NESTED = ["x = " + "[" * 50_000, "a." * 20_000 + "b = 1", "x = " + "{a = " * 20_000, "x = " + "9" * 100_000]

Doors = dict[str, Callable[[str], Any]]


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Return what each kind of damaged file did."""
    count = QUICK_FILES if options.quick else FILES
    with tempfile.TemporaryDirectory() as scratch:
        bundle = options.bundle or _make_bundle(Path(scratch))
        result: dict[str, Any] = {"seed": SEED}
        for kind in KINDS:
            command = [sys.executable, __file__, kind, str(bundle), scratch, str(count)]
            done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
            result[kind] = json.loads(done.stdout.splitlines()[-1])
    aims = {"tracebacks": 0, "slowest_seconds": MOST_SECONDS, "peak_mb": MOST_MB}
    result["aims_missed"] = [f"{kind}: {aim}" for kind in KINDS for aim in aims if result[kind][aim] > aims[aim]]
    return result


def settings_files(_bundle: Path, scratch: Path, count: int) -> tuple[Iterator[Path], Doors]:
    """Return damaged settings files, made one at a time, and what reads them."""
    from bundle_fuzzing import mutate_bytes

    from tasks.core.settings_loader import load_settings

    def files() -> Iterator[Path]:
        profiles = [path.read_bytes() for path in sorted((ROOT / "tasks" / "core" / "profiles").glob("*.toml"))]
        for number in range(count):
            rng = random.Random(f"{SEED}/{number}")
            content = mutate_bytes(rng.choice(profiles), rng)
            if rng.random() < 0.1:
                content += f"\n{rng.choice(NESTED)}\n".encode()
            (scratch / "settings.toml").write_bytes(content)
            yield scratch / "settings.toml"

    return files(), {"settings": load_settings}


def bundles(bundle: Path, scratch: Path, count: int) -> tuple[Iterator[Path], Doors]:
    """Return damaged bundles, made one at a time, and what opens them."""
    from bundle_fuzzing import mutated_bundles

    from flows.commands.predict import predict
    from tasks.serving.batch_scoring import score_file
    from tasks.serving.champion import Champion
    from tasks.serving.triton import export_repository

    text, out = scratch / "in.txt", scratch / "out"
    text.write_text("\n".join(SENTENCES) + "\n")
    return mutated_bundles(bundle, scratch / "bundle", count, SEED), {
        "predict": lambda model: predict(SENTENCES, model, "cpu", str(scratch)),
        "serve": lambda model: Champion.open(model, device="cpu"),
        "score": lambda model: score_file(str(text), f"{out}.parquet", model, None, "cpu"),
        "export-triton": lambda model: export_repository(model, str(out), None),
    }


KINDS = {"bundles": bundles, "settings": settings_files}


def count_outcomes(files: Iterator[Path], doors: Doors) -> dict[str, Any]:
    """Open the first door to every file, the others to each fourth; return how often each answered or refused.

    Also what else was raised, which the command line would show as a fault of the program, and what it took.
    """
    from tasks.core.errors import VerdictError

    counts, others, slowest, before = Counter[str](), Counter[str](), 0.0, 0
    for number, path in enumerate(files):
        for name in list(doors)[: 1 if number % 4 else None]:
            started = time.perf_counter()
            try:
                doors[name](str(path))
                counts[f"{name} answered"] += 1
            except VerdictError as error:
                counts[f"{name} refused"] += 1
                others[f"{name}: several lines"] += "\n" in str(error)
            except Exception as error:
                others[f"{name}: {type(error).__name__}: {str(error)[:100]}"] += 1
            slowest = max(slowest, time.perf_counter() - started)
        before = before or peak_mb()  # after the first file: libraries are imported
    others = +others
    return {
        "doors_opened": counts.total() + others.total(),
        **counts,
        "tracebacks": others.total(),
        "examples": dict(others.most_common(5)),
        "slowest_seconds": round(slowest, 2),
        "peak_mb": peak_mb(),
        "added_mb": peak_mb() - before,
    }


def peak_mb() -> int:
    """Return the most memory that this process had resident."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


def _make_bundle(scratch: Path) -> str:
    from faults_serve import make_bundle

    return make_bundle(scratch)


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT / "tests" / "support"))
    which, source, folder, number_of = sys.argv[1:]
    print(json.dumps(count_outcomes(*KINDS[which](Path(source), Path(folder), int(number_of)))))
