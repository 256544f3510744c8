"""CPUs that the process may use: affinity, quotas of cgroups, and threads that respect both."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tasks.inference import cpu_limits
from tasks.inference.cpu_limits import available_cpus, cgroup_quota, compute_threads

needs_affinity = pytest.mark.skipif(
    not hasattr(os, "sched_setaffinity"), reason="this system cannot restrict a process to one core"
)


def fake_process(
    folder: Path, group: str, root: str = "/", version: int = 2, limits: dict[str, str] | None = None
) -> Path:
    """Write the cgroup and mountinfo of a process, and a cgroup tree with these files; return the process's folder."""
    mount = folder / "cgroup fs"
    options = "cgroup2 cgroup rw" if version == 2 else "cgroup cgroup rw,cpu,cpuacct"
    place = str(mount).replace(" ", "\\040")
    (folder / "mountinfo").write_text(
        f"29 23 0:26 / /proc rw - proc proc rw\n31 29 0:28 {root} {place} rw,relatime shared:9 - {options}\n"
    )
    controllers = "0:" if version == 2 else "4:cpu,cpuacct"
    (folder / "cgroup").write_text(f"9:name=systemd:/elsewhere\n{controllers}:{group}\n")
    for name, content in (limits or {}).items():
        path = mount / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content + "\n")
    return folder


def cpus(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    monkeypatch.setattr(cpu_limits, "_allowed_cpus", lambda: set(range(count)))


def test_a_share_limits_as_a_quota_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cpus(monkeypatch, 8)
    process = fake_process(tmp_path, "/", limits={"cpu.max": "300000 100000"})
    monkeypatch.setattr(cpu_limits, "_share", math.inf)  # restored at the end
    counts = []
    for share in (16.0, 2.0, 0.5):
        cpu_limits.use_at_most(share)
        counts.append((available_cpus(process), compute_threads(process, tmp_path)))
    assert counts == [(3, 3), (2, 2), (1, 1)]


@pytest.mark.parametrize(
    ("limits", "quota"),
    [
        ({}, math.inf),
        ({"pod/box/cpu.max": "max 100000"}, math.inf),
        ({"pod/box/cpu.max": "200000 100000"}, 2.0),
        ({"pod/box/cpu.max": "50000 100000", "pod/cpu.max": "400000 100000"}, 0.5),
        ({"pod/box/cpu.max": "max 100000", "pod/cpu.max": "150000 100000"}, 1.5),
        ({"cpu.max": "300000 100000"}, 3.0),
        ({"other/cpu.max": "100000 100000"}, math.inf),
        ({"pod/box/cpu.max": "nonsense"}, math.inf),
        ({"pod/box/cpu.max": ""}, math.inf),
    ],
)
def test_the_smallest_quota_of_a_group_and_its_parents_holds(
    tmp_path: Path, limits: dict[str, str], quota: float
) -> None:
    assert cgroup_quota(fake_process(tmp_path, "/pod/box", limits=limits)) == quota


@pytest.mark.parametrize(
    ("quota", "period", "cores"), [("-1", "100000", 8), ("200000", "100000", 2), ("10000", "100000", 1), ("", "", 8)]
)
def test_quotas_of_version_1_hold_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quota: str, period: str, cores: int
) -> None:
    cpus(monkeypatch, 8)
    limits = {"pod/cpu.cfs_quota_us": quota, "pod/cpu.cfs_period_us": period}
    assert available_cpus(fake_process(tmp_path, "/pod", version=1, limits=limits)) == cores


@pytest.mark.parametrize(("group", "root"), [("/docker/abc", "/docker/abc"), ("/", "/"), ("/", "/docker/abc")])
def test_a_container_sees_its_group_as_the_root_of_the_mount(tmp_path: Path, group: str, root: str) -> None:
    assert cgroup_quota(fake_process(tmp_path, group, root, limits={"cpu.max": "200000 100000"})) == 2.0


def test_the_quota_is_rounded_up_and_limits_the_affinity(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    process = fake_process(tmp_path, "/", limits={"cpu.max": "250000 100000"})
    for allowed, expected in ((8, 3), (2, 2)):
        cpus(monkeypatch, allowed)
        assert available_cpus(process) == expected


def test_without_files_nothing_is_limited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cpus(monkeypatch, 6)
    assert available_cpus(tmp_path) == 6
    (tmp_path / "mountinfo").write_bytes(b"\xff\xfe no mounts")
    (tmp_path / "cgroup").write_text("no groups\n\n")
    assert available_cpus(tmp_path) == 6


def test_hyperthreads_of_a_core_compute_with_one_thread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for cpu in range(8):
        (tmp_path / f"cpu{cpu}/topology").mkdir(parents=True)
        (tmp_path / f"cpu{cpu}/topology/thread_siblings_list").write_text(f"{cpu % 4},{cpu % 4 + 4}\n")
    cpus(monkeypatch, 8)
    assert compute_threads(tmp_path, tmp_path) == 4
    cpus(monkeypatch, 3)
    assert compute_threads(tmp_path, tmp_path) == 3
    limited = fake_process(tmp_path, "/", limits={"cpu.max": "200000 100000"})
    cpus(monkeypatch, 8)
    assert compute_threads(limited, tmp_path) == 2
    assert compute_threads(tmp_path / "nothing", tmp_path / "nothing") == 8


COUNT_THREADS = """
import json, os, sys
from pathlib import Path
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
from tasks.inference.sessions import open_session
from tasks.inference.tokenization import load_tokenizer
count = lambda: len(os.listdir("/proc/self/task"))
counts = [count()]
session = open_session(Path(sys.argv[1]) / "model.onnx", "cpu")
counts.append(count())
load_tokenizer(sys.argv[1], 16).encode_batch_fast(["the cat"] * 100)
counts.append(count())
print(json.dumps(counts))
"""


@needs_affinity
def test_on_one_cpu_a_session_has_the_calling_thread_and_the_tokenizer_one(exported: Any) -> None:
    run = subprocess.run(
        [sys.executable, "-c", COUNT_THREADS, exported["bundle"]], capture_output=True, text=True, check=True
    )
    before, opened, tokenised = json.loads(run.stdout)
    assert (opened, tokenised) == (before, before + 1)
