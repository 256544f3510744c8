"""Compares the code on the nodes of a Ray cluster with that of this process: a part has one meaning everywhere."""

import functools
import hashlib
import importlib.metadata
import logging
import platform
import re
from pathlib import Path
from typing import TypedDict

from tasks.core.errors import UnreachableError, VerdictError, first_line

PRODUCT = "verdict-mlops"
NODE_TIMEOUT_S = 120.0  # to start a process and import on a node
DIGEST_DIGITS = 12  # in messages

log = logging.getLogger(__name__)


class Installation(TypedDict):
    """What is installed in a process: the version of the distribution, and the SHA-256 of its code."""

    version: str
    digest: str


def describe_installation() -> Installation:
    """Return version and digest of the code that this process runs."""
    try:
        version = importlib.metadata.version(PRODUCT)
    except importlib.metadata.PackageNotFoundError:
        version = "not installed"
    return Installation(version=version, digest=_digest_code())


@functools.cache
def _digest_code() -> str:
    """Return the SHA-256 of all modules; read once, as a process runs what it has imported."""
    root = Path(__file__).parents[2]
    total = hashlib.sha256()
    for path in sorted(path for folder in ("flows", "tasks") for path in (root / folder).rglob("*.py")):
        total.update(f"{path.relative_to(root).as_posix()}\n".encode())
        total.update(path.read_bytes())
    return total.hexdigest()


def check_installation(expected: Installation, found: Installation, node: str) -> None:
    """Compare what a node runs with what the driver runs.

    Raises:
        VerdictError: if they differ.
    """
    if found["digest"] != expected["digest"]:
        raise VerdictError(
            f"node {node} runs {PRODUCT} {found['version']} with code {found['digest'][:DIGEST_DIGITS]}; expected "
            f"{expected['version']} with code {expected['digest'][:DIGEST_DIGITS]}, as here: install the same on every "
            "node, or use one image"
        )


def check_here(expected: Installation) -> None:
    """Compare what this process runs, on a node that may have joined later, with what the driver runs.

    Raises:
        VerdictError: if they differ.
    """
    check_installation(expected, describe_installation(), platform.node())


def check_nodes() -> None:
    """Run one small task on each node of the connected cluster, which says what is installed there.

    A node that was just lost is passed over: Ray lists it as alive until it has missed some health checks.

    Raises:
        UnreachableError: if a node does not answer.
        VerdictError: if the code of one is missing or another.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    expected = describe_installation()
    describe = ray.remote(num_cpus=0, max_retries=0)(describe_installation)
    answers = {
        f"{node['NodeManagerAddress']} ({node['NodeID'][:8]})": describe.options(
            scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        ).remote()
        for node in ray.nodes()
        if node["Alive"]
    }
    for name, answer in answers.items():
        try:
            found = ray.get(answer, timeout=NODE_TIMEOUT_S)
        except ray.exceptions.GetTimeoutError as error:
            raise UnreachableError(
                f"node {name} of the Ray cluster did not answer within {NODE_TIMEOUT_S:.0f} s; expected an idle node: "
                "ray status"
            ) from error
        except ray.exceptions.RayTaskError as error:
            raise _not_importable(f"node {name}", error) from error
        except ray.exceptions.TaskUnschedulableError:
            log.warning("node %s of the Ray cluster is gone; the others work", name)
            continue
        except ray.exceptions.RayError as error:
            raise UnreachableError(
                f"node {name} of the Ray cluster failed ({first_line(error, 200)}); see: ray status"
            ) from error
        check_installation(expected, found, name)


def missing_code(error: Exception) -> VerdictError | None:
    """Return the error of a node that joined later without this code, given what a task raised; None if it is not."""
    if re.search(r"ModuleNotFoundError: No module named '(flows|tasks)[.']", str(error)):
        return _not_importable("a node that joined the Ray cluster", error)
    return None


def _not_importable(node: str, error: Exception) -> VerdictError:
    lines = [line.strip() for line in str(error).splitlines()]
    named = [line for line in lines if "ModuleNotFoundError" in line or "ImportError" in line]
    return VerdictError(
        f"{node} cannot import {PRODUCT} ({named[-1] if named else first_line(error, 200)}); expected it on every "
        f"node: pip install '{PRODUCT}[ray]' there, or use one image"
    )
