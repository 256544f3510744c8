"""Configures the services of one machine: reads ports, addresses and secrets, returns the environment of each process.

PREFECT_PORT, MLFLOW_PORT, INFERENCE_PORT, WORKER_PORT   ports on loopback
POSTGRES_HOST [POSTGRES_PORT], PREFECT_DATABASE_PASSWORD, MLFLOW_DATABASE_PASSWORD   PostgreSQL instead of SQLite
STORE_URL, STORE_ACCESS_KEY, STORE_SECRET_KEY [STORE_BUCKET, STORE_REGION]           S3 instead of a folder
PREFECT_AUTH_STRING                                                                  Prefect needs a password
MLFLOW_ADMIN_PASSWORD, RETRAIN_PASSWORD, READER_PASSWORD, MLFLOW_SECRET_KEY          MLflow has accounts

The names are those of infra/compose.yaml. No secret is ever part of a command line.
"""

import base64
import dataclasses
import shlex
import urllib.request
from collections.abc import Mapping
from pathlib import Path

from tasks.core.errors import UsageError
from tasks.inference.bundle import scoped

MARKER = "STACK_OF"  # in the environment of every process of a stack: its home
PORTS = {"PREFECT_PORT": 4200, "MLFLOW_PORT": 5000, "INFERENCE_PORT": 8080, "WORKER_PORT": 8081}
DATABASES = ("PREFECT_DATABASE_PASSWORD", "MLFLOW_DATABASE_PASSWORD")
S3_VARIABLES = ("STORE_ACCESS_KEY", "STORE_SECRET_KEY")
ACCOUNT_VARIABLES = ("MLFLOW_ADMIN_PASSWORD", "RETRAIN_PASSWORD", "READER_PASSWORD", "MLFLOW_SECRET_KEY")
AUTH_CONFIG_VARIABLE = "MLFLOW_AUTH_CONFIG_PATH"
POSTGRES_ADDRESS = "postgresql+psycopg2://"  # the rest is in the variables PG*; so it stands in mlflow/basic_auth.ini
MIN_PASSWORD_CHARS = 12  # characters of an MLflow password, its own bound


@dataclasses.dataclass(frozen=True)
class StackConfig:
    """Addresses and environments of the services of one home."""

    home: str
    ports: dict[str, int]
    urls: dict[str, str]
    """Addresses of the services that have pages."""
    exports: dict[str, str]
    """Variables that a client of the services sets; secrets as the name of their variable."""
    health_urls: dict[str, str]
    """Health check of every service."""
    wait_urls: dict[str, str]
    """What worker and inference service wait for, with their own credentials."""
    environment: dict[str, str]
    """Environment of every service."""
    accounts: dict[str, str]
    """Environment of the program that creates MLflow's accounts; empty without accounts."""
    opener: urllib.request.OpenerDirector
    """Sends requests with the worker's credentials."""


def load_stack_config(environ: Mapping[str, str], home: str) -> StackConfig:
    """Read ports, addresses and secrets from the environment.

    Raises:
        UsageError: if a port is not valid, or a variable is set without those that it needs.
    """
    ports = {name: _port(environ, name) for name in PORTS}
    _reject_incomplete(environ)
    prefect, mlflow, inference, worker = (f"http://127.0.0.1:{port}" for port in ports.values())
    addresses = {"PREFECT_API_URL": f"{prefect}/api", "MLFLOW_TRACKING_URI": mlflow}
    environment = {
        **environ,
        **{name: str(port) for name, port in ports.items()},
        **addresses,
        **_prefect(environ, home, prefect),
        **_mlflow(environ, home, mlflow),
        "PREFECT_WORKER_WEBSERVER_PORT": str(ports["WORKER_PORT"]),
        "VERDICT_HOME": home,
        MARKER: home,
        "WORK_POOL": scoped("verdict"),
        "PYTHONUNBUFFERED": "1",
    }
    health = {"prefect": f"{prefect}/api/health", "mlflow": f"{mlflow}/health"}
    with_accounts = bool(environ.get("MLFLOW_ADMIN_PASSWORD"))
    return StackConfig(
        home=home,
        ports=ports,
        urls={"prefect": prefect, "mlflow": mlflow, "inference": inference},
        exports=addresses | _client_credentials(environ),
        health_urls=health | {"worker": f"{worker}/health", "inference": f"{inference}/healthz"},
        wait_urls=health | {"mlflow": f"{mlflow}/api/2.0/mlflow/experiments/search?max_results=1"},
        environment=environment,
        accounts={**environment, "MLFLOW_AUTH_ADMIN_USERNAME": "admin"} if with_accounts else {},
        opener=_opener(environ, prefect, mlflow),
    )


def write_auth_config(config: StackConfig) -> None:
    """Write the file that names the database of MLflow's accounts; without accounts there is none."""
    if not config.accounts:
        return
    shared = Path(__file__).parents[2] / "mlflow" / "basic_auth.ini"
    written = Path(config.environment[AUTH_CONFIG_VARIABLE])
    written.parent.mkdir(parents=True, exist_ok=True)
    on_server = config.environment.get("POSTGRES_HOST")
    database = POSTGRES_ADDRESS if on_server else f"sqlite:///{config.home}/stack/accounts.db"
    written.write_text(shared.read_text(encoding="utf-8").replace(POSTGRES_ADDRESS, database), encoding="utf-8")


def _client_credentials(environ: Mapping[str, str]) -> dict[str, str]:
    """Return the variables by which a client authenticates; passwords as references to other variables."""
    credentials = {}
    if environ.get("PREFECT_AUTH_STRING"):
        credentials["PREFECT_API_AUTH_STRING"] = "$PREFECT_AUTH_STRING"
    if environ.get("MLFLOW_ADMIN_PASSWORD"):
        credentials |= {"MLFLOW_TRACKING_USERNAME": "retrain", "MLFLOW_TRACKING_PASSWORD": "$RETRAIN_PASSWORD"}
    return credentials


