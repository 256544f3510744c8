"""Trains several seeds at the same time on one GPU: the kernels of one small encoder leave most of it idle.

Each seed is trained in a thread of its own, its lane, with a CUDA stream of its own: replaying a captured step is one
call, which runs without Python's lock. What torch has only once is used by one lane at a time (`Lane.exclusive`): its
random generators, and warm-up and capture of a step. A captured step draws from the generator that was torch's when it
was captured, so each lane gives torch its own one while it prepares. A seed's weights are bit for bit those that it has
when it is trained alone. A step that cannot be captured is trained while the others wait.

Callbacks run in the thread that started the lanes.
"""

import contextlib
import contextvars
import gc
import logging
import queue
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch

from tasks.core.progress import progress_bar
from tasks.training.cuda_graphs import cudnn_attention_disabled

MEMORY_SHARE = 0.9  # of the free memory may be taken by further lanes

log = logging.getLogger(__name__)

Report = Callable[[Any], None]


class LaneStopped(BaseException):
    """Raised in a lane because another one failed, or the run was interrupted."""


class Lane:
    """What one of several trainings has for itself while they share a device."""

    def __init__(self, device: str, lock: threading.RLock, shares_memory: bool = False) -> None:
        """Create a stream and generators.

        Args:
            device: cuda or cpu.
            lock: the same for all lanes.
            shares_memory: other lanes are running: one that runs out of memory must not adapt, as alone it may fit.
        """
        self.shares_memory = shares_memory
        self._lock, self._depth = lock, 0
        self._cpu_state = torch.get_rng_state()
        self._generator = torch.Generator(device) if device == "cuda" else None
        self._stream = torch.cuda.Stream() if device == "cuda" else None

    @contextlib.contextmanager
    def exclusive(self) -> Iterator[None]:
        """Use what torch has only once, with the lane's own random generators in place of torch's."""
        with self._lock:
            if self._depth:  # this thread is in such a block already
                yield
                return
            outer = torch.get_rng_state()
            torch.set_rng_state(self._cpu_state)
            self._depth += 1
            try:
                with self._own_cuda_generator():
                    yield
            finally:
                self._depth -= 1
                self._cpu_state = torch.get_rng_state()
                torch.set_rng_state(outer)

    @contextlib.contextmanager
    def _own_cuda_generator(self) -> Iterator[None]:
        """Let torch's generator of the GPU share the state of the lane's, also in graphs that are captured here."""
        if self._generator is None:
            yield
            return
        default = torch.cuda.default_generators[torch.cuda.current_device()]
        outer = default.graphsafe_get_state()
        default.graphsafe_set_state(self._generator)
        try:
            yield
        finally:
            default.graphsafe_set_state(outer)

    def on_stream(self) -> contextlib.AbstractContextManager[Any]:
        """Run the kernels of this thread on the lane's stream."""
        return torch.cuda.stream(self._stream) if self._stream else contextlib.nullcontext()

    def ready(self) -> None:
        """Called when the training is prepared and its memory is allocated."""

    def advance(self) -> None:
        """Called after each step.

        Raises:
            LaneStopped: if all lanes are to end.
        """

    def report(self, record: Any) -> None:
        """Pass a record on to the thread that started the lanes, and wait until it was handled."""


class _Event(NamedTuple):
    """A message to the thread that started the lanes: `reply` receives None or an exception."""

    kind: str  # ready, report, or end
    lane: "_Thread"
    content: Any = None
    reply: "queue.SimpleQueue[BaseException | None] | None" = None


