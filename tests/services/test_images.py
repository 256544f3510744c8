"""The script that fills the images, run as they run it: the inference image's packages alone answer a sentence.

They are fetched from the package index that `make test` uses. The other images' packages weigh gigabytes, torch's most
of all; `TEST_ALL_IMAGES=1 make test-services` fetches them too.
"""

import configparser
import contextlib
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from http_server import free_port, wait_until
from manifests import IMAGES, ROOT, last, listed, read_compose, read_dockerfile

from tasks.core.errors import VerdictError
from tasks.inference.bundle import CHAMPION, CHAMPION_URI, MODEL_NAME
from tasks.registry import register
from tasks.registry import tracking as runs
from tasks.registry.local_database import AUDIT_EXPERIMENT, EXPERIMENT
from tasks.registry.mlflow_client import connect
from tasks.registry.store import MlflowStore

pytestmark = [pytest.mark.services, pytest.mark.timeout(600)]
HEAVY = {"torch", "transformers", "prefect", "mlflow", "great-expectations", "pandas", "pyarrow", "sqlalchemy", "pip"}
PASSWORDS = {"admin": "a" * 12, "retrain": "b" * 12, "reader": "c" * 12}
SENTENCES = {"sentences": ["the cat sees the dog"]}
FOLLOW = """
from verdict_inference import Champion
with Champion.open("models:/acceptability@champion", device="cpu") as champion:
    print(champion.predict(["the cat sees the dog"])[0]["version"])
"""


def install(*arguments: str | Path) -> None:
    done = subprocess.run(
        ["sh", IMAGES / "install.sh", *arguments],
        env=os.environ | {"PYTHON": sys.executable},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def starting(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path, subprocess.Popen[bytes]]]:
    """A tracking server on its way up, as compose.yaml configures it; SQLite and a folder take the stores' places."""
    folder, port = tmp_path_factory.mktemp("tracking"), free_port()
    config = configparser.ConfigParser()
    config.read(ROOT / "mlflow" / "basic_auth.ini")
    config["mlflow"]["database_uri"] = f"sqlite:///{folder}/accounts.db"
    with (folder / "basic_auth.ini").open("w") as file:
        config.write(file)
    written = {name: str(value) for name, value in read_compose()["services"]["mlflow"]["environment"].items()}
    hosts = written["MLFLOW_SERVER_ALLOWED_HOSTS"].replace("${MLFLOW_HOSTS:-", "").replace("}", "")
    command = listed(last(read_dockerfile(IMAGES / "mlflow.Dockerfile"), "CMD"))
    env = {name: value for name, value in written.items() if "${" not in value and not name.startswith(("PG", "AWS"))}
    env |= {
        "MLFLOW_BACKEND_STORE_URI": f"sqlite:///{folder}/mlflow.db",
        "MLFLOW_ARTIFACTS_DESTINATION": str(folder / "artifacts"),
        "MLFLOW_AUTH_CONFIG_PATH": str(folder / "basic_auth.ini"),
        "MLFLOW_AUTH_ADMIN_PASSWORD": PASSWORDS["admin"],
        "MLFLOW_FLASK_SERVER_SECRET_KEY": "k" * 32,
        "MLFLOW_SERVER_ALLOWED_HOSTS": hosts,
        "MLFLOW_WORKERS": "1",
    }
    replaced = {"0.0.0.0": "127.0.0.1", "5000": str(port)}
    start = [sys.executable, "-m", "mlflow", *(replaced.get(word, word) for word in command)]
    with started(start, folder, os.environ | env) as process:
        yield f"http://127.0.0.1:{port}", folder, process


@pytest.fixture(scope="module")
def tracking(starting: tuple[str, Path, subprocess.Popen[bytes]]) -> str:
    """The address of that server, once it answers."""
    address, folder, process = starting
    wait_for(process, folder, answers(f"{address}/health"))
    return address


@pytest.fixture(scope="module")
def venv(tmp_path_factory: pytest.TempPathFactory, starting: Any) -> Path:
    """An environment with what the inference image holds; filled while the tracking server starts."""
    folder = tmp_path_factory.mktemp("image") / "venv"
    install("inference", "package", "runtime", "sbom", folder)
    return folder


