"""Training in several processes of this host, one a GPU, through torchrun's own launcher and torch.distributed.

`launch` starts the processes, hands back what they return and turns what ends one of them into one line. Everything
listens on the loopback interface alone: torchrun's own rendezvous would listen on every interface, so it is handed a
c10d store that is bound to 127.0.0.1.
"""

import contextlib
import contextvars
import ctypes
import gc
import json
import logging
import logging.handlers
import os
import pickle
import signal
import socket
import sys
import tempfile
import threading
import time
import traceback
import uuid
from collections.abc import Callable, Iterator
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
from typing import Any, NamedTuple, NoReturn, TypeVar

import torch
from torch import distributed
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.elastic.rendezvous import (
    RendezvousHandler,
    RendezvousInfo,
    RendezvousParameters,
    RendezvousStoreInfo,
    rendezvous_handler_registry,
)
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from tasks.core.errors import DataRejected, UnreachableError, UsageError, VerdictError, first_line, summarise_error
from tasks.training.process_group import OnMessage, ProcessGroup

LOOPBACK_ADDRESS = "127.0.0.1"
INTERFACE = "lo0" if sys.platform == "darwin" else "lo"
BACKENDS = {"cuda": "nccl", "cpu": "gloo"}
RENDEZVOUS = "verdict-loopback"
FAILURE = "failure"  # where the first process that fails leaves why
FIRST_TIMEOUT = (
    0.5  # seconds; the launcher looks five times meanwhile, so that it sees who was killed before who noticed
)
EXIT_TIMEOUT = 60.0  # seconds; they failed because another did, and are ended long before
DEATH_SIGNAL = 1  # prctl's PR_SET_PDEATHSIG
ERROR_TYPES: dict[str, type[VerdictError]] = {
    kind.__name__: kind for kind in (VerdictError, UnreachableError, UsageError, DataRejected)
}

Result = TypeVar("Result")


def launch(
    function: Callable[..., Result],
    processes: int,
    *arguments: Any,
    device: str,
    on_message: OnMessage | None = None,
    synchronised: bool = True,
) -> list[Result]:
    """Call `function(team, *arguments)` in new processes and return what each returned, by rank.

    What rank 0 logs under `tasks` is logged here. Whatever ends one process ends all.

    Args:
        function: at the top level of a module; it, the arguments and the results are pickled.
        processes: on this host; with cuda each has a GPU of its own.
        arguments: the same for every process.
        device: cuda or cpu.
        on_message: called with what a process passes to `Team.tell`, one message at a time; an error that it raises
            ends the processes.
        synchronised: they train one model, so that what ranks above 0 log is left out. False: each works for itself,
            all logs are passed on, and they can exchange nothing.

    Raises:
        WrongUsage: if there are fewer GPUs than processes.
        VerdictError: if a process failed or was killed, in one line; its traceback is the error's note. A process's own
            WrongUsage, Unreachable or DataRefused comes out as such.
    """
    check_processes(processes, device)
    store, port = _loopback_store()
    with (
        _signals_given_back(),
        _ParentChannel(processes, on_message) as lines,
        tempfile.TemporaryDirectory(prefix="verdict-launch-") as scratch,
    ):
        level = logging.getLogger("tasks").getEffectiveLevel()
        job = _Job(function, arguments, device, port, os.getpid(), level, synchronised, lines.theirs)
        try:
            results = elastic_launch(_config(processes, port, store, scratch), _work)(job)
        except ChildFailedError as error:
            if lines.refusal:
                raise lines.refusal from None
            raise _to_error(error, store, processes) from None
    return [pickle.loads(results[rank]) for rank in range(processes)]


class _Job(NamedTuple):
    """What a process is started with; being no string, it is left alone by torchrun's macros."""

    function: Callable[..., Any]
    arguments: tuple[Any, ...]
    device: str
    port: int
    parent: int
    level: int
    synchronised: bool
    lines: list[Connection]


def check_processes(processes: int, device: str) -> None:
    """Check that there is a GPU for each process.

    Raises:
        WrongUsage: if there is not.
    """
    if processes < 1:
        raise UsageError(f"processes {processes} cannot be started; expected at least 1")
    if device == "cuda" and processes > torch.cuda.device_count():
        raise UsageError(
            f"{processes} processes were asked for, but torch sees {torch.cuda.device_count()} GPUs; expected at most "
            "one process a GPU, see: verdict doctor"
        )


