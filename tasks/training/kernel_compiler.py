"""Compiles the Triton kernels of a training before its first step, several at once and beside other work.

Triton compiles a kernel when it is launched for the first time, for the types and the alignment of its arguments: about
ten compilations for a training, one after another. Here the step is first run on torch's "meta" device, which computes
shapes and types but no values, to learn which kernels it will launch with which arguments. These are compiled in
threads (LLVM runs without Python's lock, ptxas is a process) into Triton's cache on disk, where a launch finds them.
What is missing there, for whatever reason, is compiled at its launch.

No GPU is needed to compile for one: an image can be built with the kernels in it.

    python -m tasks.training.kernel_compiler --encoder packaged --capability 80 90

writes them to the folder `PREBUILT` of the installation; a training copies them to its cache. The cache is the folder
TRITON_CACHE_DIR, which is below VERDICT_HOME unless the user sets it.
"""

import argparse
import contextlib
import logging
import math
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForSequenceClassification

from tasks.core.errors import first_line
from tasks.core.files import atomic_directory
from tasks.core.finetune_settings import FinetuneSettings
from tasks.data.token_limit import count_positions
from tasks.inference.cpu_limits import available_cpus
from tasks.training.cuda_graph_step import CaptureVariant, CudaGraphStep
from tasks.training.cuda_graphs import patch_for_cuda_graphs
from tasks.training.dataset import BUCKETS, TokenDataset, bucket_of
from tasks.training.fused_layers import unfuse
from tasks.training.model import LABELS
from tasks.training.pretrained import PACKAGED, locate_encoder
from tasks.training.recipe import TrainingRecipe
from tasks.training.train_step import StepConfig

PREBUILT = Path(sys.prefix, "share", "verdict", "kernels")
POINTER_ALIGNMENT = 16  # bytes; Triton compiles another variant for pointers that are not at such a multiple
CAPABILITIES = (80, 86, 89, 90, 100, 120)  # A100; A10, RTX 30; L4, L40, RTX 40; H100, H200; B200; RTX 50

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Pointer:
    """A tensor argument as Triton's compiler distinguishes it: type, and bytes after an aligned address."""

    dtype: torch.dtype
    offset: int

    def data_ptr(self) -> int:
        """Return an address with this alignment; Triton calls this."""
        return self.offset


class KernelLaunch(NamedTuple):
    """A kernel by name, its arguments (tensors as `Pointer`), and its compile-time constants and options."""

    kernel: str
    arguments: tuple[Any, ...]
    constants: tuple[tuple[str, Any], ...]


class LaunchRecorder:
    """A GraphRecorder that runs a step once, where it would be recorded, and notes the kernels that it launches."""

    def __init__(self) -> None:
        self.launches: list[KernelLaunch] = []

    def load_kernels(self) -> ModuleType:
        """Return an object that stands in for the module of kernels; its kernels compute nothing."""
        return cast(ModuleType, _RecordedKernels(self.launches))

    def warm_up(self, work: Callable[[], None]) -> None:
        """Do nothing: a warm-up launches what the recording launches."""

    def record(self, work: Callable[[], None]) -> Any:
        """Run the work."""
        work()

    def synchronize(self) -> None:
        """Do nothing."""

    def release_memory(self) -> None:
        """Do nothing."""


class _RecordedKernels:
    """Stands in for the module of kernels."""

    def __init__(self, launches: list[KernelLaunch]) -> None:
        self._launches = launches

    def __getattr__(self, kernel: str) -> "_RecordedKernel":
        return _RecordedKernel(kernel, self._launches)


class _RecordedKernel:
    """Stands in for one of them."""

    def __init__(self, kernel: str, launches: list[KernelLaunch]) -> None:
        self._kernel, self._launches = kernel, launches

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        def launch(*arguments: Any, **constants: Any) -> None:
            described = tuple(_describe(argument) for argument in arguments)
            self._launches.append(KernelLaunch(self._kernel, described, tuple(constants.items())))

        return launch


def _describe(argument: Any) -> Any:
    if not isinstance(argument, torch.Tensor):
        return argument
    return Pointer(argument.dtype, int(argument.storage_offset()) * argument.element_size() % POINTER_ALIGNMENT)


def kernel_launches(encoder: Any, *recipes: FinetuneSettings) -> list[KernelLaunch]:
    """Return the launches of training steps on a GPU, for every padded length; [] for a model that is not captured.

    Args:
        encoder: transformers' configuration of the model; it is not changed.
        recipes: with which the model is trained.
    """
    config = type(encoder).from_dict(encoder.to_dict())
    config.num_hidden_layers = 1  # all layers launch the same kernels
    config.num_labels = len(LABELS)
    passes = {(bool(recipe.r_drop), bool(recipe.sift)): recipe for recipe in recipes}
    return [launch for recipe in passes.values() for launch in _step_launches(config, recipe)]


