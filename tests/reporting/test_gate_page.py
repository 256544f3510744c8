"""The gate's page shows the result and the reason, and escapes untrusted text."""

import re
import unicodedata
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, cast

import pandas as pd
import pytest
from browser import launched_browser, visits

from tasks.core.printable import MARK
from tasks.core.settings import DataSettings, GateSettings, Settings
from tasks.data.drift import OTHER_CATEGORY, DataProfile
from tasks.data.expectations import ExpectationResult, show_allowed, show_observed
from tasks.data.gate import GateReport, validate_data
from tasks.data.ingestion import ingest
from tasks.data.sources import Sources
from tasks.data.table_format import TableFormat
from tasks.reporting.charts import draw_lengths
from tasks.reporting.gate_page import MAX_SHOWN_CHARS, MAX_SOURCES, explain, rank_sources, write_gate_page
from tasks.reporting.templating import render

SETTINGS = Settings(gate=GateSettings(min_rows=20, min_holdout_rows=10), data=DataSettings(validation_share=0.2))
VOID = {"meta", "img", "br"}
HOSTILE = "<script>alert(1)<\x08script>.tsv"  # a name that Linux takes


class Tags(HTMLParser):
    """Collects a page's tags and text; fails on tags that do not nest."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(html)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.text += f" {data}"


def lines(name: str, labels: Sequence[int], source: str = "s") -> list[str]:
    """Return one line a label, each with a sentence of its own."""
    return [f"{source}\t{label}\t\t{name} sentence {i}.\n" for i, label in enumerate(labels)]


def run_gate(
    folder: Path, train: list[str], reference: DataProfile | None = None, name: str = "train.tsv"
) -> GateReport:
    """Run the real gate on training lines in a file of a name of its own."""
    folder.mkdir()
    files = {name: train, "holdout.tsv": lines("Judging", [0, 1] * 10)}
    for file, content in files.items():
        (folder / file).write_text("".join(content), encoding="utf-8")
    sources = Sources(train=[str(folder / name)], holdout=[str(folder / "holdout.tsv")], secondary=[])
    data = ingest(sources, str(folder), TableFormat(), 0.2)
    return validate_data(data, str(folder), SETTINGS, reference=reference)


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> GateReport:
    return run_gate(tmp_path_factory.mktemp("good") / "run", lines("Training", [0, 1] * 20))


@pytest.fixture(scope="module")
def refused(tmp_path_factory: pytest.TempPathFactory) -> GateReport:
    """Three kinds of quarantined rows and many repeats, in a file with a hostile name."""
    rows = lines("Training", [0, 1] * 20) + ["s\t1\t\tThe same.\n"] * 10
    rows += ["two\tfields\n", "s\t<script>\x08\t\tNo label.\n", "s\t1\t\t \n", "s\t1\t\t\n"]
    return run_gate(tmp_path_factory.mktemp("refused") / "run", rows, name=HOSTILE)


@pytest.fixture(scope="module")
def drifted(good: GateReport, tmp_path_factory: pytest.TempPathFactory) -> GateReport:
    """Other sources and longer sentences than in `good`."""
    rows = lines("Quite another and very much longer kind of", [0, 1] * 30, source="<b>other")
    return run_gate(tmp_path_factory.mktemp("drifted") / "run", rows, reference=good["profile"])


def page(gate: GateReport, folder: Path, reference: DataProfile | None = None) -> tuple[str, str]:
    """Return a page's HTML, which is checked for what holds for every page, and its text."""
    path = str(folder / "gate.html")
    assert write_gate_page(gate, path, reference) == path
    html = Path(path).read_text(encoding="utf-8")
    tags = Tags(html)
    assert not re.search(r"https?://|@import|url\((?!#)|\bon\w+=", html)
    ids = {"#" + str(attributes["id"]) for _, attributes in tags.seen if "id" in attributes}
    files = {"quarantine.csv", "quarantine.parquet"}
    for tag, attributes in tags.seen:
        assert tag not in {"script", "link", "iframe", "object"}
        assert attributes.get("href", "quarantine.csv") in {*files, *ids}
        assert "src" not in attributes
        assert tag != "th" or attributes.get("scope") in {"col", "row", "rowgroup"}
        assert tag != "svg" or attributes["aria-label"]
    assert {letter for letter in html if unicodedata.category(letter).startswith("C")} == {"\n"}
    return html, " ".join(tags.text.split())


def changed(gate: GateReport, **changes: Any) -> GateReport:
    return cast(GateReport, {**gate, **changes})


