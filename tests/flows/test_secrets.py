"""No password, signature or token that the product reads is written or printed, whether a run ends well or fails."""

import base64
import hashlib
import http.server
import os
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from command_line import call
from job_cache import Choose, JobCache
from loopback import running
from mlflow import MlflowClient
from toy import flow_settings

from flows import environment
from tasks.core.errors import UsageError
from tasks.core.hidden_addresses import reveal
from tasks.core.signing import describe_key
from tasks.registry.store import locate_store

MARK = "S3cr3t"  # part of every secret of these tests
NAME, PASSWORD, SIGNATURE = f"{MARK}-name", f"{MARK}-password", f"{MARK}-signature"
USER = f"{NAME}:{PASSWORD}"
ELSEWHERE = f"://{USER}@127.0.0.1:9/x"  # where nobody listens
# A key of Ed25519 whose text has the mark: PKCS #8's head, and 32 bytes.
KEY_BODY = bytes.fromhex("302e020100300506032b657004220420") + b"ab" + base64.b64decode(f"{MARK}AA") + bytes(24)
KEY = f"-----BEGIN PRIVATE KEY-----\n{base64.b64encode(KEY_BODY).decode()}\n-----END PRIVATE KEY-----\n"
VARIABLES = ("HF_TOKEN", "MLFLOW_TRACKING_TOKEN", "AWS_SECRET_ACCESS_KEY", "PREFECT_API_KEY", "PREFECT_API_AUTH_STRING")


@pytest.fixture(scope="module")
def site(toy_data: Path) -> Iterator[str]:
    """A server of the toy corpus that answers only requests with password and signature; yields host and port."""
    wanted = "Basic " + base64.b64encode(USER.encode()).decode()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            path, _, query = self.path.partition("?")
            allowed = self.headers["Authorization"] == wanted and query == f"sig={SIGNATURE}&download=1"
            body = (toy_data / Path(path).name).read_bytes() if allowed else b""
            self.send_response(200 if allowed else 403)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield f"127.0.0.1:{server.server_port}"
    server.shutdown()


