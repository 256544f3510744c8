"""The model that is trained: an encoder of transformers with a classification head for two classes.

transformers gives what a checkpoint does not hold, or holds in another size, random values. How much of the encoder
that is, `LoadedWeights` says.
"""

import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from huggingface_hub import get_local_safetensors_metadata
from huggingface_hub.errors import NotASafetensorsRepoError, SafetensorsParsingError, StrictDataclassError
from huggingface_hub.utils import SafetensorsRepoMetadata
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForSequenceClassification, PreTrainedConfig, PreTrainedModel
from transformers.utils import logging as transformers_logging

from tasks.core.errors import STORAGE_ERRORS, UsageError, is_out_of_memory
from tasks.training.config_faults import describe_claims, explain

LABELS = ["unacceptable", "acceptable"]
MIN_SHARE = 0.9  # of the encoder's parameters that have to be the checkpoint's
LIKE_ANOTHER = 0.5  # of its tensors missing or of another size: the weights are another model's
NAMED_TENSORS = 3  # tensors that a message names
# Architectures by what is in the names of their weights alone; the first that fits.
FAMILY_NAMES = {
    ".q_lin.": "DistilBERT's",
    ".query_proj.": "DeBERTa's",
    "albert_layer_groups.": "ALBERT's",
    ".Wqkv.": "ModernBERT's",
    ".SelfAttention.": "T5's",
    ".c_attn.": "GPT-2's",
    ".attention.attn.q.": "MPNet's",
    ".rel_attn.": "XLNet's",
    ".attention.self.query.": "BERT's, or of one like it such as RoBERTa or ELECTRA",
    ".q_proj.": "BART's or a decoder's",
}
PRECISIONS = {"F32": "fp32", "F16": "fp16", "BF16": "bf16", "F64": "fp64"}  # by safetensors' name
# What transformers raises for folders that hold no usable model.
LOAD_ERRORS = (
    OSError, ValueError, KeyError, RuntimeError, AttributeError, TypeError,
    SafetensorError, SafetensorsParsingError, NotASafetensorsRepoError, StrictDataclassError,
)  # fmt: skip


@dataclass(frozen=True)
class LoadedWeights:
    """What of an encoder, without the head, came from its checkpoint; tensors by their names in the model."""

    total: int
    """Parameters of the encoder."""
    loaded: int
    """Parameters that are the checkpoint's."""
    missing: tuple[str, ...]
    """Tensors that the checkpoint does not hold."""
    resized: tuple[str, ...]
    """Tensors that it holds in another size, with both sizes."""
    unused: tuple[str, ...]
    """Tensors of the checkpoint that the model does not have: other heads, or further layers."""
    prefix: str
    """What was taken off the checkpoint's names."""
    stored: str
    """Precisions of the checkpoint's files."""
    tensors: int
    """Tensors of the encoder."""
    claims: str
    """What config.json says that the weights are."""
    looks: str
    """What the checkpoint's names look like."""

    @property
    def share(self) -> float:
        """Share of the parameters that are the checkpoint's, from 0 to 1."""
        return self.loaded / self.total if self.total else 1.0

    def describe(self) -> str:
        """Describe it in one line."""
        share = "all" if self.loaded == self.total else f"{math.floor(self.share * 1000) / 10:.1f}%"
        parts = [f"{share} of the encoder's {self.total:,} weights are the checkpoint's"]
        parts += [f"random, for lack of them: {_name_some(self.missing)}"] if self.missing else []
        parts += [f"random, for another size: {_name_some(self.resized)}"] if self.resized else []
        parts += [f"not used: {_name_some(self.unused)}"] if self.unused else []
        parts += [f"{self.prefix!r} taken off their names"] if self.prefix else []
        return f"{'; '.join(parts)}; stored as {self.stored}, trained as fp32"

    def check(self, folder: str, allow_new: bool) -> None:
        """Check that the encoder is the checkpoint's.

        Args:
            folder: of the encoder.
            allow_new: whether any share will do.

        Raises:
            UsageError: if less than `MIN_SHARE` is.
        """
        if self.share >= MIN_SHARE or allow_new:
            return
        another = len(self.missing) + len(self.resized) > LIKE_ANOTHER * self.tensors
        remedy = (
            f"a config.json that belongs to the weights, which look like {self.looks}"
            if another
            else "a config.json that belongs to the weights, or --set finetune.allow_new_weights=true"
        )
        raise UsageError(
            f"encoder {folder!r} cannot be fine-tuned ({self.describe()}); config.json says {self.claims}; expected at "
            f"least {MIN_SHARE:.0%}: {remedy}"
        )


