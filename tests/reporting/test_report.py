"""The report of a candidate, with a champion and without, and the documents in its bundle."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from candidates import FACTS, HOSTILE, SETTINGS, export, tell, training, weigh
from registry_store import small_bundle
from signing_keys import PRIVATE, write_keys
from sklearn.metrics import precision_recall_fscore_support
from toy import gate

from tasks.core.settings_loader import SettingRow
from tasks.core.signing import describe_key, describe_signer
from tasks.evaluation.measurement import predict_labels
from tasks.evaluation.minimal_pairs import summarise
from tasks.evaluation.thresholds import curves_of
from tasks.inference.bundle import check_signature, verify
from tasks.reporting.charts import draw_champions, draw_charts
from tasks.reporting.error_table import write_errors
from tasks.reporting.figure_style import save_picture
from tasks.reporting.past_champions import PastChampion, comparable_spans
from tasks.reporting.report import (
    SECTIONS,
    Registration,
    ReportInputs,
    describe_pictures,
    hash_script,
    render_report,
    write_documents,
)
from tasks.reporting.wording import capital, describe_threshold

PAST: Any = {
    "settings": {"data.path": "<script>alert(1)</script>", "finetune.encoder": "packaged", "finetune.epochs": "2"},
    "tags": {"dataset": "e" * 64, "git_commit": "c" * 40, "python": "3.11.7", "onnxruntime": "1.31.1"},
}


class Text(HTMLParser):
    """What of a page a reader sees, and the tags it is made of."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.seen: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.hidden = False
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))
        self.hidden = tag == "style"

    def handle_data(self, data: str) -> None:
        self.text += "" if self.hidden else f" {data}"


def page(inputs: ReportInputs) -> tuple[str, str]:
    """Return a report and its text."""
    html = render_report(inputs, FACTS, "b" * 64, "job0")
    return html, " ".join(Text(html).text.split())


@pytest.fixture(scope="module")
def beside(tmp_path_factory: pytest.TempPathFactory) -> ReportInputs:
    """A candidate and a champion of nearly its skill, with figures."""
    inputs = tell(weigh(2.0, 1.9), previous_run=PAST, seconds={"fine-tune": 12.34})
    folder = str(tmp_path_factory.mktemp("pictures"))
    return inputs._replace(pictures=draw_charts(inputs.training, inputs.evidence, 0.3, folder))