@pytest.fixture
def secretive(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Secrets in every variable that the product and its libraries read; returns the home."""
    monkeypatch.chdir(tmp_path)
    for name in VARIABLES:
        monkeypatch.setenv(name, f"{MARK}-{name}")
    monkeypatch.setenv("VERDICT_ALERT_URL", f"http{ELSEWHERE}?sig={SIGNATURE}")
    monkeypatch.setenv("VERDICT_SIGNING_KEY", KEY)
    monkeypatch.setenv("VERDICT_HOME", str(home))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return home


def files_with_a_secret(*folders: Path) -> list[str]:
    files = [path for folder in folders for path in folder.rglob("*") if path.is_file()]
    assert files
    return [str(path) for path in files if MARK.encode() in path.read_bytes()]


def address(site: str, file: Path, digest: str = "") -> str:
    found = digest or hashlib.sha256(file.read_bytes()).hexdigest()
    return f"http://{USER}@{site}/{file.name}?sig={SIGNATURE}&download=1#sha256={found}"


@pytest.mark.usefixtures("copied_pictures")
def test_a_run_leaves_no_secret_behind_when_it_ends_well_and_when_it_fails(
    prefect_server: str,
    secretive: Path,
    site: str,
    toy_data: Path,
    tiny_encoder: Path,
    choose: Choose,
    job_cache: JobCache,
    tmp_path_factory: pytest.TempPathFactory,
    capsys: pytest.CaptureFixture[str],
) -> None:
    train, holdout = toy_data / "in_domain_train.tsv", toy_data / "out_of_domain_dev.tsv"
    resolved = choose(data__path=[address(site, train), address(site, holdout)])
    assert resolved.settings.data.path[0].startswith(
        f"http://***@{site}/in_domain_train.tsv?sig=***&download=1#sha256="
    )
    toy = flow_settings(toy_data, tiny_encoder)
    rest = [f"--set={key}={value}" for key, value in toy.items() if key != "data.path"]
    given = ["--data", address(site, train), "--data", address(site, holdout)]
    with job_cache.resumed(secretive, resolved):
        shutil.rmtree(secretive / "downloads")
        code, printed, log = call(capsys, "retrain", *given, *rest)
    assert (code, MARK in printed + log) == (0, False), printed + log
    assert "downloading http://***@127.0.0.1" in log

    for bad, expected, exit_code in (
        (address(site, train, "1" * 64), "has SHA-256", 3),
        (address(site, train, "2" * 64).replace(SIGNATURE, f"{MARK}-wrong"), "answered 403 Forbidden", 2),
    ):
        code, printed, log = call(capsys, "retrain", "--data", bad, *rest)
        assert (code, expected in log, MARK in printed + log) == (exit_code, True, False), log
    code, printed, log = call(capsys, "status")
    assert (code, "signed by" in printed, MARK in printed + log) == (0, True, False), printed + log
    base = tmp_path_factory.getbasetemp()
    assert files_with_a_secret(secretive, *base.glob("prefect*"), Path.cwd()) == []


def test_refused_values_and_unreachable_servers_are_named_without_their_secrets(
    secretive: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (secretive.parent / "in.txt").write_text("A sentence.\n")
    bad = f"https{ELSEWHERE}?sig={SIGNATURE}"
    spaced = f"https://{NAME}:{MARK} '{MARK}/{MARK}#{MARK}@host/x"
    for arguments, expected in (
        (["retrain", "--data", bad, "--show-settings"], "data.path"),
        (["check", "--data", bad], "'https://***@127.0.0.1:9/x?sig=***' has no digest"),
        (["check", "--data", f"http://{NAME}:{MARK}@h:port/x#sha256={'0' * 64}"], "is no URL"),
        (["check", "--data", f"{bad}#token={MARK}"], "has the unknown part 'token'"),
        (["check", "--data", "sample", "--train", bad], "has no digest"),
        (["check", "--set", f"data.text={spaced}"], "'https://***@host/x'"),
        (["check", "--set", f"https{ELSEWHERE}"], "has no value"),
        (["check", "--set", f"{bad}x=1"], "is unknown"),
        (["check", "--set", f"finetune.epochs={spaced}"], "finetune.epochs = 'https://***@host/x' (flag) is refused"),
        (["check", "--set", f"judge.policy={bad}"], "https:/***@127.0.0.1:9/x?sig=***"),
        (["check", "--profile", bad], "https://***@127.0.0.1:9/x?sig=***"),
        (["retrain", "--encoder", bad], "https://***@127.0.0.1:9/x?sig=***"),
        (["check", f"--dat={bad}", bad], "No such option"),
        (["predict", "x", "--model", bad], "https://***@127.0.0.1:9/x?sig=***"),
        (["score", bad, "out.parquet"], "does not exist"),
        (["deploy", bad], "unexpected extra argument"),
    ):
        code, printed, log = call(capsys, *arguments)
        assert expected in printed + log, (arguments, printed, log)
        assert MARK not in printed + log, (arguments, printed, log)
    monkeypatch.setenv("VERDICT_DATA__PATH", f'["{bad}#sha256={"0" * 64}"]')
    monkeypatch.setenv("HTTPS_PROXY", f"socks9://{USER}@host:1/")
    code, printed, log = call(capsys, "check")
    assert (code, MARK in printed + log) == (2, False), log


@pytest.mark.parametrize("key", [KEY[:50], KEY.replace("PRIVATE", "PUBLIC"), f"/no/{MARK}.key", f"{MARK}-key"])
def test_a_key_that_cannot_be_read_is_not_shown(key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VERDICT_SIGNING_KEY", key)
    with pytest.raises(UsageError, match="VERDICT_SIGNING_KEY is no private key in PEM form") as refused:
        describe_key()
    assert MARK not in str(refused.value)


def test_names_and_passwords_of_servers_are_kept_out_of_what_is_said_of_them(
    secretive: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    for name in ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD", "PREFECT_API_URL"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http{ELSEWHERE}")
    for command in ("status", "history"):
        _, printed, log = call(capsys, command)
        assert "http://127.0.0.1:9/x" in printed + log
        assert MARK not in printed + log, (command, printed, log)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http{ELSEWHERE}?sig={SIGNATURE}%2B{MARK}")  # requests quotes its path
    monkeypatch.setenv("PREFECT_API_URL", f"{USER}@127.0.0.1:x/api")
    for command in ("status", "history"):
        _, printed, log = call(capsys, command)
        assert "http://127.0.0.1:9/x?sig=***" in printed + log
        assert MARK not in printed + log, (command, printed, log)
    assert os.environ["MLFLOW_TRACKING_USERNAME"] == NAME
    assert os.environ["MLFLOW_TRACKING_PASSWORD"] == PASSWORD
    given = f"postgresql{ELSEWHERE}?password={MARK}"  # a database has no such variables
    monkeypatch.setenv("MLFLOW_TRACKING_URI", given)
    assert locate_store(str(secretive))["uri"] == "postgresql://***@127.0.0.1:9/x?password=***"
    assert reveal(locate_store(str(secretive))["uri"]) == given


def test_credentials_of_prefects_address_are_moved_before_prefect_is_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFECT_API_AUTH_STRING", "")
    monkeypatch.delenv("PREFECT_API_AUTH_STRING")
    monkeypatch.setenv("PREFECT_API_URL", f"https://{NAME}:a%2Fb@host/api")
    environment.set_process_defaults()
    assert os.environ["PREFECT_API_URL"] == "https://host/api"
    assert os.environ["PREFECT_API_AUTH_STRING"] == f"{NAME}:a/b"


@pytest.mark.parametrize(
    ("variables", "sent"),
    [
        ({"MLFLOW_TRACKING_TOKEN": MARK}, f"Bearer {MARK}"),
        ({"MLFLOW_TRACKING_USERNAME": NAME, "MLFLOW_TRACKING_PASSWORD": PASSWORD}, USER),
        ({}, "of-netrc:other"),
    ],
    ids=["token", "name and password", "none"],
)
def test_netrc_counts_only_where_mlflow_has_no_credentials(
    variables: dict[str, str], sent: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("NETRC", "MLFLOW_TRACKING_TOKEN", "MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / ".netrc").write_text("machine 127.0.0.1 login of-netrc password other\n")
    (tmp_path / ".netrc").chmod(0o600)
    received: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            received.append(self.headers["Authorization"])
            self.send_response(200)
            self.send_header("Content-Length", "2")
            self.end_headers()
            self.wfile.write(b"{}")

        def log_message(self, *_: Any) -> None:
            pass

    environment.set_process_defaults()
    with running(http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)) as address:
        MlflowClient(address).search_experiments()
    kind, _, value = received[0].partition(" ")
    assert (base64.b64decode(value).decode() if kind == "Basic" else received[0]) == sent


def test_an_address_of_prefect_of_another_form_is_refused_without_showing_it() -> None:
    from prefect.settings import PREFECT_API_URL, temporary_settings

    from flows.services.embedded_prefect import external_api

    with (
        temporary_settings({PREFECT_API_URL: f"{USER}@127.0.0.1:x/api"}),
        pytest.raises(UsageError, match="PREFECT_API_URL is no address of a server; expected") as refused,
    ):
        external_api()
    assert MARK not in str(refused.value)


def test_a_deployment_that_would_store_a_secret_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, prefect_server: str
) -> None:
    from flows.jobs.deployments import DataForm, resolve
    from flows.services.deploy import deploy

    file = tmp_path / "mine.yaml"
    file.write_text(f"parameters: {{data: {{path: ['http{ELSEWHERE}#sha256=0']}}}}\n")
    with pytest.raises(UsageError, match=r"mine\.yaml holds an address with a password or signature") as refused:
        deploy(str(file))
    assert MARK not in str(refused.value)
    form = DataForm(path=[f"https://host/x?sig={SIGNATURE}"])
    with pytest.raises(UsageError, match="the form of this deployment holds an address with a password"):
        resolve("sample", form)
    monkeypatch.setenv("VERDICT_DATA__PATH", form.path[0])
    assert resolve("sample").settings.data.path == ("https://host/x?sig=***",)
