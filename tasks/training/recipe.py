"""The training recipe: every setting of `finetune`, with what depends on the machine resolved.

`TrainingRecipe` inherits its fields, with their units and bounds, from `FinetuneSettings`. A new setting is declared
there and is at once part of the recipe, of what worker processes receive, and of the fingerprint.
"""

from typing import Literal

from tasks.core.files import json_digest
from tasks.core.finetune_settings import FinetuneSettings
from tasks.data.token_limit import longest_input
from tasks.training.device import cpu_supports_bf16, resolve_device

# What does not change the weights that one seed's training computes. Everything else does, so that a setting that
# nobody listed here invalidates the checkpoints of an interrupted run: too many are retrained, never too few.
NOT_DECISIVE = frozenset({"encoder", "seeds", "restarts", "checkpoint_seconds", "allow_new_weights", "ray", "teacher"})


class TrainingRecipe(FinetuneSettings):
    """How to fine-tune, from settings to optimiser: plain frozen values that can be pickled to other processes.

    `max_length` is at most the encoder's positions. Three settings are narrowed and have no default: nothing behind the
    recipe sees "auto".
    """

    encoder: str
    """Folder of the pretrained encoder."""
    device: Literal["cuda", "cpu"]
    """Where training runs."""
    precision: Literal["fp32", "bf16"]
    """What forward and backward passes compute in; master weights are fp32."""

    def of_corruption_stage(self) -> "TrainingRecipe":
        """Return the recipe of that stage, in which every sentence passes once."""
        return self.model_copy(update={"r_drop": 0.0, "sift": 0.0})

    def fingerprint(self, *files: str) -> str:
        """Digest everything that decides the weights of one seed's training.

        Args:
            files: digests of the training data, of the encoder and of the teacher.
        """
        values = self.model_dump(mode="json", exclude=set(NOT_DECISIVE))
        if self.seeds > 1:  # each seed is trained in one process, however many there are
            values["processes"] = 1
        return json_digest([values, *files])


def resolve_recipe(settings: FinetuneSettings, encoder: str) -> TrainingRecipe:
    """Build the recipe of this machine from settings.

    Args:
        settings: the group `finetune`.
        encoder: folder of the encoder that `settings.encoder` names.

    Raises:
        VerdictError: if cuda is wanted and torch sees no GPU.
    """
    device = resolve_device(settings.device)
    resolved = {
        "encoder": encoder,
        "max_length": longest_input(encoder, settings.max_length),
        "device": device,
        "precision": resolve_precision(settings.precision, device),
    }
    return TrainingRecipe.model_validate(settings.model_dump() | resolved)


def resolve_precision(precision: str, device: str) -> str:
    """Turn auto, fp32 or bf16 into fp32 or bf16: auto is bf16 on a GPU and on a CPU with instructions for it."""
    if precision != "auto":
        return precision
    return "bf16" if device == "cuda" or cpu_supports_bf16() else "fp32"
