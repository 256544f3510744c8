"""The kernels that are compiled ahead are those that a step launches, and Triton finds them; all without a GPU.

Triton reads TRITON_INTERPRET when it is imported, and the other tests set it: what compiles runs in a process of its
own. There a driver that names its GPU and launches nothing takes the place of CUDA's.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny import Words, tiny_bert, toy_recipe
from transformers import BertConfig, DistilBertConfig, MPNetConfig

from tasks.core.finetune_settings import FinetuneSettings
from tasks.training import finetune, kernel_compiler
from tasks.training.cuda_graph_step import CaptureVariant, CudaGraphStep
from tasks.training.dataset import TokenDataset
from tasks.training.kernel_compiler import LaunchRecorder, compile_for_training, import_kernels, kernel_launches

pytest.importorskip("triton")  # for Linux on x86-64

SIZES = {"vocab_size": 20, "hidden_size": 128, "num_attention_heads": 4, "intermediate_size": 64}
ATTENTION = ("attention_backward_kernel", "attention_kernel")
COMPILE = """
import json, sys
from pathlib import Path
import torch, triton
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from transformers import BertConfig
from tasks.core.finetune_settings import FinetuneSettings
from tasks.training import triton_kernels
from tasks.training.kernel_compiler import build_driver_library, compile_kernels, import_kernels, kernel_launches
from tasks.training.kernel_compiler import specialise

class Driver:
    def get_current_device(self): return 0
    def get_current_stream(self, device): return 0
    def get_current_target(self): return target

target = GPUTarget("cuda", 90, 32)
driver.set_active(Driver())
compiled = []
def note(src, metadata, metadata_group, times, cache_hit): compiled.append((src.name, cache_hit))
triton.knobs.compilation.listener = note
settings = FinetuneSettings(batch_size=8, max_length=8)
launches = kernel_launches(BertConfig(**json.loads(sys.argv[1])), settings)
ahead = [one for one in specialise(launches, target) if one.source.name in ("column_sum_kernel", "adamw_kernel")]
compile_kernels(ahead, target, 2, launchers=False).wait()
first = sorted(compiled)
compiled.clear()

# What a step launches for those launches, as Triton itself does it at a launch.
like = lambda dtype, count: torch.zeros(count, dtype=dtype)
bf16, fp32 = torch.bfloat16, torch.float32
for streams in ((64, 128), (24, 128)):
    triton_kernels.column_sum_kernel.warmup(
        like(bf16, 64), like(bf16, 64), *streams, ROWS=64, COLUMNS=16, num_warps=1, grid=(1,))
moments = [like(fp32, 64) for _ in range(6)]
triton_kernels.adamw_kernel.warmup(
    moments[0], like(bf16, 64), like(bf16, 64), *moments, 6400, 0.5, 0.1, 0.9, 0.999, 1e-8, BLOCK=1024, grid=(1,))
build_driver_library()
at_launch = list(compiled)
compiled.clear()

