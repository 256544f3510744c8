"""A real Ray cluster of two nodes on this machine: what is refused, and scoring while processes and nodes die."""

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq
import pytest
from http_server import free_port, wait_until
from ray_nodes import RayNodes
from stage import ROOT, SECRETS, Store
from toy import SIGN, WORDS

from tasks.cluster.connection import connected
from tasks.cluster.gpu_memory import UNKNOWN_BYTES, min_gpu_memory
from tasks.core.errors import UsageError, VerdictError
from tasks.data.sentences import open_source
from tasks.inference.classifier import Classifier
from tasks.serving.batch_scoring import score_file, score_to_file
from tasks.serving.ray_scoring import score_on_ray
from tasks.serving.score_parts import Scorer

pytestmark = [pytest.mark.services, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RayNodes]:
    """A head and a worker, each of one CPU, and an S3 store; this process has token and keys."""
    store = Store(tmp_path_factory.mktemp("store"))
    access = {
        "AWS_ENDPOINT_URL": store.url,
        "AWS_ACCESS_KEY_ID": SECRETS["STORE_ACCESS_KEY"],
        "AWS_SECRET_ACCESS_KEY": SECRETS["STORE_SECRET_KEY"],
    }
    with RayNodes(PYTHONPATH=str(ROOT), **access) as nodes, pytest.MonkeyPatch.context() as patch:
        for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", *access):
            patch.setenv(name, nodes.environ[name])
        for _ in range(2):
            nodes.add(1)
        yield nodes
    store.kill()


def test_a_node_without_this_code_or_with_another_version_is_refused(
    nodes: RayNodes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # workers have the driver's working directory on their path
    with connected(nodes.address):
        import ray

        assert ray.cluster_resources()["CPU"] == 2
    for name in ("absent", "changed"):
        (tmp_path / name / "flows").mkdir(parents=True)
        (tmp_path / name / "tasks").mkdir()
        (tmp_path / name / "tasks" / "__init__.py").touch()
    shutil.copytree(ROOT / "tasks", tmp_path / "changed" / "tasks", dirs_exist_ok=True)
    with (tmp_path / "changed" / "tasks" / "core" / "files.py").open("a") as stream:
        stream.write("# another version\n")
    for name, message in (("absent", "cannot import verdict-mlops"), ("changed", "runs verdict-mlops .* with code")):
        node = nodes.add(1, PYTHONPATH=str(tmp_path / name))
        with pytest.raises(VerdictError, match=message), connected(nodes.address):
            pass
        nodes.kill(node)


SIZE = 300  # sentences of a part
SERVE = ("ray::Serve", "ray::Proxy")  # names of Ray Serve's processes: controller and replicas, proxies
DRIVER = """
import json, sys
from tasks.core.errors import VerdictError
from tasks.serving.ray_scoring import score_on_ray
path, out, bundle, address = sys.argv[1:]
try:
    print(json.dumps(score_on_ray(path, out, bundle, "7", "cpu", "", "", False, "", address, size=300)))
except VerdictError as error:
    sys.exit(print(error) or 1)
"""


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory, exported: Any) -> Path:
    """A folder with sentences, of which every seventh is empty, and what one process makes of them."""
    folder = tmp_path_factory.mktemp("corpus")
    lines = [
        f"{WORDS[number % 15]} {SIGN if number % 4 == 0 else ''} {WORDS[number % 11]} {number}" if number % 7 else ""
        for number in range(60_000)
    ]
    (folder / "in.txt").write_text("\n".join(lines) + "\n")
    scorer = Scorer(Classifier.from_bundle(exported["bundle"], "cpu"), "7")
    score_to_file(open_source(str(folder / "in.txt")), folder / "single.parquet", scorer, SIZE)
    return folder