def _name_some(names: Sequence[str]) -> str:
    """Return the first names and how many there are in all."""
    shown = ", ".join(names[:NAMED_TENSORS])
    return shown if len(names) <= NAMED_TENSORS else f"{shown}, ... ({len(names)} tensors)"


def load_classifier(folder: str, attention: str | None = None, *, allow_new_weights: bool = False) -> PreTrainedModel:
    """Load a two-class classifier in fp32; an encoder without a head gets a new, randomly initialised one.

    Args:
        folder: of a model saved by transformers.
        attention: transformers' name of an attention implementation; None for its choice.
        allow_new_weights: whether more than a tenth of the encoder may be randomly initialised.

    Raises:
        UsageError: if the folder holds no such model.
    """
    model, weights = load_with_report(folder, attention)
    weights.check(folder, allow_new_weights)
    return model


def load_with_report(folder: str, attention: str | None = None) -> tuple[PreTrainedModel, LoadedWeights]:
    """Load as `load_classifier` does, and say what came from the checkpoint; nothing of that is refused.

    Raises:
        UsageError: if the folder holds no model.
    """
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        checkpoint = get_local_safetensors_metadata(folder)
        _refuse_integers(folder, checkpoint)
        model, found = _load(folder, attention)
        weights = _report(model, found, "", checkpoint)
        if weights.loaded < weights.total and (prefix := find_prefix(checkpoint.weight_map, model)):
            bare, found = _load(folder, attention, key_mapping={f"^{re.escape(prefix)}": ""})
            if (report := _report(bare, found, prefix, checkpoint)).loaded > weights.loaded:
                model, weights = bare, report
    except LOAD_ERRORS as error:
        if is_out_of_memory(error) or getattr(error, "errno", None) in STORAGE_ERRORS:
            raise
        raise UsageError(f"encoder {folder!r} cannot be fine-tuned: {explain(folder, error)}") from error
    return model, weights


def find_prefix(names: Iterable[str], model: PreTrainedModel) -> str:
    """Return what most names of a checkpoint have before a name of the model; empty for nothing.

    It is what a wrapper put there: DataParallel `module.`, sentence-transformers `0.auto_model.`, a class of somebody's
    own `encoder.`.

    Raises:
        UsageError: if two prefixes have as many: these are two encoders.
    """
    own = set(model.state_dict())
    own |= {name.removeprefix(f"{model.base_model_prefix}.") for name in own}
    counts: Counter[str] = Counter()
    for name in names:
        starts = [0, *(match.end() for match in re.finditer(r"\.", name))]
        counts.update([name[:start] for start in starts if name[start:] in own][:1])
    ranked = counts.most_common(2)
    if len(ranked) == 2 and ranked[0][0] and ranked[1][0] and ranked[0][1] == ranked[1][1] > 1:
        raise UsageError(
            f"the checkpoint holds two encoders, under the names {ranked[0][0]!r} and {ranked[1][0]!r}; expected one: "
            "save the one that is meant by itself"
        )
    return ranked[0][0] if ranked else ""


def _refuse_integers(folder: str, checkpoint: SafetensorsRepoMetadata) -> None:
    """Raise UsageError if most of a checkpoint is stored as integers, which transformers would read as they are."""
    count = checkpoint.parameter_count
    whole = {kind: count[kind] for kind in count if "F" not in kind}  # F32, BF16, F8_E4M3
    if sum(whole.values()) > sum(count.values()) / 2:
        raise UsageError(
            f"weights of encoder {folder!r} are stored as {max(whole, key=whole.__getitem__)}, which is quantised, and "
            "quantised weights cannot be fine-tuned; expected the checkpoint that they were made from: --encoder "
            "DIR|HUB_ID"
        )


def _stored_precision(checkpoint: SafetensorsRepoMetadata) -> str:
    """Return the precision of a checkpoint's files; several, the most frequent first, with more than 1% each."""
    count = checkpoint.parameter_count
    kinds = sorted(count, key=lambda kind: -count[kind])  # position_ids are a few integers
    return " and ".join(PRECISIONS.get(kind, kind) for kind in kinds if count[kind] > sum(count.values()) / 100)


def _looks_like(checkpoint: SafetensorsRepoMetadata) -> str:
    """Describe a checkpoint by the names of its tensors."""
    names = sorted(checkpoint.weight_map)
    family = next(
        (family for mark, family in FAMILY_NAMES.items() if any(mark in name for name in names)), "no encoder"
    )
    return f"{family} ({len(names)} tensors such as {names[len(names) // 2]})" if names else "nothing (no tensors)"


def _load(folder: str, attention: str | None, **more: Any) -> tuple[PreTrainedModel, dict[str, Any]]:
    """Return a model and what transformers says about its weights."""
    loaded: tuple[PreTrainedModel, dict[str, Any]] = AutoModelForSequenceClassification.from_pretrained(
        folder,
        num_labels=len(LABELS),
        id2label=dict(enumerate(LABELS)),
        label2id={label: number for number, label in enumerate(LABELS)},
        ignore_mismatched_sizes=True,  # reported instead
        output_loading_info=True,
        attn_implementation=attention,
        dtype=torch.float32,
        local_files_only=True,
        use_safetensors=True,
        trust_remote_code=False,  # None would ask on the terminal
        output_attentions=False,  # a config.json may ask for more than the answer, which fails in other places
        output_hidden_states=False,
        return_dict=True,
        **more,
    )
    # Saved by its own names, as with save_original_format=False: names that were mapped here would become some that
    # fit nothing (findings/transformers_key_mapping.sh).
    vars(loaded[0])["_weight_conversions"] = []
    config = loaded[0].config
    if getattr(config, "pad_token_id", None) is None and getattr(config, "eos_token_id", None) is not None:
        config.pad_token_id = find_pad_id(config)  # decoders read their last token that is no padding
    return loaded


def _report(
    model: PreTrainedModel, found: dict[str, Any], prefix: str, checkpoint: SafetensorsRepoMetadata
) -> LoadedWeights:
    """Summarise what transformers says about the weights of the encoder."""
    inside = f"{model.base_model_prefix}." if model.base_model is not model else ""
    sizes = {name: tensor.numel() for name, tensor in model.named_parameters() if name.startswith(inside)}
    resized = {name: f"{name} {list(file)} instead of {list(own)}" for name, file, own in found["mismatched_keys"]}
    random = [name for name in sizes if name in found["missing_keys"] or name in resized]
    total = sum(sizes.values())
    return LoadedWeights(
        total=total,
        loaded=total - sum(sizes[name] for name in random),
        missing=tuple(name for name in random if name not in resized),
        resized=tuple(resized[name] for name in random if name in resized),
        unused=tuple(sorted(found["unexpected_keys"])),
        prefix=prefix,
        stored=_stored_precision(checkpoint),
        tensors=len(sizes),
        claims=describe_claims(model.config),
        looks=_looks_like(checkpoint),
    )


def pad_token_id(folder: str) -> int:
    """Return the padding token of a model's folder; see `find_pad_id`.

    Raises:
        UsageError: if the configuration is none of transformers'.
    """
    return find_pad_id(read_config(folder))


def find_pad_id(config: PreTrainedConfig) -> int:
    """Return the padding token that a configuration names; else its end token, which sentences do not have; else 0."""
    ends = getattr(config, "eos_token_id", None)  # some configurations have neither
    tokens = [getattr(config, "pad_token_id", None), *(ends if isinstance(ends, list) else [ends])]
    return next((token for token in tokens if token is not None), 0)


def read_config(folder: str) -> PreTrainedConfig:
    """Return a model's configuration.

    Raises:
        UsageError: if it is none of transformers'.
    """
    try:
        return AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except LOAD_ERRORS as error:
        raise UsageError(f"config.json of encoder {folder!r} cannot be used: {explain(folder, error)}") from error
