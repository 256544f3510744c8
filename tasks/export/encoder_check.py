"""Checks in seconds that an encoder can be fine-tuned and exported, before anything is trained on data.

Files, configuration and tokenizer are compared; then a few sentences go through the tokenizer, the model with its new
head and one training step, and the untrained model is exported as a trained one is, in fp32 alone. Everything is
computed on the CPU, and torch's random generator stays as it was.
"""

import logging
import math
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import TypedDict, cast

import numpy as np
import torch
from tokenizers import Tokenizer
from transformers import PreTrainedConfig, PreTrainedModel

from tasks.core.errors import (
    OUT_OF_MEMORY,
    UsageError,
    VerdictError,
    is_disk_full,
    is_out_of_memory,
    summarise_error,
)
from tasks.core.files import json_digest, read_checksummed, write_checksummed
from tasks.core.provenance import git_commit, library_versions
from tasks.data.sample_corpus import generate
from tasks.data.token_limit import count_positions, longest_input
from tasks.export.bundle_export import write_in_subprocess
from tasks.export.subprocess_call import ProcessEnded, start_forkserver
from tasks.export.torch_reference import (
    HalfReference,
    LogitsModule,
    ParityCase,
    TorchReference,
    load_logits,
    random_cases,
)
from tasks.inference.bundle import ModelInfo
from tasks.inference.tokenization import TokenIds, load_tokenizer, tokenise
from tasks.training.config_faults import refuse_decoder, refuse_sizes
from tasks.training.dataset import TokenDataset
from tasks.training.model import LABELS, find_pad_id, load_with_report, read_config
from tasks.training.pretrained import CHECKED_DIGEST, Encoder
from tasks.training.token_check import CHECKED_SENTENCES, check_saved
from tasks.training.train_step import EagerStep, StepConfig

REPORT_SCHEMA = 1
SENTENCES = ("Birds sing.", "The cat sat on the mat.", "Who did the child say that the dog saw yesterday?")
GRAPH_SHAPES = ((1, 1), (3, 17))  # (B, S) of random tokens; a third one is as long as sentences may be
CHECK_TIMEOUT_S = 900.0
# What torch's exporters need many minutes for, and then write a graph that reads inputs of one length only.
NOT_EXPORTABLE = {"longformer": "divides a sentence into windows by its length"}
EXPECTED = "expected an encoder of transformers that can be trained and exported: --encoder DIR|HUB_ID"

log = logging.getLogger(__name__)


class EncoderReport(TypedDict):
    """What the check found.

    `weights` says what of the encoder came from its files, and how they store it. `positions` is the number of tokens
    that it has positions for, 0 where nothing limits it, `vocabulary` the rows of the embedding table, `exporter` what
    makes its graphs (writer, tracing or dynamo).
    """

    schema_version: int
    architecture: str
    parameters: int
    weights: str
    positions: int
    vocabulary: int
    pad_id: int
    exporter: str
    seconds: float


def check_encoder(
    encoder: Encoder, max_length: int, home: str, allow_new_weights: bool = False
) -> EncoderReport | None:
    """Check an encoder, or return what was found when an equal one passed with this version of the program.

    The packaged one is not checked: its digest is that of the files that the tests check.

    Args:
        encoder: to check.
        max_length: tokens of the longest input.
        home: folder of the stores; keeps what was found in `cache`.
        allow_new_weights: whether more than a tenth of the encoder may be randomly initialised.

    Raises:
        UsageError: if the encoder cannot be trained or exported.
    """
    if encoder["digest"] == CHECKED_DIGEST:
        return None
    commit = git_commit()
    key = json_digest([encoder["digest"], max_length, allow_new_weights, commit, library_versions()])
    kept = Path(home, "cache", "encoders", f"{key[:32]}.json")
    if kept.is_file():
        with suppress(VerdictError):  # a damaged file: checked again
            return cast(EncoderReport, read_checksummed(kept))
    report = examine_encoder(encoder, max_length, allow_new_weights)
    if not commit.endswith("-dirty"):
        write_checksummed(kept, dict(report))
    log.info("encoder %s: %s", encoder["name"], describe_report(report))
    return report


def describe_report(report: EncoderReport) -> str:
    """Describe in one line what was found."""
    made_by = (
        "this program's graph writer" if report["exporter"] == "writer" else f"torch's {report['exporter']} exporter"
    )
    positions = f"{report['positions']:,} usable positions" if report["positions"] else "positions without a limit"
    return (
        f"{report['architecture']}, {report['parameters']:,} parameters; {report['weights']}; {positions}, "
        f"vocabulary of {report['vocabulary']:,}, padding token {report['pad_id']}; {made_by} makes its graph; "
        f"checked in {report['seconds']:.1f} s"
    )


def examine_encoder(encoder: Encoder, max_length: int, allow_new_weights: bool = False) -> EncoderReport:
    """Check an encoder; see `check_encoder`."""
    started, folder, name = time.perf_counter(), encoder["folder"], encoder["name"]
    start_forkserver()  # imports meanwhile what the export needs
    max_length = longest_input(folder, max_length)
    config = read_config(folder)
    refuse_config(name, config)
    tokenizer = load_tokenizer(folder, max_length)
    refuse_vocabulary(name, config, tokenizer)
    check_saved(tokenizer, max_length, [row.sentence for row in generate("train", CHECKED_SENTENCES, seed=0)])
    with torch.random.fork_rng(devices=[]), tempfile.TemporaryDirectory(prefix="verdict-encoder-") as scratch:
        with refusing(name, "cannot be loaded"):
            model, weights = load_with_report(folder)
            weights.check(folder, allow_new_weights)
        parameters, pad_id = model.num_parameters(), find_pad_id(model.config)
        refuse_not_finite(name, model)
        model.save_pretrained(scratch)
        ids = tokenise(tokenizer, [*SENTENCES, "the " * max_length]).rows()
        refuse_no_tokens(name, ids)
        with refusing(name, "cannot be fine-tuned: the model failed on a sentence"):
            _logits(model, [ids[-1]], pad_id)
        unsuited = f"({config.model_type}) cannot be exported to ONNX"
        with refusing(name, unsuited):
            cases = random_cases(LogitsModule(model), _graph_shapes(len(ids[-1])))
        with refusing(name, "cannot be fine-tuned: a training step failed"):
            train_one_step(model, ids[:-1], pad_id)
        architecture = type(model).__name__
        del model
        with refusing(name, unsuited):
            exporter = export_untrained(scratch, pad_id, len(ids[-1]), cases)
    return EncoderReport(
        schema_version=REPORT_SCHEMA,
        architecture=architecture,
        parameters=parameters,
        weights=weights.describe(),
        positions=count_positions(config.to_dict()) or 0,
        vocabulary=config.vocab_size,
        pad_id=pad_id,
        exporter=exporter,
        seconds=round(time.perf_counter() - started, 2),
    )


@contextmanager
def refusing(name: str, what: str) -> Iterator[None]:
    """Turn whatever a library raises about an encoder into one line; a fault of this machine is not the encoder's."""
    try:
        yield
    except (UsageError, OSError, ModuleNotFoundError, ProcessEnded):
        raise
    except Exception as error:
        if is_out_of_memory(error) or OUT_OF_MEMORY in str(error) or is_disk_full(error):
            raise
        reason = str(error) if isinstance(error, VerdictError) else summarise_error(error, 300)
        raise UsageError(f"encoder {name!r} {what} ({reason}); {EXPECTED}") from error


def refuse_config(name: str, config: PreTrainedConfig) -> None:
    """Raise UsageError if a configuration describes what cannot be trained: quantised weights, or a decoder, too."""
    kind = config.model_type
    if quantised := getattr(config, "quantization_config", None):
        method = quantised.get("quant_method", "unknown") if isinstance(quantised, dict) else type(quantised).__name__
        raise UsageError(
            f"encoder {name!r} is quantised ({method}), and quantised weights cannot be fine-tuned; expected the "
            "checkpoint that it was made from, in fp32, fp16 or bf16: --encoder DIR|HUB_ID"
        )
    if config.is_encoder_decoder or kind in NOT_EXPORTABLE:
        reason = "is an encoder-decoder" if config.is_encoder_decoder else NOT_EXPORTABLE[kind]
        raise UsageError(f"encoder {name!r} ({kind}) {reason}, which cannot be exported to ONNX; {EXPECTED}")
    if type(config)().is_encoder_decoder:
        raise UsageError(
            f"encoder {name!r} ({kind}) is the encoder of an encoder-decoder alone, for which transformers has no "
            f"classifier; {EXPECTED}"
        )
    refuse_sizes(name, config)
    refuse_decoder(name, config)
    rows, pad_id = getattr(config, "vocab_size", None), getattr(config, "pad_token_id", None)
    if not isinstance(rows, int):
        raise UsageError(f"encoder {name!r} ({kind}) has no vocabulary (vocab_size); {EXPECTED}")
    if pad_id is not None and not 0 <= pad_id < rows:
        raise UsageError(
            f"encoder {name!r} has pad_token_id {pad_id} outside of its vocabulary of {rows:,}; expected 0 to "
            f"{rows - 1}: correct config.json"
        )