class _Thread(Lane):
    """A lane and its thread."""

    def __init__(self, lanes: "_Lanes", seed: int) -> None:
        super().__init__(lanes.device, lanes.lock, shares_memory=bool(lanes.running))
        self.seed, self._lanes = seed, lanes
        context = contextvars.copy_context()  # Prefect finds the run of a log record there
        self._thread = threading.Thread(target=context.run, args=(self._run,), name=f"seed {seed}", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        error: BaseException | None = None
        try:
            with self.on_stream():
                self._lanes.train(self.seed, self)
        except BaseException as raised:  # passed on to the thread that started this one
            error = raised
        self._lanes.events.put(_Event("end", self, error))

    def join(self) -> None:
        self._thread.join()

    def ready(self) -> None:
        self._lanes.events.put(_Event("ready", self))

    def advance(self) -> None:
        if self._lanes.stopped:
            raise LaneStopped
        self._lanes.move_bar()

    def report(self, record: Any) -> None:
        reply: queue.SimpleQueue[BaseException | None] = queue.SimpleQueue()
        self._lanes.events.put(_Event("report", self, record, reply))
        if error := reply.get():
            raise error


class _Lanes:
    """All lanes of a run, as the thread that started them sees them."""

    def __init__(self, train: Callable[[int, Lane], None], seeds: Sequence[int], device: str, at_once: int) -> None:
        self.train, self.device = train, device
        self.lock = threading.RLock()
        self.events: queue.SimpleQueue[_Event] = queue.SimpleQueue()
        self.running: list[_Thread] = []
        self.stopped = False
        self.move_bar: Callable[[], None] = lambda: None
        self._pending, self._at_once = list(seeds), at_once
        self._reserved = torch.cuda.memory_reserved() if device == "cuda" else 0
        self._limit = 1  # until it is known what one needs

    def run(self, on_report: Report) -> None:
        """Run all lanes to their ends.

        Raises:
            BaseException: what a lane or `on_report` raised; the other lanes have ended then.
        """
        try:
            while self._pending or self.running:
                while self._pending and len(self.running) < self._limit:
                    self.running.append(_Thread(self, self._pending.pop(0)))
                self._handle(self.events.get(), on_report)
        finally:
            self._stop()

    def _handle(self, event: _Event, on_report: Report) -> None:
        if event.reply:
            try:
                on_report(event.content)
            except BaseException:
                event.reply.put(LaneStopped())
                raise
            event.reply.put(None)
        elif event.kind == "ready":
            if self._limit == 1 and self._at_once > 1:
                self._limit = min(self._at_once, 1 + self._further())
        else:
            event.lane.join()
            self.running.remove(event.lane)
            if isinstance(event.content, torch.OutOfMemoryError) and event.lane.shares_memory:
                log.warning("seed %d does not fit beside others; seeds are trained one after another", event.lane.seed)
                self._pending.append(event.lane.seed)
                self._limit = self._at_once = 1
                traceback.clear_frames(event.content.__traceback__)  # which hold tensors
                self._release()
            elif event.content:
                raise event.content

    def _further(self) -> int:
        """Return how many lanes fit beside the first one, which is prepared."""
        if self.device != "cuda":
            return self._at_once
        need = max(1, torch.cuda.max_memory_reserved() - self._reserved)
        fitting = int(MEMORY_SHARE * torch.cuda.mem_get_info()[0] / need)
        if 1 + fitting < self._at_once:
            log.info("a seed needs %.1f GiB: %d are trained at the same time", need / 2**30, 1 + fitting)
        return fitting

    def _stop(self) -> None:
        """End the lanes that still run, each after its current step."""
        self.stopped = True
        while self.running:
            event = self.events.get()
            if event.reply:
                event.reply.put(LaneStopped())
            elif event.kind == "end":
                event.lane.join()
                self.running.remove(event.lane)
        self._release()

    def _release(self) -> None:
        """Return the memory of lanes that have ended."""
        if self.device == "cuda":
            gc.collect()
            torch.cuda.empty_cache()


def train_side_by_side(
    train: Callable[[int, Lane], None],
    seeds: Sequence[int],
    device: str,
    *,
    steps: int = 0,
    on_report: Report | None = None,
    at_once: int | None = None,
) -> None:
    """Call `train(seed, lane)` for all seeds, several at a time; errors end all of them and are raised here.

    The first one starts alone; as many others follow as there is memory for. One that runs out of memory beside others
    is started again when it is alone.

    Args:
        train: trains a seed; calls `exclusive`, `ready` and `advance` of its lane.
        seeds: to train.
        device: cuda or cpu.
        steps: of all seeds, for the progress bar.
        on_report: called in this thread with what lanes report, one at a time.
        at_once: at most so many lanes; None: as many as seeds.
    """
    if device == "cuda":
        torch.cuda.synchronize()  # what this thread's stream has computed is there for all streams
        torch.cuda.reset_peak_memory_stats()
    lanes = _Lanes(train, seeds, device, at_once or len(seeds))
    with progress_bar("fine-tuning", steps) as lanes.move_bar, cudnn_attention_disabled():
        lanes.run(on_report or (lambda record: None))