def result(**changes: Any) -> ExpectationResult:
    values = {
        "table": "training rows",
        "description": "number of rows",
        "setting": "gate.min_rows",
        "expectation": "expect_x",
        "column": None,
        "observed": 8,
        "allowed": {"min_value": 100},
        "passed": False,
        "severity": "critical",
        "unexpected": 0,
        "lines": [],
        "in_quarantine": False,
    }
    return cast(ExpectationResult, values | changes)


def profile(sources: dict[str, int], characters: dict[str, int] | None = None) -> DataProfile:
    rows = sum(sources.values())
    return DataProfile(
        dataset="d" * 64,
        rows=rows,
        labels={"1": rows},
        characters={"10": rows} if characters is None else characters,
        sources=sources,
        words={},
    )


def test_accepted_data_has_its_figures_and_no_champion_to_compare_with(good: GateReport, tmp_path: Path) -> None:
    html, text = page(good, tmp_path)
    assert '<h1>Data <span class="accepted">accepted</span></h1>' in html
    assert f"{len(good['results'])} expectations checked, none failed." in text
    assert "60 rows in 60 kept 0 quarantined 50.0% acceptable, of 40 training rows" in text
    assert f"{good['dataset'][:12]} data set" in text
    assert "No row was quarantined." in text
    assert "There is no champion with a profile of its training data to compare with." in text
    assert "Failed expectations" not in text
    assert "quarantine.parquet" not in html
    assert html.count("<svg") == 1
    assert "training rows 20 20 50.0% holdout rows 10 10 50.0%" in text
    assert "the first" not in text


def test_refused_data_names_the_first_failure_and_the_failed_come_first(refused: GateReport, tmp_path: Path) -> None:
    html, text = page(refused, tmp_path)
    assert '<h1>Data <span class="refused">refused</span></h1>' in html
    reason = "share of quarantined training rows: observed 0.07407, allowed at most 0.01; 1 more expectation failed."
    assert f"Whole data: {reason}" in text
    keys = ("data.max_quarantined", "gate.max_duplicates")
    for key in keys:
        assert f'<code><span class="option">--set</span> {key}=VALUE</code>' in html
    assert "Fix the data, or change a limit: --set {}=VALUE , --set {}=VALUE .".format(*keys) in text
    results = re.findall(r'<tr class="(failed|warning|passed)">', html)
    assert results[:2] == ["failed"] * 2
    assert set(results[2:]) == {"passed"}
    assert len(results) == len(refused["results"])


def test_a_failed_result_shows_its_rows(refused: GateReport, tmp_path: Path) -> None:
    html, text = page(refused, tmp_path)
    row = next(part for part in re.findall("<tr (.*?)</tr>", html, re.DOTALL) if "repeat an earlier" in part)
    assert row.startswith('class="failed"')
    assert '<td class="value">0.18</td><td class="value">at most 0.05</td>' in row
    shown = [f"line {number}" for number in range(42, 51)]
    assert re.findall(r"line \d+", row) == shown
    assert "9: &lt;script&gt;" in " ".join(row.replace("<br>", " ").split())
    assert "6 more of them" in text
    more = result(unexpected=40, lines=[f"train.tsv line {number}" for number in range(9)])
    assert "the next 6" in page(changed(refused, results=[more]), tmp_path)[1]  # not all were recorded


# The lines on which each occurrence of a text stands.
LINES_OF = """text => {
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT), found = [];
  for (let node; node = walker.nextNode();) {
    const start = node.data.indexOf(text);
    if (start < 0) continue;
    const range = document.createRange();
    range.setStart(node, start);
    range.setEnd(node, start + text.length);
    found.push(range.getClientRects().length);
  }
  return found;
}"""


@pytest.mark.parametrize("width", [400, 1200])
def test_the_name_of_a_file_stands_on_one_line(tmp_path: Path, width: int) -> None:
    rows = lines("Training", [0, 1] * 20) + ["s\t1\t\tThe same.\n"] * 10
    gate = run_gate(tmp_path / "run", rows, name="out_of_domain_train.tsv")
    page(gate, tmp_path)
    with launched_browser() as browser, visits(browser, lambda url: url.startswith("file:")) as visit:
        shown = visit((tmp_path / "gate.html").as_uri(), viewport={"width": width, "height": 800})
        shown.evaluate("document.querySelectorAll('details').forEach(each => { each.open = true; })")
        counts = shown.evaluate(LINES_OF, "out_of_domain_train.tsv")
    assert len(counts) > 10
    assert set(counts) == {1}


