"""The content of figures, and their files."""

import re
from pathlib import Path

import numpy as np
import pytest
from candidates import training, weigh

from tasks.reporting.charts import (
    MAX_STEPS,
    draw_batches,
    draw_calibration,
    draw_charts,
    draw_confusions,
    draw_difference,
    draw_epochs,
    draw_intervals,
    draw_losses,
    running_mean,
)
from tasks.reporting.figure_style import THEME, inline_svg, new_axes, save_picture

EVIDENCE = weigh(2.0, 1.0, rows=120)
SIDES = {"candidate": EVIDENCE["candidate"], "champion 7": EVIDENCE["champion"]["measurement"]}


def test_every_figure_is_saved_as_png_and_svg(tmp_path: Path) -> None:
    paths = draw_charts(training(), EVIDENCE, 0.3, str(tmp_path))
    assert set(paths) == {
        *("intervals", "difference", "ranking", "thresholds", "calibration", "confusion"),
        *("loss_per_step", "epochs", "mcc_per_batch"),
    }
    for path in map(Path, paths.values()):
        assert path.read_bytes().startswith(b"\x89PNG")
        assert path.with_suffix(".svg").is_file()
    alone = draw_charts(training(step_losses=[None, None]), weigh(rows=20), 0.3, str(tmp_path / "alone"))
    assert "difference" not in alone
    assert all(Path(path).read_bytes().startswith(b"\x89PNG") for path in alone.values())


def test_a_figure_is_the_same_file_every_time(tmp_path: Path) -> None:
    first, second = (
        Path(save_picture(draw_calibration(SIDES), "one", tmp_path / folder)) for folder in ("here", "there")
    )
    assert first.read_bytes() == second.read_bytes()
    assert first.with_suffix(".svg").read_bytes() == second.with_suffix(".svg").read_bytes()


def test_an_inline_figure_has_the_pages_colours_and_a_description(tmp_path: Path) -> None:
    path = Path(save_picture(draw_calibration(SIDES), "name", tmp_path)).with_suffix(".svg")
    svg = inline_svg(path, 'a "<b>" & c')
    assert svg.startswith('<svg role="img" aria-label="a &quot;&lt;b&gt;&quot; &amp; c"')
    assert "xmlns" not in svg
    assert "http" not in svg
    assert not set(THEME) & set(re.findall("#[0-9a-f]{6}", svg))
    assert "var(--ink)" in svg
    assert "<text" in svg
    assert all(each.startswith("name-") for each in re.findall(r'\sid="([^"]+)', svg))


def test_text_in_a_picture_is_escaped(tmp_path: Path) -> None:
    figure, _ = new_axes("<script>alert(1)</script> & more", "x", "y")
    svg = inline_svg(Path(save_picture(figure, "a", tmp_path)).with_suffix(".svg"), "d")
    assert "<script" not in svg
    assert "&lt;script&gt;" in svg


def test_intervals_stand_one_below_the_other_with_the_threshold() -> None:
    axes = draw_intervals(SIDES, 0.3).axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == list(SIDES)
    assert [text.get_text() for text in axes.texts] == [f"{side['interval']['mcc']:.3f}" for side in SIDES.values()]
    low, high = axes.get_xlim()
    ends = [side["interval"][end] for side in SIDES.values() for end in ("low", "high")]
    assert low < min(*ends, 0.3)
    assert high > max(ends)
    assert [0.3, 0.3] in [list(line.get_xdata()) for line in axes.lines]


def test_a_difference_stands_beside_nothing_at_all() -> None:
    axes = draw_difference(EVIDENCE["comparison"] | {"difference": 0.0, "low": 0.0, "high": 0.0}).axes[0]
    low, high = axes.get_xlim()
    assert low == -high < 0
    assert axes.texts[0].get_text() == "+0.000"


def test_the_diagram_of_calibration_shows_each_bin_of_both() -> None:
    axes = draw_calibration(SIDES).axes[0]
    for line, side in zip(axes.lines[1:], SIDES.values(), strict=True):
        assert list(line.get_xdata()) == [each["probability"] for each in side["calibration"]]
        assert list(line.get_ydata()) == [each["acceptable"] for each in side["calibration"]]


def test_both_confusions_stand_side_by_side() -> None:
    figure = draw_confusions(SIDES)
    assert [axes.get_title() for axes in figure.axes] == list(SIDES)
    for axes, side in zip(figure.axes, SIDES.values(), strict=True):
        counts = side["confusion"]
        assert [text.get_text() for text in axes.texts] == [str(counts[name]) for name in ("tn", "fp", "fn", "tp")]


def test_batches_of_negative_mcc_end_within_the_picture() -> None:
    measured = EVIDENCE["candidate"] | {"mcc_per_batch": [-0.8, 0.5]}
    assert draw_batches(measured | {"rows": 64}).axes[0].get_ylim()[0] == pytest.approx(-0.85)
    assert draw_batches(measured | {"rows": 64}).axes[0].get_xlabel() == "batch"
    assert draw_batches(measured | {"rows": 33}).axes[0].get_xlabel() == (
        "batch (the last: 1 sentence; 0: all of one class)"
    )


@pytest.mark.parametrize("window", [1, 3, 50])
def test_a_running_mean_is_that_of_the_last_values_that_are_numbers(window: int) -> None:
    values = np.array([1.0, 2.0, np.nan, 4.0, 8.0, np.nan])
    means = running_mean(values, window)
    for i in range(len(values)):
        known = values[max(0, i + 1 - window) : i + 1]
        known = known[np.isfinite(known)]
        assert means[i] == pytest.approx(known.mean()) if len(known) else np.isnan(means[i])


def test_a_long_run_is_a_band_and_a_line_of_few_points() -> None:
    losses = [1.0 + (step % 7) / 10 for step in range(100_000)]
    axes = draw_losses(training(step_losses=losses)).axes[0]
    (line,) = axes.lines
    assert len(line.get_xdata()) < 3 * MAX_STEPS
    (band,) = axes.collections
    heights = band.get_paths()[0].vertices[:, 1]
    assert (heights.min(), heights.max()) == (1.0, pytest.approx(1.6))


def test_the_epoch_that_is_kept_is_ringed() -> None:
    axes = draw_epochs(training(best_epoch=2)).axes[0]
    ring = next(line for line in axes.lines if line.get_label() == "selected")
    assert (list(ring.get_xdata()), list(ring.get_ydata())) == ([2], [0.4])
    soup = draw_epochs(training(averaged=True, soup_mcc=0.6)).axes[0]
    assert "mean of the seeds' weights, selected" in [line.get_label() for line in soup.lines]
