"""Turns a fine-tuned classifier into one ONNX file and proves that it computes the same.

The tracing exporter with eager attention is used because ONNX Runtime's optimiser recognises its graphs whole
(attention, embeddings, normalisation); graphs of the newer exporter it recognises in part only.
Shape letters: B sentences, S tokens.
"""

import json
import logging
import warnings
from pathlib import Path
from typing import TypedDict

import numpy as np
import onnx
import onnxruntime
import torch
from torch import nn
from transformers import PreTrainedModel

from tasks.bundle import MODEL, TOKENIZER, Facts, Origin, seal, verify
from tasks.classifier import load_classifier
from tasks.errors import VerdictError
from tasks.files import new_folder, read_json, write_json

OPSET = 17
PARITY_SHAPES = ((1, 1), (1, 5), (7, 64), (32, 17))  # (B, S)
PARITY_LIMIT = 1e-4  # largest difference of a logit

log = logging.getLogger(__name__)


class Export(TypedDict):
    """An exported bundle without documents, and its largest logit difference from torch for each shape."""

    bundle: str
    digest: str
    parity: dict[str, float]


class _Logits(nn.Module):
    """Gives the exporter positional inputs and a plain tensor as output."""

    def __init__(self, model: PreTrainedModel, names: list[str]) -> None:
        super().__init__()
        self.model, self.names = model, names

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        """Map inputs [B, S], in the order of `names`, to logits [B, 2]."""
        return self.model(**dict(zip(self.names, inputs, strict=True))).logits


def export_bundle(model_folder: str, folder: str, origin: Origin) -> Export:
    """Write the bundle model.onnx, tokenizer.json and bundle.json to `folder`/bundle, whole or not at all.

    Args:
        model_folder: what `fine_tune` wrote.
        folder: receives bundle/ and, last, export.json.
        origin: written to bundle.json and to the graph's metadata.

    Raises:
        VerdictError: if the exported graph does not compute what torch computes.
    """
    model = load_classifier(model_folder, attention="eager").eval()
    facts = Facts(**origin, pad_id=model.config.pad_token_id or 0)
    bundle = Path(folder) / "bundle"
    with new_folder(bundle) as scratch:
        names = input_names(model)
        logits = _Logits(model, names).eval()  # the exporter would set dropout back to this module's mode
        _export_graph(logits, names, scratch / MODEL, facts, model.config.vocab_size)
        parity = measure_parity(logits, names, scratch / MODEL, model.config.vocab_size)
        (scratch / TOKENIZER).write_bytes((Path(model_folder) / TOKENIZER).read_bytes())
        manifest = seal(scratch, facts, metrics={})
    log.info("exported to ONNX; largest difference from torch %.1e", max(parity.values()))
    exported = Export(bundle=str(bundle), digest=manifest["digest"], parity=parity)
    write_json(Path(folder) / "export.json", exported)
    return exported


def load_export(folder: str) -> Export | None:
    """Return the finished export that a folder records, or None; a damaged bundle is exported anew."""
    path = Path(folder) / "export.json"
    if not path.is_file():
        return None
    exported: Export = read_json(path)
    try:
        return exported if verify(Path(exported["bundle"]))["digest"] == exported["digest"] else None
    except VerdictError:
        return None


def input_names(model: PreTrainedModel) -> list[str]:
    """Return the graph's inputs: token ids, mask, and segment ids for models that know two segments."""
    segments = getattr(model.config, "type_vocab_size", 0) > 1
    return ["input_ids", "attention_mask"] + (["token_type_ids"] if segments else [])


def measure_parity(logits: nn.Module, names: list[str], graph: Path, vocabulary: int) -> dict[str, float]:
    """Compare torch and ONNX Runtime on random input of several shapes, padding included.

    Raises:
        VerdictError: if a logit differs by more than `PARITY_LIMIT`.
    """
    session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    parity = {}
    for rows, length in PARITY_SHAPES:
        inputs = _random_inputs(names, rows, length, vocabulary)
        with torch.inference_mode():
            expected = logits(*inputs.values()).numpy()
        (found,) = session.run(None, {name: tensor.numpy() for name, tensor in inputs.items()})
        # A NaN on one side only must fail too, so the comparison is written the way that NaN cannot pass.
        difference = float(np.abs(found - expected).max(initial=0.0))
        parity[f"{rows}x{length}"] = difference
        if not difference <= PARITY_LIMIT:
            raise VerdictError(
                f"ONNX graph differs from torch by {difference:.2e} at {rows}x{length} tokens, "
                f"expected at most {PARITY_LIMIT}; not shipped: {graph.name}"
            )
    return parity


def _random_inputs(names: list[str], rows: int, length: int, vocabulary: int) -> dict[str, torch.Tensor]:
    """Make token ids [B, S] whose last sentence is padded to half its length."""
    rng = np.random.default_rng(rows * 1_000 + length)
    ids = rng.integers(vocabulary // 2, vocabulary, (rows, length))  # low ids are special tokens
    mask = np.ones_like(ids)
    mask[-1, (length + 1) // 2 :] = 0
    arrays = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
    return {name: torch.from_numpy(arrays[name]) for name in names}


def _export_graph(logits: nn.Module, names: list[str], path: Path, facts: Facts, vocabulary: int) -> None:
    """Trace the model with both axes free and write the facts into the graph's metadata."""
    axes = {name: {0: "batch", 1: "sequence"} for name in names} | {"logits": {0: "batch"}}
    example = _random_inputs(names, 2, 8, vocabulary)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the tracer warns of every Python branch; parity is what shows a wrong one
        torch.onnx.export(
            logits,
            tuple(example.values()),
            path,
            input_names=names,
            output_names=["logits"],
            dynamic_axes=axes,
            opset_version=OPSET,
            dynamo=False,
        )
    graph = onnx.load(path)
    onnx.helper.set_model_props(
        graph, {key: value if isinstance(value, str) else json.dumps(value) for key, value in facts.items()}
    )
    onnx.save_model(graph, path, save_as_external_data=False)
