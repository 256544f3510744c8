"""Writes the documents of a bundle: report.html, one file without external resources, and the model card card.md.

The bundle is registered with its documents, so its own report cannot name the version. The page that a run leaves is
the same with the version, links to MLflow and Prefect, and all errors as CSV beside it.
"""

import base64
import dataclasses
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, cast

from markupsafe import Markup

from tasks.core.files import write_json, write_text
from tasks.core.policy import Policy
from tasks.core.printable import counted
from tasks.core.settings_loader import SettingRow
from tasks.core.signing import describe_key
from tasks.data.expectations import show_allowed, show_observed
from tasks.data.gate import GateReport
from tasks.data.row_changes import RowChanges
from tasks.evaluation.evidence import Evidence
from tasks.evaluation.judge import Verdict
from tasks.evaluation.measurement import Measurement
from tasks.evaluation.run_diff import CODE_TAG, DATA_TAG, RunRecord, SettingChange, diff_runs
from tasks.evaluation.thresholds import curves_of
from tasks.inference.bundle import (
    CARD_FILE,
    MODEL_NAME,
    PROFILE,
    REPORT_FILE,
    Manifest,
    ModelInfo,
    read_manifest,
    sign_bundle,
    verify,
    write_manifest,
)
from tasks.inference.decision import threshold_of
from tasks.reporting.error_table import ERRORS_FILE, MAX_ERRORS_SHOWN, WrongLabel, write_errors
from tasks.reporting.figure_style import inline_svg
from tasks.reporting.gate_page import explain
from tasks.reporting.model_card import write_card
from tasks.reporting.past_champions import PastChampion
from tasks.reporting.tables import (
    compare_figures,
    explain_rules,
    list_classes,
    list_facts,
    list_phenomena,
    list_slices,
    measured_champion,
)
from tasks.reporting.templating import render
from tasks.reporting.wording import NEXT_STEPS, capital, describe_threshold, show_interval, show_mcc, show_time
from tasks.training.finetune import TrainingResult

if TYPE_CHECKING:
    from tasks.export.bundle_export import ExportResult

CANDIDATE_FIGURES = ("rows", "provider", "interval", "accuracy", "confusion")  # of a measurement, for bundle.json
MAX_OPEN_SENTENCES = 15  # sentences with different predictions that are visible without unfolding
SECTIONS = [
    ("next", "Next steps"),
    ("figures", "Figures"),
    ("slices", "Slices"),
    ("calibration", "Calibration"),
    ("minimal_pairs", "Minimal pairs"),
    ("errors", "Errors"),
    ("variants", "Variants"),
    ("training", "Training"),
    ("champions", "Champions over time"),
    ("data", "Data"),
    ("changed_data", "Changed data"),
    ("settings", "Settings"),
    ("origin", "Origin"),
]


@dataclasses.dataclass(frozen=True)
class Registration:
    """What is known of a candidate once it is registered."""

    version: str
    links: dict[str, str]
    """Addresses by the text of the link."""


class ReportInputs(NamedTuple):
    """The content of one candidate's documents.

    `errors` are those on the holdout, `champions` the versions that were champion, oldest first. `row_changes` is what
    differs from the champion's data, by role (None if unknown, also that of a role), `previous_run` the champion's
    MLflow run (None if unknown), `seconds` the time of each step so far, `pictures` are PNG paths by name, each with an
    SVG beside it.
    """

    training: TrainingResult
    evidence: Evidence
    verdict: Verdict
    gate: GateReport
    export: "ExportResult"
    settings: list[SettingRow]
    errors: Sequence[WrongLabel]
    champions: Sequence[PastChampion] = ()
    row_changes: dict[str, RowChanges | None] | None = None
    previous_run: RunRecord | None = None
    seconds: dict[str, float] = {}
    pictures: dict[str, str] = {}