def _config(processes: int, port: int, store: distributed.Store, scratch: str) -> LaunchConfig:
    rendezvous_handler_registry.register(RENDEZVOUS, _Loopback)
    for name in ("torch.distributed.elastic", "torch.multiprocessing.spawn"):  # `launch` says it in one line
        logging.getLogger(name).propagate = False
        logging.getLogger(name).addHandler(logging.NullHandler())
    return LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=processes,
        run_id=f"verdict-{uuid.uuid4().hex}",
        role="trainer",
        rdzv_backend=RENDEZVOUS,
        rdzv_endpoint=f"{LOOPBACK_ADDRESS}:{port}",
        rdzv_configs={"store": store, "port": port},
        max_restarts=0,
        logs_specs=DefaultLogsSpecs(log_dir=scratch),
        local_addr=LOOPBACK_ADDRESS,
    )


def _loopback_store() -> tuple[distributed.TCPStore, int]:
    """Open a store on a free port of the loopback interface; by itself it would listen on every interface."""
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listener.bind((LOOPBACK_ADDRESS, 0))
    listener.listen()
    port = listener.getsockname()[1]
    store = distributed.TCPStore(
        LOOPBACK_ADDRESS, port, is_master=True, wait_for_workers=False, master_listen_fd=listener.detach()
    )
    return store, port


class _Loopback(RendezvousHandler):
    """A rendezvous of one host, which is over before it begins."""

    def __init__(self, parameters: RendezvousParameters) -> None:
        self._parameters = parameters

    def get_backend(self) -> str:
        return RENDEZVOUS

    def next_rendezvous(self) -> RendezvousInfo:
        store = distributed.PrefixStore("launcher", self._parameters.get("store"))
        return RendezvousInfo(store, 0, 1, RendezvousStoreInfo(LOOPBACK_ADDRESS, self._parameters.get("port")))

    def is_closed(self) -> bool:
        return False

    def set_closed(self) -> None:
        """Do nothing: nobody else could join."""

    def num_nodes_waiting(self) -> int:
        return 0

    def get_run_id(self) -> str:
        return self._parameters.run_id

    def shutdown(self) -> bool:
        return True


@contextlib.contextmanager
def _signals_given_back() -> Iterator[None]:
    """Undo what torchrun does to signals: it takes them over in the main thread, and keeps them.

    A signal that came meanwhile has ended the processes; it is raised again for who handled it before. In another
    thread torchrun takes over nothing, and who handles signals there decides.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)
    before = {number: handler for number in numbers if (handler := signal.getsignal(number)) is not None}
    came: signal.Signals | None = None
    try:
        yield
    except SignalException as error:
        came = error.sigval
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        if came:
            signal.raise_signal(came)


class _ParentChannel:
    """The launcher's ends of the lines to its processes; one thread answers them, in the caller's context."""

    def __init__(self, processes: int, on_message: OnMessage | None) -> None:
        self._on_message = on_message
        pairs = [Pipe() for _ in range(processes)]
        self._ours, self.theirs = [ours for ours, _ in pairs], [theirs for _, theirs in pairs]
        self.refusal: BaseException | None = None
        self._thread = threading.Thread(target=contextvars.copy_context().run, args=(self._listen,), daemon=True)

    def __enter__(self) -> "_ParentChannel":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        for line in self.theirs:
            line.close()  # with the processes gone, nobody else holds it: the thread finds it closed
        self._thread.join()
        for line in self._ours:
            line.close()

    def _listen(self) -> None:
        left = list(self._ours)
        while left:
            for line in wait(left):
                assert isinstance(line, Connection)
                try:
                    self._answer(line)
                except (EOFError, OSError):
                    left.remove(line)
                except Exception as error:  # what cannot be read here; who waits for an answer finds the line closed
                    self.refusal = error
                    left.remove(line)
                    line.close()

    def _answer(self, line: Connection) -> None:
        said = line.recv()
        if isinstance(said, logging.LogRecord):
            logging.getLogger(said.name).handle(said)
        else:
            line.send(self._heard(said))

    def _heard(self, message: Any) -> bool:
        """Pass a message on; return whether the processes may go on."""
        try:
            if self._on_message:
                self._on_message(message)
        except BaseException as error:  # raised again by `launch`, where it would have come out without processes
            self.refusal = error
        return self.refusal is None


class _ChildChannel:
    """A process's end of its line; one message at a time."""

    def __init__(self, line: Connection) -> None:
        self._line = line
        self._lock = threading.RLock()

    def put_nowait(self, record: logging.LogRecord) -> None:
        """Pass a log record on, as a queue of logging.handlers would."""
        with self._lock:
            self._line.send(record)

    def tell(self, message: Any) -> None:
        """Pass a message on and wait until it was heard.

        Raises:
            VerdictError: if who heard it wants the processes to end.
        """
        with self._lock:
            self._line.send(message)
            if not self._line.recv():
                raise VerdictError("who launched the processes has ended them")