def start_driver(nodes: RayNodes, corpus: Path, out: str, bundle: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", DRIVER, str(corpus / "in.txt"), str(corpus / out), bundle, nodes.address]
    return subprocess.Popen(command, cwd=corpus, env=nodes.environ, stdout=subprocess.PIPE, text=True)


def wait_for(driver: subprocess.Popen[str], parts: Path, count: int) -> None:
    while len(list(parts.glob("part-*"))) < count:
        assert driver.poll() is None
        time.sleep(0.02)


def assert_equal(corpus: Path, out: str) -> None:
    for name in (out, f"{out}.quarantine.parquet"):
        assert pq.read_table(corpus / name).equals(pq.read_table(corpus / name.replace(out, "single.parquet")))
    assert not (corpus / f"{out}.parts").exists()


def test_a_killed_worker_and_a_killed_node_cost_nothing_but_time(nodes: RayNodes, corpus: Path, exported: Any) -> None:
    driver = start_driver(nodes, corpus, "killed.parquet", exported["bundle"])
    wait_for(driver, corpus / "killed.parquet.parts", 5)
    while len(found := nodes.processes("ray::score_in")) < 2:
        assert driver.poll() is None
    found[0].kill()
    wait_for(driver, corpus / "killed.parquet.parts", 40)
    nodes.kill(nodes.nodes[1])
    output, _ = driver.communicate(timeout=300)
    assert driver.returncode == 0
    counts = json.loads(output)
    assert (counts["rows_in"], counts["quarantined"]) == (60_000, 8_572)
    assert_equal(corpus, "killed.parquet")


def test_a_node_that_joins_later_without_this_code_is_one_line_and_costs_nothing(
    nodes: RayNodes, corpus: Path, exported: Any, tmp_path: Path
) -> None:
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "__init__.py").touch()
    driver = start_driver(nodes, corpus, "joined.parquet", exported["bundle"])
    parts = corpus / "joined.parquet.parts"
    wait_for(driver, parts, 1)
    driver.send_signal(signal.SIGSTOP)  # the cluster keeps chunks for the node until it is there
    workers = nodes.processes("ray::")
    for worker in workers:
        worker.suspend()  # so that the node gets the next chunk, not one of these
    node = nodes.add(1, PYTHONPATH=str(tmp_path))
    driver.send_signal(signal.SIGCONT)
    output, _ = driver.communicate(timeout=300)
    for worker in workers:
        with contextlib.suppress(psutil.NoSuchProcess):
            worker.resume()
    node.terminate()  # a node that is killed is listed until it has missed health checks, and asked until then
    node.wait()
    assert driver.returncode == 1
    assert "a node that joined the Ray cluster cannot import verdict-mlops (ModuleNotFoundError: " in output
    finished = len(list(parts.glob("part-*")))
    rerun = start_driver(nodes, corpus, "joined.parquet", exported["bundle"])
    found = json.loads(rerun.communicate()[0])
    assert found["reused"] >= SIZE * (finished - 2)
    assert_equal(corpus, "joined.parquet")


def test_a_plain_second_run_completes_what_a_killed_driver_left(nodes: RayNodes, corpus: Path, exported: Any) -> None:
    driver = start_driver(nodes, corpus, "resumed.parquet", exported["bundle"])
    wait_for(driver, corpus / "resumed.parquet.parts", 20)
    driver.send_signal(signal.SIGKILL)
    assert driver.wait() == -signal.SIGKILL
    arguments = (exported["bundle"], "7", "cpu", "", "", False, "", nodes.address)
    resumed = score_on_ray(str(corpus / "in.txt"), str(corpus / "resumed.parquet"), *arguments, size=SIZE)
    assert resumed["reused"] >= 20 * SIZE
    assert resumed["provider"] == "CPUExecutionProvider"
    assert_equal(corpus, "resumed.parquet")


