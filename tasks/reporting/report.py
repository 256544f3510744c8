"""The documents of a bundle: report.html, one file that opens offline, and card.md, the model card."""

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, cast

from tasks.core.files import write_json, write_text
from tasks.core.policy import Policy
from tasks.core.settings_loader import SettingRow
from tasks.data.expectations import show_allowed, show_observed
from tasks.data.gate import GateReport
from tasks.evaluation.evidence import Evidence
from tasks.evaluation.judge import Verdict
from tasks.evaluation.run_diff import CODE_TAG, DATA_TAG, RunRecord, SettingChange, diff_runs
from tasks.inference.bundle import PROFILE, Manifest, ModelInfo, verify, write_manifest
from tasks.reporting.figure_style import inline_svg
from tasks.reporting.gate_page import explain
from tasks.reporting.model_card import write_card
from tasks.reporting.tables import (
    compare_figures,
    explain_rules,
    list_facts,
    list_phenomena,
    list_slices,
    measured_champion,
)
from tasks.reporting.templating import render
from tasks.reporting.wording import NEXT_STEPS, capital, show_interval
from tasks.training.finetune import TrainingResult

if TYPE_CHECKING:
    from tasks.export.bundle_export import ExportResult

CANDIDATE_FIGURES = ("rows", "provider", "interval", "accuracy", "confusion")  # of a measurement, for bundle.json
LEAD_PICTURE = 15  # sentences on which both differ that the report shows unfolded
PICTURE_SECTIONS = [
    ("next", "What follows"),
    ("figures", "Figures"),
    ("slices", "Slices"),
    ("calibration", "Calibration"),
    ("minimal_pairs", "Behaviour"),
    ("sentences", "Sentences"),
    ("variants", "Variants"),
    ("training", "Training"),
    ("data", "Data"),
    ("settings", "Settings"),
    ("origin", "Origin"),
]


class ReportInputs(NamedTuple):
    """Everything that the documents of one candidate tell.

    `settings` are (key, value, origin) rows, `past` is what the champion's run recorded (None where that is unknown),
    `seconds` how long each step took so far, `pictures` PNG paths by name, each with an SVG beside it.
    """

    training: TrainingResult
    evidence: Evidence
    verdict: Verdict
    gate: GateReport
    export: "ExportResult"
    settings: list[SettingRow]
    previous_run: RunRecord | None = None
    seconds: dict[str, float] = {}
    pictures: dict[str, str] = {}


def write_documents(bundle: str, told: ReportInputs) -> Manifest:
    """Add report, card, metrics and the profile of the training rows to a bundle and seal it again.

    The bundle's digest stays: documents decide no answers.

    Args:
        bundle: folder of a sealed bundle.
        told: what they tell.

    Raises:
        VerdictError: if the bundle is damaged.
    """
    folder = Path(bundle)
    manifest = verify(folder)
    facts = cast(ModelInfo, {key: manifest[key] for key in ModelInfo.__annotations__})  # type: ignore[literal-required]
    write_text(folder / "report.html", render_report(told, facts, manifest["digest"], folder.parent.name))
    write_json(folder / PROFILE, told.gate["profile"])
    write_text(
        folder / "card.md",
        write_card(facts, manifest["digest"], told.evidence, told.verdict, told.gate, told.settings, told.export),
    )
    evidence = told.evidence
    metrics = {
        variant: {key: dict(measured)[key] for key in CANDIDATE_FIGURES}
        | {"holdout": evidence["holdout_digest"], "serves": variant == evidence["candidate"]["variant"]}
        for variant, measured in evidence["variants"].items()
    }
    return write_manifest(folder, facts, metrics)


def render_report(told: ReportInputs, facts: ModelInfo, digest: str, job: str) -> str:
    """Return the report as HTML.

    Args:
        told: what it tells.
        facts: what the bundle says of itself.
        digest: of the bundle.
        job: name of the run's folder.
    """
    evidence, verdict, comparison = told.evidence, told.verdict, told.evidence["comparison"]
    alt = describe_pictures(evidence, told.training)
    return render(
        "report.html.j2",
        evidence=evidence,
        verdict=verdict,
        training=told.training,
        gate=told.gate,
        export=told.export,
        facts=facts,
        job=job,
        lead=_lead(evidence, digest),
        follows=NEXT_STEPS[verdict["decision"]],
        sections=PICTURE_SECTIONS,
        first=LEAD_PICTURE,
        rules=explain_rules(verdict),
        figures=compare_figures(evidence),
        facts_of_both=list_facts(comparison, verdict) if comparison else [],
        slices=list_slices(evidence, Policy.model_validate(verdict["policy"])),
        phenomena=list_phenomena(evidence),
        results=[(each, show_allowed(each), show_observed(each)) for each in told.gate["results"]],
        gate_says=explain(told.gate),
        settings=told.settings,
        changes=changes_of(told, facts["dataset"]),
        seconds=told.seconds,
        origin=_origin(facts, digest, verdict),
        pictures={name: _Markup(Path(path), alt[name]) for name, path in told.pictures.items()},
        capital=capital,
        show_interval=show_interval,
    )


