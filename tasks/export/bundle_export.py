"""Exports a fine-tuned classifier to a bundle: ONNX variants that were compared with torch, and the tokenizer.

The export runs in a subprocess (`tasks.export.subprocess_call`): exporters and graph optimisers run native code, and
if they crash or hang, the finished training is kept.
"""

import logging
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict, cast

from tasks.core.errors import VerdictError
from tasks.core.files import atomic_directory, read_json, write_json
from tasks.export.subprocess_call import run_in_subprocess
from tasks.inference.bundle import (
    TOKENIZER,
    VARIANTS,
    ModelInfo,
    Origin,
    read_manifest,
    variants_of,
    verify,
    write_manifest,
)
from tasks.inference.decision import DEFAULT_THRESHOLD
from tasks.inference.tokenization import copy_unlimited, load_tokenizer, open_tokenizer

if TYPE_CHECKING:
    from tasks.evaluation.serving_costs import Costs
    from tasks.evaluation.threshold_choice import ThresholdChoice
    from tasks.export.onnx_export import WrittenGraphs
    from tasks.export.shipping_rule import Attempt, Parity

EXPORT_TIMEOUT_S = 1_800.0  # a large model takes about ten minutes on two busy cores if both exporters are tried
SENTENCE_TIMEOUT_S = 1.0  # for each validation sentence, which torch and up to five graphs answer
COSTS_TIMEOUT_S = 300.0  # to load a variant and answer some sentences
EXPORT_RECORD, BUNDLE_FOLDER = "export.json", "bundle"  # in the job's folder
EXPORT_SCHEMA = 4  # version of export.json

log = logging.getLogger(__name__)


class ExportResult(TypedDict):
    """An exported bundle without documents; the content of export.json.

    `bundle` is the path of its folder, in export.json relative to that file. `parity` is the largest difference of an
    fp32 logit from torch for each comparison, `variants` the comparisons of every variant in the bundle, `left_out` why
    the others are missing, `attempts` every way of making a variant that was tried and what was measured of it,
    `exporter` what made the graphs (writer, tracing or dynamo), `fused` counts fused operators in the graph that has
    most of each. `threshold` is the decision threshold that was chosen, None where it is fixed, `costs` what each
    variant costs to serve, None without validation rows. `seconds` is what each part took; variants are made side by
    side.
    """

    schema_version: int
    bundle: str
    digest: str
    parity: dict[str, float]
    variants: "dict[str, Parity]"
    left_out: dict[str, str]
    attempts: "dict[str, list[Attempt]]"
    exporter: str
    fused: dict[str, int]
    threshold: "ThresholdChoice | None"
    costs: "Costs | None"
    seconds: dict[str, float]


def export_bundle(
    model_folder: str,
    folder: str,
    origin: Origin,
    rows: str | None = None,
    device: str = "auto",
    choose_threshold: bool = False,
) -> ExportResult:
    """Write the graphs, tokenizer.json and bundle.json to `folder`/bundle, atomically.

    Args:
        model_folder: output of `fine_tune`.
        folder: receives bundle/ and then export.json.
        origin: written to bundle.json and to the graphs' metadata.
        rows: snapshot on whose sentences each graph is compared with torch; without it only fp32 is shipped.
        device: auto, cuda or cpu: where the bundle's costs are measured and its threshold is chosen, with `rows`.
        choose_threshold: whether the decision threshold is chosen on `rows`; else it is 0.5.

    Raises:
        VerdictError: if the fp32 graph differs from torch, or the export crashes or takes too long.
    """
    from tasks.export.torch_reference import torch_reference  # torch

    started = time.perf_counter()
    bundle = Path(folder) / BUNDLE_FOLDER
    reference = torch_reference(model_folder, origin["max_length"], rows)
    facts = ModelInfo(**origin, pad_id=reference.pad_id)
    answered = time.perf_counter()
    with atomic_directory(bundle) as scratch:
        _write_tokenizer(model_folder, scratch / TOKENIZER, origin["max_length"], rows)
        graphs = write_in_subprocess(_time_limit(rows), model_folder, str(scratch), facts, reference)
        manifest = write_manifest(scratch, facts, metrics={}, known=graphs["digests"])
        threshold = _choose_threshold(scratch, rows, device) if rows and choose_threshold else None
        if threshold and threshold["threshold"] != DEFAULT_THRESHOLD:
            facts["decision_threshold"] = threshold["threshold"]
            manifest = write_manifest(scratch, facts, metrics={}, known=graphs["digests"])
        written = time.perf_counter()
        costs = _measure_costs(scratch, rows, device) if rows else None
    seconds = {
        "torch": round(answered - started, 3),
        **graphs["seconds"],
        "costs": round(time.perf_counter() - written, 3),
        "total": round(time.perf_counter() - started, 3),
    }
    _log_summary(graphs)
    exported = ExportResult(
        schema_version=EXPORT_SCHEMA,
        bundle=str(bundle),
        digest=manifest["digest"],
        parity=graphs["parity"]["fp32"]["difference"],
        variants=graphs["parity"],
        left_out=graphs["left_out"],
        attempts=graphs["attempts"],
        exporter=graphs["exporter"],
        fused=graphs["fused"],
        threshold=threshold,
        costs=costs,
        seconds=seconds,
    )
    write_json(Path(folder) / EXPORT_RECORD, {**exported, "bundle": BUNDLE_FOLDER})
    return exported


def _choose_threshold(bundle: Path, rows: str, device: str) -> "ThresholdChoice":
    from tasks.evaluation.threshold_choice import choose_on_validation

    chosen = choose_on_validation(str(bundle), rows, device)
    log.info(
        "decision threshold %.3f: MCC %.3f on %d validation sentences, with 0.5 it is %.3f",
        *(chosen["threshold"], chosen["mcc"], chosen["sentences"], chosen["default_mcc"]),
    )
    return chosen


