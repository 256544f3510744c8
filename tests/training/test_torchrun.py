"""Ranks that torchrun starts: one runs the job, the others take part in its training."""

import atexit
import os
import socket
import subprocess
import sys

import pytest
import torch
from launched import train
from torch import distributed

from tasks.core.errors import UsageError, VerdictError
from tasks.training import torchrun
from tasks.training.launcher import launch

FOLLOWER = "from tasks.training import torchrun; assert not torchrun.join('cpu', 2)"


@pytest.fixture
def variables(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """What torchrun sets for the first of two ranks, each on a host of its own."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    values = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "1"}
    values |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
    for name, value in values.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torchrun, "_joined", None)
    return values


def test_ranks_of_torchrun_train_what_processes_of_one_host_do(variables: dict[str, str]) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    [alone, _] = launch(train, 2, device="cpu")
    environment = os.environ | variables | {"RANK": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen([sys.executable, "-c", FOLLOWER], env=environment) as follower:
        assert torchrun.join("cpu", 2)
        seen: list[int] = []
        [(history, weights)] = launch(train, 2, device="cpu", on_message=lambda record: seen.append(record["epoch"]))
        ranks = torchrun.joined()
        assert ranks
        atexit.unregister(ranks.release)  # which this process, unlike a command, does not end with
        ranks.release()
        assert follower.wait(60) == 0
    torch.set_num_threads(threads)
    assert history == alone[0]
    assert seen == [1, 2, 3]
    assert {name: tensor.tolist() for name, tensor in weights.items()} == {
        name: tensor.tolist() for name, tensor in alone[1].items()
    }
    assert not distributed.is_initialized()


def test_ranks_that_do_not_reach_each_other_are_one_line(
    variables: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Here of one rank, whose interface does not exist; else of hosts whose own names are loopback addresses."""
    for name, value in {"WORLD_SIZE": "1", "GLOO_SOCKET_IFNAME": "nothing0"}.items():
        monkeypatch.setenv(name, value)
    message = (
        r"the ranks of torchrun do not reach each other \(.*nothing0.*\); expected on each host GLOO_SOCKET_IFNAME="
    )
    with pytest.raises(VerdictError, match=message):
        torchrun.join("cpu", 1)


def test_another_number_of_ranks_than_the_setting_is_refused(variables: dict[str, str]) -> None:
    message = "finetune.processes = 1, but torchrun started 2; expected --set finetune.processes=2"
    with pytest.raises(UsageError, match=message):
        torchrun.join("cpu", 1)
