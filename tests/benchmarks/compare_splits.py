"""Which sources validate best: rules that choose whole sources, judged by the answers of models that read none of them.

    python tests/benchmarks/compare_splits.py RUNS.json ... --out FILE --picture FILE2

RUNS are those of `ablate_finetune.py --split source` over all folds: together they hold, for each recipe, the answers
to every source by a model that was not trained on it. So a rule's validation MCC of a recipe is that of the answers to
the sources it chooses, for any rule and seed, without another training; of folds it is their mean. Of each encoder and
rule, over SEEDS seeds:

    rows, sources     that validate, means
    gap               of validation MCC from the holdout's, mean over recipes and seeds, and its spread over seeds
    rank of all       rank correlation (Spearman) over recipes with the MCC on all sources, mean over seeds
    rank of holdout   the same with the MCC on out_of_domain_dev, mean of the recipe's trainings
"""

import argparse
import json
import statistics
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from ablate_finetune import mcc_of_counts
from scipy.stats import spearmanr

from tasks.core.files import write_json
from tasks.data.splitting import validation_sources

SEEDS = 100
Rows = Mapping[str, int]


class Encoder(NamedTuple):
    """What the recipes of one encoder answered."""

    name: str
    rows: Rows
    """Of each source."""
    answers: dict[str, dict[str, Any]]
    """Counts of answers by recipe and source, see `ablate_finetune.confusion`."""
    holdout: dict[str, float]
    """MCC by recipe."""
    folds: list[list[str]]
    """Sources of each fold."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+")
    parser.add_argument("--out", default="")
    parser.add_argument("--picture", default="")
    options = parser.parse_args()
    encoders = [read_encoder(Path(path)) for path in options.runs]
    rows = []
    for each in encoders:
        chosen = {name: [[rule(each.rows, seed)] for seed in range(SEEDS)] for name, rule in RULES.items()}
        chosen["all, in five folds"] = [each.folds] * SEEDS
        rows += [{"encoder": each.name, "rule": name} | judge(each, choices) for name, choices in chosen.items()]
    for row in rows:
        print(" | ".join(f"{value:.3f}" if isinstance(value, float) else str(value) for value in row.values()))
    result = {
        "benchmark": "sources that validate",
        "rows": rows,
        "recipes": [recipe for each in encoders for recipe in describe(each)],
    }
    if options.out:
        write_json(Path(options.out), result)
    if options.picture:
        draw(encoders, options.picture)


def read_encoder(path: Path) -> Encoder:
    """Return what the runs of a file answered; recipes that some source is missing for are left out."""
    content = json.loads(path.read_text())
    answers: dict[str, dict[str, Any]] = {}
    holdout: dict[str, list[float]] = {}
    for run in content["runs"]:
        answers.setdefault(run["recipe"], {}).update(run["by_source"])
        holdout.setdefault(run["recipe"], []).append(run["holdout_mcc"])
    sources = {source for found in answers.values() for source in found}
    whole = {recipe: found for recipe, found in answers.items() if set(found) == sources}
    rows = {source: sum(next(iter(whole.values()))[source]) for source in sorted(sources)}
    folds = {run["fold"]: list(run["by_source"]) for run in content["runs"]}
    means = {recipe: statistics.mean(holdout[recipe]) for recipe in whole}
    return Encoder(content["encoder"], rows, whole, means, [folds[number] for number in sorted(folds)])


def smallest(rows: Rows, seed: int) -> list[str]:
    """Return the smallest sources, a tenth of the rows."""
    chosen, taken = [], 0
    for source in sorted(rows, key=lambda source: (rows[source], source)):
        if taken + rows[source] <= sum(rows.values()) / 10:
            chosen.append(source)
            taken += rows[source]
    return chosen


def one_in_five(rows: Rows, seed: int) -> list[str]:
    """Return every fifth source in the order of their sizes."""
    return sorted(rows, key=lambda source: (rows[source], source))[seed % 5 :: 5]


RULES: dict[str, Callable[[Rows, int], list[str]]] = {
    "the smallest, a tenth": smallest,
    "by a hash, a tenth": lambda rows, seed: validation_sources(rows, 0.1, seed),
    "by a hash, a fifth": lambda rows, seed: validation_sources(rows, 0.2, seed),
    "every fifth by size": one_in_five,
}


def judge(encoder: Encoder, choices: list[list[list[str]]]) -> dict[str, Any]:
    """Return the figures of a rule, means over what it chose for each seed: a part of the sources, or several folds."""
    whole, unseen = (
        [measure(encoder, recipe, list(encoder.rows)) for recipe in encoder.answers],
        encoder.holdout.values(),
    )
    found = [
        [statistics.mean(measure(encoder, recipe, part) for part in parts) for recipe in encoder.answers]
        for parts in choices
    ]
    chosen = [[source for part in parts for source in part] for parts in choices]
    gaps = [statistics.mean(mccs) - statistics.mean(unseen) for mccs in found]
    return {
        "rows": round(statistics.mean(sum(encoder.rows[source] for source in sources) for sources in chosen)),
        "sources": round(statistics.mean(map(len, chosen)), 1),
        "gap": round(statistics.mean(gaps), 4),
        "spread": round(statistics.stdev(gaps), 4),
        "rank of all": round(statistics.mean(correlate(mccs, whole) for mccs in found), 3),
        "rank of holdout": round(statistics.mean(correlate(mccs, list(unseen)) for mccs in found), 3),
    }


def measure(encoder: Encoder, recipe: str, sources: list[str]) -> float:
    """Return a recipe's MCC on sources, of all their answers together."""
    return mcc_of_counts(np.sum([encoder.answers[recipe][source] for source in sources], axis=0))


def correlate(left: list[float], right: list[float]) -> float:
    return float(spearmanr(left, right).statistic)


def describe(encoder: Encoder) -> list[dict[str, Any]]:
    """Return a row for each recipe: its MCC on all sources, on the holdout, and on each source."""
    return [
        {
            "encoder": encoder.name,
            "recipe": recipe,
            "all sources": round(measure(encoder, recipe, list(encoder.rows)), 4),
            "mean of folds": round(statistics.mean(measure(encoder, recipe, fold) for fold in encoder.folds), 4),
            "holdout": round(encoder.holdout[recipe], 4),
            "by source": {source: round(measure(encoder, recipe, [source]), 4) for source in encoder.rows},
        }
        for recipe in encoder.answers
    ]


def draw(encoders: list[Encoder], path: str) -> None:
    """Draw the mean MCC of all recipes on each source against its number of rows."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4), layout="constrained")
    axis = figure.subplots()
    for encoder, color in zip(encoders, ("#4477aa", "#cc6677"), strict=False):
        means = [
            statistics.mean(measure(encoder, recipe, [source]) for recipe in encoder.answers) for source in encoder.rows
        ]
        axis.scatter(list(encoder.rows.values()), means, color=color, label=encoder.name)
        for place in zip(encoder.rows, encoder.rows.values(), means, strict=True):
            axis.annotate(place[0], place[1:], xytext=(0, 5), textcoords="offset points", fontsize=7, ha="center")
        axis.axhline(statistics.mean(encoder.holdout.values()), color=color, linestyle="--", linewidth=1)
    axis.set(xscale="log", xlabel="rows of the source", ylabel="MCC of models that have not read it")
    axis.legend(title="dashed: out_of_domain_dev", loc="upper left")
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main()
