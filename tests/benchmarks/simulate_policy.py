"""Counts the error rates of the promotion rule, with the judge's own functions on candidates of known quality.

    .venv/bin/python tests/benchmarks/simulate_policy.py                    some eight minutes, on one core
    .venv/bin/python tests/benchmarks/simulate_policy.py --histories 1000 --out FILE

The basis of the numbers in mlflow/policy.toml: false promotions at one holdout use and after many, how often a better
candidate is still promoted, and the same of other rules: the Ladder of Blum and Hardt 2015
(https://arxiv.org/abs/1502.04585) with one margin for all uses and without a parameter, and other ways of alpha
spending. Thresholdout needs a second sample that neither model was trained on, which does not exist here. The models
are those of tests/support/simulated.py. Ends with exit code 1 if more than 5% of the rows of 150 equal candidates
contain a false promotion (checked from 1,000 histories on).
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

USES = (0, 10, 50, 100)
MAX_FALSE = 0.05  # share of histories with a false promotion
RESULT = Path(__file__).with_name("results") / "policy-simulation.json"

Rule = Callable[[NDArray[np.float64], NDArray[np.float64], int], NDArray[np.bool_]]  # p values, differences, uses


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--histories", type=int, default=10_000)
    parser.add_argument("--out", default=str(RESULT))
    options = parser.parse_args()
    started = time.perf_counter()
    policy = load_policy().model_copy(update={"threshold": -1.0})  # so that only the comparison decides
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
        "in_a_row": count_rows_of_uses(policy, options.histories),
        "larger_holdouts": count_larger(policy, options.histories // 5),
        "climbing": count_climbing(policy, options.histories // 5),
        "commit": git_commit(),
        "versions": {name: version for name, version in library_versions().items() if name in ("python", "numpy")},
        "seconds": round(time.perf_counter() - started, 1),
    }
    Path(options.out).write_text(json.dumps(result, indent=2) + "\n")
    show(result)
    if options.histories >= 1_000 and max(result["in_a_row"].values()) > MAX_FALSE:  # fewer are too noisy
        sys.exit(f"error: more than {MAX_FALSE:.0%} of the histories contain a false promotion")


def count_single(policy: Policy, histories: int) -> list[dict[str, Any]]:
    """Judge single candidates of several qualities, with slices, after several holdout uses."""
    found = []
    for gain in (-0.08, -0.04, 0.0, 0.04, 0.08, 0.12):
        whole, *slices = simulated.draw_sliced(histories, seed=round(1_000 * (gain + 1)), gain=gain)
        entry: dict[str, Any] = {"gain": gain, "promoted": {}}
        for uses in USES:
            decided = decisions(whole[:, None], policy, uses, tuple(slices))
            entry["promoted"][str(uses)] = share(decided == "PROMOTE")
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
    """Compare rules: false promotions among 100 equal candidates, and promotions of a better one."""
    equal = simulated.draw_candidates(histories, 100, seed=1)
    better = simulated.draw_candidates(histories, 1, seed=2, gain=0.08)
    null, null_difference = p_values(equal), mcc_difference(equal)
    real, real_difference = p_values(better), mcc_difference(better)
    # The Ladder's margin that holds 95% of such histories; a smaller one does not.
    margin = float(np.quantile(null_difference.max(axis=1), 0.95))
    deviation = float(null_difference.std())
    spend = 1 - policy.confidence
    rules: dict[str, Rule] = {
        "same alpha at every use": lambda p_value, _, uses: p_value <= spend,
        "2% / (uses + 1)": lambda p_value, _, uses: p_value <= spend / (uses + 1),
        "2% / (uses + 1) ^ 1.2": lambda p_value, _, uses: p_value <= spend / (uses + 1) ** 1.2,
        "2% / (uses + 1) ^ 1.5": lambda p_value, _, uses: p_value <= spend / (uses + 1) ** 1.5,
        "2% at first, then 0.06%": lambda p_value, _, uses: p_value <= (0.0006 if uses else spend),
        "the policy": lambda p_value, _, uses: p_value <= alpha(policy, uses),
        "5% / 100 from the start": lambda p_value, _, uses: p_value <= 0.05 / 100,
        "Ladder, no parameter (one standard deviation)": lambda _, difference, uses: difference > deviation,
        f"Ladder, margin {margin:.3f} of MCC": lambda _, difference, uses: difference > margin,
    }
    found = []
    for name, rule in rules.items():
        passed = np.stack([rule(null[:, use], null_difference[:, use], use) for use in range(100)], axis=1)
        found.append(
            {
                "rule": name,
                "false_first": share(passed[:, 0]),
                "false_in_100": share(passed.any(axis=1)),
                "better_promoted": {str(uses): share(rule(real, real_difference, uses)) for uses in USES},
            }
        )
    return found


def count_rows_of_uses(policy: Policy, histories: int) -> dict[str, float]:
    """Judge 150 equal candidates in a row."""
    promoted = decisions(simulated.draw_candidates(histories, 150, seed=3), policy) == "PROMOTE"
    return {str(count): share(promoted[:, :count].any(axis=1)) for count in (1, 10, 50, 100, 150)}


def count_larger(policy: Policy, histories: int) -> list[dict[str, Any]]:
    """Count promotions of a candidate that is better by 0.08 with more sentences."""
    found = []
    for sentences in (SENTENCES, 1_000, 2_000, 4_000):
        holdouts = Holdouts(histories, seed=4, sentences=sentences)
        cells = holdouts.cells(holdouts.predict(holdouts.errors(), 0.08))[:, None]
        promoted = {str(uses): share(decisions(cells, policy, uses) == "PROMOTE") for uses in USES}
        found.append({"sentences": sentences, "promoted": promoted})
    return found


def count_climbing(policy: Policy, histories: int) -> list[dict[str, Any]]:
    """Judge equal candidates that each keep a share of the errors of the best one on this holdout before it."""
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
    head = " | ".join(f"promoted after {uses} uses" for uses in USES)
    print(f"| true difference of MCC | {head} | held by slices | rejected |\n| ---: |{' ---: |' * 6}")
    for entry in result["one_look"]:
        cells = " | ".join(f"{100 * value:.1f}%" for value in entry["promoted"].values())
        print(
            f"| {entry['gain']:+.2f} | {cells} | {100 * entry['held_by_slices']:.1f}% "
            f"| {100 * entry['rejected']:.1f}% |"
        )
    head = " | ".join(f"+0.08 promoted after {uses}" for uses in USES)
    print(f"\n| rule | false at the first use | false in 100 uses | {head} |\n| --- |{' ---: |' * 6}")
    for entry in result["rules"]:
        cells = " | ".join(f"{100 * value:.1f}%" for value in entry["better_promoted"].values())
        print(f"| {entry['rule']} | {100 * entry['false_first']:.1f}% | {100 * entry['false_in_100']:.1f}% | {cells} |")
    print(f"\nfalse promotions in a row of equal candidates, by the judge: {result['in_a_row']}")
    for entry in result["larger_holdouts"]:
        print(f"+0.08 on {entry['sentences']} sentences, promoted after uses: {entry['promoted']}")
    for entry in result["climbing"]:
        print(f"each keeps {entry['kept']:.0%} of the best before it, false promotions: {entry['false']}")
    print(f"{result['seconds']} s")


if __name__ == "__main__":
    main()