def write_documents(bundle: str, inputs: ReportInputs) -> Manifest:
    """Add report, card, metrics and the profile of the training rows to a bundle; write its manifest again and sign it.

    The bundle's digest does not change: it covers only files that decide predictions.

    Args:
        bundle: folder of a bundle with a manifest.
        inputs: content of the documents.

    Raises:
        VerdictError: if the bundle is damaged.
    """
    folder, evidence = Path(bundle), inputs.evidence
    manifest = verify(folder)
    facts = cast(ModelInfo, {key: value for key, value in manifest.items() if key in ModelInfo.__annotations__})
    write_text(folder / REPORT_FILE, render_report(inputs, facts, manifest["digest"], folder.parent.name))
    write_json(folder / PROFILE, inputs.gate["profile"])
    write_text(
        folder / CARD_FILE,
        write_card(facts, manifest["digest"], evidence, inputs.verdict, inputs.gate, inputs.settings, inputs.export),
    )
    metrics = {
        variant: {key: dict(measured)[key] for key in CANDIDATE_FIGURES}
        | {"holdout": evidence["holdout_digest"], "serves": variant == evidence["candidate"]["variant"]}
        for variant, measured in evidence["variants"].items()
    }
    manifest = write_manifest(folder, facts, metrics)
    sign_bundle(folder)
    return manifest


def write_run_report(folder: str, bundle: str, inputs: ReportInputs, registration: Registration) -> list[str]:
    """Write the report of a registered version and its errors as CSV to the folder of its job; return both paths.

    Args:
        folder: of the job.
        bundle: folder of the bundle.
        inputs: content of the report.
        registration: version and links.
    """
    target = Path(folder)
    manifest = read_manifest(Path(bundle))
    html = render_report(inputs, manifest, manifest["digest"], target.name, registration)
    write_text(target / REPORT_FILE, html)
    return [str(target / REPORT_FILE), str(write_errors(inputs.errors, target))]


def render_report(
    inputs: ReportInputs, facts: ModelInfo, digest: str, job: str, registration: Registration | None = None
) -> str:
    """Return the report as HTML.

    Args:
        inputs: content of the report.
        facts: of the bundle.
        digest: of the bundle.
        job: name of the job's folder.
        registration: None before the candidate is registered.
    """
    evidence, verdict = inputs.evidence, inputs.verdict
    candidate, choice = evidence["candidate"], evidence.get("threshold_choice")
    threshold_note = describe_threshold(curves_of(evidence)[0], candidate["auroc"], choice)
    alt = describe_pictures(evidence, inputs.training, threshold_note, inputs.champions)
    return render(
        "report.html.j2",
        evidence=evidence,
        verdict=verdict,
        training=inputs.training,
        gate=inputs.gate,
        export=inputs.export,
        facts=facts,
        job_folder=f"${{VERDICT_HOME:-.verdict}}/runs/{job}",  # a shell's words: the report may be read elsewhere
        name=f"{MODEL_NAME} {registration.version}" if registration else MODEL_NAME,
        registration=registration,
        why=_why(verdict),
        data_name=next((str(row.value) for row in inputs.settings if row.key == "data.path"), "without a name"),
        script_hash=hash_script(render("report/filter.js.j2")),
        champions=inputs.champions,
        row_changes=inputs.row_changes,
        errors=inputs.errors,
        shown_errors=inputs.errors[:MAX_ERRORS_SHOWN],
        errors_file=ERRORS_FILE,
        lead=_lead(evidence, digest),
        follows=NEXT_STEPS[verdict["decision"]],
        sections=SECTIONS,
        first=MAX_OPEN_SENTENCES,
        rules=explain_rules(verdict),
        figures=compare_figures(evidence),
        classes=[(name, list_classes(side, facts["labels"])) for name, side in _sides(evidence)],
        threshold=threshold_of(candidate),
        threshold_note=threshold_note,
        facts_of_both=list_facts(evidence["comparison"], verdict) if evidence["comparison"] else [],
        slices=list_slices(evidence, Policy.model_validate(verdict["policy"])),
        phenomena=list_phenomena(evidence),
        results=[(each, show_allowed(each), show_observed(each)) for each in inputs.gate["results"]],
        gate_says=explain(inputs.gate),
        settings=inputs.settings,
        changes=changes_of(inputs, facts["dataset"]),
        seconds=inputs.seconds,
        origin=_origin(facts, digest, verdict),
        pictures={name: _inline_figure(path, alt[name]) for name, path in inputs.pictures.items()},
        capital=capital,
        show_interval=show_interval,
        show_mcc=show_mcc,
        show_time=show_time,
    )


def changes_of(inputs: ReportInputs, dataset: str) -> list[SettingChange] | None:
    """Return what differs from the champion's run; None if that is unknown.

    Args:
        inputs: of the candidate.
        dataset: digest of its data.
    """
    if inputs.previous_run is None:
        return None
    ran_with = {DATA_TAG: dataset, CODE_TAG: inputs.evidence["git_commit"]} | inputs.evidence["versions"]
    return diff_runs(inputs.previous_run, inputs.settings, ran_with)


