"""Writes card.md, a model card with the Hugging Face Hub's metadata header."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.core.addresses import HUB_PREFIX
from tasks.core.policy import Policy
from tasks.core.settings_loader import SettingRow
from tasks.data.gate import GateReport
from tasks.evaluation.evidence import Evidence
from tasks.evaluation.judge import Verdict
from tasks.inference.bundle import CHAMPION_URI, MODEL_NAME, VARIANTS, ModelInfo
from tasks.reporting.licenses import encoder_license, is_cola
from tasks.reporting.tables import compare_figures, explain_rules, list_phenomena, list_slices
from tasks.reporting.templating import render
from tasks.reporting.wording import escape_markdown, show_interval, show_mcc
from tasks.training.pretrained import PACKAGED

if TYPE_CHECKING:
    from huggingface_hub import EvalResult

    from tasks.export.bundle_export import ExportResult

PACKAGED_MODEL = "sentence-transformers/all-MiniLM-L6-v2"  # the packaged encoder on the Hub
CARD_METRICS = {  # by the Hub's metric id: key in a measurement, displayed name
    "matthews_correlation": ("mcc", "MCC"),
    "accuracy": ("accuracy", "accuracy"),
    "f1": ("f1", "F1"),
    "roc_auc": ("auroc", "AUROC"),
    "brier_score": ("brier", "Brier score"),
}


def write_card(
    facts: ModelInfo,
    digest: str,
    evidence: Evidence,
    verdict: Verdict,
    gate: GateReport,
    settings: list[SettingRow],
    export: "ExportResult",
) -> str:
    """Return the card.

    Args:
        facts: of the bundle.
        digest: of the bundle.
        evidence: of candidate and champion.
        verdict: on the candidate.
        gate: the data gate's report.
        settings: of the run.
        export: variants in the bundle and variants left out.
    """
    values = {key: value for key, value, _ in settings}
    source, encoder = str(values.get("data.path", "")), str(values.get("finetune.encoder", ""))
    body = render(
        "card.md.j2",
        facts=facts,
        digest=digest,
        evidence=evidence,
        verdict=verdict,
        rules=explain_rules(verdict),
        figures=compare_figures(evidence),
        slices=list_slices(evidence, Policy.model_validate(verdict["policy"])),
        phenomena=list_phenomena(evidence),
        gate=gate,
        export=export,
        files=VARIANTS,
        champion_uri=CHAMPION_URI,
        recipe={key: value for key, value in values.items() if key.startswith("finetune.")},
        source=source,
        encoder_license=encoder_license(encoder),
        cola=is_cola(source.split(" + ")),
        md=escape_markdown,
        show_interval=show_interval,
        show_mcc=show_mcc,
    )
    return f"---\n{_header(facts, evidence, values)}\n---\n\n{body}"


def hub_datasets(address: str) -> list[str]:
    """Return the Hub data sets among addresses that are joined by " + "; the Hub links those that a card names."""
    names = [
        part.removeprefix(HUB_PREFIX).partition("@")[0] for part in address.split(" + ") if part.startswith(HUB_PREFIX)
    ]
    return list(dict.fromkeys("/".join(name.split("/")[:2]) for name in names))


def base_model(encoder: str, setting: Any) -> str | None:
    """Return the encoder's name on the Hub; None for a local folder."""
    if setting == PACKAGED:
        return PACKAGED_MODEL
    return encoder if str(setting).removeprefix(HUB_PREFIX) == encoder and not Path(encoder).exists() else None


def _header(facts: ModelInfo, evidence: Evidence, values: dict[str, Any]) -> str:
    from huggingface_hub import ModelCardData

    source = str(values.get("data.path", ""))
    datasets = hub_datasets(source)
    data = ModelCardData(
        language="en",
        license=encoder_license(str(values.get("finetune.encoder", ""))),
        library_name="onnx",
        pipeline_tag="text-classification",
        tags=["linguistic-acceptability", *(["cola"] if is_cola(source.split(" + ")) else []), "onnx", "onnxruntime"],
        datasets=datasets or None,
        metrics=list(CARD_METRICS),
        base_model=base_model(facts["encoder"], values.get("finetune.encoder")),
        model_name=MODEL_NAME,
        eval_results=_results(evidence, datasets),
    )
    return str(data.to_yaml())


def _results(evidence: Evidence, datasets: list[str]) -> list["EvalResult"]:
    from huggingface_hub import EvalResult

    measured = evidence["candidate"]
    figures = {**measured, "mcc": measured["interval"]["mcc"]}
    return [
        EvalResult(
            task_type="text-classification",
            task_name="Linguistic acceptability",
            dataset_type=datasets[0] if datasets else "sentence-acceptability",
            dataset_name=f"holdout of {measured['rows']} sentences",
            dataset_split="holdout",
            dataset_revision=evidence["holdout_digest"],
            metric_type=metric,
            metric_name=f"MCC, {show_interval(measured['interval'])}" if key == "mcc" else name,
            metric_value=round(float(figures[key]), 6),  # type: ignore[arg-type]
        )
        for metric, (key, name) in CARD_METRICS.items()
    ]
