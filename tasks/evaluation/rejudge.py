"""Judges an evidence file again, from the probabilities in it and not from the figures that somebody wrote beside them.

    verdict judge .verdict/runs/JOB/evidence.json

Everything that rules look at is computed anew: what contradicts the file is said. What the rows in it cannot tell (how
often a holdout was looked at, what the gate warned of, whether rows leaked) is taken as recorded.
"""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypedDict, cast

from tasks.core.errors import UsageError, VerdictError
from tasks.core.files import read_json
from tasks.core.policy import load_policy, parse_policy
from tasks.evaluation.evidence import Evidence
from tasks.evaluation.judge import Verdict, judge
from tasks.evaluation.measurement import Measurement, compare, evaluate
from tasks.evaluation.minimal_pairs import MinimalPairResult, summarise

# Of a verdict: what does not follow from the evidence, and its words for rules and numbers, which another version of
# the program may choose otherwise.
NOT_COMPARED = ("time", "actor", "reasons")
RESAMPLED_FIELDS = {"low", "high", "probability"}  # another version of NumPy may draw other resamples
EXACT_TOLERANCE, RESAMPLING_TOLERANCE = 1e-9, 0.02
MAX_RESAMPLES = 1_000_000


class RejudgeResult(TypedDict):
    """A verdict that was computed again; `recorded` is the one that stands beside the evidence, None where none does.

    `contradictions` says what differs from the recorded figures and, under the recorded policy, from the recorded
    verdict.
    """

    verdict: Verdict
    recorded: Verdict | None
    contradictions: list[str]


def rejudge(path: str, policy: str = "") -> RejudgeResult:
    """Judge an evidence file again.

    Args:
        path: of an evidence.json; a verdict.json in its folder is compared with.
        policy: file of another policy, to see what it would decide; empty for the one in the evidence.

    Raises:
        WrongUsage: if there is no such file, or the policy is none.
        VerdictError: if it is no evidence of this program.
    """
    file = Path(path)
    if not file.is_file():
        raise UsageError(f"evidence {path!r} is no file; expected one that a run wrote: runs/JOB/evidence.json")
    stated: Evidence = read_json(file)
    try:
        computed = recompute(stated)
        chosen = load_policy(policy) if policy else parse_policy(stated["policy"], f"in {file.name}")
        verdict = judge(computed, chosen)
        json.dumps([verdict, stated], allow_nan=False)  # what is read may hold NaN, which is no JSON
    except (AttributeError, IndexError, KeyError, OverflowError, TypeError, ValueError) as error:
        raise VerdictError(
            f"{path} is no evidence that this program can judge ({type(error).__name__}: {error}); "
            "expected an evidence.json of this version"
        ) from error
    contradictions = [f"evidence: {text}" for text in differences(stated, computed)]
    recorded = _read_verdict(file.with_name("verdict.json"))
    if recorded is not None and not policy:
        contradictions += [
            f"verdict: {text}" for text in differences(_comparable_fields(recorded), _comparable_fields(verdict))
        ]
    return RejudgeResult(verdict=verdict, recorded=recorded, contradictions=contradictions)


def recompute(stated: Evidence) -> Evidence:
    """Return evidence whose figures follow from its probabilities.

    Raises:
        KeyError, TypeError, ValueError: if it is no whole evidence.
    """
    answers, resamples = stated["answers"], stated["resamples"]
    if not 0 < resamples <= MAX_RESAMPLES:
        raise ValueError(f"resamples is {resamples!r}, expected 1 to {MAX_RESAMPLES}")
    given = [*answers["variants"].values(), *([answers["champion"]] if answers["champion"] is not None else [])]
    if {len(answers["label"]), len(answers["source"]), len(answers["words"]), *map(len, given)} != {
        stated["candidate"]["rows"]
    }:
        raise ValueError("its rows are not all there")
    if not all(value is None or 0 <= value <= 1 for values in given for value in values):
        raise ValueError("a probability is not between 0 and 1")
    variants = {
        name: _measure(stated, stated["variants"][name], probabilities)
        for name, probabilities in answers["variants"].items()
    }
    computed = Evidence(**stated)
    computed["variants"] = variants
    computed["candidate"] = variants[stated["candidate"]["variant"]]
    computed["minimal_pairs"] = _count(stated["minimal_pairs"])
    champion, theirs = stated["champion"], answers["champion"]
    if champion and champion["measurement"] and champion["minimal_pairs"] and theirs is not None:
        ours = answers["variants"][stated["candidate"]["variant"]]
        comparison = compare(answers, ours, theirs, resamples)
        comparison["sentences"] = stated["comparison"]["sentences"] if stated["comparison"] else []
        computed["comparison"] = comparison
        computed["champion"] = {
            **champion,
            "measurement": _measure(stated, champion["measurement"], theirs),
            "minimal_pairs": _count(champion["minimal_pairs"]),
        }
    return computed


def differences(stated: Any, computed: Any, place: str = "") -> Iterator[str]:
    """Yield where two JSON values differ; floats may by a rounding, resampled ones by chance."""
    if isinstance(stated, dict) and isinstance(computed, dict):
        for key in {**stated, **computed}:
            here = f"{place}.{key}" if place else str(key)
            if (key in stated) != (key in computed):
                yield f"{here} is {'recorded' if key in stated else 'computed'} only"
            else:
                yield from differences(stated[key], computed[key], here)
    elif isinstance(stated, list) and isinstance(computed, list) and len(stated) == len(computed):
        for number, pair in enumerate(zip(stated, computed, strict=True)):
            yield from differences(*pair, f"{place}[{number}]")
    elif not _equal(
        stated, computed, RESAMPLING_TOLERANCE if place.rpartition(".")[2] in RESAMPLED_FIELDS else EXACT_TOLERANCE
    ):
        yield f"{place} is recorded as {_short(stated)}, computed as {_short(computed)}"


def _read_verdict(path: Path) -> Verdict | None:
    if not path.is_file():
        return None
    verdict = read_json(path)
    if not isinstance(verdict, dict) or not {"decision", *NOT_COMPARED} <= verdict.keys():
        raise VerdictError(f"{path} is no verdict; delete it to judge the evidence alone")
    return cast(Verdict, verdict)


def _comparable_fields(verdict: Verdict) -> dict[str, Any]:
    return {key: value for key, value in verdict.items() if key not in NOT_COMPARED}


def _equal(stated: Any, computed: Any, tolerance: float) -> bool:
    numbers = [value for value in (stated, computed) if isinstance(value, int | float) and not isinstance(value, bool)]
    if len(numbers) == 2:
        return math.isclose(*numbers, rel_tol=0, abs_tol=tolerance)
    return type(stated) is type(computed) and stated == computed


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _measure(stated: Evidence, measured: Measurement, probabilities: list[float | None]) -> Measurement:
    result = evaluate(stated["answers"], probabilities, measured["provider"], measured["variant"], stated["resamples"])
    result["worst"] = measured["worst"]
    return result


def _count(stated: MinimalPairResult) -> MinimalPairResult:
    return summarise({name: phenomenon["outcomes"] for name, phenomenon in stated["phenomena"].items()})
