"""Serves on a Ray cluster: each replica of a Ray Serve deployment is the application of `verdict serve`.

    verdict serve --ray local --min-replicas 2 --max-replicas 8

A replica gets the settings and nothing else, builds the application and follows the champion's alias by itself, so a
promotion restarts nothing. What a process counts (limits, metrics, a canary's errors), each replica counts for itself.

Ray is imported once `connected` has set the environment that it reads.
"""

import contextlib
import io
import logging
import os
import re
import signal
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from fastapi import FastAPI

from tasks.cluster.calls import check_gpus
from tasks.cluster.connection import LOCAL, connected
from tasks.core import log_format
from tasks.core.errors import UsageError, VerdictError, first_line
from tasks.inference import cpu_limits
from tasks.inference.bundle import MODEL_NAME, MODEL_VARIABLE
from tasks.serving.host_names import AllowedHosts
from tasks.serving.server import ServerConfig, open_application, warn_of_open_access

if TYPE_CHECKING:
    from ray.serve import Application
    from ray.serve.schema import ApplicationStatusOverview

log = logging.getLogger(__name__)

# What replicas on other machines get of this process's environment; no passwords, as Ray shows it to anybody.
SHARED_VARIABLES = (
    "MLFLOW_TRACKING_URI",
    MODEL_VARIABLE,
    log_format.FORMAT_VARIABLE,
    "VERDICT_TRUSTED_KEYS",
    "VERDICT_REQUIRE_SIGNATURE",
    "DO_NOT_TRACK",
    "MLFLOW_DISABLE_TELEMETRY",
    "ORT_DISABLE_TELEMETRY",
)
# Of a local cluster; after three times 5 s Ray Serve kills a proxy that starts slowly.
PROXY_TIMEOUTS = {"RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "30", "RAY_SERVE_PROXY_HEALTH_CHECK_TIMEOUT_S": "30"}
DRAIN_S = 30.0  # for a replica's requests to finish before it is killed
DRAIN_POLL_S = 0.5
START_ATTEMPTS = 3  # of a replica
CAUSE = re.compile(r"^(?:\w+\.)*([A-Z]\w+: .+)", re.MULTILINE)  # the last line of a traceback


@dataclass(frozen=True)
class ReplicaConfig:
    """How many replicas there are, and what each of them takes."""

    min_replicas: int = 1
    max_replicas: int = 1
    requests: float = 32.0
    """mean number of requests in progress or waiting in each replica, above which there are more and below it fewer"""
    cpus: float = 1.0
    gpus: float = 0.0
    """share of a GPU"""


class InferenceReplica:
    """The application of `verdict serve` in one replica."""

    def __init__(self, config: ServerConfig, cpus: float, home: str) -> None:
        """Keep the settings; Ray Serve has the application built afterwards."""
        cpu_limits.use_at_most(cpus)
        handler = log_format.StderrHandler()
        log_format.set_formatter(handler)
        logging.getLogger("tasks").addHandler(handler)
        logging.getLogger("tasks").setLevel(logging.INFO)
        self._config, self._home, self._stack = config, home, contextlib.ExitStack()

    def __serve_build_asgi_app__(self) -> FastAPI:
        """Load the model, start to follow it, and return the application."""
        hosts = AllowedHosts(self._config.host, (self._config.host, *self._config.allowed_hosts))
        return open_application(self._stack, self._config, self._home, hosts, None)[1]

    def __del__(self) -> None:
        """Stop what the application started; Ray Serve calls this once the requests are answered."""
        self._stack.close()


def serve_on_ray(config: ServerConfig, replicas: ReplicaConfig, address: str, home: str) -> None:
    """Serve until SIGTERM or SIGINT; requests that were accepted before are still answered.

    Args:
        config: of each replica's application, and where the proxies listen.
        replicas: how many, and how large.
        address: of the cluster, as in connection.py.
        home: folder of the stores, on each machine.

    Raises:
        UsageError: if options contradict each other, or Ray Serve listens elsewhere already.
        VerdictError: if there is no cluster, or a replica does not start.
    """
    _check_options(config, replicas)
    for name, seconds in PROXY_TIMEOUTS.items():
        os.environ.setdefault(name, seconds)
    out = sys.stdout
    with contextlib.ExitStack() as silence, connected(address), contextlib.ExitStack() as stack:
        import ray.serve  # sets the level of its log

        logging.getLogger(ray.serve.__name__).setLevel(logging.WARNING)
        stop = stack.enter_context(_stop_event())
        _check_room(replicas, address)
        if address != LOCAL:
            stack.enter_context(_own_proxies(silence))
        _start_proxies(config.host, config.port)
        warn_of_open_access(config)
        stack.enter_context(_deployed(config, replicas, home))
        count = f"{replicas.min_replicas} to {replicas.max_replicas} replicas"
        where = f"http://{config.host}:{config.port}"
        print(f"serving {config.model} with {count} on {where} (Ctrl-C stops)", file=out, flush=True)
        stop.wait()
    log.info("stopped; every request that was accepted before is answered")


def make_deployment(config: ServerConfig, replicas: ReplicaConfig, home: str) -> "Application":
    """Return what Ray Serve runs: the class by its name, and the settings."""
    from ray import serve

    variables = {name: os.environ[name] for name in SHARED_VARIABLES if name in os.environ}
    made = serve.deployment(
        name=MODEL_NAME,
        ray_actor_options={
            "num_cpus": replicas.cpus,
            "num_gpus": replicas.gpus,
            "runtime_env": {"env_vars": variables},
        },
        autoscaling_config={
            "min_replicas": replicas.min_replicas,
            "max_replicas": replicas.max_replicas,
            "target_ongoing_requests": replicas.requests,
        },
        # Of each replica, which refuses what its queue has no room for; the rest waits in the proxy.
        max_ongoing_requests=config.max_requests,
        max_queued_requests=config.max_requests,
        backpressure_config={"status_code": 429, "retry_after_s": 1},
        graceful_shutdown_timeout_s=DRAIN_S,
        graceful_shutdown_wait_loop_s=DRAIN_POLL_S,
        max_constructor_retry_count=START_ATTEMPTS,
    )(serve.ingress()(InferenceReplica))
    return made.bind(config_of_replicas(config), replicas.cpus, home)


def config_of_replicas(config: ServerConfig) -> ServerConfig:
    """Return the options without the page, and with paths that hold in the working directory of a node, too."""
    log_config, challenger = config.request_log, config.challenger
    return replace(
        config,
        page=False,
        model=_absolute_model(config.model),
        api_keys=config.api_keys and str(Path(config.api_keys).absolute()),
        request_log=log_config and replace(log_config, folder=str(Path(log_config.folder).absolute())),
        challenger=challenger and replace(challenger, model=_absolute_model(challenger.model)),
    )


def _absolute_model(model: str) -> str:
    """Return the path of a bundle's folder; an address or a version number as it is."""
    return str(Path(model).absolute()) if Path(model).is_dir() and not model.isdecimal() else model


@contextlib.contextmanager
def _deployed(config: ServerConfig, replicas: ReplicaConfig, home: str) -> Iterator[None]:
    """Start the replicas, and end them after the block.

    Raises:
        VerdictError: if none starts.
    """
    from ray import serve

    try:
        _deploy(config, replicas, home)
        yield
    finally:
        if MODEL_NAME in _applications():
            serve.delete(MODEL_NAME)


def _deploy(config: ServerConfig, replicas: ReplicaConfig, home: str) -> None:
    """Start the replicas, and wait until they answer.

    Raises:
        VerdictError: if none starts.
    """
    from ray import serve

    try:
        serve.run(make_deployment(config, replicas, home), name=MODEL_NAME, route_prefix="/")
    except RuntimeError as error:
        deployments = serve.status().applications[MODEL_NAME].deployments
        causes = CAUSE.findall("\n".join(each.message for each in deployments.values()))
        cause = causes[-1] if causes else first_line(error, 300)
        raise VerdictError(
            f"no replica starts ({cause}); expected options that serve here, too: verdict serve"
        ) from error


def _applications() -> "dict[str, ApplicationStatusOverview]":
    """Return what Ray Serve serves; nothing where another command has ended it."""
    from ray import exceptions, serve

    try:
        return dict(serve.status().applications)
    except exceptions.RayActorError:
        return {}


def _check_options(config: ServerConfig, replicas: ReplicaConfig) -> None:
    """Raise UsageError for options that contradict each other."""
    if replicas.max_replicas < replicas.min_replicas:
        raise UsageError(
            f"--max-replicas {replicas.max_replicas} is refused; expected {replicas.min_replicas} (--min-replicas) or "
            "more"
        )
    check_gpus(replicas.gpus)
    if not config.port:
        raise UsageError("--port 0 is refused with --ray; expected the port on which every machine's proxy listens")
    if config.feedback:
        raise UsageError("--feedback is an option of the page, which --ray turns off; use only one of them")


def _check_room(replicas: ReplicaConfig, address: str) -> None:
    """Compare what the fewest replicas take with what the cluster has, which may grow unless it is this machine.

    Raises:
        UsageError: if a local cluster is too small: Ray Serve would wait for ever.
    """
    import ray

    there = ray.cluster_resources()
    for name, each in (("CPU", replicas.cpus), ("GPU", replicas.gpus)):
        needed, held = replicas.min_replicas * each, there.get(name, 0.0)
        if needed <= held:
            continue
        text = f"{replicas.min_replicas} replicas need {needed:g} {name}s, the cluster has {held:g}"
        if address == LOCAL:
            raise UsageError(f"{text}; expected fewer: --min-replicas, or smaller ones: --replica-{name.lower()}s")
        log.warning("%s: the others start once it grows", text)


def _start_proxies(host: str, port: int) -> None:
    """Let Ray Serve listen on an address.

    Raises:
        UsageError: if it listens on another one already, which Ray Serve itself does not report.
        VerdictError: if its proxy does not start.
    """
    from ray import exceptions, serve

    try:
        serve.start(http_options={"host": host, "port": port})
    except exceptions.RayError as error:
        raise VerdictError(
            f"Ray Serve does not start ({first_line(error, 200)}); expected a machine that is less busy, and that "
            f"{host}:{port} is free there"
        ) from error
    client = serve.context._get_global_client()  # no public function has the address
    assert client is not None
    where, there = client.http_config.host, client.http_config.port
    if (where, there) != (host, port):
        raise UsageError(
            f"Ray Serve listens on {where}:{there} already, and not on {host}:{port}; expected --host {where} --port "
            f"{there}, or stop it first: serve shutdown"
        )


@contextlib.contextmanager
def _own_proxies(silence: contextlib.ExitStack) -> Iterator[None]:
    """End Ray Serve after the block, where it did not run before it and serves nothing any more.

    Args:
        silence: ends with the connection; from then on until there Ray prints nothing, as it reports that its
            controller ends as a failure.
    """
    from ray import serve

    ours = not serve.status().proxies
    try:
        yield
    finally:
        if ours and not _applications():
            silence.enter_context(contextlib.redirect_stdout(io.StringIO()))
            serve.shutdown()


@contextlib.contextmanager
def _stop_event() -> Iterator[threading.Event]:
    """Yield an event that SIGTERM and SIGINT set during the block."""
    stop = threading.Event()
    before = {number: signal.signal(number, lambda *_: stop.set()) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
