"""Turns a fine-tuned classifier into a bundle of ONNX graphs that are proved to compute the same.

The work is done in a process of its own, see `tasks.export.subprocess_call`: exporters and optimisers run native code
on whatever graph they meet, and a crash or a hang of theirs must not take the training with it.
"""

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

from tasks.core.errors import VerdictError
from tasks.core.files import atomic_directory, read_json, write_json
from tasks.export.subprocess_call import run_in_subprocess
from tasks.inference.bundle import TOKENIZER, VARIANTS, Origin, verify, write_manifest

if TYPE_CHECKING:
    from tasks.export.onnx_export import WrittenGraphs
    from tasks.export.parity import Parity

# Seconds. A large model with both exporters tried takes some ten minutes on two busy cores; what takes longer hangs.
EXPORT_TIMEOUT_S = 1_800.0

log = logging.getLogger(__name__)


class ExportResult(TypedDict):
    """An exported bundle without documents.

    `parity` is the largest difference of an fp32 logit from torch for each comparison, `variants` the comparisons of
    every variant in the bundle, `left_out` why the others are not in it; `fused` counts operators of the fast graphs.
    """

    bundle: str
    digest: str
    parity: dict[str, float]
    variants: "dict[str, Parity]"
    left_out: dict[str, str]
    exporter: str
    fused: dict[str, int]


def export_bundle(model_folder: str, folder: str, origin: Origin, rows: str | None = None) -> ExportResult:
    """Write the graphs, tokenizer.json and bundle.json to `folder`/bundle, whole or not at all.

    Args:
        model_folder: what `fine_tune` wrote.
        folder: receives bundle/ and, last, export.json.
        origin: written to bundle.json and to the graphs' metadata.
        rows: snapshot whose sentences torch and the graphs must judge alike; without it only fp32 is shipped.

    Raises:
        VerdictError: if the fp32 graph does not compute what torch computes, or the export crashes or hangs.
    """
    bundle = Path(folder) / "bundle"
    with atomic_directory(bundle) as scratch:
        graphs = run_in_subprocess(
            "the export to ONNX", EXPORT_TIMEOUT_S, _write_graphs, model_folder, str(scratch), origin, rows
        )
        (scratch / TOKENIZER).write_bytes((Path(model_folder) / TOKENIZER).read_bytes())
        manifest = write_manifest(scratch, graphs["facts"], metrics={})
    _log_summary(graphs)
    exported = ExportResult(
        bundle=str(bundle),
        digest=manifest["digest"],
        parity=graphs["parity"]["fp32"]["difference"],
        variants=graphs["parity"],
        left_out=graphs["left_out"],
        exporter=graphs["exporter"],
        fused=graphs["fused"],
    )
    write_json(Path(folder) / "export.json", exported)
    return exported


def load_export(folder: str) -> ExportResult | None:
    """Return the finished export that a folder records, or None; a damaged or older one is exported anew."""
    path = Path(folder) / "export.json"
    if not path.is_file():
        return None
    exported: ExportResult = read_json(path)
    if exported.keys() != ExportResult.__annotations__.keys():
        return None
    try:
        return exported if verify(Path(exported["bundle"]))["digest"] == exported["digest"] else None
    except VerdictError:
        return None


def _write_graphs(*arguments: Any) -> "WrittenGraphs":
    """Call `write_graphs` in the other process: its libraries cost this one seconds, and are of no use here."""
    from tasks.export.onnx_export import write_graphs

    return write_graphs(*arguments)


def _log_summary(graphs: "WrittenGraphs") -> None:
    """Log the exporter that was taken, how far each variant is from torch, and what is not shipped."""
    for remark in graphs["remarks"]:
        log.info("%s", remark)
    fused = ", ".join(f"{count} {name}" for name, count in graphs["fused"].items()) or "no operators"
    log.info("exported to ONNX by the %s exporter; fused: %s", graphs["exporter"], fused)
    for variant, parity in graphs["parity"].items():
        log.info(
            "%s differs from torch by %.1e at most and gives %.1f%% of %d sentences the same label (%s)",
            variant,
            max(parity["difference"].values()),
            100 * parity["equal"],
            parity["sentences"],
            parity["provider"],
        )
    for variant, reason in graphs["left_out"].items():
        log.warning("%s is not shipped: it %s", VARIANTS[variant], reason)
