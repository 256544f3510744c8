"""Every picture, drawn without a display and without global state."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from tasks.metrics import BATCH

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from tasks.drift import Counts, Profile
    from tasks.evidence import Measurement
    from tasks.finetune import Training

INK, ACCENT, PALE = "#334155", "#2563eb", "#cbd5e1"
BARS = 40  # of a histogram, about
TAIL = 0.005  # share of the sentences, the longest ones, that stand in a histogram's last bar


def draw_charts(training: Training, measurement: Measurement, folder: str) -> dict[str, str]:
    """Draw loss per step, figures per epoch, MCC per batch and the confusion; return PNG paths by name."""
    pictures = {
        "loss_per_step": draw_losses(training),
        "epochs": draw_epochs(training),
        "mcc_per_batch": draw_batches(measurement),
        "confusion": draw_confusion(measurement),
    }
    paths = {}
    for name, figure in pictures.items():
        path = Path(folder) / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=110)
        paths[name] = str(path)
    return paths


def draw_losses(training: Training) -> Figure:
    """Draw the training loss of each step and its running mean over a twentieth of the run."""
    losses = [loss if loss is not None else float("nan") for loss in training["step_losses"]]
    figure, axes = _canvas("Training loss", "step", "cross-entropy")
    steps = range(1, len(losses) + 1)
    axes.plot(steps, losses, color=PALE, linewidth=0.8, label="each step")
    window = max(1, len(losses) // 20)
    running = [sum(losses[max(0, i - window) : i]) / min(i, window) for i in steps]
    axes.plot(steps, running, color=ACCENT, linewidth=1.8, label=f"mean of {window} steps")
    axes.legend(frameon=False)
    return figure


def draw_epochs(training: Training) -> Figure:
    """Draw validation MCC and training accuracy by epoch of the best seed, the others pale, and what is kept."""
    figure, axes = _canvas("Epochs", "epoch", "MCC, accuracy")
    others = [seed for seed in training["seeds"] if seed["seed"] != training["seed"]]
    for number, seed in enumerate(others):
        label = "other seeds" if number == 0 else None
        axes.plot(range(1, len(seed["curve"]) + 1), seed["curve"], color=PALE, linewidth=1.2, label=label)
    numbers = [epoch["epoch"] for epoch in training["epochs"]]
    values = [epoch["validation_mcc"] for epoch in training["epochs"]]
    axes.plot(numbers, values, color=ACCENT, marker="o", label="validation MCC")
    axes.plot(
        numbers,
        [epoch["train_accuracy"] for epoch in training["epochs"]],
        color=INK,
        marker=".",
        label="train accuracy",
    )
    best = training["best_epoch"]
    word = "best" if training["kept"] == "soup" else "kept"
    axes.annotate(
        word, (best, values[best - 1]), textcoords="offset points", xytext=(0, -16), ha="center", color=ACCENT
    )
    if training["soup_mcc"] is not None:
        kept = ", kept" if training["kept"] == "soup" else ""
        axes.axhline(
            training["soup_mcc"], color=ACCENT, linestyle="--", linewidth=1.2, label=f"mean of the seeds' weights{kept}"
        )
    axes.set_xticks(numbers)
    axes.legend(frameon=False)
    return figure


def draw_batches(measurement: Measurement) -> Figure:
    """Draw the holdout's MCC in batches of 32, the book's figure, with the MCC of the whole."""
    figure, axes = _canvas(f"Holdout MCC by batches of {BATCH}", "batch", "MCC")
    values = measurement["mcc_per_batch"]
    axes.bar(range(1, len(values) + 1), values, color=PALE)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    interval = measurement["interval"]
    axes.axhspan(interval["low"], interval["high"], color=ACCENT, alpha=0.12, label="95% interval")
    axes.axhline(interval["mcc"], color=ACCENT, label=f"whole holdout: {interval['mcc']:.3f}")
    axes.legend(loc="lower right", framealpha=0.9)
    return figure


def draw_confusion(measurement: Measurement) -> Figure:
    """Draw the four counts of label against prediction."""
    figure, axes = _canvas("Confusion on the holdout", "predicted", "label")
    counts = measurement["confusion"]
    table = [[counts["tn"], counts["fp"]], [counts["fn"], counts["tp"]]]
    axes.imshow(table, cmap="Blues")
    largest = max(counts.values())
    for row, cells in enumerate(table):
        for column, count in enumerate(cells):
            color = "white" if count > largest / 2 else INK
            axes.text(column, row, str(count), ha="center", va="center", color=color, fontsize=16)
    names = ["unacceptable", "acceptable"]
    axes.set_xticks([0, 1], names)
    axes.set_yticks([0, 1], names, rotation=90, va="center")
    return figure


def draw_lengths(profile: Profile, reference: Profile | None) -> Figure:
    """Draw how long the training sentences are, and over it the reference's lengths as a line.

    Args:
        profile: of the data that is looked at.
        reference: of the data that the champion was trained on; None: no line.
    """
    profiles = [profile, reference] if reference else [profile]
    longest = max(_most_characters(each["characters"]) for each in profiles)
    width = max(1, -(-longest // BARS))  # whole characters, so that each bar stands for as many lengths
    count = longest // width + 1
    edges = [width * i for i in range(count + 1)]
    figure, axes = _canvas("Length of the training sentences", "characters", "share of the sentences (%)")
    axes.stairs(_shares(profile["characters"], width, count), edges, fill=True, color=ACCENT, alpha=0.55, label="new")
    if reference:
        shares = _shares(reference["characters"], width, count)
        axes.stairs(shares, edges, color=INK, linewidth=1.4, label="champion's data")
        axes.legend(frameon=False)
    if any(int(key) >= edges[-1] for each in profiles for key in each["characters"]):
        axes.set_xlabel(f"characters (last bar: {edges[-2]} or more)")
    axes.set(xlim=(0, edges[-1]), ylim=(0, None))
    return figure


def _most_characters(counts: Counts) -> int:
    """Return the length that only a small tail exceeds; one endless sentence would squeeze all others into a bar."""
    rest = sum(counts.values()) * (1 - TAIL)
    for length in sorted(map(int, counts)):
        rest -= counts[str(length)]
        if rest <= 0:
            return length
    return 0


def _shares(counts: Counts, width: int, count: int) -> list[float]:
    """Return the percentage of the sentences in each bar, the longest ones in the last."""
    sums = [0] * count
    for key, rows in counts.items():
        sums[min(int(key) // width, count - 1)] += rows
    return [100 * rows / max(sum(sums), 1) for rows in sums]


def _canvas(title: str, x: str, y: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(6.4, 4.0), layout="constrained")
    axes = figure.subplots()
    axes.set(title=title, xlabel=x, ylabel=y)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes
