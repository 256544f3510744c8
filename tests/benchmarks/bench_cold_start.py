"""Times whole commands in cold processes, of this checkout and of an earlier one, in turn on the same machine.

    git worktree add DIR COMMIT                                 the checkout to compare with
    make bench BENCH=cold_start ARGS="--before DIR --out FILE --picture FILE"
    make bench BENCH=cold_start ARGS="--before DIR --jobs cola book --data DIR2 --encoder DIR3 --device cuda --out FILE"

Jobs: `retrain` (the default run), `unchanged` (the same again: nothing is left to do), `predict` (one sentence, with
the champion of that run), `busy` (the default run beside four busy processes); with --data and --encoder `cola` (that
profile, three seeds) and `book` (one seed, four epochs at 2e-5). Each command is a process of its own whose stores and
HOME (caches of Prefect, matplotlib, CUDA and Triton) are empty folders; with --cold-bytecode Python compiles every
module, too, as in the first process after an installation without compiled files. The system's file cache stays.

Peak memory is the sum of the proportional set sizes of the command and all its children, sampled whenever their
resident sets have grown, and every five seconds.
"""

import argparse
import contextlib
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import psutil
from bench_ingestion import cpu_name

ROOT = Path(__file__).resolve().parents[2]
SENTENCE = "Who did you say that left?"
CPU_JOBS = ("retrain", "unchanged", "predict", "busy")
GPU_JOBS = ("cola", "book")
BOOK_RECIPE = (
    "finetune.seeds=1", "finetune.epochs=4", "finetune.learning_rate=2e-5", "finetune.corruptions=0",
    "finetune.layer_decay=1.0", "finetune.label_smoothing=0.0", "finetune.r_drop=0.0",
)  # fmt: skip
BUSY_PROCESSES = 4
SAMPLE_S, RESAMPLE_S = 0.25, 5.0  # between looks at resident sets; between sums of proportional ones, which cost more
GROWTH = 1.01  # of the resident sets, from which on these are summed again
STEP = re.compile(r"(\S.*?)\s+(\d+\.\d)$")  # a row of the table that --timings prints
DESCRIBE = (
    "import json; from tasks.core.provenance import git_commit, library_versions;"
    "print(json.dumps([git_commit(), library_versions()]))"
)


class Checkout(NamedTuple):
    """One of the two systems that are compared."""

    system: str
    """verdict or before."""
    folder: Path
    python: str

    @property
    def command_module(self) -> str:
        """Return the module of the command `verdict`; it was one file once."""
        return "flows.cli.app" if (self.folder / "flows" / "cli").is_dir() else "flows.cli"

    def start(self, arguments: list[str], environment: dict[str, str]) -> subprocess.Popen[str]:
        """Start Python with this checkout first on its path."""
        return subprocess.Popen(
            [self.python, *arguments],
            env=environment | {"PYTHONPATH": str(self.folder)},
            cwd=environment["HOME"],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )


class Run(NamedTuple):
    """What one command took."""

    seconds: float | None
    """Wall time; None where it exceeded the limit."""
    cpu_seconds: float
    """Processor time of the command and the children that it waited for."""
    steps: dict[str, float]
    peak_mb: float


def main() -> None:
    options = parse_options()
    python = options.before_python or sys.executable
    checkouts = [Checkout("verdict", ROOT, sys.executable)]
    if options.before:
        checkouts.insert(0, Checkout("before", Path(options.before).resolve(), python))
    runs: dict[tuple[str, str], list[Run]] = {}
    for number in range(options.rounds):
        ordered = checkouts if number % 2 == 0 else checkouts[::-1]
        for job, system, run in measure_round(options, ordered):
            runs.setdefault((job, system), []).append(run)
            write_result(options, checkouts, runs)


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", default="", help="a checkout of the commit to compare with")
    parser.add_argument("--before-python", default="", help="its interpreter [this one]")
    parser.add_argument(
        "--jobs", nargs="+", choices=[*CPU_JOBS, *GPU_JOBS], default=["retrain", "unchanged", "predict"]
    )
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=3, help="of unchanged and predict in each round")
    parser.add_argument("--data", default="", help="folder of the book's two files, for cola and book")
    parser.add_argument("--encoder", default="", help="folder of a 110 M encoder, for cola and book")
    parser.add_argument("--device", default="auto", choices=["auto", "cuda", "cpu"])
    parser.add_argument("--cold-bytecode", action="store_true", help="no compiled Python files")
    parser.add_argument("--limit", type=float, default=3_600.0, help="seconds after which a command is killed")
    parser.add_argument("--out", default="")
    parser.add_argument("--picture", default="", help="SVG or PNG")
    options = parser.parse_args()
    if set(options.jobs) & set(GPU_JOBS) and not (options.data and options.encoder):
        parser.error("cola and book need --data and --encoder")
    return options


