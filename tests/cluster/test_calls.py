"""Calls on a cluster: what is refused before Ray is connected; the calls themselves are in tests/services."""

import pytest

from tasks.cluster.calls import CallCluster, check_gpus, run_calls
from tasks.core.errors import UsageError


def test_ray_divides_one_gpu_and_no_more() -> None:
    for gpus in (0, 0.25, 1, 2.0):
        check_gpus(gpus)
    with pytest.raises(UsageError, match=r"1\.5 GPUs for each are refused; expected a whole number, or a share of one"):
        next(run_calls(print, [], CallCluster("127.0.0.1:1", gpus=1.5), print))
