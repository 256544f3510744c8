"""What is refused before or while a Ray cluster is connected to: each is one line, within seconds."""

import os
import socket
from typing import Any

import pytest

from tasks.cluster import connection
from tasks.cluster.connection import check_cluster, connected
from tasks.cluster.installation import check_here, check_installation, describe_installation
from tasks.core.errors import UnreachableError, UsageError, VerdictError


@pytest.fixture(autouse=True)
def variables_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "environ", os.environ.copy())


@pytest.mark.parametrize("address", ["ray://head:10001", "head", "head:", ":6379", "head:port"])
def test_an_address_of_another_form_is_refused(address: str) -> None:
    with pytest.raises(UsageError, match=r"is refused; expected local, auto or the HOST:PORT of a cluster's head"):
        connected(address).__enter__()


@pytest.mark.parametrize("address", ["{closed}", "127.0.0.1:99999", "no-such-host.invalid:6379"])
def test_an_address_that_nobody_answers_is_refused_at_once(address: str) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # not listening
        named = address.format(closed=f"127.0.0.1:{unused.getsockname()[1]}")
        with pytest.raises(UnreachableError, match=f"no Ray cluster answers at {named} .*: --ray local$"):
            connected(named).__enter__()


def test_auto_means_the_cluster_that_the_environment_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(os.environ, "RAY_ADDRESS", "127.0.0.1:1")
    with pytest.raises(UnreachableError, match=r"answers at 127\.0\.0\.1:1 \(Connection refused\)"):
        connected("auto").__enter__()


def test_a_variable_that_is_refused_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(os.environ, "RAY_ADDRESS", "http://127.0.0.1:8265")  # as ray job submit takes it
    with pytest.raises(
        UsageError, match=r"^RAY_ADDRESS 'http://127\.0\.0\.1:8265' is refused; expected local, auto or"
    ):
        check_cluster("auto")


@pytest.mark.parametrize("named", ["", "auto", "local"])
def test_a_variable_that_is_empty_or_names_a_kind_is_as_the_option(named: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(os.environ, "RAY_ADDRESS", named)
    check_cluster("auto")
    assert connection._named("auto") == (named or "auto")


def test_what_listens_and_does_not_answer_may_want_a_token() -> None:
    for address, message in (
        (
            "head:6379",
            r"what listens at head:6379 does not answer as a Ray cluster \(Failed to connect\); .* its token",
        ),
        ("auto", r"no Ray cluster answers at auto \(Failed to connect\); expected local, auto or"),
    ):
        with pytest.raises(UnreachableError, match=message), connection._explained(address):
            raise ConnectionError("Failed to connect")


@pytest.mark.parametrize("kind", [connection._local_options, lambda: connection._remote_options("head:6379")])
def test_memory_that_runs_out_does_not_repeat_a_task_for_ever(kind: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    name = "RAY_task_oom_retries"  # as Ray spells it
    monkeypatch.delitem(os.environ, name, raising=False)
    with kind():
        assert os.environ[name] == "3"


def test_too_little_shared_memory_is_refused_before_anything_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "OBJECT_STORE_BYTES", 1 << 60)
    with pytest.raises(VerdictError, match=r"/dev/shm has \d+ MB free; expected .* docker run --shm-size=1g"):
        connected("local").__enter__()


def test_another_version_of_ray_or_python_is_named() -> None:
    from ray._private.utils import check_version_info

    with pytest.raises(UsageError) as refused, connection._explained("head:6379"):
        check_version_info({"ray_version": "2.9.0", "python_version": "3.8.1"}, "node 10.0.0.5")
    assert "the cluster at head:6379 runs Ray: 2.9.0, Python: 3.8.1, this process Ray: 2.60." in str(refused.value)


def test_a_node_with_other_code_is_refused() -> None:
    mine = describe_installation()
    check_here(mine)
    with pytest.raises(VerdictError, match=r"node 10\.0\.0\.5 runs verdict-mlops 0\.0\.9 with code 0{12}; expected"):
        check_installation(mine, {"version": "0.0.9", "digest": "0" * 64}, "10.0.0.5")


def test_all_clusters_that_a_process_starts_have_its_first_token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(os.environ, "RAY_AUTH_TOKEN", raising=False)
    tokens = []
    for _ in range(2):
        with connection._local_options():
            tokens.append(os.environ["RAY_AUTH_TOKEN"])  # Ray reads it once, see findings/ray_token_of_a_process.sh
    assert tokens[0] == tokens[1]
    assert len(tokens[0]) == 64
