"""Sweeps and seeds on a real Ray cluster of two nodes: its driver, a worker and a node are killed, nothing is lost."""

import pickle
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from ray_nodes import RayNodes
from stage import ROOT
from toy import Trainer
from toy_sweep import sweep_here, sweep_plan

from tasks.cluster.calls import CallCluster
from tasks.core.errors import UsageError
from tasks.core.files import sha256_of
from tasks.training.search_space import Dimension
from tasks.training.sweep import run_sweep
from tasks.training.trials import TrialEpoch

pytestmark = [pytest.mark.services, pytest.mark.timeout(900)]

# The sweep leaves standard output to the result of the command: what Ray prints goes to standard error.
DRIVER = """
import pickle, sys
out = sys.stdout
from tasks.training.sweep import run_sweep
with open(sys.argv[1], "rb") as file:
    plan, cluster = pickle.load(file)
run_sweep(plan, 0, lambda record: print(type(record).__name__, file=out, flush=True), cluster)
"""


@pytest.fixture(scope="module")
def nodes() -> Iterator[RayNodes]:
    """A head and a worker, each of one CPU; this process has their token."""
    with RayNodes(PYTHONPATH=str(ROOT)) as nodes, pytest.MonkeyPatch.context() as patch:
        for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN"):
            patch.setenv(name, nodes.environ[name])
        for _ in range(2):
            nodes.add(1)
        yield nodes


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Compute as a task with one CPU does."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def test_seeds_as_tasks_give_the_weights_of_one_process(
    nodes: RayNodes, tmp_path: Path, tiny_encoder: Path, toy_split: tuple[str, str, str]
) -> None:
    digests = []
    for name, address in (("here", ""), ("cluster", nodes.address)):
        trainer = Trainer(toy_split, tiny_encoder, tmp_path / name)
        training, epochs = trainer.train(epochs=2, seeds=2, ray=address)
        digests.append((sha256_of(trainer.folder / "model.safetensors"), training["seeds"]))
        assert sorted(epochs) == [1, 1, 2, 2]
    assert digests[0] == digests[1]


@pytest.mark.parametrize(("workers", "gpus", "wanted"), [(0, 0.5, r"0\.5 GPU"), (2, 1, "1 GPU")])
def test_what_no_node_has_room_for_is_refused_whatever_the_number_of_workers(
    nodes: RayNodes, tmp_path: Path, tiny_encoder: Path, toy_split: tuple[str, str, str],
    workers: int, gpus: float, wanted: str,
) -> None:  # fmt: skip
    plan = sweep_plan(tmp_path / "sweep", tiny_encoder, toy_split)
    message = f"no node of the Ray cluster has 1 CPU, {wanted}, as was wanted; expected at"
    with pytest.raises(UsageError, match=message):
        run_sweep(plan, workers, print, CallCluster(nodes.address, gpus=gpus))


def test_a_sweep_survives_the_end_of_its_driver_of_a_worker_and_of_a_node(
    nodes: RayNodes, tmp_path: Path, tiny_encoder: Path, toy_split: tuple[str, str, str]
) -> None:
    plan = sweep_plan(tmp_path / "sweep", tiny_encoder, toy_split)
    space = (Dimension("epochs", (6,)), Dimension("learning_rate", (1e-3, 2e-3, 3e-3)))
    base = plan.base.model_copy(update={"checkpoint_seconds": 0.0})
    plan, cluster = plan._replace(space=space, base=base), CallCluster(nodes.address)
    (tmp_path / "plan").write_bytes(pickle.dumps((plan, cluster)))
    command = [sys.executable, "-c", DRIVER, str(tmp_path / "plan")]
    with subprocess.Popen(command, env=nodes.environ, stdout=subprocess.PIPE, text=True) as driver:
        assert driver.stdout
        assert [driver.stdout.readline() for _ in range(2)] == ["TrialEpoch\n"] * 2
        driver.kill()
    seen: list[Any] = []

    def kill(record: Any) -> None:
        seen.append(record)
        if len(seen) == 1:
            nodes.processes("ray::_call")[0].kill()
        if len(seen) == 3:
            nodes.kill(nodes.nodes[1])

    records = run_sweep(plan, 0, kill, cluster)
    assert sorted(record.settings["learning_rate"] for record in records) == [1e-3, 2e-3, 3e-3]
    assert {record.state for record in records} <= {"finished", "pruned"}
    ended = [record.number for record in seen if not isinstance(record, TrialEpoch)]
    assert len(ended) == len(set(ended))
    assert run_sweep(plan, 0, kill, cluster) == records
    alone = {
        record.settings["learning_rate"]: record for record in sweep_here(plan._replace(folder=f"{tmp_path}/alone"))
    }
    for record in records:
        other = alone[record.settings["learning_rate"]]
        if record.state == other.state == "finished":
            assert record.mccs == other.mccs
