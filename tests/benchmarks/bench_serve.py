"""Measures `verdict serve` under load, on loopback, while the champion's alias moves twice under its clients.

    make bench BENCH=serve ARGS="--bundle DIR"              100 clients for 60 s
    make bench BENCH=serve ARGS="--bundle DIR --clients 10 --seconds 5 --out FILE"
    make bench BENCH=serve ARGS="--bundle DIR --seconds 60 --with shadow=challenger request-log=DIR"
    make bench BENCH=serve ARGS="--bundle DIR --challenger BAD --long 0.02 --seconds 120 --with canary=5%"

The last forms measure what options cost: a server with them and one without run side by side, the clients turn from
one to the other every few seconds, so that what else the machine does meets both, and the median of the ratios counts.
What the server says of its canary is kept, with the seconds that it was under load until then.

The server is the command itself in a process of its own, with a new registry of three versions: the bundle as it is,
and twice with other limits of length, so that its digest differs and the weights do not. Clients run in processes of
their own; each keeps one connection and asks again as soon as it is answered. A request that is not answered with 200,
or an answer without a version, is counted as such.
"""

import argparse
import asyncio
import contextlib
import datetime
import json
import os
import platform
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from tasks.core.provenance import git_commit, library_versions

VERSIONS = 3
PROCESSES = 2  # that clients share
LONG_WORDS = 600  # more tokens than the packaged encoder has positions
WORDS = [
    "the",
    "a",
    "cat",
    "dog",
    "child",
    "apple",
    "has",
    "have",
    "eaten",
    "eat",
    "sees",
    "old",
    "on",
    "mat",
    "who",
    "was",
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", required=True)
    parser.add_argument("--clients", type=int, default=100)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--sentences", type=int, default=4, help="of a request")
    parser.add_argument("--long", type=float, default=0.0, help=f"share of the sentences that have {LONG_WORDS} words")
    parser.add_argument("--challenger", default="", help="bundle of version 2; as it is")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--refresh-seconds", type=float, default=1.0)
    parser.add_argument("--serve", nargs="*", default=[], metavar="NAME=VALUE", help="options of verdict serve")
    parser.add_argument("--with", dest="extra", nargs="*", default=[], metavar="NAME=VALUE", help="options to compare")
    parser.add_argument("--rounds", type=int, default=6, help="of --with, each of both servers")
    parser.add_argument("--out", default="")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        result = (compare if options.extra else measure)(options, Path(scratch))
    report = {
        "benchmark": "serve",
        "hardware": f"{cpu_name()}, {os.cpu_count()} CPU cores, {platform.machine()}",
        "versions": library_versions(),
        "commit": git_commit(),
        "settings": {key: value for key, value in vars(options).items() if key not in ("out", "bundle", "challenger")},
        **result,
    }
    if options.extra:
        print(f"{result['ratio']:.3f} of the throughput of a server without {' '.join(options.extra)}:")
        print(*result["rounds"], sep="\n")
    else:
        show(result, options)
    if options.out:
        Path(options.out).write_text(json.dumps(report, indent=2) + "\n")


def show(result: dict[str, Any], options: argparse.Namespace) -> None:
    """Print the figures of one server."""
    print(
        f"{result['requests']} requests of {options.sentences} sentences by {options.clients} clients: "
        f"{result['failures']} failures, {result['without_version']} without a version, "
        f"p50 {result['p50_ms']} ms, p95 {result['p95_ms']} ms, p99 {result['p99_ms']} ms, "
        f"{result['sentences_per_second']} sentences/s, versions {result['versions_seen']}"
    )


def measure(options: argparse.Namespace, scratch: Path) -> dict[str, Any]:
    """Register versions, serve them, and ask while the alias moves."""
    os.environ.pop("MLFLOW_TRACKING_URI", None)
    os.environ["VERDICT_HOME"] = str(scratch / "home")
    move = register_versions(Path(options.bundle), scratch, options.challenger)
    with running(options, options.serve, scratch / "log") as (address, server):
        seen = load(address, options, move)
        seen["metrics"] = batch_figures(address)
    return {**seen, "exit_code_after_sigterm": server.returncode}


@contextlib.contextmanager
def running(options: argparse.Namespace, settings: list[str], log: Path) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """Run the command, whose log is JSON; yield its address and process."""
    extra = [part for option in settings for part in ("--" + option).split("=", 1)]
    command = [sys.executable, "-m", "flows.cli.app", "serve", "--port", "0", "--device", options.device]
    command += ["--refresh-seconds", str(options.refresh_seconds), *extra]
    with log.open("w") as errors:
        environment = os.environ | {"VERDICT_LOG": "json"}
        server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True, env=environment)
    try:
        assert server.stdout is not None
        line = server.stdout.readline()
        found = re.search(r"on (http://\S+) ", line)
        if not found:
            raise SystemExit(f"the server did not start: {line}")
        yield found[1], server
    finally:
        server.send_signal(signal.SIGTERM)
        server.wait(60)