def refuse_vocabulary(name: str, config: PreTrainedConfig, tokenizer: Tokenizer) -> None:
    """Raise UsageError if a tokenizer can give a token that the embedding table has no row for."""
    rows = config.vocab_size
    token, highest = max(tokenizer.get_vocab(with_added_tokens=True).items(), key=lambda item: item[1])
    if highest >= rows:
        raise UsageError(
            f"tokenizer of encoder {name!r} gives token {highest} ({token!r}), its embedding table has {rows:,} rows; "
            f"expected tokens up to {rows - 1}: the tokenizer that belongs to the weights, or a table made larger by "
            "transformers' resize_token_embeddings"
        )


def refuse_no_tokens(name: str, ids: list[TokenIds]) -> None:
    """Raise UsageError if a sentence has no tokens."""
    if empty := [sentence for sentence, row in zip(SENTENCES, ids, strict=False) if len(row) == 0]:
        raise UsageError(f"tokenizer of encoder {name!r} finds no tokens in {empty[0]!r}; {EXPECTED}")


def refuse_not_finite(name: str, model: PreTrainedModel) -> None:
    """Raise UsageError if a weight is NaN or Inf."""
    for tensor_name, values in model.state_dict().items():
        # The sum is a hundred times as fast as looking at each value; it may overflow where no value does.
        if values.is_floating_point() and not values.sum().isfinite() and not values.isfinite().all():
            bad = int(values.isfinite().logical_not().sum())
            raise UsageError(
                f"encoder {name!r} has NaN or Inf in {bad:,} of {values.numel():,} values of {tensor_name}; expected "
                "finite weights: fetch or save the checkpoint again"
            )


def train_one_step(model: PreTrainedModel, ids: list[TokenIds], pad_id: int) -> None:
    """Train on the sentences once, in fp32.

    Raises:
        VerdictError: if the loss is NaN or Inf.
    """
    data = TokenDataset(ids, np.arange(len(ids)) % 2, pad_id, "cpu")
    config = StepConfig(1, len(ids), learning_rate=1e-5, warmup_ratio=0.0, weight_decay=0.01, max_grad_norm=1.0)
    loss = float(EagerStep(model, data, config).run([np.arange(len(ids))], 0, lambda: None).losses[0])
    if not math.isfinite(loss):
        raise VerdictError(f"its loss is {loss}")


@torch.inference_mode()
def _logits(model: PreTrainedModel, ids: list[TokenIds], pad_id: int) -> torch.Tensor:
    inputs, _ = TokenDataset(ids, np.zeros(len(ids), np.int64), pad_id, "cpu").batch(np.arange(len(ids)))
    return cast(torch.Tensor, model.eval()(**inputs).logits)


def _graph_shapes(longest: int) -> list[tuple[int, int]]:
    return [(rows, min(length, longest)) for rows, length in GRAPH_SHAPES] + [(1, longest)]


def export_untrained(folder: str, pad_id: int, longest: int, cases: list[ParityCase]) -> str:
    """Export a model as a trained one is, in fp32 alone, and compare the graph with torch.

    Args:
        folder: of the model; receives the graph.
        pad_id: of the padding token.
        longest: tokens of the longest input.
        cases: of random tokens, with the model's answers.

    Returns:
        What makes the graph: writer, tracing or dynamo.

    Raises:
        VerdictError: if nothing can make it, or it computes something else.
    """
    facts = ModelInfo(labels=LABELS, max_length=longest, encoder="", dataset="", git_commit="", pad_id=pad_id)
    reference = TorchReference(cases, [], HalfReference(partial(load_logits, folder), []), pad_id)
    return write_in_subprocess(CHECK_TIMEOUT_S, folder, folder, facts, reference)["exporter"]