def describe_pictures(
    evidence: Evidence, training: TrainingResult, threshold_note: str, champions: Sequence[PastChampion] = ()
) -> dict[str, str]:
    """Return the alternative text of each figure; `threshold_note` says what the decision threshold costs."""
    ours, theirs, comparison = evidence["candidate"], measured_champion(evidence), evidence["comparison"]
    sides = {"candidate": ours} | ({"champion": theirs} if theirs else {})
    counts = [
        f"{name}: {each['tn']} unacceptable and {each['tp']} acceptable ones labelled correctly, {each['fp']} "
        f"unacceptable ones labelled acceptable, {each['fn']} acceptable ones labelled unacceptable"
        for name, each in ((name, side["confusion"]) for name, side in sides.items())
    ]
    intervals = ", ".join(f"{name} {show_interval(side['interval'])}" for name, side in sides.items())
    errors = ", ".join(f"{name} {side['ece']:.3f}" for name, side in sides.items())
    batches = ours["mcc_per_batch"]
    texts = {
        "ranking": "ROC curve and precision over recall; the mark is the decision threshold.",
        "thresholds": f"MCC by decision threshold; {threshold_note}",
        "intervals": f"MCC with 95% CI: {intervals}.",
        "calibration": f"Reliability diagram. Expected calibration error: {errors}.",
        "confusion": f"Confusion. {'; '.join(counts)}.",
        "mcc_per_batch": f"MCC of {len(batches)} batches, from {min(batches):.2f} to {max(batches):.2f}.",
        "loss_per_step": f"Training loss of {len(training['step_losses'])} steps.",
        "epochs": f"Validation MCC of {len(training['epochs'])} epochs; epoch {training['best_epoch']} is the best.",
    }
    if champions:
        named = counted(len(champions), "champion")
        texts["champions"] = f"MCC with 95% CI of {named} over time, and of the candidate."
    if comparison:
        low, high = comparison["low"], comparison["high"]
        difference = f"{comparison['difference']:+.3f} (95% CI {low:+.3f} to {high:+.3f})"
        texts["difference"] = f"MCC of the candidate minus that of the champion: {difference}."
    return texts


def _inline_figure(png: str, description: str) -> Markup:
    """Return an SVG that templates do not escape: it is our own figure, with an escaped description."""
    return Markup(inline_svg(Path(png).with_suffix(".svg"), description))


def hash_script(script: str) -> str:
    """Return what a Content-Security-Policy calls an inline script, so that the page runs no other."""
    return f"sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}"


def _why(verdict: Verdict) -> str:
    """Return the first reason as a sentence, and how many more rules apply."""
    more = len(verdict["rules"]) - 1
    return capital(verdict["reasons"][0]) + (f"; {counted(more, 'more reason')} below." if more > 0 else ".")


def _sides(evidence: Evidence) -> list[tuple[str, Measurement]]:
    champion, measured = evidence["champion"], measured_champion(evidence)
    return [("candidate", evidence["candidate"])] + (
        [(f"champion {champion['version']}", measured)] if champion and measured else []
    )


def _lead(evidence: Evidence, digest: str) -> str:
    champion, rows = evidence["champion"], f"{evidence['candidate']['rows']:,}"
    if champion and champion["measurement"]:
        return f"Candidate {digest[:12]} and champion {champion['version']} on the same {rows} sentences."
    if champion:
        return (
            f"Candidate {digest[:12]} on {rows} sentences; champion {champion['version']} could not be measured: "
            f"{champion['fault']}."
        )
    absent = "the champion was lost, none is left" if evidence["champion_state"] == "lost" else "there is no champion"
    return f"Candidate {digest[:12]} on {rows} sentences; {absent} to compare with."


def _origin(facts: ModelInfo, digest: str, verdict: Verdict) -> list[tuple[str, str]]:
    return [
        ("bundle", digest),
        ("champion's bundle", verdict["champion_digest"] or "none"),
        ("data set", facts["dataset"]),
        ("training rows", verdict["training_digest"]),
        ("holdout", verdict["holdout_digest"]),
        ("encoder", facts["encoder"]),
        ("code", verdict["git_commit"]),
        ("signature", describe_key()),
        ("measured on", f"{verdict['variant']}, {verdict['provider']}"),
        ("policy", f"{verdict['policy']['version']}, {verdict['policy_digest']}"),
        ("judged", f"{verdict['time'] or 'not signed'} by {verdict['actor'] or 'nobody'}"),
    ]