def test_on_a_phone_expectations_have_room_and_tables_a_distance(refused: GateReport, tmp_path: Path) -> None:
    page(changed(refused, results=[*refused["results"], result(severity="warning")]), tmp_path)
    with launched_browser() as browser, visits(browser, lambda url: url.startswith("file:")) as visit:
        shown = visit((tmp_path / "gate.html").as_uri(), viewport={"width": 400, "height": 800})
        names = shown.locator(".results th[scope=row]").evaluate_all("all => all.map(each => each.clientWidth)")
        failed, warning = (shown.locator(".results").nth(number).bounding_box() for number in (0, 1))
        assert shown.evaluate("document.documentElement.scrollWidth") == 400
    assert min(names) >= 144
    assert warning["y"] - failed["y"] - failed["height"] >= 16


def test_quarantine_is_counted_by_kind_with_examples_and_its_file(refused: GateReport, tmp_path: Path) -> None:
    html, text = page(refused, tmp_path)
    assert "empty sentence 2 2.70% field count 1 1.35% label 1 1.35%" in text
    assert "script>.tsv line 51: 2 fields instead of 4" in text
    assert '<a href="quarantine.csv">' in html
    frame = pd.read_csv(Path(refused["report"]).with_name("quarantine.csv"), keep_default_na=False)
    table = pd.read_parquet(Path(refused["report"]).with_name("quarantine.parquet"))
    assert frame["reason"].tolist() == table["reason"].tolist()
    assert frame["raw"].tolist() == [raw.decode() for raw in table["raw"]]
    (row,) = (part for part in re.findall("<tr (.*?)</tr>", html, re.DOTALL) if 'href="#quarantine"' in part)
    assert "share of quarantined training rows" in row  # and not the holdout's, of which there is none


def test_equal_sentences_are_side_by_side(refused: GateReport, tmp_path: Path) -> None:
    html, text = page(refused, tmp_path)
    (rows,) = refused["samples"]["training rows"]["duplicate"]
    assert [row["line"] for row in rows] == [41, 42, 43]
    assert "training rows: the first rows that repeat a sentence" in text
    assert html.count("The same.</td><td>1</td>") == 3
    train, leaked = lines("Training", [0, 1] * 20), ["s\t0\t\tJudging sentence 1.\n", "s\t1\t\tA \x07 bell\n"]
    train += [*leaked, "s\t1\t\tBoth.\n", "s\t0\t\tboth\n", "=cmd\t2\t\tBad.\n"]
    samples = run_gate(tmp_path / "run", train)["samples"]
    both, bell = samples["training rows"]["conflict"], samples["training rows"]["control"]
    assert [(row["label"], row["sentence"]) for row in both[0]] == [(1, "Both."), (0, "both")]
    assert [row["sentence"] for (row,) in bell] == ["A \x07 bell"]
    assert [[(row["role"], row["line"], row["label"]) for row in pair] for pair in samples["holdout rows"]["leak"]] == [
        [("holdout", 2, 1), ("training", 41, 0)]
    ]


def test_tokens_have_a_figure_where_an_encoder_read_the_sentences(good: GateReport, tmp_path: Path) -> None:
    html, _ = page(changed(good, tokens={"training rows": {"5": 30, "64": 10}, "holdout rows": {"4": 20}}), tmp_path)
    assert html.count("<svg") == 2
    assert 'aria-label="Sentences by number of tokens, by role."' in html


def test_untrusted_text_is_escaped(refused: GateReport, tmp_path: Path) -> None:
    html, text = page(refused, tmp_path)
    assert "<script" not in html
    assert r"&lt;script&gt;alert(1)&lt;\x08script&gt;.tsv line 51" in html
    assert r"label '<script>\x08' instead of 0 or 1" in text


@pytest.mark.parametrize(
    ("raw", "shown"),
    [
        ("plain é 漢 🙂", "plain é 漢 🙂"),
        ("5\u00a0km \U0001f468\u200d\U0001f469", "5\u00a0km \U0001f468\u200d\U0001f469"),
        ("a\x08\n\x7f", r"a\x08\n\x7f"),
        ("\u202eevil", r"\u202eevil"),
        ("\udcff", r"\udcff"),
    ],
)
def test_control_characters_become_escapes(raw: str, shown: str, tmp_path: Path) -> None:
    (tmp_path / "page.html.j2").write_text("{{ text }}")
    assert render("page.html.j2", tmp_path, text=raw) == shown


def test_drift_is_shown_with_its_reference(drifted: GateReport, good: GateReport, tmp_path: Path) -> None:
    html, text = page(drifted, tmp_path, good["profile"])
    assert drifted["passed"]
    names = [shift["name"] for shift in drifted["drift"] if shift["drifted"]]
    assert {"length", "source"} <= set(names)
    assert "Warning: it drifted from the champion's training data: " in text
    assert good["profile"]["dataset"] in text
    assert html.count("unexpected rows") == 1  # drift is about no single row
    assert html.count('<tr class="drifted">') == html.count('<tr class="warning">') == len(names)
    assert "length: Kolmogorov-Smirnov distance of characters 1.0000 < 0.0001 0.1 drift" in text
    assert "label: difference of the acceptable share, chi-squared test 0.0000 1 0.05 within the limit" in text
    assert "of the champion's, half at most 21" in text
    assert "<b>other 60 100.0% 0.0%" in text
    assert "s 0 0.0% 100.0%" in text


def test_a_distance_that_is_not_significant_is_no_drift(drifted: GateReport, tmp_path: Path) -> None:
    shift = {"name": "label", "statistic": "x", "distance": 0.2, "p": 0.4, "limit": 0.05, "drifted": False}
    _, text = page(changed(drifted, drift=[shift]), tmp_path)
    assert "label: x 0.2000 0.4 0.05 not significant" in text


def test_quality_issues_of_both_tables_are_side_by_side(good: GateReport, tmp_path: Path) -> None:
    control = {"kind": "control", "exact": 3, "normalised": None, "tokens": None, "read": None}
    cut = {"kind": "truncated", "exact": 2, "normalised": None, "tokens": None, "read": 20000}
    leak = {"kind": "leak", "exact": 1, "normalised": 1234, "tokens": 1235, "read": None}
    _, text = page(
        changed(good, quality_issues={"training rows": [control, cut], "holdout rows": [control, leak]}), tmp_path
    )
    assert "Handled by the split" in text
    assert (
        "issue training rows holdout rows rows with control characters 3 3 "
        "sentences that the encoder truncates (of a sample of 20,000) 2 "
        "rows also in the training data, exactly 1 rows also in the training data, normalised 1,234 "
        "rows also in the training data, as the encoder reads them 1,235"
    ) in text


def test_the_reason_is_a_sentence_for_every_answer(good: GateReport) -> None:
    warning = result(severity="warning", description="drift")
    label = {"name": "label", "drifted": True}
    expected = {
        "Nothing was checked.": [],
        "Training rows: number of rows: observed 8, allowed at least 100.": [warning, result()],
        "Warning: Training rows: drift: observed 8, allowed at least 100; 1 more warning.": [warning, warning],
    }
    for sentence, findings in expected.items():
        assert explain(changed(good, results=findings)) == sentence
    only_drift = changed(good, results=[warning], drift=[label])
    assert explain(only_drift) == "Warning: it drifted from the champion's training data: label."


@pytest.mark.parametrize(
    ("observed", "allowed", "shown"),
    [
        ({"missing": [0], "unexpected": []}, {"value_set": [0, 1]}, "observed 0 missing, allowed 0, 1."),
        ({"missing": [], "unexpected": []}, {"value_set": [0, 1]}, "observed exactly these, allowed 0, 1."),
        (None, {"min_value": 0.2, "max_value": 0.9}, "observed not computable, allowed 0.2 to 0.9."),
        (["a", "b"], {"column_list": ["a"]}, "observed a, b, allowed a."),
        (0.123456, {"mostly": 0.95}, "observed 0.1235, allowed at most 0.05."),
    ],
)
def test_values_are_written_in_words(good: GateReport, observed: Any, allowed: Any, shown: str) -> None:
    assert explain(changed(good, results=[result(observed=observed, allowed=allowed)])).endswith(shown)


@pytest.mark.parametrize(
    ("results", "keys"),
    [
        ([result(), result()], ["gate.min_rows"]),
        ([result(setting="gate.b"), result(setting="gate.a")], ["gate.a", "gate.b"]),
        ([result(), result(setting="gate.warns", severity="warning")], ["gate.min_rows"]),
        ([result(), result(setting="gate.holds", passed=True)], ["gate.min_rows"]),
        ([result(), result(setting=None)], ["gate.min_rows"]),
        ([result(setting=None)], []),
        ([result(severity="warning")], []),
    ],
)
def test_the_page_names_the_settings_of_the_limits_that_failed(
    good: GateReport, tmp_path: Path, results: list[ExpectationResult], keys: list[str]
) -> None:
    html, text = page(changed(good, results=results, passed=False), tmp_path)
    assert re.findall("--set</span> (.*?)=VALUE", html) == keys
    assert ("change a limit" in text) == bool(keys)


