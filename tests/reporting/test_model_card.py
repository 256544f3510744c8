"""The model card is one by the hub's own library, and what it says to run runs."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from candidates import FACTS, HOSTILE, SOURCES, export, tell, weigh
from cola_like import COLA_DIR
from huggingface_hub import ModelCard

from tasks.core.settings_loader import load_settings
from tasks.inference.bundle import verify
from tasks.inference.classifier import Classifier
from tasks.reporting.licenses import encoder_license, is_cola
from tasks.reporting.model_card import base_model, hub_datasets, write_card
from tasks.reporting.report import ReportInputs

DECISIONS = {
    "PROMOTE": tell(weigh()),
    "HOLD": tell(weigh(2.0, 1.9)),
    "REJECT": tell(weigh(0.5, 3.0), threshold=0.9),
}


def card(inputs: ReportInputs, facts: Any = FACTS, **changes: Any) -> str:
    settings = [(key, changes.get(key, value), origin) for key, value, origin in inputs.settings]
    return write_card(facts, "b" * 64, inputs.evidence, inputs.verdict, inputs.gate, settings, inputs.export)


@pytest.mark.parametrize("decision", DECISIONS)
def test_the_card_of_every_decision_is_a_model_card(decision: str, tmp_path: Path) -> None:
    inputs = DECISIONS[decision]
    assert inputs.verdict["decision"] == decision
    (tmp_path / "card.md").write_text(card(inputs), encoding="utf-8")
    read = ModelCard.load(tmp_path / "card.md")  # strict: a header that the hub's library does not take is an error
    assert f"Verdict at registration: **{decision}**" in read.text
    data = read.data
    assert (data.language, data.license, data.library_name) == ("en", "apache-2.0", "onnx")
    assert data.tags == ["linguistic-acceptability", "onnx", "onnxruntime"]  # no CoLA in it
    assert data.pipeline_tag == "text-classification"
    assert data.base_model == "sentence-transformers/all-MiniLM-L6-v2"
    assert "matthews_correlation" in data.metrics
    measured = inputs.evidence["candidate"]
    results = {result.metric_type: result for result in data.eval_results}
    assert list(results) == data.metrics
    assert results["matthews_correlation"].metric_value == pytest.approx(measured["interval"]["mcc"], abs=1e-6)
    assert results["brier_score"].metric_value == pytest.approx(measured["brier"], abs=1e-6)
    assert results["accuracy"].dataset_revision == "h" * 64
    headings = re.findall("^## (.*)$", read.text, re.MULTILINE)
    assert headings == ["Intended use", "How to load", "Training data", "Evaluation", "Limits", "Environment"]


@pytest.mark.parametrize("decision", DECISIONS)
def test_tables_have_as_many_cells_in_every_row(decision: str) -> None:
    lines = card(DECISIONS[decision]).splitlines()
    tables = "\n".join(line if line.startswith("|") else "" for line in lines).split("\n\n")
    found = [table.strip().splitlines() for table in tables if table.strip()]
    assert len(found) == 7
    for rows in found:
        assert set(rows[1]) <= set("| -")
        assert len({len(re.findall(r"(?<!\\)\|", row)) for row in rows}) == 1, rows


def test_a_slice_of_one_label_has_no_mcc() -> None:
    evidence = weigh(0.9, 3.0)
    for side in (evidence["candidate"], evidence["champion"]["measurement"]):
        side["per_source"] = {"swb04": {"rows": 100, "accuracy": 0.5, "mcc": None}}
    assert "| swb04 | 100 | no MCC | no MCC |" in card(tell(evidence, min_slice_rows=1))


def test_data_sets_of_the_hub_are_named_and_linked() -> None:
    address = "hf:nyu-mll/glue/cola@0123 + sample + hf:org/name + hf:nyu-mll/glue/other"
    read = ModelCard(card(DECISIONS["PROMOTE"], **{"data.path": address}))
    assert read.data.datasets == ["nyu-mll/glue", "org/name"]
    assert read.data.eval_results[0].dataset_type == "nyu-mll/glue"
    assert hub_datasets("/data/cola + https://host/a.zip") == []
    assert ModelCard(card(DECISIONS["PROMOTE"])).data.datasets is None


def test_the_encoder_is_named_where_the_hub_has_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()
    assert base_model("bert-base-uncased", "bert-base-uncased") == "bert-base-uncased"
    assert base_model("mine", "mine") is None
    assert base_model("mine", str(tmp_path / "mine")) is None
    assert base_model("tiny", None) is None


def test_the_card_has_the_licence_that_the_encoders_page_states(tmp_path: Path) -> None:
    stated, silent = tmp_path / "stated", tmp_path / "silent"
    for folder, header in ((stated, "license: cc-by-4.0"), (silent, "language: en")):
        folder.mkdir()
        (folder / "README.md").write_text(f"---\n{header}\n---\n# An encoder\n", encoding="utf-8")
    assert ModelCard(card(DECISIONS["HOLD"], **{"finetune.encoder": str(stated)})).data.license == "cc-by-4.0"
    unknown = ModelCard(card(DECISIONS["HOLD"], **{"finetune.encoder": str(silent)}))
    assert unknown.data.license is None
    assert "Licence of the encoder's weights: not stated where it came from" in unknown.text
    (silent / "README.md").write_text("---\nlicense: [a\n---\n", encoding="utf-8")
    assert [encoder_license(each) for each in (str(silent), str(tmp_path), "", "hf:no/such")] == [None] * 4


def test_only_cola_is_tagged_as_cola(tmp_path: Path) -> None:
    (tmp_path / "in_domain_train.tsv").write_text("a\t1\t\tIt has the format alone.\n", encoding="utf-8")
    assert not is_cola(["sample", str(tmp_path), "hf:org/colander", ""])
    profile = load_settings("cola-small", {}, {}).settings.data.path
    tagged = ModelCard(card(DECISIONS["HOLD"], **{"data.path": " + ".join(profile)}))
    assert "cola" in tagged.data.tags
    assert "excerpts of published works" in tagged.text
    assert is_cola(["sample", "hf:nyu-mll/glue/cola@main"])
    if COLA_DIR:
        assert all(is_cola([f"{COLA_DIR}/{name}"]) for name in ("book", "raw", "tokenized", "cola_public.zip"))


def test_other_peoples_text_stays_within_its_cell() -> None:
    text = card(DECISIONS["HOLD"])
    assert "| &lt;b>x&lt;/b>\\|\\`y\\` | 100 |" in text
    assert "| no source | 100 |" in text
    assert "| source | &lt;script>alert(1)&lt;/script> |" in text
    assert HOSTILE not in text
    assert SOURCES[1] not in text


def test_the_card_has_data_evaluation_and_what_is_not_shipped() -> None:
    inputs = tell(weigh(2.0, 1.9), export=export("x", left_out={"fp8": "differs | much"}))
    text = card(inputs)
    assert f"`{'d' * 64}`" in text
    assert "| training rows, validation rows | 7, 2 |" in text
    assert "| | fp8 | not shipped: it differs \\| much | | |" in text
    assert "| CPUExecutionProvider | 1 of 80 validation sentences |" in text
    assert "| figure | this model | champion 7 |" in text
    comparison = inputs.evidence["comparison"]
    assert comparison is not None
    assert f"Difference of the MCC, paired: {comparison['difference']:+.3f}" in text
    counts = inputs.evidence["candidate"]["confusion"]
    assert f"mislabels {counts['fp'] + counts['fn']} of the 300 holdout sentences" in text
    assert "| onnxruntime | 1.31.1 |" in text


def test_the_cards_snippet_answers_like_the_bundle(exported: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest: Any = verify(Path(exported["bundle"]))
    (code,) = re.findall("```python\n(.*?)```", card(DECISIONS["PROMOTE"], manifest), re.DOTALL)
    monkeypatch.chdir(exported["bundle"])
    names: dict[str, Any] = {}
    exec(code, names)
    sentences = ["The cat sat on the mat.", "The cat sat mat the on."]
    classifier = Classifier.from_bundle(exported["bundle"], "cpu", "fp32")
    np.testing.assert_allclose(names["probabilities"], classifier.probabilities(sentences), atol=1e-6)
    assert names["labels"] == [answer["label"] for answer in classifier.predict(sentences)]
