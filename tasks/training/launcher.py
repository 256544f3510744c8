"""Runs a function in several processes of this host, one per GPU, as the ranks of a torch.distributed process group.

`launch` starts them, handles their messages, and returns what they return or raises what ended the first of them. They
meet through a file (torch.distributed.FileStore), so that nothing listens for a rendezvous; gloo and NCCL are bound to
the loopback interface.

Processes come from `multiprocessing` rather than torch.multiprocessing.start_processes, which reports the process
whose end it sees first, as text: the error of a rank that lost its peer would hide which peer was killed, and a
UsageError would come out as a traceback.
"""

import contextlib
import gc
import logging
import logging.handlers
import multiprocessing
import os
import pickle
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from typing import Any, Literal, NamedTuple, TypeVar

import torch
from torch import distributed

from tasks.core.child_process import die_with, sigint_blocked, unblock_sigint
from tasks.core.errors import DataRejected, UnreachableError, UsageError, VerdictError, first_line, summarise_error
from tasks.training.process_group import OnMessage, ProcessGroup
from tasks.training.torchrun import BACKENDS, joined

INTERFACE = "lo0" if sys.platform == "darwin" else "lo"
# A process that was killed is reported rather than its peers' broken connections, if its end is seen in this time.
DEATH_NOTICE_S = 0.5
ERROR_TYPES: dict[str, type[VerdictError]] = {
    kind.__name__: kind for kind in (VerdictError, UnreachableError, UsageError, DataRejected)
}

Result = TypeVar("Result")
Kind = Literal["log", "message", "result", "failure"]


class _Work(NamedTuple):
    """What every process is started with."""

    function: Callable[..., Any]
    arguments: tuple[Any, ...]
    device: str
    size: int
    synchronised: bool
    store: str
    """File of the store through which the ranks meet."""
    parent: int
    log_level: int


class _Failure(NamedTuple):
    """Why a rank failed; the exception itself need not be picklable."""

    kind: str
    message: str
    trace: str


def launch(
    function: Callable[..., Result],
    processes: int,
    *arguments: Any,
    device: str,
    on_message: OnMessage | None = None,
    synchronised: bool = True,
) -> list[Result]:
    """Call `function(group, *arguments)` in new processes and return the results, by rank.

    Where torchrun started this process, its ranks are the processes, and the result is the one of rank 0.

    If one process fails, or this call is left by an exception, all processes are killed. They also die with this
    process, whatever ends it.

    Args:
        function: at the top level of a module; it, the arguments and the results are pickled.
        processes: on this host; with cuda each uses a GPU of its own.
        arguments: the same for every process.
        device: cuda or cpu.
        on_message: called with what a process passes to `ProcessGroup.notify_parent`, one message at a time, and
            returns the answer; an exception that it raises is raised here.
        synchronised: the processes form a process group; only what rank 0 logs under `tasks` is logged here. False:
            each works for itself, without collectives, and everything is logged.

    Raises:
        UsageError: if there are fewer GPUs than processes.
        VerdictError: if a process failed or was killed, in one line; its traceback is the error's note. A UsageError,
            UnreachableError or DataRejected of a process is raised as such.
    """
    if ranks := joined():
        return [ranks.lead(function, arguments, on_message)]
    check_processes(processes, device)
    context = multiprocessing.get_context("spawn")
    started: list[SpawnProcess] = []
    connections: list[Connection] = []
    with tempfile.TemporaryDirectory(prefix="verdict-launch-") as folder:
        level = logging.getLogger("tasks").getEffectiveLevel()
        work = _Work(function, arguments, device, processes, synchronised, f"{folder}/store", os.getpid(), level)
        try:
            for rank in range(processes):
                connection, child_connection = context.Pipe()
                connections.append(connection)
                process = context.Process(target=_run, args=(work, rank, child_connection), daemon=True)
                with sigint_blocked():  # until it has imported torch
                    process.start()
                started.append(process)
                child_connection.close()  # so that reading ends when the process ends
            return _collect_results(started, connections, on_message)
        finally:
            for process in started:
                process.kill()
            for process in started:
                process.join()
            for connection in connections:
                connection.close()


def check_processes(processes: int, device: str) -> None:
    """Check that there is a GPU for each process of this host.

    Raises:
        UsageError: if there is not.
    """
    if processes < 1:
        raise UsageError(f"processes {processes} cannot be started; expected at least 1")
    if joined():
        processes = int(os.environ["LOCAL_WORLD_SIZE"])
    if device == "cuda" and processes > torch.cuda.device_count():
        raise UsageError(
            f"{processes} processes were requested, but torch sees {torch.cuda.device_count()} GPUs; expected at most "
            "one process per GPU, see: verdict doctor"
        )


