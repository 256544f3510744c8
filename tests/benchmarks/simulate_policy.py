"""Counts how often the promotion rule is wrong, with the judge's own functions on candidates of known quality.

    .venv/bin/python tests/benchmarks/simulate_policy.py                    some eight minutes, on one core
    .venv/bin/python tests/benchmarks/simulate_policy.py --histories 1000 --out FILE

What the numbers in mlflow/policy.toml rest on: false promotions at one look and in rows of looks, what a truly better
candidate has left after them, and other rules beside it: the Ladder of Blum and Hardt 2015
(https://arxiv.org/abs/1502.04585) with one margin for all looks and without a parameter, and other ways to spend the
same error. Thresholdout needs a second sample that neither model was trained on, and there is none. The models are
those of tests/simulated.py.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).parents[1] / "support"))

import simulated
from simulated import ACCEPTABLE, AGREEMENT, MCC, SENTENCES, Holdouts, decisions, p_values

from tasks.core.policy import Policy, load_policy
from tasks.core.provenance import git_commit, library_versions
from tasks.evaluation.judge import alpha
from tasks.evaluation.paired_tests import mcc_difference

LOOKS = (0, 10, 50, 100)
RESULT = Path(__file__).with_name("results") / "policy-simulation.json"

Rule = Callable[[NDArray[np.float64], NDArray[np.float64], int], NDArray[np.bool_]]  # p values, differences, uses


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--histories", type=int, default=10_000)
    parser.add_argument("--out", default=str(RESULT))
    options = parser.parse_args()
    started = time.perf_counter()
    policy = load_policy().model_copy(update={"threshold": -1.0})  # what is counted is the comparison alone
    result = {
        "benchmark": "policy simulation",
        "models": {
            "sentences": SENTENCES,
            "acceptable": ACCEPTABLE,
            "mcc": MCC,
            "agreement": AGREEMENT,
            "shared_spread": round(simulated.world().shared, 4),
        },
        "histories": options.histories,
        "policy": policy.model_dump(),
        "one_look": count_single(policy, options.histories),
        "rules": compare_rules(policy, options.histories),
        "in_a_row": count_rows_of_looks(policy, options.histories),
        "larger_holdouts": count_larger(policy, options.histories // 5),
        "climbing": count_climbing(policy, options.histories // 5),
        "commit": git_commit(),
        "versions": {name: version for name, version in library_versions().items() if name in ("python", "numpy")},
        "seconds": round(time.perf_counter() - started, 1),
    }
    Path(options.out).write_text(json.dumps(result, indent=2) + "\n")
    show(result)


def count_single(policy: Policy, histories: int) -> list[dict[str, Any]]:
    """Judge single candidates of several qualities, slices included, at several looks."""
    found = []
    for gain in (-0.08, -0.04, 0.0, 0.04, 0.08, 0.12):
        whole, *slices = simulated.draw_sliced(histories, seed=round(1_000 * (gain + 1)), gain=gain)
        entry: dict[str, Any] = {"gain": gain, "promoted": {}}
        for looks in LOOKS:
            decided = decisions(whole[:, None], policy, looks, tuple(slices))
            entry["promoted"][str(looks)] = share(decided == "PROMOTE")
        free = policy.model_copy(update={"max_slice_drop": 2.0})
        merit = decisions(whole[:, None], free) == "PROMOTE"
        held = merit & (decisions(whole[:, None], policy, 0, tuple(slices)) != "PROMOTE")
        entry["held_by_slices"] = round(float(held.sum() / max(merit.sum(), 1)), 4)
        few = whole[: min(histories, 2_000)]
        rejected = [simulated.decide(simulated.evidence_of(one, 0), policy)[0] == "REJECT" for one in few]
        entry["rejected"] = share(np.array(rejected))
        found.append(entry)
    return found


def compare_rules(policy: Policy, histories: int) -> list[dict[str, Any]]:
    """Put rules beside each other: false promotions in 100 equal candidates, and what is left for a better one."""
    equal = simulated.draw_candidates(histories, 100, seed=1)
    better = simulated.draw_candidates(histories, 1, seed=2, gain=0.08)
    null, null_difference = p_values(equal), mcc_difference(equal)
    real, real_difference = p_values(better), mcc_difference(better)
    # The Ladder's margin that holds 95% of such histories; a smaller one does not.
    margin = float(np.quantile(null_difference.max(axis=1), 0.95))
    deviation = float(null_difference.std())
    spend = 1 - policy.confidence
    rules: dict[str, Rule] = {
        "every look alike": lambda chance, _, looks: chance <= spend,
        "2% / (looks + 1)": lambda chance, _, looks: chance <= spend / (looks + 1),
        "2% / (looks + 1) ^ 1.2": lambda chance, _, looks: chance <= spend / (looks + 1) ** 1.2,
        "2% / (looks + 1) ^ 1.5": lambda chance, _, looks: chance <= spend / (looks + 1) ** 1.5,
        "2% at first, then 0.06%": lambda chance, _, looks: chance <= (0.0006 if looks else spend),
        "the policy": lambda chance, _, looks: chance <= alpha(policy, looks),
        "5% / 100 from the start": lambda chance, _, looks: chance <= 0.05 / 100,
        "Ladder, no parameter (one standard deviation)": lambda _, difference, looks: difference > deviation,
        f"Ladder, margin {margin:.3f} of MCC": lambda _, difference, looks: difference > margin,
    }
    found = []
    for name, rule in rules.items():
        passed = np.stack([rule(null[:, look], null_difference[:, look], look) for look in range(100)], axis=1)
        found.append(
            {
                "rule": name,
                "false_first": share(passed[:, 0]),
                "false_in_100": share(passed.any(axis=1)),
                "better_promoted": {str(looks): share(rule(real, real_difference, looks)) for looks in LOOKS},
            }
        )
    return found


def count_rows_of_looks(policy: Policy, histories: int) -> dict[str, float]:
    """Let the judge decide about 150 equal candidates in a row."""
    promoted = decisions(simulated.draw_candidates(histories, 150, seed=3), policy) == "PROMOTE"
    return {str(count): share(promoted[:, :count].any(axis=1)) for count in (1, 10, 50, 100, 150)}


def count_larger(policy: Policy, histories: int) -> list[dict[str, Any]]:
    """Show what more sentences give a candidate that is better by 0.08."""
    found = []
    for sentences in (SENTENCES, 1_000, 2_000, 4_000):
        holdouts = Holdouts(histories, seed=4, sentences=sentences)
        cells = holdouts.cells(holdouts.answer(holdouts.errors(), 0.08))[:, None]
        promoted = {str(looks): share(decisions(cells, policy, looks) == "PROMOTE") for looks in LOOKS}
        found.append({"sentences": sentences, "promoted": promoted})
    return found


def count_climbing(policy: Policy, histories: int) -> list[dict[str, Any]]:
    """Let each candidate keep a share of what made the best-looking one before it look good; none is any better."""
    found = []
    for kept in (0.0, 0.25, 0.5):
        promoted = decisions(simulated.draw_climb(histories, 100, seed=5, kept=kept), policy) == "PROMOTE"
        counts = {str(count): share(promoted[:, :count].any(axis=1)) for count in (1, 10, 50, 100)}
        found.append({"kept": kept, "false": counts})
    return found


def share(passed: NDArray[np.bool_]) -> float:
    return round(float(np.mean(passed)), 4)


def show(result: dict[str, Any]) -> None:
    """Print the result as Markdown tables."""
    print(f"{result['histories']} histories, {result['models']}\n")
    head = " | ".join(f"promoted after {looks} looks" for looks in LOOKS)
    print(f"| true difference of MCC | {head} | held by slices | rejected |\n| ---: |{' ---: |' * 6}")
    for entry in result["one_look"]:
        cells = " | ".join(f"{100 * value:.1f}%" for value in entry["promoted"].values())
        print(
            f"| {entry['gain']:+.2f} | {cells} | {100 * entry['held_by_slices']:.1f}% "
            f"| {100 * entry['rejected']:.1f}% |"
        )
    head = " | ".join(f"+0.08 promoted after {looks}" for looks in LOOKS)
    print(f"\n| rule | false at the first look | false in 100 looks | {head} |\n| --- |{' ---: |' * 6}")
    for entry in result["rules"]:
        cells = " | ".join(f"{100 * value:.1f}%" for value in entry["better_promoted"].values())
        print(f"| {entry['rule']} | {100 * entry['false_first']:.1f}% | {100 * entry['false_in_100']:.1f}% | {cells} |")
    print(f"\nfalse promotions in a row of equal candidates, by the judge: {result['in_a_row']}")
    for entry in result["larger_holdouts"]:
        print(f"+0.08 on {entry['sentences']} sentences, promoted after looks: {entry['promoted']}")
    for entry in result["climbing"]:
        print(f"each keeps {entry['kept']:.0%} of the best before it, false promotions: {entry['false']}")
    print(f"{result['seconds']} s")


if __name__ == "__main__":
    main()