def _prefect(environ: Mapping[str, str], home: str, url: str) -> dict[str, str]:
    """Return the variables of Prefect's server and its clients."""
    variables = {
        "PREFECT_HOME": f"{home}/stack/prefect",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_SERVER_API_CORS_ALLOWED_ORIGINS": url,
        "PREFECT_SERVER_API_CSRF_PROTECTION_ENABLED": "true",
        "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false",
        # Events and runs are deleted 90 days after their end; by default runs stay for ever.
        "PREFECT_SERVER_SERVICES_DB_VACUUM_ENABLED": "events,flow_runs",
        # Leases kept in memory are lost when the server restarts, and their slots stay occupied for ever.
        "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": "prefect.server.concurrency.lease_storage.filesystem",
    }
    if auth := environ.get("PREFECT_AUTH_STRING"):
        variables |= {"PREFECT_SERVER_API_AUTH_STRING": auth, "PREFECT_API_AUTH_STRING": auth}
    if not environ.get("POSTGRES_HOST"):
        return variables | {"PREFECT_SERVER_DATABASE_CONNECTION_URL": f"sqlite+aiosqlite:///{home}/stack/prefect.db"}
    return variables | {
        "PREFECT_SERVER_DATABASE_DRIVER": "postgresql+asyncpg",
        "PREFECT_SERVER_DATABASE_HOST": environ["POSTGRES_HOST"],
        "PREFECT_SERVER_DATABASE_PORT": environ.get("POSTGRES_PORT", "5432"),
        "PREFECT_SERVER_DATABASE_NAME": "prefect",
        "PREFECT_SERVER_DATABASE_USER": "prefect",
        "PREFECT_SERVER_DATABASE_PASSWORD": environ["PREFECT_DATABASE_PASSWORD"],
    }


def _mlflow(environ: Mapping[str, str], home: str, url: str) -> dict[str, str]:
    """Return the variables of MLflow's server and its clients."""
    options = ["--serve-artifacts"]
    variables = {
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
        variables |= {"MLFLOW_BACKEND_STORE_URI": POSTGRES_ADDRESS, "PGHOST": host, "PGUSER": "mlflow"}
        variables |= {"PGDATABASE": "mlflow", "PGPORT": environ.get("POSTGRES_PORT", "5432")}
        variables["PGPASSWORD"] = environ["MLFLOW_DATABASE_PASSWORD"]
    if address := environ.get("STORE_URL"):
        variables |= {
            "MLFLOW_ARTIFACTS_DESTINATION": f"s3://{environ.get('STORE_BUCKET') or 'verdict'}",
            "MLFLOW_S3_ENDPOINT_URL": address,
            "MLFLOW_BOTO_CLIENT_ADDRESSING_STYLE": "path",
            "AWS_DEFAULT_REGION": environ.get("STORE_REGION") or "us-east-1",
            "AWS_ACCESS_KEY_ID": environ["STORE_ACCESS_KEY"],
            "AWS_SECRET_ACCESS_KEY": environ["STORE_SECRET_KEY"],
        }
    if admin := environ.get("MLFLOW_ADMIN_PASSWORD"):
        options += ["--app-name", "basic-auth"]
        variables |= _accounts(environ, home, admin)
    return variables | {"MLFLOW_OPTIONS": shlex.join(options)}


def _accounts(environ: Mapping[str, str], home: str, admin: str) -> dict[str, str]:
    """Return the variables for accounts; `write_auth_config` writes the file that they name."""
    return {
        AUTH_CONFIG_VARIABLE: f"{home}/stack/basic_auth.ini",
        "MLFLOW_AUTH_ADMIN_USERNAME": "admin",
        "MLFLOW_AUTH_ADMIN_PASSWORD": admin,
        "MLFLOW_FLASK_SERVER_SECRET_KEY": environ["MLFLOW_SECRET_KEY"],
        "MLFLOW_TRACKING_USERNAME": "retrain",
        "MLFLOW_TRACKING_PASSWORD": environ["RETRAIN_PASSWORD"],
        "READER_NAME": "reader",
    }


def _reject_incomplete(environ: Mapping[str, str]) -> None:
    required_with = {"POSTGRES_HOST": DATABASES, "STORE_URL": S3_VARIABLES, "MLFLOW_ADMIN_PASSWORD": ACCOUNT_VARIABLES}
    for first, others in required_with.items():
        missing = [name for name in others if not environ.get(name)]
        if environ.get(first) and missing:
            raise UsageError(f"{first} is set and {', '.join(missing)} not; see infra/README.md")
        if first == "MLFLOW_ADMIN_PASSWORD" and environ.get(first):
            short = [name for name in ACCOUNT_VARIABLES[:3] if len(environ[name]) < MIN_PASSWORD_CHARS]
            if short:
                raise UsageError(f"{short[0]} is too short; MLflow needs {MIN_PASSWORD_CHARS} characters")
    if ":" not in (environ.get("PREFECT_AUTH_STRING") or ":"):
        raise UsageError("PREFECT_AUTH_STRING is not of the form NAME:PASSWORD")


def _port(environ: Mapping[str, str], name: str) -> int:
    text = environ.get(name) or str(PORTS[name])
    if not text.isdecimal() or not 0 < int(text) < 65_536:
        raise UsageError(f"{name} {text!r} is not a port; expected 1 to 65535")
    return int(text)


def _opener(environ: Mapping[str, str], prefect: str, mlflow: str) -> urllib.request.OpenerDirector:
    """Return an opener that sends credentials to our servers only, preemptively and through no proxy."""

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