def _collect_results(
    processes: Sequence[SpawnProcess], connections: Sequence[Connection], on_message: OnMessage | None
) -> list[Any]:
    """Handle messages until every process has ended; return the results by rank."""
    results: dict[int, Any] = {}
    readable = {connection: rank for rank, connection in enumerate(connections)}
    running = {process.sentinel: rank for rank, process in enumerate(processes)}
    while readable or running:
        ready = wait([*readable, *running])
        for connection in [each for each in ready if isinstance(each, Connection)]:
            rank = readable[connection]
            try:
                kind, content = pickle.loads(connection.recv_bytes())
            except (EOFError, OSError):  # it ended, perhaps within a message
                del readable[connection]
                continue
            if kind == "log":
                logging.getLogger(content.name).handle(content)
            elif kind == "message":
                answer = on_message(content) if on_message else None
                with contextlib.suppress(OSError):  # killed while it waited for this; its sentinel says how it ended
                    connection.send_bytes(pickle.dumps(answer))
            elif kind == "result":
                results[rank] = content
            else:
                raise _to_error(rank, content, processes)
        for sentinel in [each for each in ready if isinstance(each, int) and running[each] not in readable.values()]:
            rank = running.pop(sentinel)
            processes[rank].join()
            if processes[rank].exitcode or rank not in results:
                raise _exit_error(rank, processes)
    return [results[rank] for rank in range(len(processes))]


def _to_error(rank: int, failure: _Failure, processes: Sequence[SpawnProcess]) -> VerdictError:
    """Return the error for a failure, or for the death of another process, of which the failure is a consequence."""
    running: dict[Any, SpawnProcess] = {process.sentinel: process for process in processes if process.is_alive()}
    running.pop(processes[rank].sentinel, None)
    deadline = time.monotonic() + DEATH_NOTICE_S
    while running and (ready := wait(list(running), max(0.0, deadline - time.monotonic()))):
        for sentinel in ready:  # the kernel closes a process's files, this one too, before it has an exit code
            running.pop(sentinel).join()
        if any(process.exitcode for process in processes):
            break
    for other, process in enumerate(processes):
        if process.exitcode:  # processes that fail stay until they are killed
            return _exit_error(other, processes)
    error = ERROR_TYPES.get(failure.kind, VerdictError)(f"rank {rank} of {len(processes)} failed: {failure.message}")
    error.add_note(failure.trace)
    return error


def _exit_error(rank: int, processes: Sequence[SpawnProcess]) -> VerdictError:
    """Describe the end of a process that reported neither a result nor a failure."""
    code, size = processes[rank].exitcode or 0, len(processes)
    if code < 0:
        return VerdictError(
            f"rank {rank} of {size} was ended by {signal.Signals(-code).name}; where memory ran out, fewer processes "
            "or a smaller batch take less"
        )
    return VerdictError(f"rank {rank} of {size} ended with exit code {code} before it could say why")


class _ParentChannel(logging.handlers.QueueHandler):
    """A process's connection to its parent; as a log handler it passes log records on."""

    def __init__(self, connection: Connection) -> None:
        super().__init__(queue=None)  # type: ignore[arg-type]
        self._connection = connection
        self._lock = threading.RLock()

    def send(self, kind: Kind, content: Any) -> None:
        """Send something; by value, where Connection.send would share a tensor's memory that ends with the process."""
        with self._lock:
            self._connection.send_bytes(pickle.dumps((kind, content)))

    def enqueue(self, record: logging.LogRecord) -> None:
        """Send a log record."""
        self.send("log", record)

    def notify(self, message: Any) -> Any:
        """Send a message, wait until it was handled, and return the answer."""
        with self._lock:
            self.send("message", message)
            return pickle.loads(self._connection.recv_bytes())


def _run(work: _Work, rank: int, connection: Connection) -> None:
    """Be one rank: join the process group, call the function, leave the group, send the result."""
    _die_with(work.parent)
    channel = _ParentChannel(connection)
    try:
        result = work.function(_join(work, rank, channel), *work.arguments)
        gc.collect()  # CUDA graphs hold NCCL's communicator, whose destruction would wait for them
        if work.synchronised:
            distributed.destroy_process_group()
        channel.send("result", result)
    except BaseException as error:  # SystemExit too: the other ranks wait for this one
        kind = type(error).__name__
        message = first_line(error, 10_000) if kind in ERROR_TYPES else summarise_error(error)
        channel.send("failure", _Failure(kind, message, "".join(traceback.format_exception(error))))
        connection.recv_bytes()  # until it is killed: ending now would make other ranks fail as well


def _die_with(parent: int) -> None:
    """End at once on a signal, even within a collective, and when the launching process ends, whatever ends it."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)
    unblock_sigint()
    die_with(parent)


def _join(work: _Work, rank: int, channel: _ParentChannel) -> ProcessGroup:
    """Set up logging, threads, the GPU and the process group."""
    logger = logging.getLogger("tasks")
    logger.addHandler(channel)
    logger.setLevel(work.log_level if rank == 0 or not work.synchronised else logging.CRITICAL)
    os.environ["TTY_COMPATIBLE"] = "0"  # rich: the launching process alone shows progress on a terminal
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, torch.get_num_threads() // work.size))
    if work.device == "cuda":
        torch.cuda.set_device(rank)
    if work.synchronised:
        # Both would choose the interface of the host's name; a variable that is set already is respected.
        os.environ.setdefault("GLOO_SOCKET_IFNAME", INTERFACE)
        os.environ.setdefault("NCCL_SOCKET_IFNAME", INTERFACE)
        distributed.init_process_group(
            BACKENDS[work.device],
            store=distributed.FileStore(work.store, work.size),
            rank=rank,
            world_size=work.size,
            device_id=torch.device("cuda", rank) if work.device == "cuda" else None,
        )
    return ProcessGroup(rank, work.size, work.device, channel.notify)
