"""The documents of a bundle: report.html, one file that opens offline, and card.md, the model card."""

import base64
from pathlib import Path
from typing import Any, cast

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from tasks.bundle import Facts, Manifest, seal, verify
from tasks.evidence import Evidence
from tasks.files import write_text
from tasks.finetune import Training
from tasks.judge import Verdict
from tasks.validation import Finding

VARIANT = "fp32"


def write_documents(
    bundle: str,
    *,
    training: Training,
    evidence: Evidence,
    verdict: Verdict,
    findings: list[Finding],
    settings: list[tuple[str, Any, str]],
    pictures: dict[str, str],
) -> Manifest:
    """Add report, card and metrics to a bundle and seal it again; its digest stays.

    Args:
        bundle: folder of a sealed bundle.
        training: how it was trained.
        evidence: what was measured.
        verdict: what was decided.
        findings: what the data gate saw.
        settings: (key, value, origin) rows.
        pictures: PNG paths by name.

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
        "findings": findings,
        "settings": settings,
    }
    images = {name: _data_uri(Path(path)) for name, path in pictures.items()}
    write_text(folder / "report.html", _render("report.html.j2", **content, pictures=images))
    write_text(folder / "card.md", _render("card.md.j2", **content))
    measured = evidence["candidate"]
    metrics = {key: dict(measured)[key] for key in ("rows", "provider", "interval", "accuracy", "confusion")}
    return seal(folder, facts, {VARIANT: {**metrics, "holdout": evidence["holdout"]}})


def _render(template: str, **content: Any) -> str:
    # Sentences are other people's text: everything is escaped in the HTML, nothing is missing silently.
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).with_name("templates")),
        autoescape=template.endswith(".html.j2"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return environment.get_template(template).render(**content)


def _data_uri(path: Path) -> str:
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()
