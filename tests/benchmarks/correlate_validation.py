"""Which validation predicts the holdout: sentences chosen by a hash, or whole sources.

    python tests/benchmarks/correlate_validation.py RUNS.json ... --out FILE --picture FILE

Of runs of `ablate_finetune.py --split both`, in which one training is judged by both, on as many sentences each: the
rank correlation (Spearman) of validation MCC with that of out_of_domain_dev. "runs" compares single trainings whose
folds are made alike first (some authors are harder); "recipes" compares the means
over folds and seeds, which is what a choice of a recipe rests on. Intervals are percentiles of a bootstrap over
recipes with all their runs. Files of runs by the hash alone, as older ones are, give one more row each.
"""

import argparse
import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.stats import rankdata

RESAMPLES = 2000
FITS = 30  # rounds in which the effects of folds settle


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+")
    parser.add_argument("--out", default="")
    parser.add_argument("--picture", default="")
    options = parser.parse_args()
    tables = {Path(path).stem: read_runs(path) for path in options.runs}
    both = pd.concat([table for table in tables.values() if "source_mcc" in table], ignore_index=True)
    rows = []
    for name, table in tables.items():
        if "source_mcc" not in table:
            rows += correlate(table, ["validation_mcc"], name)
    for column in ("hash_mcc", "source_mcc"):
        rows += correlate(both, [column], "both at once")
    rows += compare(both)
    for row in rows:
        print(" | ".join(f"{value:.3f}" if isinstance(value, float) else str(value) for value in row.values()))
    if options.out:
        result = {"benchmark": "validation and holdout", "rows": rows, "recipes": describe(both), "noise": noise(both)}
        Path(options.out).write_text(json.dumps(result, indent=2) + "\n")
    if options.picture:
        draw(both, options.picture)


def read_runs(path: str) -> pd.DataFrame:
    """Return the runs of a file that have both a validation and a holdout MCC; rows of older files as runs."""
    content = json.loads(Path(path).read_text())
    runs = content.get("runs") or [
        {"recipe": row["recipe"], "validation_mcc": known, "holdout_mcc": unseen}
        for row in content["rows"]
        for known, unseen in zip(row["validation"]["seeds"], row["holdout"]["seeds"], strict=True)
    ]
    kept = [{"fold": run.get("seed", 0)} | run for run in runs if "validation_mcc" in run]  # older: a split a seed
    table = pd.DataFrame(kept)
    wanted = [
        "recipe", "fold", "validation_mcc", "hash_mcc", "source_mcc", "holdout_mcc", "secondary_mcc", "pairs"
    ]  # fmt: skip
    return table[[column for column in wanted if column in table]]


def level(table: pd.DataFrame, unit: str) -> pd.DataFrame:
    """Return one row for each run, with its fold's effect taken off, or one for each recipe.

    Not every recipe has run on every fold: the effects are those of a fit with one number a recipe and one a fold.
    """
    figures = list(table.select_dtypes("number").columns.drop("fold"))
    alike = table.copy()
    for _ in range(FITS):
        own = alike[figures] - alike.groupby("recipe")[figures].transform("mean")
        alike[figures] -= own.groupby(alike["fold"]).transform("mean")
    return alike if unit == "runs" else alike.groupby("recipe", as_index=False)[figures].mean()


def describe(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Return each recipe's number of runs and mean figures without the effects of folds, the best by source first."""
    means = level(table, "recipes").assign(runs=table.groupby("recipe").size().to_numpy())
    ranked = means.sort_values("source_mcc", ascending=False).round(4)
    return [{str(name): value for name, value in row.items()} for row in ranked.to_dict("records")]


def noise(table: pd.DataFrame) -> dict[str, float]:
    """Return the standard deviation of one training's figures, where recipe and fold are the same."""
    runs = level(table, "runs")
    figures = [str(name) for name in runs.select_dtypes("number") if name != "fold"]
    rest = runs[figures] - runs.groupby("recipe")[figures].transform("mean")
    free = len(runs) - runs["recipe"].nunique() - runs["fold"].nunique() + 1
    return {name: round(float(np.sqrt((rest[name] ** 2).sum() / free)), 4) for name in figures}


def spearman(table: pd.DataFrame, column: str, rows: NDArray[np.int64] | None = None) -> float:
    """Return the rank correlation of a column with the holdout's MCC, over some rows [N] or all."""
    given, unseen = (table[name].to_numpy()[slice(None) if rows is None else rows] for name in (column, "holdout_mcc"))
    if len(np.unique(given)) < 2 or len(np.unique(unseen)) < 2:
        return float("nan")
    return float(np.corrcoef(rankdata(given), rankdata(unseen))[0, 1])


def correlate(table: pd.DataFrame, columns: list[str], name: str) -> list[dict[str, Any]]:
    """Return rows of the table: rank correlation of columns with the holdout's MCC, and its interval."""
    return [
        {"runs of": name, "validation": column.removesuffix("_mcc"), "unit": unit, "count": len(flat)}
        | estimate(flat, functools.partial(spearman, flat, column))
        for column in columns
        for unit in ("runs", "recipes")
        for flat in [level(table, unit)]
    ]


def compare(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Return rows: by how much the correlation by source is higher than that by hash."""

    def difference(flat: pd.DataFrame, rows: NDArray[np.int64] | None) -> float:
        return spearman(flat, "source_mcc", rows) - spearman(flat, "hash_mcc", rows)

    return [
        {"runs of": "both at once", "validation": "source - hash", "unit": unit, "count": len(flat)}
        | estimate(flat, functools.partial(difference, flat))
        for unit in ("runs", "recipes")
        for flat in [level(table, unit)]
    ]


def estimate(table: pd.DataFrame, figure: Callable[[NDArray[np.int64] | None], float]) -> dict[str, float]:
    """Return a figure, its 95% interval, and its share above 0 in a bootstrap of recipes with all their rows."""
    rng = np.random.default_rng(0)
    groups = [np.asarray(rows) for rows in table.groupby("recipe").indices.values()]
    drawn = np.array(
        [
            figure(np.concatenate([groups[index] for index in rng.integers(len(groups), size=len(groups))]))
            for _ in range(RESAMPLES)
        ]
    )
    low, high = np.nanpercentile(drawn, [2.5, 97.5])
    return {"correlation": figure(None), "low": float(low), "high": float(high), "above 0": float((drawn > 0).mean())}


def draw(table: pd.DataFrame, path: str) -> None:
    """Draw the recipes' means and the single runs, by hash and by source."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(10, 4.5), sharey=True, constrained_layout=True)
    for axis, column, title in zip(
        axes, ("hash_mcc", "source_mcc"), ("sentences by a hash", "whole sources"), strict=True
    ):
        runs, means = (level(table, unit) for unit in ("runs", "recipes"))
        axis.scatter(runs[column], runs["holdout_mcc"], s=14, alpha=0.35, label="one training")
        axis.scatter(means[column], means["holdout_mcc"], s=40, marker="D", label="mean of a recipe")
        found = [spearman(flat, column) for flat in (runs, means)]
        axis.set(title=f"{title}: rank correlation {found[0]:.2f}, of recipes {found[1]:.2f}", xlabel="validation MCC")
    axes[0].set_ylabel("MCC on out_of_domain_dev")
    axes[0].legend()
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main()
