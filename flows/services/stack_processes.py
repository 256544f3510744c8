"""Finds and ends the processes of a home's services, and of the flow runs that its worker started."""

import contextlib
import os
from collections.abc import Sequence

import psutil

from flows.services.stack_config import MARKER
from tasks.core.errors import VerdictError

KILL_TIMEOUT_S = 10  # from SIGKILL to a process's end


def find_processes(home: str) -> list[psutil.Process]:
    """Return the processes whose environment has the variable MARKER with this home, without this one."""
    found = psutil.process_iter(["environ", "cmdline"])  # None for processes of other users
    return [
        each for each in found if (each.info["environ"] or {}).get(MARKER) == home and each.pid != psutil.Process().pid
    ]


def in_session(processes: Sequence[psutil.Process], session: int) -> list[psutil.Process]:
    """Return the processes of a session: those of the services are in Supervisor's, each flow run has its own."""
    found = []
    for process in processes:
        with contextlib.suppress(ProcessLookupError):
            if os.getsid(process.pid) == session:
                found.append(process)
    return found


def end_processes(processes: Sequence[psutil.Process], timeout_s: float) -> None:
    """Send SIGTERM to processes, and SIGKILL to those that run after the timeout.

    Raises:
        VerdictError: if one does not end.
    """
    _signal(processes, "terminate")
    _, left = psutil.wait_procs(processes, timeout_s)
    _signal(left, "kill")
    _, left = psutil.wait_procs(left, KILL_TIMEOUT_S)
    if left:
        raise VerdictError(f"processes {', '.join(str(each.pid) for each in left)} do not end; see: make logs")


def _signal(processes: Sequence[psutil.Process], method: str) -> None:
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            getattr(process, method)()
