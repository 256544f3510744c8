"""A stand-in for CUDA graphs on a CPU: it records a step's operators and runs them again on the same tensors.

Like a CUDA graph, a tape knows nothing of Python: addresses and host values are those of the recording, recording
changes no tensor, and work that waits for the device's values (`item`, `if tensor:`) cannot be recorded.
"""

import threading
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves

KERNELS = (
    "adamw_kernel",
    "column_sum_kernel",
    "dropout_add_norm_kernel",
    "dropout_add_norm_backward_kernel",
    "attention_kernel",
    "attention_backward_kernel",
)
INTERPRETER = threading.Lock()  # Triton's interpreter replaces functions of its language while a kernel runs
HOST_SYNC = torch.ops.aten._local_scalar_dense.default
ALLOCATIONS = (torch.ops.aten.empty, torch.ops.aten.new_empty, torch.ops.aten.empty_like, torch.ops.aten.empty_strided)


class Tape:
    """Recorded operators."""

    def __init__(self) -> None:
        self.calls: list[Callable[[], None]] = []

    def replay(self) -> None:
        with torch.no_grad():
            for call in self.calls:
                call()


class TapeRecorder:
    """Records tapes, and counts the calls."""

    def __init__(self) -> None:
        self.kernels = SimpleNamespace(**{name: RecordedKernel(self, name) for name in KERNELS})
        self.launches: list[str] = []  # names of kernels, in order, replays included
        self.warm_ups = self.recordings = self.synchronizations = self.releases = 0
        self.recording: Recording | None = None

    def load_kernels(self) -> Any:
        return self.kernels

    def warm_up(self, work: Callable[[], None]) -> None:
        self.warm_ups += 1
        work()

    def record(self, work: Callable[[], None]) -> Tape:
        self.recordings += 1
        self.recording = Recording()
        try:
            with self.recording:
                work()
            return self.recording.tape
        finally:
            self.recording.undo()
            self.recording = None

    def synchronize(self) -> None:
        self.synchronizations += 1

    def release_memory(self) -> None:
        self.releases += 1


class Recording(TorchDispatchMode):
    """Runs operators, notes them on a tape, and remembers what they overwrite."""

    def __init__(self) -> None:
        super().__init__()
        self.tape = Tape()
        self._before: dict[int, tuple[torch.UntypedStorage, torch.UntypedStorage]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is HOST_SYNC:
            raise RuntimeError("operation not permitted when stream is capturing")
        kwargs = kwargs or {}
        for argument, value in zip(func._schema.arguments, args, strict=False):
            if argument.alias_info and argument.alias_info.is_write:
                self.note_write(value)
        self.note_write([kwargs[one.name] for one in func._schema.arguments if one.is_out and one.name in kwargs])
        outputs = func(*args, **kwargs)
        if func.overloadpacket not in ALLOCATIONS:
            self.tape.calls.append(lambda: _overwrite(outputs, func(*args, **kwargs)))
        return outputs

    def note_write(self, tensors: Any) -> None:
        for tensor in tree_leaves(tensors):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                self._before.setdefault(storage.data_ptr(), (storage, storage.clone()))

    def undo(self) -> None:
        for storage, before in self._before.values():
            storage.copy_(before)


class RecordedKernel:
    """A Triton kernel whose launches are recorded, too."""

    def __init__(self, recorder: TapeRecorder, name: str) -> None:
        self._recorder, self._name = recorder, name

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        from tasks.training import triton_kernels

        def launch(*args: Any, **constants: Any) -> None:
            def call() -> None:
                self._recorder.launches.append(self._name)
                with INTERPRETER:
                    getattr(triton_kernels, self._name)[grid](*args, **constants)

            recording = self._recorder.recording
            if recording is None:
                call()
                return
            with _disable_current_modes():
                recording.note_write(args)
                call()
            recording.tape.calls.append(call)

        return launch


def _overwrite(old: Any, new: Any) -> None:
    """Write new results where those of the recording lie; views and results of in-place operators lie there already."""
    for one, other in zip(tree_leaves(old), tree_leaves(new), strict=True):
        if isinstance(one, torch.Tensor) and one.data_ptr() != other.data_ptr():
            one.copy_(other)