def compare(options: argparse.Namespace, scratch: Path) -> dict[str, Any]:
    """Return the ratio of the throughputs of a server with further options and one without, measured in turn."""
    os.environ.pop("MLFLOW_TRACKING_URI", None)
    os.environ["VERDICT_HOME"] = str(scratch / "home")
    register_versions(Path(options.bundle), scratch, options.challenger)
    seconds = options.seconds / options.rounds / 2
    rounds = []
    with (
        running(options, options.serve, scratch / "log") as (plain, _),
        running(options, options.serve + options.extra, scratch / "other-log") as (other, _),
    ):
        turns = []  # of the other server: seconds since 1970
        for number in range(options.rounds):
            answered = {}
            for address in (plain, other) if number % 2 else (other, plain):
                started = time.time()
                answered[address] = throughput(address, seconds, options)
                turns += [(started, time.time())] if address == other else []
            rounds.append({"without": answered[plain], "with": answered[other]})
        lines = fetch_metrics(other).splitlines()
    shown = ("verdict_shadow", "verdict_canary", "verdict_sentences_total", "verdict_batch_sentences_")
    ratios = sorted(each["with"]["rate"] / each["without"]["rate"] for each in rounds)
    return {
        "ratio": float(np.median(ratios)),
        "rounds": rounds,
        "metrics": [line for line in lines if line.startswith(shown)],
        "canary": canary_log(scratch / "other-log", turns),
        "load": os.getloadavg()[0],
    }


def throughput(address: str, seconds: float, options: argparse.Namespace) -> dict[str, float]:
    """Return the sentences per second that a server answers, p50 and p99 of a request, and what was not answered."""
    with ProcessPoolExecutor(PROCESSES) as pool:
        share = options.clients // PROCESSES
        asking = [pool.submit(ask_from, address, share, seconds, options, seed) for seed in range(PROCESSES)]
        parts = [one.result() for one in asking]
    answered = sum(part["codes"]["200"] for part in parts)
    p50, p99 = np.percentile([value for part in parts for value in part["seconds"]], [50, 99])
    return {
        "rate": round(answered * options.sentences / seconds, 1),
        "p50_ms": round(float(p50) * 1_000, 1),
        "p99_ms": round(float(p99) * 1_000, 1),
        "failures": sum(sum(part["codes"].values()) for part in parts) - answered,
    }


def canary_log(log: Path, turns: list[tuple[float, float]]) -> list[dict[str, Any]]:
    """Return what a server logged of its canary, and after how many seconds under load."""
    lines = [json.loads(line) for line in log.read_text().splitlines() if line.startswith("{")]
    found = []
    for line in lines:
        if line["message"].startswith("canary"):
            moment = datetime.datetime.fromisoformat(line["time"]).timestamp()
            seconds = sum(max(0.0, min(moment, end) - start) for start, end in turns)
            found.append({"seconds": round(seconds, 1), "message": line["message"]})
    return found


def register_versions(bundle: Path, scratch: Path, challenger: str = "") -> Any:
    """Fill a new registry; return what moves the champion's alias to a version.

    Args:
        bundle: of all versions.
        scratch: folder for copies.
        challenger: bundle of version 2 instead.
    """
    from flows import environment

    environment.set_process_defaults()
    from tasks.inference.bundle import CHALLENGER, CHAMPION, ModelInfo, verify, write_manifest
    from tasks.registry import register
    from tasks.registry import tracking as runs
    from tasks.registry.store import locate_store

    manifest = verify(bundle)
    store = locate_store(os.environ["VERDICT_HOME"])
    Path(os.environ["VERDICT_HOME"]).mkdir()
    run = runs.open_run(store, "a" * 16, {}, {})
    for number in range(VERSIONS):
        if challenger and number == 1:
            register.register_bundle(store, run, challenger, verify(Path(challenger))["digest"], {}, "a challenger")
            continue
        folder = Path(shutil.copytree(bundle, scratch / f"bundle-{number}"))
        names = ("labels", "max_length", "encoder", "dataset", "git_commit", "pad_id")
        facts: Any = {name: manifest[name] for name in names}  # type: ignore[literal-required]
        changed: ModelInfo = facts | {"max_length": manifest["max_length"] - number}
        register.register_bundle(store, run, str(folder), write_manifest(folder, changed, {})["digest"], {}, "a bundle")
    runs.close_run(store, run, "FINISHED")
    register.move_alias(store, CHAMPION, "1")
    register.move_alias(store, CHALLENGER, "2")
    return lambda version: register.move_alias(store, CHAMPION, version)


