"""A real Ray cluster of two nodes on this machine: what connects to it, and what is refused."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from ray_nodes import RayNodes
from stage import ROOT

from tasks.cluster.connection import connected
from tasks.core.errors import VerdictError

pytestmark = [pytest.mark.services, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def nodes() -> Iterator[RayNodes]:
    """A head and a worker, each of one CPU; this process has their token."""
    with RayNodes(PYTHONPATH=str(ROOT)) as nodes, pytest.MonkeyPatch.context() as patch:
        for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN"):
            patch.setenv(name, nodes.environ[name])
        for _ in range(2):
            nodes.add(1)
        yield nodes


def test_a_node_without_this_code_or_with_another_version_is_refused(
    nodes: RayNodes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # workers have the driver's working directory on their path
    with connected(nodes.address):
        import ray

        assert ray.cluster_resources()["CPU"] == 2
    for name in ("absent", "changed"):
        (tmp_path / name / "flows").mkdir(parents=True)
        (tmp_path / name / "tasks").mkdir()
        (tmp_path / name / "tasks" / "__init__.py").touch()
    shutil.copytree(ROOT / "tasks", tmp_path / "changed" / "tasks", dirs_exist_ok=True)
    with (tmp_path / "changed" / "tasks" / "core" / "files.py").open("a") as stream:
        stream.write("# another version\n")
    for name, message in (("absent", "cannot import verdict-mlops"), ("changed", "runs verdict-mlops .* with code")):
        node = nodes.add(1, PYTHONPATH=str(tmp_path / name))
        with pytest.raises(VerdictError, match=message), connected(nodes.address):
            pass
        nodes.kill(node)
