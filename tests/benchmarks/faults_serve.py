"""Part "serve" of bench_faults.py: many clients while the alias moves, clients that send nothing, very large requests.

Aims: of 400 clients, none fails but with an announced 429 or 503, none gets another answer than the named version gives
to each sentence alone, p99 is at most twice that of 100 clients, and memory at most 1.5 times that of the server after
one batch. The server is the command itself; a client waits as long as Retry-After says. Clients run in processes of
their own, on the same cores.
"""

import argparse
import asyncio
import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import bench_serve
import httpx
import numpy as np

CLIENTS = (100, 400)
QUICK_CLIENTS = (10, 40)
SECONDS, QUICK_SECONDS = 60.0, 8.0
MOVES = ("2", "3", "1", "2")  # of the alias, which starts at version 1
SENTENCES = 4  # of a request
SILENT = 1_000  # connections that send nothing
LARGE_REQUESTS, LARGE_SENTENCES, LARGE_CHARACTERS = 10, 1_000, 8_160
MAX_P99_RATIO, MAX_MEMORY_RATIO = 2.0, 1.5

Expected = dict[str, dict[str, tuple[str, float, bool]]]
"""what each version answers to each sentence"""


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Measure the server under load; see the module."""
    sizes, seconds = (QUICK_CLIENTS, QUICK_SECONDS) if options.quick else (CLIENTS, SECONDS)
    with tempfile.TemporaryDirectory() as scratch:
        bundle = Path(options.bundle or make_bundle(Path(scratch)))
        os.environ.pop("MLFLOW_TRACKING_URI", None)
        os.environ["VERDICT_HOME"] = f"{scratch}/home"
        move = bench_serve.register_versions(bundle, Path(scratch))
        expected = answers_alone(Path(scratch))
        with running_server() as (address, process, errors):
            batch = {"sentences": list(expected["1"])}
            httpx.post(f"{address}/v1/judge", json=batch, timeout=60).raise_for_status()
            idle = memory(process)
            loads = {str(clients): load(address, process, clients, seconds, move, expected) for clients in sizes}
            silent = silent_connections(address, SILENT // 10 if options.quick else SILENT)
            large = large_requests(address, process, 2 if options.quick else LARGE_REQUESTS)
            after = memory(process)
            process.send_signal(signal.SIGTERM)
            code = process.wait(60)
        log_bytes = errors.stat().st_size
    few, many = (loads[str(clients)] for clients in sizes)
    result = {
        "seconds": seconds,
        "moves": len(MOVES),
        "idle_bytes": idle,
        "clients": loads,
        "p99_ratio": round(many["p99_ms"] / few["p99_ms"], 2),
        "memory_ratio": round(max(one["peak_bytes"] for one in loads.values()) / idle, 2),
        "silent_connections": silent,
        "large_requests": large,
        "bytes_after": after,
        "log_bytes": log_bytes,
        "exit_code_after_sigterm": code,
    }
    return {**result, "aims_missed": missed(result)}


def missed(result: dict[str, Any]) -> list[str]:
    """Return the aims that a result misses."""
    aims = {
        "no request fails": all(one["failed"] == 0 for one in result["clients"].values()),
        "no answer of another version": all(one["wrong"] == 0 for one in result["clients"].values()),
        "p99": result["p99_ratio"] <= MAX_P99_RATIO,
        "memory": result["memory_ratio"] <= MAX_MEMORY_RATIO,
        "health beside silent connections": result["silent_connections"]["failed"] == 0,
    }
    return [name for name, met in aims.items() if not met]


def make_bundle(scratch: Path) -> str:
    """Train a tiny encoder on a toy corpus; return its bundle."""
    sys.path.insert(0, str(Path(__file__).parents[1] / "support"))
    from toy import write_quick_encoder, write_toy_data

    data, encoder = write_toy_data(scratch / "toy"), write_quick_encoder(scratch / "encoder")
    command = [sys.executable, "-m", "flows.cli.app", "retrain", "--json", "--device", "cpu", "--data", str(data)]
    command += ["--encoder", str(encoder)]
    for setting in ("finetune.epochs=1", "finetune.max_length=16", "gate.min_rows=10", "gate.min_holdout_rows=10"):
        command += ["--set", setting]
    environment = os.environ | {"VERDICT_HOME": str(scratch / "training")}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
    return str(json.loads(done.stdout)["bundle"])


def answers_alone(scratch: Path) -> Expected:
    """Return what each version answers to each sentence of the pool alone; long ones are truncated differently."""
    from tasks.inference.classifier import Classifier

    rng = random.Random(0)
    pool = [" ".join(rng.choices(bench_serve.WORDS, k=rng.choice((4, 8, 14)))) for _ in range(150)]
    pool += [" ".join(rng.choices(bench_serve.WORDS, k=200)) for _ in range(10)]
    expected: Expected = {}
    for number in range(bench_serve.VERSIONS):
        classifier = Classifier.from_bundle(scratch / f"bundle-{number}", "cpu")
        answers = [classifier.predict([sentence])[0] for sentence in pool]
        expected[str(number + 1)] = {
            answer["sentence"]: (answer["label"], answer["probability"], answer["truncated"]) for answer in answers
        }
    return expected


@contextmanager
def running_server() -> Iterator[tuple[str, "subprocess.Popen[str]", Path]]:
    """Run the command; yield its address, its process and the file of what it logs."""
    command = [sys.executable, "-m", "flows.cli.app", "serve", "--port", "0", "--device", "cpu"]
    errors = Path(os.environ["VERDICT_HOME"], "serve.err")
    with (
        errors.open("w") as log,
        subprocess.Popen(
            [*command, "--refresh-seconds", "1"], stdout=subprocess.PIPE, stderr=log, text=True
        ) as process,
    ):
        try:
            assert process.stdout is not None
            found = re.search(r"on (http://\S+) ", process.stdout.readline())
            if not found:
                raise SystemExit(f"the server did not start: {errors.read_text()}")
            yield found[1], process, errors
        finally:
            process.kill()


def memory(process: "subprocess.Popen[str]") -> int:
    """Return the resident bytes of a process."""
    found = re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{process.pid}/status").read_text())
    assert found
    return int(found[1]) * 1_024


@contextmanager
def sampled_memory(process: "subprocess.Popen[str]") -> Iterator[list[int]]:
    """Sample the resident bytes of a process meanwhile."""
    samples, stop = [memory(process)], threading.Event()

    def sample() -> None:
        while not stop.wait(0.1):
            samples.append(memory(process))

    thread = threading.Thread(target=sample)
    thread.start()
    try:
        yield samples
    finally:
        stop.set()
        thread.join()


def load(
    address: str,
    process: "subprocess.Popen[str]",
    clients: int,
    seconds: float,
    move: Callable[[str], Any],
    expected: Expected,
) -> dict[str, Any]:
    """Send requests for so many seconds while the alias moves; return what came of them."""
    processes = bench_serve.PROCESSES
    with ProcessPoolExecutor(processes) as pool, sampled_memory(process) as samples:
        running = [
            pool.submit(run_clients, address, clients // processes, seconds, expected, seed)
            for seed in range(processes)
        ]
        for version in MOVES:
            time.sleep(seconds / (len(MOVES) + 1))
            move(version)
        parts = [one.result() for one in running]
    milliseconds = [value for part in parts for value in part["milliseconds"]]
    p50, p95, p99 = (round(float(value), 1) for value in np.percentile(milliseconds, [50, 95, 99]))
    return {
        "answered": len(milliseconds),
        "announced_429_503": sum(part["announced"] for part in parts),
        "failed": sum(sum(part["failed"].values()) for part in parts),
        "failures": dict(sum((part["failed"] for part in parts), Counter())),
        "wrong": sum(part["wrong"] for part in parts),
        "versions": sorted({version for part in parts for version in part["versions"]}),
        "requests_per_second": round(len(milliseconds) / seconds, 1),
        "p50_ms": p50,
        "p95_ms": p95,
        "p99_ms": p99,
        "peak_bytes": max(samples),
    }


def run_clients(address: str, clients: int, seconds: float, expected: Expected, seed: int) -> dict[str, Any]:
    """Run clients in this process."""
    tally: dict[str, Any] = {"milliseconds": [], "announced": 0, "failed": Counter(), "wrong": 0, "versions": set()}
    until = time.perf_counter() + seconds

    async def run() -> None:
        rngs = [random.Random(seed * 1_000 + number) for number in range(clients)]
        await asyncio.gather(*(client(address, until, expected, rng, tally) for rng in rngs))

    asyncio.run(run())
    return tally


async def client(address: str, until: float, expected: Expected, rng: random.Random, tally: dict[str, Any]) -> None:
    """Send one request after the other over one connection, opened anew where the server closed it."""
    host, port = address.removeprefix("http://").split(":")
    pool = list(expected["1"])
    reader, writer = await asyncio.open_connection(host, int(port))
    while time.perf_counter() < until:
        body = json.dumps({"sentences": rng.choices(pool, k=SENTENCES)}).encode()
        started = time.perf_counter()
        try:
            writer.write(b"POST /v1/judge HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
            head = (await reader.readuntil(b"\r\n\r\n")).lower()
            length = re.search(rb"content-length: (\d+)", head)
            content = await reader.readexactly(int(length[1]) if length else 0)
        except (OSError, asyncio.IncompleteReadError) as error:
            tally["failed"][type(error).__name__] += 1
            reader, writer = await asyncio.open_connection(host, int(port))
            continue
        code = head.split(b" ", 2)[1].decode()
        if code == "200":
            tally["milliseconds"].append(1e3 * (time.perf_counter() - started))
            check_answer(json.loads(content), expected, tally)
        elif code in ("429", "503") and (retry := re.search(rb"retry-after: (\d+)", head)):
            tally["announced"] += 1
            await asyncio.sleep(int(retry[1]) * rng.uniform(1, 1.5))
        else:
            tally["failed"][code] += 1
        if b"connection: close" in head:
            writer.close()
            reader, writer = await asyncio.open_connection(host, int(port))
    writer.close()


def check_answer(answer: dict[str, Any], expected: Expected, tally: dict[str, Any]) -> None:
    """Count an answer that is not, bit for bit, that of the version which it names."""
    version = answer["version"]
    tally["versions"].add(version)
    tally["wrong"] += len(answer["predictions"]) != SENTENCES or any(
        (one["label"], one["probability"], one["truncated"]) != expected[version][one["sentence"]]
        or one["version"] != version
        for one in answer["predictions"]
    )


def silent_connections(address: str, count: int) -> dict[str, Any]:
    """Open connections that send nothing; return how health and requests of others are answered meanwhile."""
    host, port = address.removeprefix("http://").split(":")
    silent = [socket.create_connection((host, int(port))) for _ in range(count)]
    milliseconds, failed = [], 0
    for _ in range(20):
        started = time.perf_counter()
        try:
            httpx.get(f"{address}/healthz", timeout=10).raise_for_status()
            httpx.post(f"{address}/v1/judge", json={"sentences": ["The cat sat."]}, timeout=10).raise_for_status()
        except httpx.HTTPError:
            failed += 1
        milliseconds.append(1e3 * (time.perf_counter() - started))
    for connection in silent:
        connection.close()
    return {"connections": count, "failed": failed, "slowest_ms": round(max(milliseconds), 1)}


def large_requests(address: str, process: "subprocess.Popen[str]", count: int) -> dict[str, Any]:
    """Send the largest requests at once; return their codes, memory, and how long short requests take meanwhile."""
    rng = random.Random(0)
    sentences = [" ".join(rng.choices(bench_serve.WORDS, k=3_000))[:LARGE_CHARACTERS] for _ in range(LARGE_SENTENCES)]
    body = json.dumps({"sentences": sentences}).encode()
    short: list[float] = []

    def send(_: int) -> int:
        return httpx.post(f"{address}/v1/judge", content=body, timeout=600).status_code

    with ThreadPoolExecutor(count) as pool, sampled_memory(process) as samples:
        pending = [pool.submit(send, number) for number in range(count)]
        while not all(one.done() for one in pending):
            started = time.perf_counter()
            httpx.post(f"{address}/v1/judge", json={"sentences": ["The cat sat."]}, timeout=60).raise_for_status()
            short.append(1e3 * (time.perf_counter() - started))
            time.sleep(0.05)
    return {
        "request_bytes": len(body),
        "codes": dict(Counter(str(one.result()) for one in pending)),
        "peak_bytes": max(samples),
        "slowest_short_request_ms": round(max(short), 1),
    }
