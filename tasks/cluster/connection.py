"""Connects this process to a Ray cluster, or starts one on this machine for as long as it is needed.

    local           starts Ray on this machine, with a folder and a token of its own, and stops it afterwards
    HOST:PORT       a cluster's head (ray start --head); this machine is one of its nodes
    auto            the cluster that RAY_ADDRESS names, or else whose node runs on this machine

Ray (extra `ray`) is imported where it is used.
"""

import contextlib
import logging
import os
import secrets
import shutil
import socket
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tasks.core.errors import UnreachableError, UsageError, VerdictError, first_line
from tasks.core.packages import is_installed

from .installation import check_nodes

LOCAL, AUTO = "local", "auto"
ADDRESS_VARIABLE = "RAY_ADDRESS"  # of the cluster that auto means; for ray job submit it may hold a dashboard's http://
EXPECTED_ADDRESS = f"expected {LOCAL}, {AUTO} or the HOST:PORT of a cluster's head"
CONNECT_TIMEOUT_S = 5
OBJECT_STORE_BYTES = 200 << 20  # of a cluster of ours, which holds settings and counts; Ray's default is 30% of memory
SHARED_MEMORY = Path("/dev/shm")
MAX_FOLDER_CHARS = 40  # of a temporary folder: Ray's sockets lie 60 characters deeper, and a socket's path has 107

ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    # Announces a change of a default that we do not use.
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    # Of a task that may be repeated; without it Ray repeats what memory does not suffice for again and again.
    "RAY_task_oom_retries": "3",
}
# Of an address that does not answer; by default Ray 2.60 makes 20 attempts of 41 seconds.
CONNECT_TIMEOUTS = {"RAY_gcs_server_port_wait_time_s": "1", "RAY_py_gcs_connect_timeout_s": "5"}


def check_cluster(address: str) -> None:
    """Check what takes no time before something slow starts: that Ray is installed, and that something answers.

    Args:
        address: local, auto, or HOST:PORT.

    Raises:
        ModuleNotFoundError: if Ray is not installed.
        UsageError: if the address has no valid form.
        UnreachableError: if nobody answers.
        VerdictError: if there is too little shared memory.
    """
    if not is_installed("ray"):
        raise ModuleNotFoundError("No module named 'ray'", name="ray")
    named = _named(address)
    if named == LOCAL:
        _check_shared_memory()
    elif named != AUTO:
        _check_answer(named, "Ray address" if named == address else ADDRESS_VARIABLE)


@contextlib.contextmanager
def connected(address: str) -> Iterator[None]:
    """Connect to a cluster during the block, in which `ray` can be used; every node runs this version of the code.

    Until it is left, Ray prints what it says of lost workers to standard output, which is for a command's result: what
    is printed meanwhile goes to standard error.

    Args:
        address: local, auto, or HOST:PORT.

    Raises:
        ModuleNotFoundError: if Ray is not installed.
        UsageError: if the address has no valid form, or versions differ.
        UnreachableError: if no cluster answers.
        VerdictError: if there is too little memory, or this machine is no node of the cluster.
    """
    check_cluster(address)
    address = _named(address)
    starting = _local_options() if address == LOCAL else _remote_options(address)
    with contextlib.redirect_stdout(sys.stderr), starting as options:
        import ray

        try:
            with _explained(address):
                ray.init(**options, log_to_driver=False, logging_level=logging.ERROR)
            check_nodes()
            yield
        finally:
            ray.shutdown()


@contextlib.contextmanager
def _local_options() -> Iterator[dict[str, Any]]:
    """Yield the arguments of ray.init for a cluster of this process, which only those who hold its token can use."""
    # Otherwise Ray writes one to the home folder, which everybody may read.
    _set_defaults(ENVIRONMENT | {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)})
    within = tempfile.gettempdir()
    parent = within if len(within) + len("/verdict-ray-12345678") <= MAX_FOLDER_CHARS else "/tmp"
    with tempfile.TemporaryDirectory(prefix="verdict-ray-", dir=parent, ignore_cleanup_errors=True) as folder:
        yield {
            "address": LOCAL,
            "object_store_memory": OBJECT_STORE_BYTES,
            "include_dashboard": False,
            "_temp_dir": folder,
        }


