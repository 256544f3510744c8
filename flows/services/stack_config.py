"""Where the services of one machine lie and what each is told: read from the environment, written into it.

PREFECT_PORT, MLFLOW_PORT, INFERENCE_PORT, WORKER_PORT   ports on loopback
POSTGRES_HOST [POSTGRES_PORT], PREFECT_DATABASE_PASSWORD, MLFLOW_DATABASE_PASSWORD   PostgreSQL instead of SQLite
STORE_URL, STORE_ACCESS_KEY, STORE_SECRET_KEY [STORE_BUCKET, STORE_REGION]           S3 instead of a folder
PREFECT_AUTH_STRING                                                                  Prefect asks for it
MLFLOW_ADMIN_PASSWORD, RETRAIN_PASSWORD, READER_PASSWORD, MLFLOW_SECRET_KEY          MLflow has accounts

The names are those of infra/compose.yaml. No value of a secret is ever part of a command line.
"""

import base64
import shlex
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from tasks.core.errors import UsageError

MARKER = "STACK_OF"  # in the environment of every process of a stack: its home
PORTS = {"PREFECT_PORT": 4200, "MLFLOW_PORT": 5000, "INFERENCE_PORT": 8080, "WORKER_PORT": 8081}
DATABASES = ("PREFECT_DATABASE_PASSWORD", "MLFLOW_DATABASE_PASSWORD")
S3_VARIABLES = ("STORE_ACCESS_KEY", "STORE_SECRET_KEY")
ACCOUNT_VARIABLES = ("MLFLOW_ADMIN_PASSWORD", "RETRAIN_PASSWORD", "READER_PASSWORD", "MLFLOW_SECRET_KEY")
MIN_PASSWORD_CHARS = 12  # characters of an MLflow password, its own bound


class StackConfig(NamedTuple):
    """What follows from the environment."""

    home: str
    ports: dict[str, int]
    urls: dict[str, str]
    """For people."""
    exports: dict[str, str]
    """What a client of the services sets; secrets by the name of their variable."""
    health_urls: dict[str, str]
    """What every service answers once it is up."""
    wait_urls: dict[str, str]
    """What worker and inference service wait for; with accounts, as themselves."""
    environment: dict[str, str]
    """Of every service."""
    accounts: dict[str, str]
    """Of the program that makes MLflow's accounts; empty: there are none."""
    opener: urllib.request.OpenerDirector
    """Asks the servers with the worker's names and passwords."""


def load_stack_config(environ: Mapping[str, str], home: str) -> StackConfig:
    """Read ports, addresses and secrets.

    Raises:
        WrongUsage: if a port is none, or something is set without what it needs.
    """
    ports = {name: _port(environ, name) for name in PORTS}
    _reject_incomplete(environ)
    prefect, mlflow, inference, worker = (f"http://127.0.0.1:{port}" for port in ports.values())
    urls = {"Prefect": prefect, "MLflow": mlflow, "inference": inference}
    exports = {"PREFECT_API_URL": f"{prefect}/api", "MLFLOW_TRACKING_URI": mlflow}
    own = {name: str(port) for name, port in ports.items()} | _prefect(environ, home, prefect) | exports
    own |= _mlflow(environ, home, mlflow) | {"PREFECT_WORKER_WEBSERVER_PORT": str(ports["WORKER_PORT"])}
    own |= {"VERDICT_HOME": home, MARKER: home, "PYTHONUNBUFFERED": "1"}
    accounts: dict[str, str] = {}
    if environ.get("PREFECT_AUTH_STRING"):
        exports["PREFECT_API_AUTH_STRING"] = "$PREFECT_AUTH_STRING"
    if environ.get("MLFLOW_ADMIN_PASSWORD"):
        accounts = {**environ, **own, "MLFLOW_AUTH_ADMIN_USERNAME": "admin"}
        exports |= {"MLFLOW_TRACKING_USERNAME": "retrain", "MLFLOW_TRACKING_PASSWORD": "$RETRAIN_PASSWORD"}
    health = {"prefect": f"{prefect}/api/health", "mlflow": f"{mlflow}/health"}
    whole = health | {"worker": f"{worker}/health", "inference": f"{inference}/healthz"}
    asked = health | {"mlflow": f"{mlflow}/api/2.0/mlflow/experiments/search?max_results=1"}
    opener = _opener(environ, prefect, mlflow)
    return StackConfig(home, ports, urls, exports, whole, asked, {**environ, **own}, accounts, opener)