def _step_launches(config: Any, settings: FinetuneSettings) -> list[KernelLaunch]:
    batch = -(-settings.batch_size // (settings.processes if settings.seeds == 1 else 1))
    step = StepConfig(
        1, batch, settings.learning_rate, settings.warmup_ratio, settings.weight_decay, settings.max_grad_norm,
        settings.layer_decay, settings.r_drop, settings.sift,
    )  # fmt: skip
    positions, longest = count_positions(config.to_dict()), bucket_of(settings.max_length)
    # The last one stands for all lengths that have no fused attention.
    buckets = [bucket for bucket in (*BUCKETS, 2 * BUCKETS[-1]) if bucket <= longest]
    lengths = sorted({min(bucket, positions or bucket) for bucket in buckets})
    ids = [np.zeros(length, np.int64) for length in lengths]
    data = TokenDataset(ids, np.zeros(len(ids), np.int64), 0, "meta", positions=positions)
    for full_mask, fused in product((False, True), (True, False)):
        with torch.device("meta"):
            model = AutoModelForSequenceClassification.from_config(config, dtype=torch.float32)
        patch_for_cuda_graphs(model)
        recorder = LaunchRecorder()
        try:
            CudaGraphStep(model, data, step, CaptureVariant(fused, full_mask), recorder).prepare()
        except Exception as error:  # whatever a model raises where tensors have no values
            log.debug("launches of variant fused=%s, full_mask=%s: %s", fused, full_mask, first_line(error))
        else:
            return recorder.launches
        finally:
            unfuse(model)
    return []


class Specialisation(NamedTuple):
    """What Triton compiles: its source, options, and key in the cache."""

    source: Any
    options: Any
    key: str


def specialise(launches: Iterable[KernelLaunch], target: Any) -> list[Specialisation]:
    """Return what Triton would compile at these launches on a GPU, without repetitions, the slowest first.

    Args:
        launches: see `kernel_launches`.
        target: a triton GPUTarget.
    """
    from triton.compiler import make_backend

    backend = make_backend(target)
    found: dict[str, Specialisation] = {}
    for launch in dict.fromkeys(launches):
        made = _specialise(launch, backend)
        found.setdefault(made.key, made)
    return sorted(found.values(), key=lambda one: -_expected_cost(one.source))


def _specialise(launch: KernelLaunch, backend: Any) -> Specialisation:
    """Do what triton.runtime.jit.JITFunction.run does before it compiles; it needs a GPU, this does not."""
    from triton import knobs
    from triton.runtime.jit import create_function_from_signature

    from tasks.training import triton_kernels

    kernel = getattr(triton_kernels, launch.kernel)
    options = {"debug": kernel.debug or knobs.runtime.debug} | dict(launch.constants)
    options["instrumentation_mode"] = knobs.compilation.instrumentation_mode
    bind = create_function_from_signature(kernel.signature, kernel.params, backend)
    bound, specialisation, _ = bind(*launch.arguments, **options)
    parsed, signature, constants, attributes = kernel._pack_args(backend, options, bound, specialisation, options)
    from triton.compiler import ASTSource

    source = ASTSource(kernel, signature, constants, attributes)
    return Specialisation(source, parsed, f"{launch.kernel} {source.hash()} {parsed.hash()}")


def _expected_cost(source: Any) -> int:
    """Return a number that orders sources by the time to compile them: arguments times elements of their blocks."""
    return len(source.signature) * math.prod(value for value in source.constants.values() if isinstance(value, int))


class KernelCompilation:
    """Kernels that are being compiled in threads."""

    def __init__(self, futures: Sequence[Future[None]], started: float) -> None:
        self._futures, self._started = futures, started

    def wait(self) -> None:
        """Wait until all are compiled; one that failed is compiled at its launch, which shows the error."""
        waited = time.perf_counter()
        for future in self._futures:
            if error := future.exception():
                log.debug("a kernel could not be compiled ahead: %s", first_line(error))
        now = time.perf_counter()
        log.debug("%d kernels in %.2f s, %.2f s waited", len(self._futures), now - self._started, now - waited)

    def finish(self) -> None:
        """Wait until all are compiled.

        Raises:
            Exception: the first error of Triton.
        """
        for future in self._futures:
            future.result()


def compile_kernels(
    specialisations: Iterable[Specialisation], target: Any, threads: int, *, launchers: bool = True
) -> KernelCompilation:
    """Compile into Triton's cache, in threads that end with their work.

    Args:
        specialisations: see `specialise`.
        target: the triton GPUTarget that they are for.
        threads: that compile at the same time.
        launchers: compile what launches the kernels, too; needs the GPU's driver.
    """
    from triton import knobs
    from triton.runtime import driver

    import_kernels(PREBUILT, Path(knobs.cache.dir))
    started = time.perf_counter()
    pool = ThreadPoolExecutor(threads, thread_name_prefix="kernels")
    utilities = pool.submit(lambda: driver.active.utils) if launchers else None  # a library that a C compiler makes
    locks: dict[str, threading.Lock] = {}

    def compile_one(made: Specialisation) -> None:
        from triton import compile as compile_kernel

        compiled = compile_kernel(made.source, target=target, options=made.options.__dict__)
        if utilities:
            utilities.result()
            with locks.setdefault(made.source.name, threading.Lock()):  # specialisations share their launcher
                driver.active.launcher_cls(made.source, compiled.metadata)

    futures = [pool.submit(compile_one, made) for made in specialisations]
    pool.shutdown(wait=False)
    return KernelCompilation(futures, started)


def compile_for_training(recipe: TrainingRecipe) -> KernelCompilation | None:
    """Start to compile what a training on the current GPU will launch; None where that cannot be known.

    A step in fp32 and a step on a CPU have no kernels of their own.
    """
    if recipe.device != "cuda" or recipe.precision != "bf16":
        return None
    try:
        from triton.backends.compiler import GPUTarget

        major, minor = torch.cuda.get_device_capability()
        target = GPUTarget("cuda", 10 * major + minor, 32)
        encoder = AutoConfig.from_pretrained(recipe.encoder, local_files_only=True, trust_remote_code=False)
        launches = kernel_launches(encoder, recipe, recipe.of_corruption_stage())
        return compile_kernels(specialise(launches, target), target, available_cpus())
    except Exception as error:  # of Triton's or transformers' insides; kernels are compiled at their launch then
        log.debug("kernels are not compiled ahead: %s", first_line(error))
        return None


def import_kernels(source: Path, cache: Path) -> None:
    """Copy what a cache does not have yet from another one; a cache that cannot be written stays as it is."""
    with contextlib.suppress(OSError):
        for entry in source.iterdir():
            if not (cache / entry.name).exists():
                cache.mkdir(parents=True, exist_ok=True)
                with atomic_directory(cache / entry.name) as scratch:
                    shutil.copytree(entry, scratch, dirs_exist_ok=True)


@contextlib.contextmanager
def _stub_driver() -> Iterator[str]:
    """Make a folder with an empty libcuda.so.1, which a linker needs to see and nobody calls while building."""
    with tempfile.TemporaryDirectory() as folder:
        library = f"{folder}/libcuda.so.1"
        command = ["cc", "-shared", "-Wl,-soname,libcuda.so.1", "-x", "c", os.devnull, "-o"]
        subprocess.run([*command, library], check=True)
        yield folder


def build_driver_library() -> None:
    """Compile the C library through which Triton uses a GPU, without a GPU's driver, into Triton's cache."""
    from triton.backends.nvidia import driver
    from triton.runtime.build import compile_module_from_src

    with _stub_driver() as folder, contextlib.suppress(ImportError):  # it is in the cache before it cannot be loaded
        compile_module_from_src(
            src=Path(driver.dirname, "driver.c").read_text(encoding="utf-8"),
            name="cuda_utils",
            library_dirs=[driver.libdevice_dir, folder],
            include_dirs=driver.include_dirs,
            libraries=driver.libraries,
        )


def build(encoders: Sequence[str], capabilities: Sequence[int], settings: FinetuneSettings, folder: Path) -> int:
    """Compile the kernels of trainings on other machines into a folder; return how many.

    Args:
        encoders: "packaged", folders, or types of model, such as bert, for the shape that transformers gives them.
        capabilities: of GPUs, such as 90.
        settings: of the training; the command sets max_length and batch_size, everything else is the default.
        folder: becomes Triton's cache in this process.
    """
    from triton import knobs
    from triton.backends.compiler import GPUTarget

    knobs.cache.dir = str(folder)
    knobs.compilation.store_binary_only = True
    build_driver_library()
    launches: list[KernelLaunch] = []
    for name in encoders:
        if name == PACKAGED or Path(name).is_dir():
            folder_of_encoder = locate_encoder(name)["folder"]
            encoder = AutoConfig.from_pretrained(folder_of_encoder, local_files_only=True, trust_remote_code=False)
        else:
            encoder = AutoConfig.for_model(name)
        launches += kernel_launches(encoder, settings, settings.model_copy(update={"r_drop": 1.0}))
    total = 0
    for capability in capabilities:
        target = GPUTarget("cuda", capability, 32)
        made = specialise(launches, target)
        compilation = compile_kernels(made, target, available_cpus(), launchers=False)
        compilation.finish()
        total += len(made)
    return total


def main(arguments: Sequence[str] | None = None) -> None:
    """Build the kernels that an installation keeps."""
    parser = argparse.ArgumentParser(description=build.__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--encoder", nargs="+", default=[PACKAGED, "bert"], help="[packaged bert]")
    parser.add_argument("--capability", nargs="+", type=int, default=list(CAPABILITIES), help="[of all since A100]")
    parser.add_argument("--batch-size", type=int, default=32, help="[32]")
    parser.add_argument("--max-length", type=int, default=128, help="[128]")
    parser.add_argument("--folder", type=Path, default=PREBUILT, help=f"[{PREBUILT}]")
    options = parser.parse_args(arguments)
    settings = FinetuneSettings(batch_size=options.batch_size, max_length=options.max_length)
    started = time.perf_counter()
    count = build(options.encoder, options.capability, settings, options.folder)
    print(f"{count} kernels in {time.perf_counter() - started:.0f} s: {options.folder}")


if __name__ == "__main__":
    main()
