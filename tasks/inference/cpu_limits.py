"""How many CPUs this process may use: its affinity, the CPU quota of its cgroups, and the physical cores behind both.

A container with `limits: {cpu: "2"}` sees every CPU of its node; threads beyond the quota only get it throttled. Quotas
are read as the kernel documents them: https://docs.kernel.org/admin-guide/cgroup-v2.html (`cpu.max`) and, for version
1, https://docs.kernel.org/scheduler/sched-bwc.html (`cpu.cfs_quota_us`).
"""

import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

PROCESS = Path("/proc/self")
CPUS = Path("/sys/devices/system/cpu")

_share = math.inf  # of the CPUs, that a scheduler gave this process


class _Mount(NamedTuple):
    """A mounted cgroup hierarchy: the group that is its root, and the folder where it is mounted."""

    root: str
    folder: Path


def use_at_most(cpus: float) -> None:
    """Count at most so many CPUs in this process from here on, where a scheduler shares them out without a quota."""
    global _share
    _share = cpus


def available_cpus(process: Path = PROCESS) -> int:
    """Return how many CPUs this process may keep busy: those of its affinity, at most its cgroups' quota, rounded up.

    Args:
        process: folder with the process's `cgroup` and `mountinfo`.
    """
    return _limit(len(_allowed_cpus()), process)


def compute_threads(process: Path = PROCESS, cpus: Path = CPUS) -> int:
    """Return how many threads compute one batch: `available_cpus`, but one for each physical core.

    Two hyperthreads of a core share its arithmetic units: a second thread there makes matrix products no faster.

    Args:
        process: folder with the process's `cgroup` and `mountinfo`.
        cpus: folder with the topology of each CPU.
    """
    cores = set()
    for cpu in _allowed_cpus():
        try:
            cores.add((cpus / f"cpu{cpu}/topology/thread_siblings_list").read_text().strip())
        except OSError:  # a system that does not say: each CPU counts
            cores.add(str(cpu))
    return _limit(len(cores), process)


def _limit(count: int, process: Path) -> int:
    """Return a number of CPUs, at most the quota or share rounded up, and at least 1."""
    return max(1, math.ceil(min(float(count), cgroup_quota(process), _share)))


def cgroup_quota(process: Path = PROCESS) -> float:
    """Return the CPUs that the process's cgroups and their parents allow it; infinity where nothing limits it.

    Files that cannot be read limit nothing.
    """
    return min((_quota(folder) for folder in _cgroup_folders(process)), default=math.inf)


def _allowed_cpus() -> set[int]:
    """Return the numbers of the CPUs of the affinity; all where the system has none."""
    if hasattr(os, "sched_getaffinity"):
        return os.sched_getaffinity(0)
    return set(range(os.cpu_count() or 1))


def _cgroup_folders(process: Path) -> Iterator[Path]:
    """Yield the folders of the process's cgroups for CPUs and of their parents, as far as they are mounted."""
    mounts = _cpu_mounts(process)
    for line in _read_lines(process / "cgroup"):  # HIERARCHY:CONTROLLERS:PATH; version 2 has no controllers
        _, _, rest = line.partition(":")
        controllers, _, group = rest.partition(":")
        version = 1 if "cpu" in controllers.split(",") else 2 if not controllers else 0
        mount = mounts.get(version)
        if mount is None:
            continue
        # In a container the mount's root is the container's group, or the path is relative to the namespace's root.
        below = os.path.relpath(group, mount.root)
        folder = mount.folder if below.startswith("..") else mount.folder / below
        yield folder
        yield from (parent for parent in folder.parents if parent.is_relative_to(mount.folder))


def _cpu_mounts(process: Path) -> dict[int, _Mount]:
    """Return the mounted hierarchies that can limit CPUs, by cgroup version."""
    mounts: dict[int, _Mount] = {}
    for line in _read_lines(process / "mountinfo"):
        fields, _, filesystem = line.partition(" - ")
        kind, *options = filesystem.split(" ")
        if kind == "cgroup2" or (kind == "cgroup" and "cpu" in options[-1].split(",")):
            root, folder = (field.replace("\\040", " ") for field in fields.split(" ")[3:5])
            mounts[1 if kind == "cgroup" else 2] = _Mount(root, Path(folder))
    return mounts


def _quota(folder: Path) -> float:
    """Return the quota in CPUs that the files of one cgroup set; infinity where they set none."""
    quota, period = (*" ".join(_read_lines(folder / "cpu.max")).split(), "", "")[:2]
    if not quota:
        quota, period = ("".join(_read_lines(folder / f"cpu.cfs_{name}_us")) for name in ("quota", "period"))
    try:
        limit = int(quota) / int(period)
    except (ValueError, ZeroDivisionError):  # "max", or no file
        return math.inf
    return limit if limit > 0 else math.inf  # version 1 writes -1 for no limit


def _read_lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except (OSError, ValueError):
        return []
