"""What a worker of a cluster gets, and what is refused without one; scoring itself is in tests/services."""

from pathlib import Path
from typing import Any

import pytest

from tasks.core.errors import UnreachableError, UsageError
from tasks.serving import ray_scoring
from tasks.serving.ray_scoring import Share, score_on_ray


def _share(nodes: list[dict[str, Any]], device: str, workers: int = 0, gibibytes: float = 80) -> Share:
    return ray_scoring._share(nodes, device, workers, lambda: int(gibibytes * 2**30))


def node(**resources: float) -> dict[str, Any]:
    return {"Alive": True, "Resources": resources}


def test_a_worker_gets_one_cpu_or_a_part_of_a_gpu_and_of_its_cpus() -> None:
    dead = {**node(CPU=64, GPU=8), "Alive": False}
    machines = [node(CPU=2), node(CPU=48, GPU=8), node(CPU=64, GPU=8), dead]
    assert _share(machines, "auto") == _share(machines, "cuda") == Share(cpus=1, gpus=1 / 6, workers=96)
    assert _share(machines, "cpu") == Share(cpus=1, gpus=0, workers=114)
    assert _share([node(CPU=2), node(CPU=2)], "auto") == Share(cpus=1, gpus=0, workers=4)
    assert _share([node(CPU=16, GPU=1)], "auto") == Share(cpus=2, gpus=0.125, workers=8)
    assert _share([node(CPU=2, GPU=2)], "auto") == Share(cpus=1, gpus=1, workers=2)


@pytest.mark.parametrize(("gibibytes", "workers"), [(2, 1), (8, 2), (15.9, 3), (16, 4), (23.6, 5), (32, 8), (80, 8)])
def test_no_more_workers_share_a_gpu_than_its_memory_holds_but_as_many_as_are_asked_for(
    gibibytes: float, workers: int
) -> None:
    machine = [node(CPU=16, GPU=1)]
    assert _share(machine, "auto", 0, gibibytes) == Share(16 // workers, 1 / workers, workers)
    assert _share(machine, "auto", 8, gibibytes).workers == 8


def test_fewer_workers_get_more_of_a_gpu_and_more_workers_less() -> None:
    machines = [node(CPU=16, GPU=1), node(CPU=16, GPU=1)]
    assert _share(machines, "auto", 1) == _share(machines, "auto", 2) == Share(cpus=16, gpus=1, workers=2)
    assert _share(machines, "auto", 3) == Share(cpus=8, gpus=0.5, workers=4)
    assert _share(machines, "auto", 16) == Share(cpus=2, gpus=0.125, workers=16)
    assert _share(machines, "auto", 1_000) == Share(cpus=1, gpus=0.0625, workers=32)


@pytest.mark.parametrize(("machine", "device"), [(node(CPU=4), "cuda"), (node(), "auto"), (node(), "cpu")])
def test_a_device_that_the_cluster_lacks_is_refused(machine: dict[str, Any], device: str) -> None:
    with pytest.raises(UsageError, match=r"the Ray cluster has no [CG]PU; expected"):
        _share([machine], device)


def test_streams_and_addresses_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    rest: tuple[Any, ...] = ("bundle", None, "auto", "", "", False, "")
    for path, out in (("-", "out.parquet"), ("in.txt", "-")):
        with pytest.raises(UsageError, match="--ray cannot read or write a stream"):
            score_on_ray(path, out, *rest, "local")
    with pytest.raises(UnreachableError, match=r"no Ray cluster answers at 127\.0\.0\.1:1"):
        score_on_ray("in.txt", str(tmp_path / "out.parquet"), *rest, "127.0.0.1:1")
    assert list(tmp_path.iterdir()) == []
