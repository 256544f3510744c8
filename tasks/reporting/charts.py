"""Draws every figure: training curves, candidate and champion, sentence lengths.

A figure without data (no champion, no finite loss) is left out, or drawn without the missing part.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

from tasks.core.printable import counted
from tasks.evaluation.metrics import MCC_BATCH
from tasks.evaluation.thresholds import ThresholdCurve, curves_of
from tasks.reporting.figure_style import ACCENT, INK, PALE, new_axes, new_figure, save_picture, styled
from tasks.reporting.past_champions import PastChampion, comparable_spans

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from tasks.data.drift import DataProfile, Histogram
    from tasks.evaluation.evidence import Evidence
    from tasks.evaluation.measurement import Comparison, Measurement
    from tasks.training.finetune import TrainingResult

MAX_BARS = 40  # of a histogram, approximately
LENGTH_TAIL = 0.005  # share of the sentences, the longest ones, that a histogram's last bar pools
MAX_STEPS = 500  # points of a curve; above twice that, each point is the range of several steps
MAX_VERSION_TICKS = 6  # of the champions' figure
INTERVAL_HEIGHT = 1.9  # inches, of a figure with one or two intervals


def draw_charts(
    training: TrainingResult,
    evidence: Evidence,
    threshold: float,
    folder: str,
    champions: Sequence[PastChampion] = (),
) -> dict[str, str]:
    """Draw all figures of a report; return the PNG paths by name, each with an SVG of the same name beside it.

    Args:
        training: of the candidate.
        evidence: of candidate and champion.
        threshold: smallest MCC that is not rejected.
        folder: receives the files.
        champions: versions that were champion, oldest first; without any there is no figure of them.
    """
    candidate, champion = evidence["candidate"], evidence["champion"]
    measured = champion["measurement"] if champion else None
    sides = {"candidate": candidate} | ({f"champion {champion['version']}": measured} if champion and measured else {})
    curves = dict(zip(sides, curves_of(evidence), strict=True))
    pictures = {
        "intervals": draw_intervals(sides, threshold),
        "ranking": draw_ranking(curves),
        "thresholds": draw_thresholds(curves),
        "calibration": draw_calibration(sides),
        "confusion": draw_confusions(sides),
        "loss_per_step": draw_losses(training),
        "epochs": draw_epochs(training),
        "mcc_per_batch": draw_batches(candidate),
    }
    if comparison := evidence["comparison"]:
        pictures["difference"] = draw_difference(comparison)
    if champions:
        pictures["champions"] = draw_champions([*champions, _as_last(evidence)])
    return {name: save_picture(figure, name, Path(folder)) for name, figure in pictures.items()}


@styled
def draw_intervals(sides: dict[str, Measurement], threshold: float) -> Figure:
    """Draw the MCC of each side, the candidate first, with its 95% interval, and the threshold."""
    figure, axes = new_axes("MCC on the holdout, 95% CI", "", "", INTERVAL_HEIGHT)
    for row, measured in enumerate(sides.values()):
        interval = measured["interval"]
        _draw_interval(axes, row, interval["mcc"], interval["low"], interval["high"], f"{interval['mcc']:.3f}")
    axes.axvline(threshold, color=PALE, linestyle="--", linewidth=1.2)
    axes.set_yticks(range(len(sides)), list(sides))
    axes.set_ylim(len(sides) - 0.4, -0.8)
    ends = [measured["interval"][end] for measured in sides.values() for end in ("low", "high")]
    low, high = min(*ends, threshold), max(*ends, threshold)
    room = max(0.05, (high - low) * 0.08)
    axes.set_xlim(low - room, high + room)
    axes.set_xlabel(f"dashed: threshold {threshold:g}")
    return figure


@styled
def draw_difference(comparison: Comparison) -> Figure:
    """Draw the difference of the MCC with its 95% interval, and 0."""
    figure, axes = new_axes("MCC, candidate minus champion, 95% CI", "dashed: equal", "", INTERVAL_HEIGHT)
    low, high = comparison["low"], comparison["high"]
    _draw_interval(axes, 0, comparison["difference"], low, high, f"{comparison['difference']:+.3f}")
    axes.axvline(0, color=PALE, linestyle="--", linewidth=1.2)
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    axes.set_ylim(0.6, -0.8)
    reach = 1.15 * max(abs(low), abs(high), 0.02)
    axes.set_xlim(-reach, reach)
    return figure


@styled
def draw_champions(champions: Sequence[PastChampion]) -> Figure:
    """Draw the MCC of champions in their order, the candidate last, with 95% CI; a line joins those of one holdout."""
    figure, axes = new_axes("MCC when judged, 95% CI", "version", "MCC", 2.6)
    for span in comparable_spans(champions):
        axes.plot(span, [champions[position].mcc or 0.0 for position in span], color=PALE, linewidth=1.2)
    for position, each in enumerate(champions):
        if each.mcc is not None:
            colour, mark = (ACCENT, "o") if position == len(champions) - 1 else (INK, "D")
            axes.plot([position, position], [each.low or 0.0, each.high or 0.0], color=colour, linewidth=1.6)
            axes.plot([position], [each.mcc], color=colour, marker=mark, markersize=6)
    names = [f"{each.version}\n{each.time[:10]}" if each.time else each.version for each in champions]
    step = -(-len(champions) // MAX_VERSION_TICKS)
    shown = range((len(champions) - 1) % step, len(champions), step)  # the candidate always
    axes.set_xticks(shown, [names[position] for position in shown])
    axes.margins(x=0.08, y=0.12)
    return figure


def _as_last(evidence: Evidence) -> PastChampion:
    """Return the candidate as the last point of the champions' figure."""
    interval = evidence["candidate"]["interval"]
    return PastChampion(
        "candidate", None, "", interval["mcc"], interval["low"], interval["high"], evidence["holdout_digest"], ""
    )


@styled
def draw_ranking(curves: dict[str, ThresholdCurve]) -> Figure:
    """Draw the ROC curve and the precision-recall curve of each side, with a mark where it serves."""
    figure = new_figure(3.1)
    roc, precision = figure.subplots(1, 2)
    for (name, curve), colour, mark in zip(curves.items(), (ACCENT, INK), ("o", "D"), strict=False):
        for axes, across, up in (
            (roc, curve.false_positive_rate, curve.recall),
            (precision, curve.recall, curve.precision),
        ):
            axes.plot(across, up, color=colour, linewidth=1.4, label=name)
            axes.plot(across[curve.served], up[curve.served], color=colour, marker=mark, markersize=6)
    roc.plot([0, 1], [0, 1], color=PALE, linestyle="--", linewidth=1.2)
    roc.set(title="ROC", xlabel="false positive rate", ylabel="true positive rate")
    precision.set(title="Precision and recall", xlabel="recall", ylabel="precision")
    for axes in (roc, precision):
        axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.05))
    roc.legend(loc="lower right")
    return figure


@styled
def draw_thresholds(curves: dict[str, ThresholdCurve]) -> Figure:
    """Draw the MCC of each side over the decision threshold, with a mark where it serves."""
    served = next(iter(curves.values())).served_threshold
    figure, axes = new_axes("MCC by decision threshold", f"dashed: {served:.3g}, which serves", "MCC", 2.6)
    for (name, curve), colour, mark in zip(curves.items(), (ACCENT, INK), ("o", "D"), strict=False):
        axes.plot(curve.thresholds, curve.mcc, color=colour, linewidth=1.4, label=name)
        axes.plot([curve.served_threshold], [curve.mcc[curve.served]], color=colour, marker=mark, markersize=6)
    axes.axvline(served, color=PALE, linestyle="--", linewidth=1.2)
    axes.set(xlim=(0, 1))
    axes.legend()
    return figure


@styled
def draw_calibration(sides: dict[str, Measurement]) -> Figure:
    """Draw the reliability diagram of each side; the area of a marker grows with its number of sentences."""
    figure, axes = new_axes("Calibration", 'predicted probability of "acceptable"', "share that is acceptable")
    axes.plot([0, 1], [0, 1], color=PALE, linestyle="--", linewidth=1.2)
    for (name, measured), colour, mark in zip(sides.items(), (ACCENT, INK), ("o", "D"), strict=False):
        bins = measured["calibration"]
        predicted, observed = [each["probability"] for each in bins], [each["acceptable"] for each in bins]
        sizes = [12 + 120 * each["rows"] / max(measured["rows"], 1) for each in bins]
        axes.plot(predicted, observed, color=colour, linewidth=1.2, label=f"{name}: error {measured['ece']:.3f}")
        axes.scatter(predicted, observed, s=sizes, marker=mark, color=colour, alpha=0.8, linewidths=0)
    axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.05))
    axes.legend(loc="upper left")
    return figure