def changes_of(told: ReportInputs, dataset: str) -> list[SettingChange] | None:
    """Return what changed since the champion; None where its run is not known.

    Args:
        told: of the candidate.
        dataset: digest of its data.
    """
    if told.previous_run is None:
        return None
    ran_with = {DATA_TAG: dataset, CODE_TAG: told.evidence["git_commit"]} | told.evidence["versions"]
    return diff_runs(told.previous_run, told.settings, ran_with)


def describe_pictures(evidence: Evidence, training: TrainingResult) -> dict[str, str]:
    """Say what each picture shows, for those who do not see it."""
    ours, theirs, comparison = evidence["candidate"], measured_champion(evidence), evidence["comparison"]
    sides = {"candidate": ours} | ({"champion": theirs} if theirs else {})
    counts = [
        f"{name}: {each['tn']} unacceptable and {each['tp']} acceptable ones labelled rightly, {each['fp']} "
        f"unacceptable ones called acceptable, {each['fn']} acceptable ones called unacceptable"
        for name, each in ((name, side["confusion"]) for name, side in sides.items())
    ]
    intervals = ", ".join(f"{name} {show_interval(side['interval'])}" for name, side in sides.items())
    errors = ", ".join(f"{name} {side['ece']:.3f}" for name, side in sides.items())
    batches = ours["mcc_per_batch"]
    told = {
        "intervals": f"MCC with 95% intervals: {intervals}.",
        "calibration": f"Reliability diagram. Expected calibration error: {errors}.",
        "confusion": f"Confusion. {'; '.join(counts)}.",
        "mcc_per_batch": f"MCC of {len(batches)} batches, from {min(batches):.2f} to {max(batches):.2f}.",
        "loss_per_step": f"Training loss of {len(training['step_losses'])} steps.",
        "epochs": f"Validation MCC of {len(training['epochs'])} epochs; epoch {training['best_epoch']} did best.",
    }
    if comparison:
        low, high = comparison["low"], comparison["high"]
        difference = f"{comparison['difference']:+.3f} (95% {low:+.3f} to {high:+.3f})"
        told["difference"] = f"MCC of the candidate less that of the champion: {difference}."
    return told


class _Markup(str):
    """An SVG, which the template takes as it is: it comes from our own charts, and its description is escaped."""

    def __new__(cls, png: Path, description: str) -> "_Markup":
        return super().__new__(cls, inline_svg(png.with_suffix(".svg"), description))

    def __html__(self) -> str:
        return str(self)


def _lead(evidence: Evidence, digest: str) -> str:
    champion, rows = evidence["champion"], f"{evidence['candidate']['rows']:,}"
    if champion and champion["measurement"]:
        return f"Candidate {digest[:12]} beside champion {champion['version']}, on the same {rows} sentences."
    if champion:
        return (
            f"Candidate {digest[:12]} on {rows} sentences; champion {champion['version']} could not be measured: "
            f"{champion['fault']}."
        )
    gone = "the champion is lost" if evidence["champion_state"] == "lost" else "there is no champion"
    return f"Candidate {digest[:12]} on {rows} sentences; {gone}, so nothing stands beside it."


def _origin(facts: ModelInfo, digest: str, verdict: Verdict) -> list[tuple[str, str]]:
    return [
        ("bundle", digest),
        ("champion's bundle", verdict["champion_digest"] or "none"),
        ("data set", facts["dataset"]),
        ("training rows", verdict["training_digest"]),
        ("holdout", verdict["holdout_digest"]),
        ("encoder", facts["encoder"]),
        ("code", verdict["git_commit"]),
        ("measured on", f"{verdict['variant']}, {verdict['provider']}"),
        ("policy", f"{verdict['policy']['version']}, {verdict['policy_digest']}"),
        ("judged", f"{verdict['time'] or 'not signed'} by {verdict['actor'] or 'nobody'}"),
    ]