def test_objects_of_an_s3_store_are_scored_as_files_are(nodes: RayNodes, corpus: Path, exported: Any) -> None:
    store = pafs.S3FileSystem(endpoint_override=nodes.environ["AWS_ENDPOINT_URL"], allow_bucket_creation=True)
    store.create_dir("corpus")
    for name, sentences in (("a", ["the cat sees", "the dog wrongly sees"] * 5), ("b", ["the bird"])):
        pq.write_table(pa.table({"text": sentences}), f"corpus/2026/{name}.parquet", filesystem=store, row_group_size=4)
    outs = [str(corpus / name) for name in ("stored.parquet", "stored-on-ray.parquet")]
    arguments = (exported["bundle"], "7", "cpu", "", "", False, "")
    score_file("s3://corpus/2026", outs[0], *arguments)
    scored = score_on_ray("s3://corpus/2026/", outs[1], *arguments, nodes.address, size=3)
    assert (scored["rows_in"], scored["scored"]) == (11, 11)
    single, on_ray = map(pq.read_table, outs)
    assert single.equals(on_ray)
    assert single["sentence"].to_pylist() == ["the cat sees", "the dog wrongly sees"] * 5 + ["the bird"]
    with pytest.raises(UsageError, match=r"input 's3://corpus/2025' holds no data file; expected .* aws s3 ls"):
        score_file("s3://corpus/2025", outs[0], *arguments)


def test_nodes_say_how_much_memory_their_gpus_have(nodes: RayNodes, tmp_path: Path) -> None:
    (tmp_path / "nvidia-smi").write_text("#!/bin/sh\necho 81559\necho 24576\n")
    (tmp_path / "nvidia-smi").chmod(0o755)
    with connected(nodes.address):
        assert min_gpu_memory() == UNKNOWN_BYTES
    node = nodes.add(1, gpus=2, PATH=f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    with connected(nodes.address):
        assert min_gpu_memory() == 24_576 << 20
    node.terminate()
    node.wait()


def test_a_device_that_no_node_has_and_a_stream_are_refused(nodes: RayNodes, corpus: Path, exported: Any) -> None:
    rest = ("7", "cuda", "", "", False, "", nodes.address)
    with pytest.raises(UsageError, match=r"the Ray cluster has no GPU; expected a node with one, or --device cpu"):
        score_on_ray(str(corpus / "in.txt"), str(corpus / "refused.parquet"), exported["bundle"], *rest)
    with pytest.raises(UsageError, match="--ray cannot read or write a stream"):
        score_on_ray("-", str(corpus / "refused.parquet"), exported["bundle"], *rest)


@contextlib.contextmanager
def start_server(nodes: RayNodes, bundle: str, port: int, home: Path) -> Iterator[subprocess.Popen[str]]:
    """Yield a server once it serves, or has ended."""
    command = [sys.executable, "-m", "flows.cli.app", "serve", "--ray", nodes.address, "--port", str(port)]
    command += ["--model", bundle, "--device", "cpu", "--replica-cpus", "0.5"]
    environ = nodes.environ | {"VERDICT_HOME": str(home)}
    pipe = subprocess.PIPE
    server = subprocess.Popen(command, cwd=ROOT, env=environ, stdout=pipe, stderr=pipe, text=True)
    try:
        assert server.stdout is not None
        server.stdout.readline()
        yield server
    finally:
        server.kill()
        server.wait()


def end_server(server: subprocess.Popen[str]) -> str:
    """End a server by SIGTERM; return what it wrote to standard error."""
    server.send_signal(signal.SIGTERM)
    _, errors = server.communicate(timeout=120)
    assert server.returncode == 0, errors
    return errors


def test_a_server_that_ends_or_does_not_start_leaves_nothing_of_ray_serve(
    nodes: RayNodes, exported: Any, tmp_path: Path
) -> None:
    port = free_port()
    with socket.create_server(("127.0.0.1", port)), start_server(nodes, exported["bundle"], port, tmp_path) as refused:
        _, errors = refused.communicate(timeout=120)
        assert refused.returncode == 1
        assert f"127.0.0.1:{port} is free there" in errors
    wait_until(lambda: not nodes.processes(*SERVE), 60)
    given = (nodes, exported["bundle"], port, tmp_path)
    with start_server(*given) as server, start_server(*given) as second:
        assert len(nodes.processes(*SERVE)) >= 3  # controller, proxy, replica
        for each in (server, second):  # the first ends the application of both
            assert end_server(each) == "stopped; every request that was accepted before is answered\n"
            wait_until(lambda: not nodes.processes(*SERVE), 60)