@contextlib.contextmanager
def _remote_options(address: str) -> Iterator[dict[str, Any]]:
    """Yield the arguments of ray.init for a cluster that runs already."""
    _set_defaults(ENVIRONMENT | CONNECT_TIMEOUTS)
    yield {"address": address}


def _named(address: str) -> str:
    """Return the address that auto stands for, where the environment names one."""
    return os.environ.get(ADDRESS_VARIABLE) or AUTO if address == AUTO else address


def _set_defaults(variables: dict[str, str]) -> None:
    """Set variables that Ray reads when it is imported; those that the user set win."""
    for name, value in variables.items():
        os.environ.setdefault(name, value)


def _check_answer(address: str, origin: str) -> None:
    """Raise an error where nobody listens at an address; `origin` is the variable that holds it, or the option."""
    host, _, port = address.rpartition(":")
    if not host or "/" in host or not port.isdecimal():
        raise UsageError(f"{origin} {address!r} is refused; {EXPECTED_ADDRESS}, for example 10.0.0.5:6379")
    try:
        socket.create_connection((host, int(port)), CONNECT_TIMEOUT_S).close()
    except (OSError, OverflowError) as error:
        raise _unreachable(address, getattr(error, "strerror", None) or str(error)) from error


def _unreachable(address: str, reason: str) -> UnreachableError:
    return UnreachableError(
        f"no Ray cluster answers at {address} ({reason}); {EXPECTED_ADDRESS}: on the head run ray start --head, or use "
        f"this machine alone: --ray {LOCAL}"
    )


def _unanswered(address: str, reason: str) -> UnreachableError:
    """Return the error for an address where something listens; Ray itself does not say that a token is wrong."""
    return UnreachableError(
        f"what listens at {address} does not answer as a Ray cluster ({reason}); expected the HOST:PORT of a cluster's "
        "head, and its token, if it wants one: RAY_AUTH_MODE=token RAY_AUTH_TOKEN=..."
    )


def _check_shared_memory() -> None:
    """Raise VerdictError where Ray would silently keep its objects on disk; Docker's default is 64 MB."""
    free = shutil.disk_usage(SHARED_MEMORY).free
    if free < OBJECT_STORE_BYTES:
        raise VerdictError(
            f"{SHARED_MEMORY} has {free >> 20} MB free; expected {OBJECT_STORE_BYTES >> 20} MB for Ray's object store: "
            "docker run --shm-size=1g, or in Kubernetes an emptyDir of medium Memory there"
        )


@contextlib.contextmanager
def _explained(address: str) -> Iterator[None]:
    """Raise what Ray says of a failed connection as one line."""
    try:
        yield
    except ConnectionError as error:
        explain = _unreachable if address == AUTO else _unanswered
        raise explain(address, first_line(error, 200)) from error
    except (RuntimeError, ValueError, OSError) as error:
        raise _explain(address, error) from error


def _explain(address: str, error: Exception) -> VerdictError:
    """Return one line for what Ray says in several, or only in its own words."""
    text = str(error)
    if "Version mismatch" in text:
        lines = [line.strip() for line in text.splitlines() if line.startswith("    ")]  # Ray, Python; twice
        return UsageError(
            f"the cluster at {address} runs {', '.join(lines[:2])}, this process {', '.join(lines[2:])}; "
            "expected the same versions: run the command in the environment or image of the cluster"
        )
    if "Raylet" in text or "raylet" in text:
        return VerdictError(
            f"this machine is no node of the Ray cluster at {address} ({first_line(error, 200)}); expected to run on "
            f"one: ray start --address={address}, or ray job submit"
        )
    return VerdictError(f"Ray cannot be used at {address} ({first_line(error, 300)}); {EXPECTED_ADDRESS}")