def measure_round(options: argparse.Namespace, checkouts: list[Checkout]) -> Iterator[tuple[str, str, Run]]:
    """Run each job once (quick ones several times) with every checkout in turn."""
    with tempfile.TemporaryDirectory(prefix="cold-start-") as scratch:
        for job in options.jobs:
            for repeat in range(options.repeats if job in ("unchanged", "predict") else 1):
                for checkout in checkouts:
                    homes = Path(scratch) / checkout.system
                    stores = homes / ("default" if job in ("retrain", "unchanged", "predict") else job)
                    if job in ("unchanged", "predict") and not stores.exists():
                        run_command(checkout, arguments_of("retrain", options), stores, options)
                    with busy_processes(BUSY_PROCESSES if job == "busy" else 0):
                        run = run_command(checkout, arguments_of(job, options), stores, options)
                    print(
                        json.dumps({"job": job, "system": checkout.system, "repeat": repeat, **run._asdict()}),
                        flush=True,
                    )
                    yield job, checkout.system, run


def arguments_of(job: str, options: argparse.Namespace) -> list[str]:
    """Return the arguments of the command `verdict` for a job."""
    if job == "predict":
        return ["predict", SENTENCE]
    if job not in GPU_JOBS:
        return ["retrain"]
    own = ["--profile", "cola", "--data", options.data, "--encoder", options.encoder, "--device", options.device]
    return ["retrain", *own, *(part for text in BOOK_RECIPE if job == "book" for part in ("--set", text))]


def translate(arguments: list[str], checkout: Checkout) -> list[str]:
    """Return the arguments with the names that settings had in the checkout, and what prints its steps."""
    commands = checkout.folder / "flows" / "cli" / "run.py"
    if arguments[0] == "retrain" and commands.is_file() and "--timings" in commands.read_text(encoding="utf-8"):
        arguments = [*arguments, "--timings"]  # the table of the steps
    if (checkout.folder / "tasks" / "training").is_dir():
        return arguments
    return [argument.replace("finetune.corruptions", "finetune.spoiled") for argument in arguments]


def run_command(checkout: Checkout, arguments: list[str], stores: Path, options: argparse.Namespace) -> Run:
    """Run one command with empty caches; its stores are kept for the next one."""
    stores.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="cold-home-") as home:
        environment = cold_environment(Path(home), stores, options.cold_bytecode)
        before, started = os.times(), time.perf_counter()
        process = checkout.start(["-m", checkout.command_module, *translate(arguments, checkout)], environment)
        sampler = Sampler(process.pid)
        sampler.start()
        try:
            output: str | None = process.communicate(timeout=options.limit)[0]
        except subprocess.TimeoutExpired:
            output = None
            end(process)
        seconds, after = time.perf_counter() - started, os.times()
        sampler.stop()
    if output is not None and process.returncode != 0:
        raise SystemExit(f"{checkout.system}: verdict {' '.join(arguments)} failed:\n{output}")
    processor = after.children_user + after.children_system - before.children_user - before.children_system
    return Run(
        None if output is None else round(seconds, 2),
        round(processor, 2),
        read_steps(output or "", seconds),
        round(sampler.peak / 1e6, 1),
    )