def normalize(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def held_by(venv: Path) -> dict[str, str]:
    """Return the packages of an environment and their versions."""
    script = "import importlib.metadata as m, json; print(json.dumps([(d.name, d.version) for d in m.distributions()]))"
    done = subprocess.run([venv / "bin" / "python", "-c", script], capture_output=True, text=True, check=True)
    return {normalize(name): version for name, version in json.loads(done.stdout)}


@contextlib.contextmanager
def started(command: list[Any], folder: Path, env: dict[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    """Start a server; stop it at the end."""
    with (folder / "server.log").open("wb") as output:
        process = subprocess.Popen(command, cwd=folder, env=env, stdout=output, stderr=output)
    try:
        yield process
    finally:
        process.terminate()
        process.wait(60)


def wait_for(process: subprocess.Popen[bytes], folder: Path, holds: Callable[[], bool]) -> None:
    wait_until(lambda: process.poll() is not None or holds(), 120)
    assert process.poll() is None, (folder / "server.log").read_text()


def answers(url: str) -> Callable[[], bool]:
    def ask() -> bool:
        with contextlib.suppress(httpx.HTTPError):
            return httpx.get(url, timeout=2).status_code == 200
        return False

    return ask


@contextlib.contextmanager
def serving(venv: Path, folder: Path, model: str, **env: str) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """Start what the image's CMD starts, on a free port of loopback, with the environment of a container."""
    image = read_dockerfile(IMAGES / "inference.Dockerfile")
    port = str(free_port())
    replaced = {"0.0.0.0": "127.0.0.1", last(image, "EXPOSE"): port}
    command = [*listed(last(image, "ENTRYPOINT")), *(replaced.get(word, word) for word in listed(last(image, "CMD")))]
    path = {"PATH": f"{venv / 'bin'}:/usr/bin:/bin", "HOME": str(folder), "OMP_NUM_THREADS": "1"}
    extra = ["--model", model, "--refresh-seconds", "0.5"]
    with started(["/usr/bin/env", *command, *extra], folder, path | env) as process:
        wait_for(process, folder, answers(f"http://127.0.0.1:{port}/healthz"))
        yield f"http://127.0.0.1:{port}", process


def test_the_inference_image_holds_nothing_heavy_and_nothing_that_is_not_pinned(venv: Path) -> None:
    typed = {path.parent.name for path in venv.glob("lib/python*/site-packages/*/py.typed")}
    assert {"flows", "tasks", "verdict_inference"} <= typed
    listed_in = json.loads((venv / "share" / "sbom.json").read_text(encoding="utf-8"))
    assert (listed_in["bomFormat"], listed_in["specVersion"]) == ("CycloneDX", "1.6")
    assert {normalize(each["name"]): each["version"] for each in listed_in["components"]} == held_by(venv)
    held, lines = held_by(venv), (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pinned = dict(line.split("==") for line in lines if "==" in line and not line.startswith("#"))
    pins = {normalize(name): version for name, version in pinned.items()}
    assert set(held) & HEAVY == set()
    assert held.pop("verdict-mlops") == held.pop("verdict-inference")
    assert {name: version for name, version in held.items() if pins.get(name) != version} == {}
    size = sum(path.stat().st_size for path in venv.rglob("*") if path.is_file() and not path.is_symlink())
    assert size < 400e6, f"{size / 1e6:.0f} MB"


def test_the_inference_image_answers_a_sentence_and_stops_on_sigterm(venv: Path, exported: Any, tmp_path: Path) -> None:
    with serving(venv, tmp_path, str(exported["bundle"])) as (address, process):
        reply = httpx.post(f"{address}/v1/judge", json=SENTENCES).json()
        assert reply["predictions"][0]["label"] in ("acceptable", "unacceptable")
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0


def make_accounts(address: str, **changes: str) -> subprocess.CompletedProcess[str]:
    env = {
        "MLFLOW_TRACKING_URI": address,
        "MLFLOW_AUTH_ADMIN_USERNAME": "admin",
        "MLFLOW_AUTH_ADMIN_PASSWORD": PASSWORDS["admin"],
        "RETRAIN_PASSWORD": PASSWORDS["retrain"],
        "READER_PASSWORD": PASSWORDS["reader"],
    }
    command = [sys.executable, IMAGES / "accounts.py"]
    return subprocess.run(command, env=os.environ | env | changes, capture_output=True, text=True)


def log_in(monkeypatch: pytest.MonkeyPatch, account: str) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", account)
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", PASSWORDS[account])


def test_the_inference_image_follows_the_champion_with_an_account_that_only_reads(
    tracking: str, venv: Path, exported: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert make_accounts(tracking).returncode == 0
    store = MlflowStore(uri=tracking, artifacts="")
    reader = {
        "MLFLOW_TRACKING_URI": tracking,
        "MLFLOW_TRACKING_USERNAME": "reader",
        "MLFLOW_TRACKING_PASSWORD": PASSWORDS["reader"],
    }
    with serving(venv, tmp_path, CHAMPION_URI, **reader) as (address, _):
        assert httpx.get(f"{address}/readyz").status_code == 503
        log_in(monkeypatch, "retrain")
        run = runs.open_run(store, "a" * 16, {}, {})
        version = register.register_bundle(store, run, exported["bundle"], exported["digest"], {}, "")
        with connect(store) as client:
            client.set_registered_model_alias(MODEL_NAME, CHAMPION, version)
        wait_until(answers(f"{address}/readyz"), 30)
        reply = httpx.post(f"{address}/v1/judge", json=SENTENCES).json()
        assert reply["version"] == version
    env = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), **reader}
    done = subprocess.run([venv / "bin" / "python", "-c", FOLLOW], env=env, capture_output=True, text=True)
    assert done.stdout.split() == [version], done.stderr
    log_in(monkeypatch, "reader")
    for write in (
        lambda client: client.set_registered_model_alias(MODEL_NAME, CHAMPION, version),
        lambda client: client.create_model_version(MODEL_NAME, f"models:/{MODEL_NAME}/{version}"),
        lambda client: client.set_terminated(run, "KILLED"),
    ):
        with pytest.raises(VerdictError, match="403"), connect(store) as client:
            write(client)


def test_accounts_are_made_once_and_passwords_change(tracking: str) -> None:
    first, second = make_accounts(tracking), make_accounts(tracking, READER_PASSWORD="d" * 12)
    assert (first.returncode, second.returncode) == (0, 0)
    search = f"{tracking}/api/2.0/mlflow/experiments/search?max_results=10"
    wait_until(lambda: httpx.get(search, auth=("reader", "d" * 12)).status_code == 200)
    names = {found["name"] for found in httpx.get(search, auth=("reader", "d" * 12)).json()["experiments"]}
    assert {EXPERIMENT, AUDIT_EXPERIMENT} <= names
    assert httpx.get(search, auth=("reader", "wrong password")).status_code == 401
    assert httpx.get(search).status_code == 401
    assert make_accounts(tracking).returncode == 0


def test_accounts_without_a_password_are_refused() -> None:
    refused = make_accounts("http://127.0.0.1:9", READER_PASSWORD="")
    assert refused.returncode == 1
    assert refused.stderr.strip() == "error: READER_PASSWORD must be set; infra/README.md says what for"


def test_the_tracking_server_answers_to_its_names_and_its_page_alone(tracking: str) -> None:
    port = tracking.rsplit(":", 1)[1]
    admin = ("admin", PASSWORDS["admin"])
    for host, code in (("mlflow:5000", 200), (f"localhost:{port}", 200), ("evil.example", 403)):
        assert httpx.get(f"{tracking}/health", headers={"Host": host}).status_code == 200  # probes know no names
        assert httpx.get(tracking, headers={"Host": host}, auth=admin).status_code == code
    posted = httpx.post(
        f"{tracking}/api/2.0/mlflow/runs/search", json={}, headers={"Origin": "http://evil.example"}, auth=admin
    )
    assert posted.status_code == 403


@pytest.mark.parametrize("arguments", [[], ["worker"], ["gpu", "/tmp/never"]])
def test_the_script_says_how_it_is_used(arguments: list[str]) -> None:
    done = subprocess.run(["sh", IMAGES / "install.sh", *arguments], capture_output=True, text=True)
    assert done.returncode == 2
    assert "worker|inference|prefect|mlflow|package|runtime|sbom... VENV" in done.stderr


@pytest.mark.skipif(os.environ.get("TEST_ALL_IMAGES") != "1", reason="gigabytes; asked for by TEST_ALL_IMAGES=1")
@pytest.mark.timeout(1_800)
@pytest.mark.parametrize(
    ("steps", "imported"),
    [
        (["prefect"], "prefect.server.api.server, asyncpg"),
        (["mlflow"], "mlflow.server.auth, psycopg2, boto3"),
        (["worker", "package"], "torch, prefect_kubernetes, onnxruntime, tasks.training.finetune, flows.jobs.retrain"),
    ],
    ids=["prefect", "mlflow", "worker"],
)
def test_the_other_images_hold_what_they_run(steps: list[str], imported: str, tmp_path: Path) -> None:
    install(*steps, tmp_path / "venv")
    script = f"import {imported}; print('whole')"
    done = subprocess.run([tmp_path / "venv" / "bin" / "python", "-c", script], capture_output=True, text=True)
    assert done.stdout.strip().endswith("whole"), done.stderr