def test_the_side_on_which_a_share_lies_names_its_setting(tmp_path: Path) -> None:
    for name, labels, key in (
        ("low", [0] * 186 + [1] * 14, "gate.min_acceptable"),
        ("high", [1] * 186 + [0] * 14, "gate.max_acceptable"),
    ):
        gate = run_gate(tmp_path / name, lines("Training", labels))
        html, _ = page(gate, tmp_path / name)
        assert not gate["passed"]
        assert re.findall("--set</span> (.*?)=VALUE", html) == [key]


def test_the_page_and_the_command_say_the_same_of_a_result(
    refused: GateReport, good: GateReport, tmp_path: Path
) -> None:
    for gate in (refused, good):
        _, text = page(gate, tmp_path)
        for each in gate["results"]:
            assert f"{show_observed(each)} {show_allowed(each)}" in text


def test_a_gate_without_results_or_training_rows_has_a_page(good: GateReport, tmp_path: Path) -> None:
    html, text = page(changed(good, results=[], profile=profile({})), tmp_path)
    assert "Nothing was checked." in text
    assert "No training row was kept." in text
    assert "none acceptable, of 0 training rows" in text
    assert "<table class=" not in html


def test_endless_texts_are_cut(good: GateReport, tmp_path: Path) -> None:
    endless = "x" * 100_000
    record = result(observed=endless, lines=[f"{endless} line 1"], unexpected=1, description=endless)
    huge = changed(good, results=[record], quarantined=1, reasons={endless: 1}, examples=[endless], report=endless)
    html, text = page(huge, tmp_path)
    assert max(map(len, re.findall("x+", text))) == MAX_SHOWN_CHARS - len(MARK)
    assert "(100,000 characters)" in text
    assert len(re.sub(r'"data:[^"]*"', "", html)) < 30_000


def test_of_many_sources_the_largest_now_or_before_are_named(good: GateReport, tmp_path: Path) -> None:
    many = profile({f"source {i}": 1000 - i for i in range(500)})
    before = profile({"gone": 90, "source 0": 10})
    ranked = rank_sources(many, before)
    assert len(ranked) == MAX_SOURCES + 1
    assert [line["name"] for line in ranked[:3]] == ["gone", "source 0", "source 1"]
    assert (ranked[0]["rows"], ranked[0]["mark"]) == (0, 100)
    assert ranked[-1]["name"] == "481 more"
    assert sum(line["rows"] for line in ranked) == many["rows"]
    assert sum(line["before"] for line in ranked) == pytest.approx(1)
    html, _ = page(changed(good, profile=many), tmp_path, before)
    assert html.count('<td class="bar">') == MAX_SOURCES + 1


def test_rows_without_a_source_and_pooled_sources_are_distinguished() -> None:
    assert [line["name"] for line in rank_sources(profile({"": 5, "a": 1}), None)] == ["no source", "a"]
    pooled = rank_sources(profile({f"{i}": 2 for i in range(30)} | {OTHER_CATEGORY: 70}), None)
    assert (pooled[-1]["name"], pooled[-1]["rows"]) == ("all others", 2 * (30 - MAX_SOURCES) + 70)
    assert len(pooled) == MAX_SOURCES + 1
    assert rank_sources(profile({}), profile({})) == []


def test_lengths_are_drawn_as_shares_with_the_longest_in_the_last_bar() -> None:
    usual = {str(length): 10 for length in range(1, 101)}
    figure = draw_lengths(profile({"s": 1001}, usual | {"90000": 1}), profile({"s": 1000}, usual))
    axes = figure.axes[0]
    bars, line = (patch.get_data() for patch in axes.patches)
    assert sum(bars.values) == pytest.approx(100)
    assert sum(line.values) == pytest.approx(100)
    assert bars.edges[-1] < 110
    assert axes.get_xlabel() == f"characters (last bar: {bars.edges[-2]} or more)"
    assert len(axes.get_legend().get_texts()) == 2


def test_lengths_are_drawn_alone_without_a_reference() -> None:
    axes = draw_lengths(profile({"s": 3}, {"1": 3}), None).axes[0]
    assert axes.get_legend() is None
    assert axes.get_xlabel() == "characters"
