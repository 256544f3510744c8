"""Every picture, drawn without a display and without global state."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from tasks.metrics import BATCH

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from tasks.evidence import Measurement
    from tasks.finetune import Training

INK, ACCENT, PALE = "#334155", "#2563eb", "#cbd5e1"


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
    """Draw validation MCC and training accuracy by epoch, the kept epoch marked."""
    figure, axes = _canvas("Epochs", "epoch", "MCC, accuracy")
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
    axes.annotate(
        "kept", (best, values[best - 1]), textcoords="offset points", xytext=(0, -16), ha="center", color=ACCENT
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


def _canvas(title: str, x: str, y: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(6.4, 4.0), layout="constrained")
    axes = figure.subplots()
    axes.set(title=title, xlabel=x, ylabel=y)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes
