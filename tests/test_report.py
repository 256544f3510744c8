"""The documents of a bundle."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from conftest import SPLIT, circumstances, gate, policy

from tasks.bundle import verify
from tasks.charts import draw_charts
from tasks.evidence import gather_evidence
from tasks.judge import judge
from tasks.report import write_documents


@pytest.fixture
def documented(complete: Any, trained: Any, toy_split: tuple[str, str, str], tmp_path: Path) -> Path:
    """A bundle with documents whose settings carry hostile text."""
    folder = Path(shutil.copytree(complete["bundle"], tmp_path / "bundle"))
    place = {"digest": "h" * 64, "path": toy_split[2]}
    champion = {"version": "1", "digest": "other", "bundle": complete["bundle"]}
    evidence = gather_evidence(
        str(folder),
        place,
        place,
        champion,
        split=SPLIT,
        training=[],
        circumstances=circumstances(),
        device="cpu",
        resamples=200,
    )
    finding = {
        "table": "whole data",
        "asks": "share of quarantined rows",
        "setting": "data.max_quarantined",
        "expectation": "expect_x",
        "column": None,
        "observed": 0.01234567,
        "allowed": {"max_value": 0.05},
        "passed": True,
        "severity": "critical",
        "unexpected": 0,
        "lines": [],
    }
    write_documents(
        str(folder),
        training=trained,
        evidence=evidence,
        verdict=judge(evidence, policy(threshold=0.5)),
        gate=gate(findings=[finding], quarantined=1, reasons={"label": 1}, examples=["<b>.tsv line 3: label"]),
        settings=[("data.path", "<script>alert(1)</script>", "flag")],
        pictures=draw_charts(trained, evidence["candidate"], str(tmp_path / "pictures")),
        export=complete,
    )
    return folder


def test_documents_are_sealed_with_the_bundle_and_leave_its_digest(documented: Path, complete: Any) -> None:
    manifest = verify(documented)
    assert manifest["digest"] == complete["digest"]
    documents = {"tokenizer.json", "data.json", "report.html", "card.md"}
    assert set(manifest["files"]) == {"model.onnx", "model.cuda.onnx", "model.cpu.onnx"} | documents


def test_the_bundle_holds_the_figures_of_every_variant_and_says_which_serves(documented: Path) -> None:
    metrics = verify(documented)["metrics"]
    assert {variant: figures["serves"] for variant, figures in metrics.items()} == {
        "int8": True,
        "fp32": False,
        "fp16": False,
    }
    for figures in metrics.values():
        assert (figures["rows"], figures["provider"], figures["holdout"]) == (80, "CPUExecutionProvider", "h" * 64)
        assert figures["interval"]["mcc"] > 0.9


def test_report_and_card_tell_of_every_variant(documented: Path) -> None:
    html = re.sub(r"\s+", " ", (documented / "report.html").read_text())
    for variant in ("fp32", "fp16", "int8"):
        assert f"<tr><td>{variant}</td><td>CPU</td>" in html
    assert "Exported by the tracing exporter; fused: 2 Attention, 1 EmbedLayerNormalization" in html
    assert "fp16 was compared on a CPU" in html
    card = (documented / "card.md").read_text()
    assert "int8 on CPUExecutionProvider |" in card
    assert re.search(r"^\| fp16 \| MCC \d\.\d{3}, CPUExecutionProvider \|$", card, re.MULTILINE)


def test_report_and_card_tell_what_is_not_shipped(
    exported: Any, trained: Any, toy_split: tuple[str, str, str], tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(exported["bundle"], tmp_path / "bundle"))
    place = {"digest": "h" * 64, "path": toy_split[2]}
    evidence = gather_evidence(
        str(folder),
        place,
        None,
        None,
        split=SPLIT,
        training=[],
        circumstances=circumstances(),
        device="cpu",
        resamples=200,
    )
    reason = "gives 93.89% of 409 sentences torch's label, expected 99.0%"
    write_documents(
        str(folder),
        training=trained,
        evidence=evidence,
        verdict=judge(evidence, policy(threshold=0.5)),
        gate=gate(),
        settings=[],
        pictures={},
        export=exported | {"left_out": {"int8": reason}},
    )
    assert f"| int8 | not shipped: it {reason} |" in (folder / "card.md").read_text()
    assert "not shipped: it gives 93.89% of 409 sentences" in (folder / "report.html").read_text()


def test_the_report_opens_offline(documented: Path) -> None:
    html = (documented / "report.html").read_text()
    assert "http" not in re.sub(r"data:image/png;base64,[^\"]*", "", html)
    assert html.count('src="data:image/png;base64,') == 4
    assert "<script" not in html


def test_the_report_escapes_what_others_wrote(documented: Path) -> None:
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in (documented / "report.html").read_text()


def test_the_report_leads_with_the_verdict(documented: Path) -> None:
    html = (documented / "report.html").read_text()
    assert '<h1><span class="HOLD">HOLD</span></h1>' in html
    assert "champion 1, same sentences" in html
    assert "MCC on the reported holdout" in html
    assert "<td>share of quarantined rows</td><td>0.01235</td><td>at most 0.05</td>" in html


def test_the_report_tells_which_rows_left_and_why(documented: Path) -> None:
    html = re.sub(r"\s+", " ", (documented / "report.html").read_text())
    assert "10 rows in, 10 kept, 1 quarantined: 1 label." in html
    assert "7 rows trained and 2 chose the best epoch; 1 left because they stand in a holdout, 4 because" in html
    assert "<code>&lt;b&gt;.tsv line 3: label</code>" in html


def test_the_bundle_holds_the_profile_of_its_training_data(documented: Path) -> None:
    assert json.loads((documented / "data.json").read_text()) == gate()["profile"]


def test_the_card_is_a_model_card(documented: Path) -> None:
    from huggingface_hub import ModelCard

    card = ModelCard.load(documented / "card.md")
    assert card.data.pipeline_tag == "text-classification"
    assert card.data.language == "en"
    assert "HOLD: not better than the champion" in card.text


def test_pictures_are_drawn_for_a_run_without_finite_losses(trained: Any, tmp_path: Path, documented: Path) -> None:
    measured = {
        "mcc_per_batch": [0.0],
        "interval": {"mcc": 0.0, "low": 0.0, "high": 0.0},
        "confusion": {"tn": 0, "fp": 1, "fn": 0, "tp": 1},
    }
    broken = {**trained, "step_losses": [None, None]}
    paths = draw_charts(broken, measured, str(tmp_path / "broken"))  # type: ignore[arg-type]
    assert all(Path(path).read_bytes().startswith(b"\x89PNG") for path in paths.values())


def test_a_report_on_several_seeds_says_what_is_kept(
    exported: Any, trained: Any, toy_split: tuple[str, str, str], tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(exported["bundle"], tmp_path / "bundle"))
    place = {"digest": "h" * 64, "path": toy_split[2]}
    evidence = gather_evidence(
        str(folder),
        place,
        None,
        None,
        split=SPLIT,
        training=[],
        circumstances=circumstances(),
        device="cpu",
        resamples=200,
    )
    other = trained["seeds"][0] | {"seed": 8, "validation_mcc": 0.125}
    several = trained | {"seeds": [*trained["seeds"], other], "kept": "soup", "soup_mcc": 0.875}
    write_documents(
        str(folder),
        training=several,
        evidence=evidence,
        verdict=judge(evidence, policy(threshold=0.5)),
        gate=gate(),
        settings=[],
        pictures=draw_charts(several, evidence["candidate"], str(tmp_path / "pictures")),
        export=exported,
    )
    html = (folder / "report.html").read_text()
    assert "2 seeds were trained from one start" in html
    assert "0.125; the mean of their weights has 0.875" in html
    assert "That mean is kept" in html