def _prefect(environ: Mapping[str, str], home: str, url: str) -> dict[str, str]:
    """Return what Prefect's server and its clients are told."""
    told = {
        "PREFECT_HOME": f"{home}/stack/prefect",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_SERVER_API_CORS_ALLOWED_ORIGINS": url,
        "PREFECT_SERVER_API_CSRF_PROTECTION_ENABLED": "true",
        "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false",
        # Leases in memory are lost with the server, and their slots stay taken for ever.
        "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": "prefect.server.concurrency.lease_storage.filesystem",
    }
    if auth := environ.get("PREFECT_AUTH_STRING"):
        told |= {"PREFECT_SERVER_API_AUTH_STRING": auth, "PREFECT_API_AUTH_STRING": auth}
    if not environ.get("POSTGRES_HOST"):
        return told | {"PREFECT_SERVER_DATABASE_CONNECTION_URL": f"sqlite+aiosqlite:///{home}/stack/prefect.db"}
    return told | {
        "PREFECT_SERVER_DATABASE_DRIVER": "postgresql+asyncpg",
        "PREFECT_SERVER_DATABASE_HOST": environ["POSTGRES_HOST"],
        "PREFECT_SERVER_DATABASE_PORT": environ.get("POSTGRES_PORT", "5432"),
        "PREFECT_SERVER_DATABASE_NAME": "prefect",
        "PREFECT_SERVER_DATABASE_USER": "prefect",
        "PREFECT_SERVER_DATABASE_PASSWORD": environ["PREFECT_DATABASE_PASSWORD"],
    }


def _mlflow(environ: Mapping[str, str], home: str, url: str) -> dict[str, str]:
    """Return what MLflow's server and its clients are told."""
    options = ["--serve-artifacts"]
    told = {
        "MLFLOW_BACKEND_STORE_URI": f"sqlite:///{home}/mlflow.db",
        "MLFLOW_ARTIFACTS_DESTINATION": f"{home}/artifacts",
        "MLFLOW_SERVER_ALLOWED_HOSTS": "localhost:*,127.0.0.1:*",
        "MLFLOW_SERVER_CORS_ALLOWED_ORIGINS": url,
        "MLFLOW_SERVER_X_FRAME_OPTIONS": "DENY",
        "MLFLOW_WORKERS": "2",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "MLFLOW_TRACKING_USERNAME": "",
        "MLFLOW_TRACKING_PASSWORD": "",
        "READER_NAME": "",
    }
    if host := environ.get("POSTGRES_HOST"):
        told |= {"MLFLOW_BACKEND_STORE_URI": "postgresql+psycopg2://", "PGHOST": host, "PGUSER": "mlflow"}
        told |= {"PGDATABASE": "mlflow", "PGPORT": environ.get("POSTGRES_PORT", "5432")}
        told["PGPASSWORD"] = environ["MLFLOW_DATABASE_PASSWORD"]
    if address := environ.get("STORE_URL"):
        told |= {
            "MLFLOW_ARTIFACTS_DESTINATION": f"s3://{environ.get('STORE_BUCKET') or 'verdict'}",
            "MLFLOW_S3_ENDPOINT_URL": address,
            "MLFLOW_BOTO_CLIENT_ADDRESSING_STYLE": "path",
            "AWS_DEFAULT_REGION": environ.get("STORE_REGION") or "us-east-1",
            "AWS_ACCESS_KEY_ID": environ["STORE_ACCESS_KEY"],
            "AWS_SECRET_ACCESS_KEY": environ["STORE_SECRET_KEY"],
        }
    if admin := environ.get("MLFLOW_ADMIN_PASSWORD"):
        options += ["--app-name", "basic-auth"]
        told |= _accounts(environ, home, admin)
    return told | {"MLFLOW_OPTIONS": shlex.join(options)}