def load(address: str, options: argparse.Namespace, move: Any) -> dict[str, Any]:
    """Ask for so many seconds, the alias moving after each third of them."""
    with ProcessPoolExecutor(PROCESSES) as pool:
        shares = [options.clients // PROCESSES + (i < options.clients % PROCESSES) for i in range(PROCESSES)]
        started = time.perf_counter()
        asking = [
            pool.submit(ask_from, address, share, options.seconds, options, seed) for seed, share in enumerate(shares)
        ]
        for version in ("2", "3"):
            time.sleep(options.seconds / 3)
            move(version)
        parts = [one.result() for one in asking]
        taken = time.perf_counter() - started
    seconds = np.array([value for part in parts for value in part["seconds"]])
    p50, p95, p99 = (round(float(value) * 1_000, 2) for value in np.percentile(seconds, [50, 95, 99]))
    codes = sum((Counter(part["codes"]) for part in parts), Counter())
    requests = sum(codes.values())
    return {
        "requests": requests,
        "failures": requests - codes["200"],
        "codes": dict(codes),
        "without_version": sum(part["without_version"] for part in parts),
        "p50_ms": p50,
        "p95_ms": p95,
        "p99_ms": p99,
        "requests_per_second": round(requests / options.seconds, 1),
        "sentences_per_second": round(codes["200"] * options.sentences / options.seconds, 1),
        "versions_seen": sorted({version for part in parts for version in part["versions"]}),
        "wall_seconds": round(taken, 2),
    }


def ask_from(address: str, clients: int, seconds: float, options: argparse.Namespace, seed: int) -> dict[str, Any]:
    """Run clients in this process."""
    return asyncio.run(_ask(address, clients, seconds, options, seed))


async def _ask(address: str, clients: int, seconds: float, options: argparse.Namespace, seed: int) -> dict[str, Any]:
    host, port = address.removeprefix("http://").split(":")
    tally: dict[str, Any] = {"codes": Counter(), "without_version": 0, "versions": set(), "seconds": []}
    until = time.perf_counter() + seconds
    await asyncio.gather(
        *(_client(host, int(port), until, options, random.Random(seed * 1_000 + i), tally) for i in range(clients))
    )
    return tally


async def _client(
    host: str, port: int, until: float, options: argparse.Namespace, rng: random.Random, tally: dict[str, Any]
) -> None:
    """Ask over one connection, opened anew where it breaks; a plain socket leaves the cores to the server."""
    reader, writer = await asyncio.open_connection(host, port)
    while time.perf_counter() < until:
        lengths = [LONG_WORDS if rng.random() < options.long else rng.randint(4, 14) for _ in range(options.sentences)]
        texts = [" ".join(rng.choices(WORDS, k=length)) for length in lengths]
        body = json.dumps({"sentences": texts}).encode()
        head = f"POST /v1/judge HTTP/1.1\r\nHost: {host}\r\nContent-Length: {len(body)}\r\n\r\n".encode()
        started = time.perf_counter()
        try:
            writer.write(head + body)
            answer = await reader.readuntil(b"\r\n\r\n")
            length = re.search(rb"content-length: (\d+)", answer)
            content = json.loads(await reader.readexactly(int(length[1]) if length else 0))
        except (OSError, asyncio.IncompleteReadError) as error:
            tally["codes"][type(error).__name__] += 1
            reader, writer = await asyncio.open_connection(host, port)
            continue
        code = answer.split(b" ", 2)[1].decode()
        tally["codes"][code] += 1
        tally["seconds"].append(time.perf_counter() - started)
        if code == "200":
            found = {entry.get("version") for entry in content["predictions"]}
            whole = (
                len(content["predictions"]) == options.sentences
                and found == {content["version"]}
                and content["version"]
            )
            tally["without_version"] += not whole
            tally["versions"].add(content["version"])
    writer.close()


def batch_figures(address: str) -> dict[str, float]:
    """Return what the server itself counted of its batches."""
    text = fetch_metrics(address)
    return {
        name: float(value)
        for name, value in re.findall(
            r"^(verdict_(?:batch|model_moves|refresh_failures)\S*) (\S+)$", text, re.MULTILINE
        )
        if name.endswith(("_sum", "_count", "_total"))
    }


def fetch_metrics(address: str) -> str:
    """Return the server's metrics."""
    import httpx

    return httpx.get(f"{address}/metrics").text


def cpu_name() -> str:
    """Return what the system calls its processor."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").is_file() else []
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())


if __name__ == "__main__":
    main()