def _work(job: _Job) -> bytes:
    """Be one process of the team: join it, call the function, leave it; return its result pickled."""
    _die_with(job.parent)
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    store = distributed.TCPStore(LOOPBACK_ADDRESS, job.port, is_master=False)
    try:
        team = _join(job, store, rank, size)
        result = pickle.dumps(job.function(team, *job.arguments))
        gc.collect()  # graphs hold on to NCCL's communicator, which would wait for them
        if job.synchronised:
            distributed.destroy_process_group()
    except BaseException as error:  # even an exit is a failure here: the others wait for this process
        _fail(store, rank, error)
    return result


def _die_with(parent: int) -> None:
    """End at once on a signal, even deep in a collective, and when the launching process ends, however it does."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(DEATH_SIGNAL, signal.SIGKILL)
    if os.getppid() != parent:  # it ended before we asked for the signal
        os._exit(1)


def _join(job: _Job, store: distributed.Store, rank: int, size: int) -> ProcessGroup:
    """Set up what is said, threads, the GPU and the process group."""
    voice = _ChildChannel(job.lines[rank])
    tasks = logging.getLogger("tasks")
    tasks.addHandler(logging.handlers.QueueHandler(voice))  # type: ignore[arg-type]
    tasks.setLevel(job.level if rank == 0 or not job.synchronised else logging.CRITICAL)
    if rank:
        os.environ["TTY_COMPATIBLE"] = "0"  # to rich: one bar at a time on a terminal
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, torch.get_num_threads() // size))
    if job.device == "cuda":
        torch.cuda.set_device(rank)
    if job.synchronised:
        # Both would take the interface of the host's name; what somebody has set stays.
        os.environ.setdefault("GLOO_SOCKET_IFNAME", INTERFACE)
        os.environ.setdefault("NCCL_SOCKET_IFNAME", INTERFACE)
        distributed.init_process_group(
            BACKENDS[job.device],
            store=distributed.PrefixStore("team", store),
            rank=rank,
            world_size=size,
            device_id=torch.device("cuda", rank) if job.device == "cuda" else None,
        )
    return ProcessGroup(rank, size, job.device, voice.tell)


def _fail(store: distributed.Store, rank: int, error: BaseException) -> NoReturn:
    """Leave why this process failed, unless another one failed before, and end it without waiting for anybody."""
    kind = type(error).__name__
    message = first_line(error, 10_000) if kind in ERROR_TYPES else summarise_error(error)
    trace = "".join(traceback.format_exception(error))
    ours = json.dumps({"rank": rank, "kind": kind, "message": message, "trace": trace})
    is_first = store.compare_set(FAILURE, "", ours) == ours.encode()
    time.sleep(FIRST_TIMEOUT if is_first else EXIT_TIMEOUT)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(1)


def _to_error(error: ChildFailedError, store: distributed.Store, size: int) -> VerdictError:
    """Return what ended the processes as one line."""
    rank, failure = error.get_first_failure()
    if failure.exitcode < 0:
        return VerdictError(
            f"rank {rank} of {size} was ended by {failure.signal_name()}; where memory ran out, fewer processes or a "
            "smaller batch take less"
        )
    if not store.check([FAILURE]):
        return VerdictError(f"rank {rank} of {size} ended with exit code {failure.exitcode} before it could say why")
    left = json.loads(store.get(FAILURE))
    explained = ERROR_TYPES.get(left["kind"], VerdictError)(f"rank {left['rank']} of {size} failed: {left['message']}")
    explained.add_note(left["trace"])
    return explained