@styled
def draw_confusions(sides: dict[str, Measurement]) -> Figure:
    """Draw the confusion matrix of each side."""
    figure = new_figure(2.7)
    largest = max(max(measured["confusion"].values()) for measured in sides.values())
    for axes, (name, measured) in zip(np.atleast_1d(figure.subplots(1, len(sides))), sides.items(), strict=True):
        counts = measured["confusion"]
        for row, cells in enumerate(((counts["tn"], counts["fp"]), (counts["fn"], counts["tp"]))):
            for column, count in enumerate(cells):
                shade = 0.06 + 0.44 * count / max(largest, 1)
                colour = ACCENT if row == column else PALE
                axes.add_patch(Rectangle((column - 0.5, row - 0.5), 1, 1, color=colour, alpha=shade, linewidth=0))
                axes.text(column, row, str(count), ha="center", va="center", fontsize=13)
        axes.set(xlim=(-0.5, 1.5), ylim=(1.5, -0.5), title=name, xlabel="predicted", aspect="equal")
        axes.set_xticks([0, 1], ["unacc.", "acc."])
        axes.set_yticks([0, 1], ["unacc.", "acc."], rotation=90, va="center")
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
    figure.axes[0].set_ylabel("label")
    return figure


@styled
def draw_losses(training: TrainingResult) -> Figure:
    """Draw the training loss of each step and its running mean over a twentieth of the steps."""
    losses = np.array([np.nan if loss is None else loss for loss in training["step_losses"]], np.float64)
    figure, axes = new_axes("Training loss", "step", "cross-entropy")
    steps = np.arange(1, len(losses) + 1)
    width = -(-len(losses) // MAX_STEPS)
    if width > 2:  # a band instead of a line
        padded = np.pad(losses, (0, -len(losses) % width), constant_values=np.nan).reshape(-1, width)
        low, high = np.fmin.reduce(padded, axis=1), np.fmax.reduce(padded, axis=1)
        axes.fill_between(steps[::width], low, high, color=PALE, alpha=0.45, linewidth=0, label=f"range of {width}")
    else:
        axes.plot(steps, losses, color=PALE, linewidth=0.8, label="each step")
    window = max(1, len(losses) // 20)
    every = max(1, width // 2)
    axes.plot(
        *(steps[::every], running_mean(losses, window)[::every]), color=ACCENT, linewidth=1.8, label=f"mean of {window}"
    )
    axes.legend()
    return figure


def running_mean(values: np.ndarray, window: int) -> np.ndarray:
    """Return the mean of the last `window` values at each of N positions, without NaN and Inf."""
    finite = np.isfinite(values)
    sums, counts = (np.concatenate([[0.0], np.cumsum(each)]) for each in (np.where(finite, values, 0.0), finite))
    end = np.arange(1, len(values) + 1)
    start = np.maximum(end - window, 0)
    number = counts[end] - counts[start]
    return np.divide(sums[end] - sums[start], number, out=np.full(len(values), np.nan), where=number > 0)


@styled
def draw_epochs(training: TrainingResult) -> Figure:
    """Draw validation MCC and training accuracy by epoch of the best seed, other seeds' MCC pale, and the selection."""
    figure, axes = new_axes("Epochs", "epoch", "MCC, accuracy")
    others = [seed for seed in training["seeds"] if seed["seed"] != training["seed"]]
    for number, seed in enumerate(others):
        label = "other seeds" if number == 0 else None
        axes.plot(range(1, len(seed["curve"]) + 1), seed["curve"], color=PALE, linewidth=1.2, label=label)
    numbers = [epoch["epoch"] for epoch in training["epochs"]]
    values = [epoch["validation_mcc"] for epoch in training["epochs"]]
    accuracies = [epoch["train_accuracy"] for epoch in training["epochs"]]
    axes.plot(numbers, accuracies, color=INK, marker=".", linewidth=1.2, label="train accuracy")
    axes.plot(numbers, values, color=ACCENT, marker="o", label="validation MCC")
    best = training["best_epoch"]
    word = "best" if training["averaged"] else "selected"
    ring = axes.plot([best], [values[best - 1]], color=ACCENT, marker="o", linestyle="none", label=word)[0]
    ring.set(markersize=12, markerfacecolor="none")
    if training["soup_mcc"] is not None:
        selected = ", selected" if training["averaged"] else ""
        label = f"mean of the seeds' weights{selected}"
        axes.axhline(training["soup_mcc"], color=ACCENT, linestyle="--", linewidth=1.2, label=label)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.margins(x=0.08, y=0.15)
    axes.legend()
    return figure


@styled
def draw_batches(measurement: Measurement) -> Figure:
    """Draw the MCC of each batch of 32 holdout sentences, the book's figure, with the MCC of the whole holdout."""
    short = measurement["rows"] % MCC_BATCH
    batch = f"batch (the last: {counted(short, 'sentence')}; 0: all of one class)" if short else "batch"
    figure, axes = new_axes(f"MCC by batches of {MCC_BATCH}", batch, "MCC")
    values = measurement["mcc_per_batch"]
    axes.bar(range(1, len(values) + 1), values, color=PALE, alpha=0.7)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    interval = measurement["interval"]
    axes.axhspan(interval["low"], interval["high"], color=ACCENT, alpha=0.15, linewidth=0, label="95% CI")
    axes.axhline(interval["mcc"], color=ACCENT, label=f"whole holdout: {interval['mcc']:.3f}")
    axes.set_xlim(0.3, len(values) + 0.7)
    lowest = min(0.0, *values, interval["low"])
    axes.set_ylim(lowest - 0.05 * (lowest < 0), 1.3)  # room for the legend, and below a bar, which looks cut otherwise
    axes.set_yticks([tick for tick in (-1, -0.5, 0, 0.5, 1) if tick >= axes.get_ylim()[0]])
    axes.legend(loc="upper center", ncols=2)
    return figure


@styled
def draw_lengths(profile: DataProfile, reference: DataProfile | None) -> Figure:
    """Draw the histogram of the training sentences' lengths, with the reference's as a line.

    Args:
        profile: of the new data.
        reference: of the data that the champion was trained on; None for no line.
    """
    profiles = [profile, reference] if reference else [profile]
    longest = max(_most_characters(each["characters"]) for each in profiles)
    width = max(1, -(-longest // MAX_BARS))  # whole characters, so that every bar covers as many lengths
    count = longest // width + 1
    edges = [width * i for i in range(count + 1)]
    figure, axes = new_axes("Length of the training sentences", "characters", "share of the sentences (%)")
    axes.stairs(_shares(profile["characters"], width, count), edges, fill=True, color=ACCENT, alpha=0.55, label="new")
    if reference:
        shares = _shares(reference["characters"], width, count)
        axes.stairs(shares, edges, color=INK, linewidth=1.4, label="champion's data")
        axes.legend()
    if any(int(key) >= edges[-1] for each in profiles for key in each["characters"]):
        axes.set_xlabel(f"characters (last bar: {edges[-2]} or more)")
    axes.set(xlim=(0, edges[-1]), ylim=(0, None))
    return figure


@styled
def draw_tokens(roles: dict[str, Histogram]) -> Figure:
    """Draw the shares of the sentences of each role by their number of tokens, as the encoder reads them."""
    figure, axes = new_axes("Tokens of a sentence", "tokens, truncated as in training", "share of the sentences (%)")
    longest = max((int(key) for counts in roles.values() for key in counts), default=0)
    width = max(1, -(-longest // MAX_BARS))
    count = longest // width + 1
    edges = [width * i for i in range(count + 1)]
    for (role, counts), style in zip(roles.items(), ("fill", "-", "--"), strict=False):
        shares = _shares(counts, width, count)
        if style == "fill":
            axes.stairs(shares, edges, fill=True, color=ACCENT, alpha=0.55, label=role)
        else:
            axes.stairs(shares, edges, color=INK, linestyle=style, linewidth=1.4, label=role)
    axes.set(xlim=(0, edges[-1]), ylim=(0, None))
    axes.legend()
    return figure


def _most_characters(counts: Histogram) -> int:
    """Return the length that at most LENGTH_TAIL of the sentences exceed, so that outliers do not set the scale."""
    rest = sum(counts.values()) * (1 - LENGTH_TAIL)
    for length in sorted(map(int, counts)):
        rest -= counts[str(length)]
        if rest <= 0:
            return length
    return 0


def _shares(counts: Histogram, width: int, count: int) -> list[float]:
    """Return the percentage of sentences in each bar; the last one pools longer ones."""
    sums = [0] * count
    for key, rows in counts.items():
        sums[min(int(key) // width, count - 1)] += rows
    return [100 * rows / max(sum(sums), 1) for rows in sums]


def _draw_interval(axes: Axes, row: int, value: float, low: float, high: float, text: str) -> None:
    """Draw a value with its interval; row 0 is the candidate's."""
    colour, mark = (ACCENT, "o") if row == 0 else (INK, "D")
    axes.plot([low, high], [row, row], color=colour, linewidth=2.2, solid_capstyle="butt")
    axes.plot([low, high], [row, row], color=colour, marker="|", markersize=9, linestyle="none")
    axes.plot([value], [row], color=colour, marker=mark, markersize=7)
    axes.annotate(text, (value, row), textcoords="offset points", xytext=(0, 9), ha="center", fontweight="bold")
