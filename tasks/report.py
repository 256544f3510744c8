"""The documents of a bundle: report.html, one file that opens offline, and card.md, the model card."""

from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from tasks.bundle import PROFILE, Facts, Manifest, seal, verify
from tasks.evidence import Evidence
from tasks.files import write_json, write_text
from tasks.finetune import Training
from tasks.judge import Verdict
from tasks.rendering import data_uri, render
from tasks.suite import show_allowed, show_observed
from tasks.validation import Gate

if TYPE_CHECKING:
    from tasks.export import Export

FIGURES = ("rows", "provider", "interval", "accuracy", "confusion")  # of a measurement, for bundle.json


def write_documents(
    bundle: str,
    *,
    training: Training,
    evidence: Evidence,
    verdict: Verdict,
    gate: Gate,
    settings: list[tuple[str, Any, str]],
    pictures: dict[str, str],
    export: "Export",
) -> Manifest:
    """Add report, card and metrics to a bundle and seal it again; its digest stays.

    Args:
        bundle: folder of a sealed bundle.
        training: how it was trained.
        evidence: what was measured.
        verdict: what was decided.
        gate: what the data gate saw; the profile of the training rows goes into the bundle.
        settings: (key, value, origin) rows.
        pictures: PNG paths by name.
        export: how the graphs were made, how far they are from torch, and which variants are not shipped.

    Raises:
        VerdictError: if the bundle is damaged.
    """
    folder = Path(bundle)
    manifest = verify(folder)
    facts = cast(Facts, {key: manifest[key] for key in Facts.__annotations__})  # type: ignore[literal-required]
    content = {
        "facts": facts,
        "digest": manifest["digest"],
        "training": training,
        "evidence": evidence,
        "verdict": verdict,
        "gate": gate,
        "findings": [(finding, show_allowed(finding), show_observed(finding)) for finding in gate["findings"]],
        "settings": settings,
        "export": export,
    }
    images = {name: data_uri(Path(path).read_bytes()) for name, path in pictures.items()}
    write_text(folder / "report.html", render("report.html.j2", **content, pictures=images))
    write_json(folder / PROFILE, gate["profile"])
    write_text(folder / "card.md", render("card.md.j2", **content))
    metrics = {
        variant: {key: dict(measured)[key] for key in FIGURES}
        | {"holdout": evidence["holdout"], "serves": variant == evidence["candidate"]["variant"]}
        for variant, measured in evidence["variants"].items()
    }
    return seal(folder, facts, metrics)