def cold_environment(home: Path, stores: Path, cold_bytecode: bool) -> dict[str, str]:
    """Return the environment of a command: nothing cached, nothing configured."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("VERDICT_", "PREFECT_", "MLFLOW_", "PYTHON", "XDG_", "TRITON_", "HF_"))
    }
    cold = {
        "HOME": str(home),
        "VERDICT_HOME": str(stores),
        "TRITON_CACHE_DIR": str(home / "triton"),
        "TORCHINDUCTOR_CACHE_DIR": str(home / "inductor"),
        "CUDA_CACHE_PATH": str(home / "cuda"),
        "MPLCONFIGDIR": str(home / "matplotlib"),
    }
    return kept | cold | ({"PYTHONPYCACHEPREFIX": str(home / "bytecode")} if cold_bytecode else {})


class Sampler(threading.Thread):
    """Samples the memory of a process and its children."""

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self._root, self._ended, self.peak = psutil.Process(pid), threading.Event(), 0

    def run(self) -> None:
        highest, summed = 0.0, 0.0
        while not self._ended.wait(SAMPLE_S):
            processes = self._processes()
            resident = sum(measure(lambda each: each.memory_info().rss, each) for each in processes)
            if resident > GROWTH * highest or time.monotonic() - summed > RESAMPLE_S:
                shares = sum(measure(lambda each: each.memory_full_info().pss, each) for each in processes)
                self.peak = max(self.peak, shares)
                highest, summed = max(highest, resident), time.monotonic()

    def _processes(self) -> list[psutil.Process]:
        with contextlib.suppress(psutil.Error):
            return [self._root, *self._root.children(recursive=True)]
        return []

    def stop(self) -> None:
        self._ended.set()
        self.join()


def measure(function: Callable[[psutil.Process], int], process: psutil.Process) -> int:
    """Return a figure of a process; 0 where it has ended."""
    try:
        return function(process)
    except psutil.Error:
        return 0


def end(process: subprocess.Popen[str]) -> None:
    """Kill a command and its children."""
    with contextlib.suppress(psutil.Error):
        for child in psutil.Process(process.pid).children(recursive=True):
            with contextlib.suppress(psutil.Error):
                child.kill()
    process.kill()
    process.communicate()


def read_steps(output: str, seconds: float) -> dict[str, float]:
    """Return the seconds of each step that a run printed; what is left of the whole process is `rest`."""
    lines = iter(output.splitlines())
    steps: dict[str, float] = {}
    for line in lines:
        if line.split() == ["step", "seconds"]:
            break
    for line in lines:
        found = STEP.fullmatch(line.strip())
        if found is None:
            break
        steps[found[1]] = float(found[2])
    steps.pop("total", None)
    steps.pop("whole process", None)
    return steps | {"rest": round(seconds - sum(steps.values()), 2)} if steps else {}


@contextlib.contextmanager
def busy_processes(count: int) -> Iterator[None]:
    """Keep `count` processes busy during the block."""
    processes = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


def write_result(
    options: argparse.Namespace, checkouts: list[Checkout], runs: dict[tuple[str, str], list[Run]]
) -> None:
    """Write the rows so far, and their picture."""
    described = {each.system: describe(each) for each in checkouts}
    rows = [summarise(job, system, each) for (job, system), each in runs.items()]
    result = {
        "benchmark": "seconds of whole commands in cold processes, medians; steps are those of the median run",
        "gpu": gpu_name(),
        "cpu": f"{cpu_name()}, {os.cpu_count()} CPU cores",
        "versions": described["verdict"][1],
        "commit": described["verdict"][0],
        "baseline_commit": described["before"][0] if "before" in described else None,
        "cold": {
            "stores": "empty, but for unchanged and predict, which need a finished run",
            "caches of Prefect, matplotlib, CUDA, Triton and torch": "empty",
            "bytecode of Python": "empty" if options.cold_bytecode else "as installed",
            "file cache of the system": "as it was",
        },
        "rows": rows,
    }
    if options.out:
        Path(options.out).write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    if options.picture:
        draw(rows, options.picture)


def describe(checkout: Checkout) -> tuple[str, dict[str, str]]:
    """Return a checkout's commit and its versions of libraries."""
    process = checkout.start(["-c", DESCRIBE], {**os.environ, "HOME": str(Path.home())})
    text = process.communicate()[0]
    if process.returncode:  # an earlier checkout, without this module, or a copy without git's history
        asked = ["git", "-C", str(checkout.folder), "rev-parse", "HEAD"]
        return subprocess.run(asked, capture_output=True, text=True).stdout.strip() or "unknown", {}
    commit, versions = json.loads(text)
    return commit, versions


def summarise(job: str, system: str, runs: list[Run]) -> dict[str, Any]:
    """Return the row of one job and system."""
    finished = sorted((run for run in runs if run.seconds is not None), key=lambda run: run.seconds or 0.0)
    middle = finished[(len(finished) - 1) // 2] if finished else runs[0]
    return {
        "job": job,
        "system": system,
        "cold": True,
        "seconds": round(statistics.median(run.seconds or 0.0 for run in finished), 2) if finished else None,
        "runs": [run.seconds for run in runs],
        "cpu_seconds": middle.cpu_seconds,
        "steps": middle.steps,
        "peak_mb": max(run.peak_mb for run in runs),
    }


def gpu_name() -> str | None:
    """Return the name of the first GPU; None without one."""
    if not shutil.which("nvidia-smi"):
        return None
    query = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    return subprocess.run(query, capture_output=True, text=True, check=False).stdout.partition("\n")[0].strip() or None


def draw(rows: list[dict[str, Any]], path: str) -> None:
    """Draw a waterfall of the steps of each job, before and after."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    shown = [row for row in rows if row["seconds"] is not None]
    bars = [max(1, len(row["steps"])) for row in shown]
    figure, panels = plt.subplots(
        len(shown), 1, figsize=(9, 0.6 * len(shown) + 0.2 * sum(bars)), squeeze=False, layout="constrained",
        height_ratios=[count + 1.5 for count in bars],
    )  # fmt: skip
    for row, panel in zip(shown, panels[:, 0], strict=True):
        steps = row["steps"] or {"whole": row["seconds"]}
        position = 0.0
        for line, seconds in enumerate(steps.values()):
            panel.barh(line, seconds, left=position, color="#9aa5b1" if row["system"] == "before" else "#2f6fb0")
            panel.text(position + seconds, line, f" {seconds:.1f}", va="center", fontsize=7)
            position += seconds
        longest = max(other["seconds"] for other in shown if other["job"] == row["job"])
        panel.set(yticks=range(len(steps)), yticklabels=list(steps), xlim=(0, longest * 1.08), xlabel="seconds")
        panel.set_title(f"{row['job']}, {row['system']}: {row['seconds']:.1f} s", loc="left", fontsize=9)
        panel.tick_params(labelsize=7)
        panel.invert_yaxis()
    figure.savefig(path)
    plt.close(figure)


if __name__ == "__main__":
    main()
