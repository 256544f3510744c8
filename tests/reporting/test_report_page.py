"""The report in a real browser: offline, on a phone, by keyboard, in the light and in the dark."""

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from browser import Visit, launched_browser, visits
from candidates import FACTS, tell, training, weigh

from tasks.reporting.charts import draw_charts
from tasks.reporting.report import render_report

PHONE = {"viewport": {"width": 360, "height": 740}}
READABLE = 4.5  # smallest contrast of text (WCAG 2, level AA)

# Every text with the colours that it has by the end, those of pictures included.
CONTRASTS = """() => {
  const canvas = document.createElement('canvas').getContext('2d', {willReadFrequently: true});
  const parse = colour => {
    canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1);
    return [...canvas.getImageData(0, 0, 1, 1).data];
  };
  const light = ([r, g, b]) => [r, g, b].map(c => c / 255).map(
    c => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4
  ).reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
  const behind = element => {
    for (let each = element; each; each = each.parentElement) {
      const colour = parse(getComputedStyle(each).backgroundColor);
      if (colour[3] === 255) return colour;
    }
  };
  const texts = [...document.querySelectorAll('body *')].filter(
    each => [...each.childNodes].some(node => node.nodeType === 3 && node.textContent.trim())
  );
  return texts.map(each => {
    const style = getComputedStyle(each), inside = each.closest('svg');
    const [a, b] = [light(parse(inside ? style.fill : style.color)), light(behind(each))].sort((a, b) => b - a);
    return [(a + 0.05) / (b + 0.05), each.tagName + ' ' + each.textContent.trim().slice(0, 40)];
  });
}"""


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A candidate that is worse than a champion, and one without any; each in its own folder."""
    written = {}
    cases = {"beside": (weigh(1.2, 3.0), training()), "alone": (weigh(), training(epochs=training()["epochs"] * 3))}
    for name, (evidence, trained) in cases.items():
        folder = tmp_path_factory.mktemp(name)
        inputs = tell(
            evidence, training=trained, pictures=draw_charts(trained, evidence, 0.3, str(folder / "pictures"))
        )
        written[name] = folder / "report.html"
        written[name].write_text(render_report(inputs, FACTS, "b" * 64, "job0"), encoding="utf-8")
    return written


@pytest.fixture(scope="module")
def visit(reports: dict[str, Path]) -> Iterator[Visit]:
    """Open a report; at the end it must have requested no other URL and written nothing to the console."""
    own = {path.as_uri() for path in reports.values()}
    with launched_browser() as browser, visits(browser, own.__contains__) as visit:
        yield lambda name, **settings: visit(reports[name].as_uri(), **settings)


@pytest.fixture(scope="module")
def show(visit: Visit) -> Visit:
    """Return the page of a report in a colour scheme, loaded once; for tests that change nothing of it."""
    pages: dict[str, Any] = {}

    def run(name: str, scheme: str = "light") -> Any:
        if name not in pages:
            pages[name] = visit(name)
        pages[name].emulate_media(color_scheme=scheme)
        return pages[name]

    return run


@pytest.mark.parametrize("name", ["beside", "alone"])
def test_on_a_phone_only_tables_move_sideways(visit: Visit, name: str) -> None:
    page = visit(name, **PHONE)
    page.evaluate("document.querySelectorAll('details').forEach(each => { each.open = true; })")
    assert page.evaluate("document.documentElement.scrollWidth") == 360
    boxes = "[...document.querySelectorAll('.wide, pre')]"
    assert page.evaluate(f"{boxes}.every(box => box.getBoundingClientRect().right <= 360)")
    wider = page.evaluate(f"{boxes}.filter(box => box.scrollWidth > box.clientWidth).map(box => box.tabIndex)")
    assert set(wider) == {0}
    assert page.evaluate("[...document.querySelectorAll('svg')].every(svg => svg.getBoundingClientRect().width > 250)")


@pytest.mark.parametrize("name", ["beside", "alone"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_in_both_schemes(show: Visit, name: str, scheme: str) -> None:
    page = show(name, scheme)
    found = page.evaluate(CONTRASTS)
    assert len(found) > 200
    assert [each for each in found if each[0] < READABLE] == []


def test_the_dark_report_is_dark_and_its_pictures_too(show: Visit) -> None:
    colours = {}
    for scheme in ("light", "dark"):
        page = show("beside", scheme)
        paper = page.evaluate("getComputedStyle(document.body).backgroundColor")
        text = page.locator("svg text").first
        colours[scheme] = paper, text.evaluate("text => getComputedStyle(text).fill")
    assert colours["light"][0] == "rgb(255, 255, 255)"
    assert colours["dark"][0] == "rgb(15, 23, 42)"
    assert colours["light"][1] != colours["dark"][1]


def test_the_length_of_a_bar_can_be_seen_in_a_marked_row_too(show: Visit) -> None:
    row = show("beside").locator("tr.dropped").first
    colours = [
        row.locator(part).evaluate("each => getComputedStyle(each).backgroundColor") for part in ("td.bar", ".bar div")
    ]
    assert len(set(colours)) == 2


@pytest.mark.parametrize("name", ["beside", "alone"])
def test_names_of_rows_have_room_on_a_phone(visit: Visit, name: str) -> None:
    page = visit(name, **PHONE)
    widths = page.evaluate("[...document.querySelectorAll('tbody th:not(.n)')].map(each => each.clientWidth)")
    assert min(width for width in widths if width) >= 120  # 0: within what is folded


@pytest.mark.parametrize("name", ["beside", "alone"])
def test_headings_are_in_order_and_pictures_have_a_description(show: Visit, name: str) -> None:
    page = show(name)
    levels = page.evaluate("[...document.querySelectorAll('h1, h2, h3, h4')].map(each => +each.tagName[1])")
    assert levels.count(1) == 1
    assert levels[0] == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))
    pictures = page.get_by_role("img").all()
    assert len(pictures) == page.locator("svg").count() == (9 if name == "beside" else 8)
    assert all(len(picture.get_attribute("aria-label")) > 20 for picture in pictures)
    assert all(page.locator("nav a").nth(i).is_visible() for i in range(13))


def test_the_keyboard_reaches_sections_tables_and_what_is_folded(visit: Visit) -> None:
    page = visit("beside")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Next steps"
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    page.keyboard.press("Enter")
    assert page.evaluate("location.hash") == "#next"
    folded = page.locator("details", has=page.get_by_text("All 3 settings"))
    assert not folded.get_by_role("table").is_visible()
    seen = set()
    for _ in range(80):
        page.keyboard.press("Tab")
        role = page.evaluate("document.activeElement.getAttribute('role') || document.activeElement.tagName")
        seen.add(role)
        if page.evaluate("document.activeElement.textContent") == "All 3 settings":
            break
    page.keyboard.press("Enter")
    assert folded.get_by_role("table").is_visible()
    assert {"region", "SUMMARY", "PRE"} <= seen


def test_links_lead_to_sections_that_are_there(show: Visit) -> None:
    page = show("beside")
    targets = page.evaluate("[...document.querySelectorAll('nav a')].map(a => document.querySelector(a.hash)?.tagName)")
    assert targets == ["H2"] * 13


def test_other_peoples_text_is_shown_and_runs_nowhere(show: Visit) -> None:
    page = show("beside")
    assert page.get_by_text("\"<script>alert(1)</script>\" & 'left'").first.is_visible()
    assert page.locator("script").count() == 1
    assert page.locator("body b b").count() == 0


def test_errors_are_filtered_by_label_source_length_champion_and_text(visit: Visit) -> None:
    page = visit("beside")

    def shown() -> list[dict[str, str]]:
        found: list[dict[str, str]] = page.evaluate(
            "[...document.querySelectorAll('#error-rows tr:not([hidden])')].map(row => ({...row.dataset}))"
        )
        assert page.locator("#error-filter output").inner_text() == f"{len(found)} of {total}"
        return found

    total = page.locator("#error-rows tr").count()
    rows = shown()
    assert len(rows) == total > 20
    for name, value in (("label", "unacceptable"), ("champion", "labels it correctly"), ("source", "no source")):
        page.locator(f"#error-filter select[name={name}]").select_option(value)
        rows = [row for row in rows if row[name] == value]
        assert shown() == rows
    page.locator("#error-filter input").fill("SENTENCE 2")
    assert 0 < len(shown()) < len(rows)


def test_without_scripts_all_errors_are_there_and_no_filter(visit: Visit) -> None:
    page = visit("beside", java_script_enabled=False)
    assert not page.locator("#error-filter").is_visible()
    assert page.locator("#error-rows tr").last.is_visible()


def test_the_printed_report_is_light_and_shows_what_is_folded(visit: Visit) -> None:
    page = visit("beside", color_scheme="dark")
    assert page.pdf(format="A4").startswith(b"%PDF")
    page.emulate_media(media="print", color_scheme="light")
    assert not page.locator("nav").is_visible()
    folded = page.locator("details", has=page.get_by_text("All 3 settings")).locator("td").first
    assert folded.bounding_box()["height"] > 5