def test_a_bundle_is_signed_with_its_documents_which_say_so(
    beside: ReportInputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_bundle(tmp_path, "a")
    bundle = tmp_path / "data" / "bundle"
    keys = write_keys(tmp_path / "keys", "ada")
    for key, said in (
        ("", "not signed"),
        (str(keys / f"ada{PRIVATE}"), "signed by this program's own key"),
        ("", "not"),
    ):
        monkeypatch.setenv("VERDICT_SIGNING_KEY", key)
        write_documents(str(bundle), beside)
        assert describe_signer(check_signature(bundle)).startswith(said)
        text = " ".join(Text((bundle / "report.html").read_text()).text.split())
        assert f"signature {describe_key()}" in text


def test_documents_are_in_the_manifest_and_leave_the_digest(beside: ReportInputs, tmp_path: Path) -> None:
    digest = small_bundle(tmp_path, "a")
    bundle = tmp_path / "data" / "bundle"
    write_documents(str(bundle), beside)
    manifest = verify(bundle)
    assert manifest["digest"] == digest
    assert set(manifest["files"]) == {"model.onnx", "tokenizer.json", "data.json", "report.html", "card.md"}
    assert json.loads((bundle / "data.json").read_text()) == gate()["profile"]
    measured = beside.evidence["variants"]
    assert {name: figures["serves"] for name, figures in manifest["metrics"].items()} == {
        "int8": True,
        "fp32": False,
        "fp16": False,
    }
    for name, figures in manifest["metrics"].items():
        assert (figures["rows"], figures["provider"], figures["holdout"]) == (300, "CPUExecutionProvider", "h" * 64)
        assert figures["interval"] == measured[name]["interval"]  # type: ignore[index]


def test_the_report_leads_with_the_verdict_its_reasons_and_rules(beside: ReportInputs) -> None:
    html, text = page(beside)
    assert '<h1>acceptability: <span class="HOLD">HOLD</span></h1>' in html
    assert "Candidate bbbbbbbbbbbb and champion 7 on the same 300 sentences." in text
    assert beside.verdict["rules"] == ["minimal_pairs_dropped", "not_better"]
    reason = beside.verdict["reasons"][1]
    assert f"{reason[0].upper()}{reason[1:]}. Rule not_better : Only a model that is significantly better" in text
    mcc = beside.evidence["candidate"]["interval"]["mcc"]
    assert f"{mcc:.3f} holdout MCC" in text
    assert f"{beside.verdict['champion_mcc']:.3f} champion 7, same sentences" in text


def test_the_report_names_the_model_who_judged_and_when(beside: ReportInputs) -> None:
    html, text = page(beside)
    mcc = beside.evidence["candidate"]["interval"]["mcc"]
    assert f"<title>acceptability: HOLD, MCC {mcc:.3f}</title>" in html
    judged = f"Judged 2026-01-02 03:04 UTC by {beside.verdict['actor']}, on the data set"
    assert f"{judged} <script>alert(1)</script> ( dddddddddddd )." in text


def test_the_report_of_a_version_has_its_number_its_links_and_the_first_reason(beside: ReportInputs) -> None:
    links = {"run in MLflow": "http://mlflow:5000/#/experiments/1/runs/2", "page of the data gate": "gate.html"}
    html = render_report(beside, FACTS, "b" * 64, "job0", Registration("8", links))
    text = " ".join(Text(html).text.split())
    assert '<h1>acceptability 8: <span class="HOLD">HOLD</span></h1>' in html
    assert "<title>acceptability 8: HOLD, MCC 0." in html
    assert f"HOLD {capital(beside.verdict['reasons'][0])}; 1 more reason below. Candidate bbb" in text
    found = {str(attributes["href"]) for tag, attributes in Text(html).seen if tag == "a"}
    assert {*links.values(), "errors.csv"} <= found
    assert "verdict approve 8 --reason" in text
    assert "VERSION" not in text


def test_every_error_is_in_the_page_and_in_the_file_the_most_confident_first(
    beside: ReportInputs, tmp_path: Path
) -> None:
    answers = beside.evidence["answers"]
    given, theirs = (predict_labels(each or [], 0.5) for each in (answers["variants"]["int8"], answers["champion"]))
    wrong = np.flatnonzero(given != answers["label"])
    html, text = page(beside)
    table = html[html.index('<tbody id="error-rows">') :]
    rows = re.findall(r"<tr (.*?)>", table[: table.index("</tbody>")])
    assert len(rows) == len(wrong) > 20
    counts = beside.evidence["candidate"]["confusion"]
    assert (
        f"{len(wrong)} of the 300 holdout sentences incorrectly: {counts['fp']} unacceptable ones as acceptable" in text
    )
    frame = pd.read_csv(write_errors(beside.errors, tmp_path), keep_default_na=False)
    assert frame["confidence"].is_monotonic_decreasing
    assert sorted(frame["line"] - 1) == wrong.tolist()
    assert (
        (frame["label"] == "acceptable").sum() == counts["fn"] == sum('data-label="acceptable"' in row for row in rows)
    )
    assert (frame["champion"] == "labels it correctly").sum() == (theirs == answers["label"])[wrong].sum()
    shown = beside._replace(errors=[*beside.errors] * 40)
    _, text = page(shown)
    assert f"The table has the first 500; {len(wrong) * 40 - 500:,} more are left out." in text


PAST_CHAMPIONS = [
    PastChampion("1", "2026-01-02T03:04:05+00:00", "promote", 0.4, 0.3, 0.5, "g" * 64, "e" * 64),
    PastChampion("2", "2026-02-02T03:04:05+00:00", "approve", 0.5, 0.4, 0.6, "h" * 64, "e" * 64),
    PastChampion("3", None, "unexplained", None, None, None, "", ""),
    PastChampion("7", "2026-03-02T03:04:05+00:00", "promote", 0.55, 0.45, 0.65, "h" * 64, "d" * 64),
]


def test_past_champions_are_listed_and_those_of_one_holdout_joined(beside: ReportInputs, tmp_path: Path) -> None:
    assert comparable_spans(PAST_CHAMPIONS) == [[0], [1, 3]]
    picture = save_picture(draw_champions(PAST_CHAMPIONS), "champions", tmp_path)
    html, text = page(beside._replace(champions=PAST_CHAMPIONS, pictures={"champions": picture}))
    table = text[text.index("Versions that became champion") :]
    assert "7 2026-03-02 03:04 UTC promote 0.550 (0.450 to 0.650) the same the same 3 not recorded unexplained" in table
    assert "3 not recorded unexplained its run was deleted unknown unknown 2 2026-02-02 03:04 UTC approve" in table
    assert "1 2026-01-02 03:04 UTC promote 0.400 (0.300 to 0.500) gggggggggggg eeeeeeeeeeee" in table
    assert 'aria-label="MCC with 95% CI of 4 champions over time, and of the candidate."' in html
    assert "No version was champion before this one" in page(beside)[1]


def test_changed_data_are_counted_with_examples_or_said_to_be_unknown(beside: ReportInputs) -> None:
    examples = {"added": [HOSTILE, "b", "c"], "removed": [], "relabelled": ["d"]}
    changes: Any = {"added": 1234, "removed": 0, "relabelled": 1, "examples": examples}
    html, text = page(beside._replace(row_changes={"train": changes, "holdout": None}))
    section = text[text.index("Data changed since the champion") : text.index("Differences from champion")]
    assert "Train 1,234 sentences added, 0 removed, 1 relabelled. Added: the first 3 He said" in section
    assert "Relabelled: all d Holdout Other rows than those of champion 7. Which ones is unknown" in section
    assert "Removed:" not in section
    _, text = page(beside._replace(row_changes={"train": changes | {"added": 1}}))
    assert "Train 1 sentence added, 0 removed, 1 relabelled." in text
    assert html.count("<script") == 1
    assert "Nothing: every data set is that of champion 7" in page(beside._replace(row_changes={}))[1]
    assert "Unknown: the run of champion 7 is not in this store." in page(beside)[1]


def test_the_page_runs_its_own_script_and_no_other(beside: ReportInputs) -> None:
    html, _ = page(beside)
    (script,) = re.findall("<script>(.*?)</script>", html, re.DOTALL)
    assert f"script-src '{hash_script(script)}'\"" in html


def test_each_class_has_precision_recall_and_support(beside: ReportInputs) -> None:
    html, text = page(beside)
    answers = beside.evidence["answers"]
    for model, given in (("candidate", answers["variants"]["int8"]), ("champion 7", answers["champion"])):
        figures = precision_recall_fscore_support(answers["label"], predict_labels(given or [], 0.5))
        for number, label in enumerate(FACTS["labels"]):
            precision, recall, f1, support = (values[number] for values in figures)
            assert f"{label} {model} {precision:.3f} {recall:.3f} {f1:.3f} {support}" in text
    assert 'aria-label="ROC curve' in html
    assert 'aria-label="MCC by decision threshold' in html


def test_the_report_points_at_a_threshold_that_does_not_divide_what_is_ranked_well() -> None:
    evidence = weigh(4.0)
    assert "no other gives more than" in page(tell(evidence))[1]
    shifted: Any = [None if each is None else 0.5 + each / 20 for each in evidence["answers"]["variants"]["int8"]]
    answers = evidence["answers"] | {"variants": dict.fromkeys(evidence["variants"], shifted)}
    text = page(tell(evidence | {"answers": answers}))[1]
    assert "With the threshold 0.5 the MCC is 0.000; with 0.52" in text
    assert "better than 0.5 divides them" in text


def test_the_report_has_baselines_and_costs_where_they_were_measured() -> None:
    evidence = weigh(2.0, 1.9)
    assert "Baselines" not in page(tell(evidence))[1]
    assert "Costs" not in page(tell(evidence))[1]
    bag = {"name": "bag of words", "interval": {"mcc": 0.125, "low": 0.05, "high": 0.2}, "accuracy": 0.55}
    int8 = {"provider": "CPUExecutionProvider", "size_mb": 22.9, "memory_mb": 61.0}
    int8 |= {"latency_ms": 1.234, "latency_p95_ms": 2.5, "sentences_per_second": 1234.5}
    costs = {"hardware": "Some CPU, 2 cores", "variants": {"int8": int8}, "training_seconds": 12.5}
    text = page(tell(evidence | {"baselines": [bag], "costs": costs}))[1]
    ahead = evidence["candidate"]["interval"]["mcc"] - 0.125
    assert f"bag of words 0.125 (95% CI 0.050 to 0.200) 0.550 {ahead:+.3f}" in text
    assert "at the export, on Some CPU, 2 cores." in text
    assert "Fine-tuning took 12.5 s on CPU." in text
    assert "int8 CPU 1.23 ms 2.50 ms 1,234 22.9 MB 61 MB" in text


def test_the_report_says_where_a_chosen_decision_threshold_comes_from() -> None:
    evidence = weigh(2.0, 1.9)
    choice = {"threshold": 0.625, "variant": "int8", "sentences": 80, "mcc": 0.51, "default_mcc": 0.43}
    measured = evidence["candidate"] | {"decision_threshold": 0.625}
    inputs = tell(evidence | {"candidate": measured, "threshold_choice": choice})
    curve = curves_of(inputs.evidence)[0]
    served = f"With the threshold 0.625 the MCC is {curve.mcc[curve.served]:.3f}"
    origin = "The decision threshold 0.625 was chosen on 80 validation sentences: MCC 0.510 there, 0.430 with 0.5."
    assert f"{origin} {served}" in page(inputs)[1]


@pytest.mark.parametrize(
    ("inputs", "commands"),
    [
        (tell(weigh(2.0, 1.9)), ["verdict approve VERSION", "verdict reject VERSION"]),
        (tell(weigh()), []),  # there is no champion before it
        (
            tell(weigh(2.5, 0.5, minimal_pairs=summarise({"word order": "1111", "islands": "0110"}))),
            ["verdict rollback"],
        ),
        (tell(weigh(), threshold=0.99), []),
    ],
)
def test_the_report_says_what_follows(inputs: ReportInputs, commands: list[str]) -> None:
    _, text = page(inputs)
    decide = re.findall("verdict (?:approve|reject|rollback)(?: VERSION)?", text)
    assert decide == commands
    assert "verdict judge ${VERDICT_HOME:-.verdict}/runs/job0/evidence.json" in text
    champion = inputs.evidence["champion"]  # the first one has nothing to be compared with
    compared = re.findall(r"verdict compare VERSION \w+", text)
    assert compared == ([f"verdict compare VERSION {champion['version']}"] if champion else [])


def test_candidate_and_champion_are_compared(beside: ReportInputs) -> None:
    _, text = page(beside)
    ours, champion = beside.evidence["candidate"], beside.evidence["champion"]
    assert champion is not None
    theirs = champion["measurement"]
    assert theirs is not None
    better = "better" if ours["brier"] < theirs["brier"] else "worse"
    assert f"Brier score (0 is perfect) {ours['brier']:.3f} {theirs['brier']:.3f} {better}" in text
    assert f"accuracy {ours['accuracy']:.3f} {theirs['accuracy']:.3f}" in text
    assert "minimal pairs ranked correctly 62.5% 75.0% worse" in text
    assert "word order 4 75% 100% lower islands 4 50% 50%" in text
    comparison = beside.evidence["comparison"]
    assert comparison is not None
    assert f"difference of the MCC {comparison['difference']:+.3f}" in text
    assert f"right alone {comparison['candidate_alone']} and {comparison['champion_alone']}" in text
    assert f"McNemar's test p-value {comparison['mcnemar']:.3g}" in text
    assert comparison["differing"] > len(comparison["sentences"]) == 50
    listed = "the largest differences come first, and only the first 50 are listed."
    assert f"The models label {comparison['differing']} sentences differently; {listed}" in text
    assert "int8 on CPU variant and device measured" in text
    assert f"permutation test: better p-value {comparison['p_better']:.2g} one-sided" in text
    numbers = beside.verdict["numbers"]
    assert f"alpha after {numbers['holdout_uses']} other candidate" in text
    assert f"{numbers['alpha']:.2g} significance level" in text
    assert "Judged 2026-01-02 03:04 UTC by ann@host" in text


def test_slices_that_drop_are_marked(beside: ReportInputs) -> None:
    evidence = weigh(0.9, 3.0)
    _, text = page(tell(evidence, min_slice_rows=100))
    assert "swb04 100" in text
    falls = {
        name: evidence["champion"]["measurement"]["per_source"][name]["mcc"] - here["mcc"]
        for name, here in evidence["candidate"]["per_source"].items()
    }
    assert min(falls.values()) > 0.2
    assert text.count(" dropped ") == len(falls) + sum(
        here["rows"] >= 100 for here in evidence["candidate"]["per_length"].values()
    ) + text.count("dropped, few sentences")
    _, fewer = page(tell(evidence, min_slice_rows=101))
    assert fewer.count("dropped, few sentences") > text.count("dropped, few sentences")


def test_a_slice_of_one_label_shows_that_it_has_no_mcc() -> None:
    evidence = weigh(0.9, 3.0)
    for side in (evidence["candidate"], evidence["champion"]["measurement"]):
        side["per_source"] = {"swb04": {"rows": 100, "accuracy": 0.5, "mcc": None}}
    assert "swb04 100 no MCC no MCC" in page(tell(evidence, min_slice_rows=1))[1]


def test_a_report_without_a_champion_has_no_column_for_one() -> None:
    inputs = tell(weigh())
    html, text = page(inputs)
    assert '<span class="PROMOTE">' in html
    assert "there is no champion to compare with" in text
    assert "Rule first_champion" in text
    assert "Different predictions" not in text
    assert "What differs from champion" not in text
    assert 'class="n">champion' not in html
    assert 'data-champion=""' in html
    assert "the champion" not in text[text.index("Errors The candidate labels") :].partition("Variants")[0]


def test_a_champion_that_cannot_be_measured_or_vanished_is_reported() -> None:
    champion = weigh(2.0, 1.9)["champion"] | {
        "measurement": None,
        "minimal_pairs": None,
        "fault": "bundle x is damaged",
    }
    _, text = page(tell(weigh(champion=None) | {"champion": champion, "champion_state": "active"}))
    assert "champion 7 could not be measured: bundle x is damaged." in text
    assert "The differences from champion 7 are unknown: its MLflow run is not in this store." in text
    _, text = page(tell(weigh(champion_state="lost")))
    assert "the champion was lost, none is left to compare with" in text


def test_settings_that_differ_are_shown_and_all_of_them_are_folded(beside: ReportInputs) -> None:
    html, text = page(beside)
    table = text[text.index("Differences from champion 7") : text.index("All 3 settings")]
    assert "data set eeeeeeeeeeee dddddddddddd finetune.epochs 2 3" in table
    assert "finetune.encoder" not in table
    assert "<details><summary>All 3 settings</summary>" in html
    same = {"settings": {key: str(value) for key, value, _ in SETTINGS}, "tags": PAST["tags"] | {"dataset": "d" * 64}}
    _, text = page(beside._replace(previous_run=same))
    assert "Settings, data, code and libraries are those of champion 7." in text


def test_the_report_shows_other_peoples_text_and_does_not_obey_it(beside: ReportInputs) -> None:
    html, text = page(beside)
    assert html.count("<script") == 1  # the filter, by its hash
    assert "alert(1)&lt;/script&gt;" in html
    assert HOSTILE.replace("\u202e\x08", r"\u202e\x08") in text
    assert "{{ 7 * 7 }} {% raw %}" in text
    assert "<b>x</b>|`y`" in text
    assert "<b>.tsv line 3: label" in text
    assert "no source 100" in text


def test_the_report_opens_offline(beside: ReportInputs) -> None:
    html, _ = page(beside)
    assert not re.search(r"https?:|@import|\bon\w+=|src=|url\((?!#)", html)
    tags = Text(html).seen
    assert not {tag for tag, _ in tags} & {"link", "iframe", "object", "base"}
    for tag, attributes in tags:
        for name in ("href", "xlink:href"):
            assert str(attributes.get(name, "#")).startswith("#"), (tag, attributes)


def test_pictures_are_in_the_page_in_its_colours_and_described(beside: ReportInputs) -> None:
    html, _ = page(beside)
    pictures = [dict(attributes) for tag, attributes in Text(html).seen if tag == "svg"]
    note = describe_threshold(curves_of(beside.evidence)[0], beside.evidence["candidate"]["auroc"])
    described = describe_pictures(beside.evidence, beside.training, note)
    assert {picture["aria-label"] for picture in pictures} == set(described.values())
    assert {picture["role"] for picture in pictures} == {"img"}
    assert html.count("var(--accent)") > 10
    assert not re.search("#2563eb|#334155|#7f8ea3", html[html.index("<body>") :])
    ids = re.findall(r'\sid="([^"]+)"', html)
    assert len(ids) == len(set(ids))
    assert {anchor for anchor, _ in SECTIONS} <= set(ids)
    assert set(re.findall(r'(?:url\(|href=")#([^")]+)', html)) <= set(ids)


@pytest.mark.parametrize(("corruptions", "said"), [(0, False), (4, True)])
def test_the_training_time_says_what_it_has_beside_the_epochs(
    beside: ReportInputs, corruptions: int, said: bool
) -> None:
    settings = [*SETTINGS, SettingRow("finetune.corruptions", corruptions, "profile cola-small")]
    _, text = page(beside._replace(settings=settings, training=training(seconds=1_457.92)))
    stage = ", the stage on corrupted sentences before the epochs included" if said else ""
    assert f"all-minilm-l6-v2 on CPU in fp32, 1,457.9 s{stage}. The epoch was selected" in text


def test_tables_name_their_columns_and_rows(beside: ReportInputs) -> None:
    tags = Text(page(beside)[0]).seen
    assert all(attributes.get("scope") in {"col", "row"} for tag, attributes in tags if tag == "th")
    names = [tag for tag, _ in tags]
    assert names.count("table") == names.count("caption") > 10


def test_the_report_tells_which_rows_left_and_why(beside: ReportInputs) -> None:
    _, text = page(beside)
    assert "10 rows in, 10 kept, 1 quarantined: 1 label." in text
    assert (
        "7 rows trained and 2 selected the best epoch; removed from training: 1 for occurring in a holdout, 4 as their "
        "sentence has both labels, 3 as duplicates." in text
    )
    assert "None of the holdout's sentences was trained on." in text
    assert "share of quarantined rows 0.01235 at most 0.05 passed" in text
    assert "gate/gate.html among the artifacts of the MLflow run" in text


def test_the_report_lists_every_variant_and_what_is_not_shipped() -> None:
    reason = "gives 93.89% of 409 sentences torch's label, expected 99.0%"
    _, text = page(tell(weigh(), export=export("x", left_out={"fp8": reason})))
    for name, role in {"int8": "judged", "fp32": "", "fp16": ""}.items():
        assert re.search(rf"{name} CPU 0\.\d+ \(95% CI 0\.\d+ to 0\.\d+\) 0\.\d+ 2\.0e-03 1 of 80 0\.0034 {role}", text)
    assert f"fp8 not shipped: it {reason}" in text
    assert "Exported to ONNX (tracing); fused: 2 Attention." in text
    assert "On 80 of these sentences torch's own fp16 (cuda) differs from its fp32 by 1.5e-03." in text
    assert "fp16 was compared with torch on a CPU" in text


def test_the_report_names_every_way_of_making_a_variant_that_was_refused() -> None:
    first = {"maker": "quickly", "parity": None, "fault": "changes <9> of 867 labels"}
    second = {"maker": "slowly", "parity": None, "fault": "loses 0.02 MCC"}
    attempts = {"int8": [first, second | {"fault": None}], "fp8": [first, second]}
    _, text = page(tell(weigh(), export=export("x", left_out={"fp8": second["fault"]}, attempts=attempts)))
    assert "The int8 graph of quickly was refused: it changes <9> of 867 labels." in text
    assert "The fp8 graph of quickly was refused: it changes <9> of 867 labels." in text
    assert text.count("loses 0.02 MCC") == 1  # in the table


def test_a_report_on_several_seeds_says_what_is_kept() -> None:
    other = training()["seeds"][0] | {"seed": 8, "validation_mcc": 0.125}
    several = training(seeds=[*training()["seeds"], other], averaged=True, soup_mcc=0.875)
    _, text = page(tell(weigh(), training=several))
    assert "2 seeds were trained from the same weights; best validation MCC: 0.500, 0.125" in text
    assert "the average of their weights has 0.875. The average is selected" in text


def test_a_second_holdout_is_reported_beside() -> None:
    reported = weigh(rows=40)["candidate"]
    _, text = page(tell(weigh(secondary=reported)))
    assert f"{reported['interval']['mcc']:.3f} MCC on the secondary holdout, 40 sentences" in text


def test_answers_that_are_no_numbers_are_shown_as_such() -> None:
    evidence = weigh()
    evidence["answers"]["variants"]["int8"][evidence["answers"]["label"].index(1)] = None  # predicted as unacceptable
    broken = training(epochs=[{**training()["epochs"][0], "train_loss": None}], best_epoch=1)
    _, text = page(tell(evidence, training=broken))
    assert text.count("not finite") == 2