def _measure_costs(bundle: Path, rows: str, device: str) -> "Costs":
    from tasks.data.snapshots import read_snapshot
    from tasks.evaluation.serving_costs import BATCH, Costs, measure_variant_costs
    from tasks.training.device import describe_hardware

    sentences = read_snapshot(rows)["sentence"].head(BATCH).tolist()
    variants = {
        variant: run_in_subprocess(
            f"measuring {VARIANTS[variant]}",
            COSTS_TIMEOUT_S,
            measure_variant_costs,
            str(bundle),
            variant,
            device,
            sentences,
        )
        for variant in variants_of(read_manifest(bundle))
    }
    return Costs(hardware=describe_hardware(), variants=variants)


def _write_tokenizer(model_folder: str, path: Path, max_length: int, rows: str | None) -> None:
    """Write a bundle's tokenizer.json, without padding and truncation, and check what serving reads of it.

    Raises:
        UsageError: if sentences of `rows` have other tokens there.
    """
    from tasks.training.token_check import check_serving, sample_sentences

    tokenizer = load_tokenizer(model_folder, max_length)
    copy_unlimited(tokenizer).save(str(path))
    if rows:
        check_serving(tokenizer, open_tokenizer(path, max_length), sample_sentences(rows))


def _time_limit(rows: str | None) -> float:
    """Return the seconds that an export may take, which grow with the sentences to compare on."""
    from tasks.data.snapshots import count_rows

    return EXPORT_TIMEOUT_S + (SENTENCE_TIMEOUT_S * count_rows(rows) if rows else 0.0)


def load_export(folder: str) -> ExportResult | None:
    """Return the finished export of a job's folder; None if there is none, or it is damaged or of another version."""
    path = Path(folder) / EXPORT_RECORD
    if not path.is_file():
        return None
    try:
        exported = _read_record(path)
        if verify(Path(exported["bundle"]))["digest"] != exported["digest"]:
            raise VerdictError(f"{path} records another bundle than {exported['bundle']}")
    except VerdictError as error:
        log.warning("%s; the model is exported again", str(error).partition(";")[0])
        return None
    return exported


def _read_record(path: Path) -> ExportResult:
    document = read_json(path)
    version = document.get("schema_version") if isinstance(document, dict) else None
    if version != EXPORT_SCHEMA or document.keys() != ExportResult.__required_keys__:
        raise VerdictError(f"{path} has schema version {version}, this program reads {EXPORT_SCHEMA}")
    return cast(ExportResult, {**document, "bundle": str(path.parent / document["bundle"])})


def write_in_subprocess(seconds: float, *arguments: Any) -> "WrittenGraphs":
    """Call `write_graphs` in a subprocess with a time limit; importing its libraries here would take seconds.

    Raises:
        VerdictError: if the fp32 graph differs from torch, or the export fails, crashes or takes too long.
    """
    return run_in_subprocess("the export to ONNX", seconds, _write_graphs, *arguments)


def _write_graphs(*arguments: Any) -> "WrittenGraphs":
    from tasks.export.onnx_export import write_graphs

    find_onnxruntime_tools()
    return write_graphs(*arguments)


def find_onnxruntime_tools() -> None:
    """Let modules of onnxruntime.transformers and onnxruntime.quantization be imported in a forked process.

    They import each other by bare names, for which the package appends its folder to sys.path when it is imported.
    multiprocessing gives a forked process the sys.path of its parent instead, so later imports fail.
    """
    import onnxruntime.transformers

    sys.path += [folder for folder in onnxruntime.transformers.__path__ if folder not in sys.path]


def _log_summary(graphs: "WrittenGraphs") -> None:
    """Log which variants are shipped and which are not; for --verbose also how they were made, and how they differ."""
    for remark in graphs["remarks"]:
        log.debug("%s", remark)
    fused = ", ".join(f"{count} {name}" for name, count in graphs["fused"].items()) or "no operators"
    log.debug("exported to ONNX (%s); fused: %s", graphs["exporter"], fused)
    for variant, parity in graphs["parity"].items():
        log.debug("%s %s", variant, _describe_parity(parity))
    compared = {variant: parity for variant, parity in graphs["parity"].items() if parity["sentences"]}
    most = max(compared, key=lambda variant: compared[variant]["changed"], default=None)
    seen = f"; {_count_changed(most, compared[most])}" if most else ""
    log.info("exported to ONNX: %s%s", ", ".join(graphs["parity"]), seen)
    for variant, reason in graphs["left_out"].items():
        log.warning("%s is not shipped: it %s", VARIANTS[variant], reason)


def _count_changed(variant: str, parity: "Parity") -> str:
    if not parity["changed"]:
        return f"all of them label {parity['sentences']} validation sentences as torch does"
    return f"{variant} differs most from torch, in {parity['changed']} of {parity['sentences']} validation labels"


def _describe_parity(parity: "Parity") -> str:
    """Describe in one line what was measured of a graph against torch."""
    line = f"differs from torch by {max(parity['difference'].values()):.1e} at most ({parity['provider']})"
    if parity["sentences"]:
        line += (
            f"; it changes {parity['changed']} of {parity['sentences']} labels, MCC {parity['mcc']:.4f} instead of "
            f"{parity['torch_mcc']:.4f}"
        )
    half = parity["half"]
    if half and half["sentences"] and half["difference"] is not None:
        line += f"; torch's {half['precision']} on {half['device']} differs by {half['difference']:.1e}"
    return line