def _accounts(environ: Mapping[str, str], home: str, admin: str) -> dict[str, str]:
    """Return what accounts need; their database lies beside MLflow's own where that is a file."""
    shared = Path(__file__).parents[2] / "mlflow" / "basic_auth.ini"
    config = Path(home) / "stack" / "basic_auth.ini"
    config.parent.mkdir(parents=True, exist_ok=True)
    own = "postgresql+psycopg2://" if environ.get("POSTGRES_HOST") else f"sqlite:///{home}/stack/accounts.db"
    config.write_text(shared.read_text().replace("postgresql+psycopg2://", own))
    return {
        "MLFLOW_AUTH_CONFIG_PATH": str(config),
        "MLFLOW_AUTH_ADMIN_USERNAME": "admin",
        "MLFLOW_AUTH_ADMIN_PASSWORD": admin,
        "MLFLOW_FLASK_SERVER_SECRET_KEY": environ["MLFLOW_SECRET_KEY"],
        "MLFLOW_TRACKING_USERNAME": "retrain",
        "MLFLOW_TRACKING_PASSWORD": environ["RETRAIN_PASSWORD"],
        "READER_NAME": "reader",
    }


def _reject_incomplete(environ: Mapping[str, str]) -> None:
    groups = {"POSTGRES_HOST": DATABASES, "STORE_URL": S3_VARIABLES, "MLFLOW_ADMIN_PASSWORD": ACCOUNT_VARIABLES}
    for first, others in groups.items():
        missing = [name for name in others if not environ.get(name)]
        if environ.get(first) and missing:
            raise UsageError(f"{first} is set and {', '.join(missing)} not; infra/README.md says what for")
        if first == "MLFLOW_ADMIN_PASSWORD" and environ.get(first):
            short = [name for name in ACCOUNT_VARIABLES[:3] if len(environ[name]) < MIN_PASSWORD_CHARS]
            if short:
                raise UsageError(f"{short[0]} is too short; MLflow wants {MIN_PASSWORD_CHARS} characters")
    if ":" not in environ.get("PREFECT_AUTH_STRING", ":"):
        raise UsageError("PREFECT_AUTH_STRING is no NAME:PASSWORD")


def _port(environ: Mapping[str, str], name: str) -> int:
    text = environ.get(name) or str(PORTS[name])
    if not text.isdecimal() or not 0 < int(text) < 65_536:
        raise UsageError(f"{name} {text!r} is no port; expected 1 to 65535")
    return int(text)


def _opener(environ: Mapping[str, str], prefect: str, mlflow: str) -> urllib.request.OpenerDirector:
    """Return what asks the servers; names and passwords go to them alone, unasked, and through no proxy."""

    class Credentials(urllib.request.BaseHandler):
        def http_request(self, request: urllib.request.Request) -> urllib.request.Request:
            to_mlflow = request.full_url.startswith(f"{mlflow}/api")
            account = f"retrain:{environ.get('RETRAIN_PASSWORD')}" if environ.get("MLFLOW_ADMIN_PASSWORD") else ""
            secret = account if to_mlflow else ""
            if request.full_url.startswith(f"{prefect}/"):
                secret = environ.get("PREFECT_AUTH_STRING", "")
            if secret:
                encoded = base64.b64encode(secret.encode()).decode()
                request.add_unredirected_header("Authorization", f"Basic {encoded}")
            return request

    return urllib.request.build_opener(urllib.request.ProxyHandler({}), Credentials())