# Another cache takes what this one has.
ours, other = Path(triton.knobs.cache.dir), Path(sys.argv[2])
import_kernels(ours, other)
triton.knobs.cache.dir = str(other)
compile_kernels(ahead, target, 2, launchers=False).wait()
print(json.dumps([first, at_launch, compiled]))
"""


def bert(**changes: Any) -> BertConfig:
    return BertConfig(**SIZES | {"num_hidden_layers": 3, "max_position_embeddings": 128} | changes)


def launched(launches: list[Any]) -> set[Any]:
    """Return launches without the numbers for which Triton does not compile again, and with others by alignment."""
    found = set()
    for launch in launches:
        numbers = ("number" if isinstance(value, int | float) else value for value in launch.arguments)
        found.add((launch.kernel, tuple(numbers), launch.constants))
    return found


@pytest.mark.parametrize("r_drop", [0.0, 1.0])
def test_what_a_step_launches_is_known_from_the_configuration_alone(r_drop: float) -> None:
    """The step that is trained with has three layers and sentences of some lengths; it is run with real tensors."""
    model = tiny_bert(**SIZES | {"num_hidden_layers": 3, "max_position_embeddings": 128})
    lengths = 8 * [6, 8, 11, 14, 17, 30, 47, 60, 70]  # of nine batches: each length is one step of the epoch
    data = TokenDataset([np.arange(length) % 20 for length in lengths], np.arange(len(lengths)) % 2, 0, "cpu")
    recorder = LaunchRecorder()
    config = toy_recipe(batch_size=8, r_drop=r_drop)
    CudaGraphStep(model, data, config, CaptureVariant(), recorder).prepare()
    settings = FinetuneSettings(batch_size=8, r_drop=r_drop)
    found = launched(kernel_launches(bert(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0), settings))
    assert launched(recorder.launches) == found
    assert {launch[2][0][1] for launch in found if launch[0] in ATTENTION} == {16, 32, 64}
    assert len({launch[0] for launch in found}) == 6


def test_sentences_as_long_as_the_positions_are_compiled_for() -> None:
    """128 tokens would be the next bucket; the model has no positions for them."""
    launches = kernel_launches(bert(max_position_embeddings=80), FinetuneSettings())
    assert 80 * 32 in {value for launch in launches for value in launch.arguments if isinstance(value, int)}


def test_longer_sentences_than_the_recipe_allows_are_not_compiled_for() -> None:
    lengths = {
        dict(launch.constants)["LENGTH"]
        for launch in kernel_launches(bert(), FinetuneSettings(max_length=20))
        if launch.kernel in ATTENTION
    }
    assert lengths == {16, 32}


def test_models_without_fused_attention_are_known_too() -> None:
    sizes = {"num_hidden_layers": 2}
    for config in (
        MPNetConfig(**SIZES | sizes),
        DistilBertConfig(vocab_size=20, dim=128, n_heads=2, hidden_dim=64, n_layers=2),
    ):
        names = {launch.kernel for launch in kernel_launches(config, FinetuneSettings(max_length=8))}
        assert {"adamw_kernel", "column_sum_kernel"} <= names
    assert config.num_hidden_layers == 2


def test_a_model_that_cannot_run_without_values_is_compiled_at_its_launches(monkeypatch: pytest.MonkeyPatch) -> None:
    def wait_for_device(*_: Any) -> None:
        torch.zeros((), device="meta").item()

    def from_config(*_: Any, **__: Any) -> Words:
        return Words(wait_for_device)

    monkeypatch.setattr(kernel_compiler.AutoModelForSequenceClassification, "from_config", from_config)
    assert kernel_launches(bert(), FinetuneSettings()) == []


def test_triton_finds_at_a_launch_what_was_compiled_ahead(tmp_path: Path) -> None:
    cache, other = tmp_path / "cache", tmp_path / "home" / "triton"
    environment = os.environ | {"TRITON_CACHE_DIR": str(cache)}
    environment.pop("TRITON_INTERPRET", None)
    command = [sys.executable, "-c", COMPILE, json.dumps(SIZES), str(other)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    ahead, at_launch, from_other = json.loads(done.stdout)
    assert {name for name, _ in ahead} == {"adamw_kernel", "column_sum_kernel"}
    assert not any(cached for _, cached in ahead)
    assert at_launch == [["column_sum_kernel", True], ["adamw_kernel", True]]
    assert len(list(cache.rglob("cuda_utils*.so"))) == 1  # compiled without a GPU's driver
    assert {path.relative_to(other) for path in other.rglob("*")} == {
        path.relative_to(cache) for path in cache.rglob("*")
    }
    assert len(from_other) == len(ahead)
    assert all(cached for _, cached in from_other)


def test_kernels_are_compiled_for_trainings_on_a_gpu_only(monkeypatch: pytest.MonkeyPatch) -> None:
    from toy import recipe

    assert compile_for_training(recipe("no folder")) is None


def test_a_failure_to_compile_ahead_is_no_failure_of_the_training(monkeypatch: pytest.MonkeyPatch) -> None:
    from toy import recipe

    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    chosen = recipe("no folder").model_copy(update={"device": "cuda", "precision": "bf16"})
    assert compile_for_training(chosen) is None
    assert finetune.compile_for_training is compile_for_training


def test_a_cache_that_cannot_be_read_or_written_is_left_alone(tmp_path: Path) -> None:
    import_kernels(tmp_path / "none", tmp_path / "cache")
    assert not (tmp_path / "cache").exists()
    (tmp_path / "source" / "KEY").mkdir(parents=True)
    (tmp_path / "cache").write_text("a file")
    import_kernels(tmp_path / "source", tmp_path / "cache")
    assert (tmp_path / "cache").read_text() == "a file"
