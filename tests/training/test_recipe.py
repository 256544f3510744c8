"""The recipe is the settings with nothing left to resolve, and the same in every process."""

import pickle
from typing import Any

import pytest
import torch

from tasks.core.errors import VerdictError
from tasks.core.finetune_settings import FinetuneSettings
from tasks.training import recipe
from tasks.training.recipe import NOT_DECISIVE, TrainingRecipe, resolve_precision, resolve_recipe


def test_a_recipe_has_the_settings_and_no_other_fields() -> None:
    assert set(TrainingRecipe.model_fields) == set(FinetuneSettings.model_fields)
    assert set(TrainingRecipe.model_fields) > NOT_DECISIVE
    settings = FinetuneSettings(epochs=7, r_drop=0.5, text_corruptions=3, device="cpu", precision="fp32")
    assert resolve_recipe(settings, "folder").model_dump() == settings.model_dump() | {"encoder": "folder"}


def test_a_recipe_that_is_not_resolved_cannot_be_built() -> None:
    with pytest.raises(ValueError, match="3 validation errors"):
        TrainingRecipe(epochs=3)  # type: ignore[call-arg]
    resolved: dict[str, Any] = {"encoder": "folder", "device": "cpu", "precision": "fp32"}
    for name in ("device", "precision"):
        with pytest.raises(ValueError, match="auto"):
            TrainingRecipe(**resolved | {name: "auto"})


def test_a_recipe_reaches_other_processes_as_it_is() -> None:
    made = resolve_recipe(FinetuneSettings(seed=3, device="cpu"), "folder")
    copy = pickle.loads(pickle.dumps(made))
    assert copy == made
    assert copy.fingerprint("data") == made.fingerprint("data")


@pytest.mark.parametrize(
    ("precision", "device", "supported", "expected"),
    [
        ("auto", "cuda", False, "bf16"),
        ("auto", "cpu", True, "bf16"),
        ("auto", "cpu", False, "fp32"),
        ("fp32", "cuda", True, "fp32"),
        ("bf16", "cpu", False, "bf16"),
    ],
)
def test_auto_precision_is_bf16_where_the_hardware_has_it(
    precision: str, device: str, supported: bool, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recipe, "cpu_supports_bf16", lambda: supported)
    assert resolve_precision(precision, device) == expected


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU: nothing to refuse")
def test_cuda_without_a_gpu_is_an_error() -> None:
    with pytest.raises(VerdictError, match="device cuda is wanted, but torch sees no CUDA GPU"):
        resolve_recipe(FinetuneSettings(device="cuda"), "folder")
