"""Judges an evidence file again, from the recorded probabilities instead of the recorded figures.

    verdict judge .verdict/runs/JOB/evidence.json

Every figure that rules read is recomputed, and differences from the recorded ones are reported. What does not follow
from the rows (holdout uses, drift, leaked rows) is taken as recorded.
"""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypedDict, cast

from tasks.core.errors import UsageError, VerdictError
from tasks.core.files import read_json
from tasks.core.policy import load_policy, parse_policy
from tasks.evaluation.evidence import Evidence, parse_evidence
from tasks.evaluation.judge import Verdict, judge
from tasks.evaluation.measurement import Measurement, Probabilities, compare, evaluate
from tasks.evaluation.minimal_pairs import MinimalPairResult, summarise
from tasks.inference.decision import threshold_of

# Fields of a verdict that do not follow from the evidence, and the wording of reasons, which may change with a release.
NOT_COMPARED = ("time", "actor", "reasons")
RESAMPLED_FIELDS = {"low", "high", "probability"}  # NumPy's random stream may change between versions
EXACT_TOLERANCE, RESAMPLING_TOLERANCE = 1e-9, 0.02
EVIDENCE_PATH = "VERDICT_HOME/runs/JOB/evidence.json"
MAX_RESAMPLES = 1_000_000


class RejudgeResult(TypedDict):
    """A recomputed verdict; `recorded` is the verdict.json beside the evidence, None if there is none.

    `contradictions` lists differences from the recorded figures and, under the recorded policy, from the recorded
    verdict.
    """

    verdict: Verdict
    recorded: Verdict | None
    contradictions: list[str]


def rejudge(path: str, policy: str = "") -> RejudgeResult:
    """Judge an evidence file again.

    Args:
        path: of an evidence.json; the verdict.json in its folder is compared.
        policy: path of another policy to apply; empty for the recorded one.

    Raises:
        UsageError: if there is no such file, it is not JSON, or the policy is invalid.
        VerdictError: if it is not evidence of this schema version.
    """
    file = Path(path)
    if not file.is_file():
        raise UsageError(f"evidence {path!r} is not a file; expected one that a run wrote: {EVIDENCE_PATH}")
    recorded = parse_evidence(_read_evidence(file), path)
    try:
        computed = recompute(recorded)
        chosen = load_policy(policy) if policy else parse_policy(recorded["policy"], f"in {file.name}")
        verdict = judge(computed, chosen)
        json.dumps([verdict, recorded], allow_nan=False)  # Python's reader accepts NaN, which is not JSON
    except (AttributeError, IndexError, KeyError, OverflowError, TypeError, ValueError) as error:
        raise VerdictError(
            f"{path} is not evidence that can be judged ({type(error).__name__}: {error}); "
            "expected an evidence.json as a run wrote it"
        ) from error
    contradictions = [f"evidence: {text}" for text in differences(recorded, computed)]
    before = _read_verdict(file.with_name("verdict.json"))
    if before is not None and not policy:
        contradictions += [
            f"verdict: {text}" for text in differences(_comparable_fields(before), _comparable_fields(verdict))
        ]
    return RejudgeResult(verdict=verdict, recorded=before, contradictions=contradictions)


def recompute(recorded: Evidence) -> Evidence:
    """Return the evidence with every figure recomputed from its probabilities.

    Raises:
        KeyError, TypeError, ValueError: if something is missing or out of range.
    """
    answers, resamples = recorded["answers"], recorded["resamples"]
    if not 0 < resamples <= MAX_RESAMPLES:
        raise ValueError(f"resamples is {resamples!r}, expected 1 to {MAX_RESAMPLES}")
    given = [*answers["variants"].values(), *([answers["champion"]] if answers["champion"] is not None else [])]
    if {len(answers["label"]), len(answers["source"]), len(answers["words"]), *map(len, given)} != {
        recorded["candidate"]["rows"]
    }:
        raise ValueError("rows are missing")
    if not all(value is None or 0 <= value <= 1 for values in given for value in values):
        raise ValueError("a probability is not between 0 and 1")
    variants = {
        name: _measure(recorded, recorded["variants"][name], probabilities)
        for name, probabilities in answers["variants"].items()
    }
    computed = Evidence(**recorded)
    computed["variants"] = variants
    computed["candidate"] = variants[recorded["candidate"]["variant"]]
    computed["minimal_pairs"] = _summarise(recorded["minimal_pairs"])
    champion, theirs = recorded["champion"], answers["champion"]
    if champion and champion["measurement"] and champion["minimal_pairs"] and theirs is not None:
        ours = answers["variants"][recorded["candidate"]["variant"]]
        thresholds = threshold_of(recorded["candidate"]), threshold_of(champion["measurement"])
        comparison = compare(answers, ours, theirs, resamples, thresholds)
        comparison["sentences"] = recorded["comparison"]["sentences"] if recorded["comparison"] else []
        computed["comparison"] = comparison
        computed["champion"] = {
            **champion,
            "measurement": _measure(recorded, champion["measurement"], theirs),
            "minimal_pairs": _summarise(champion["minimal_pairs"]),
        }
    return computed


def differences(recorded: Any, computed: Any, path: str = "") -> Iterator[str]:
    """Yield a line for each path at which two JSON values differ by more than rounding or resampling explains."""
    if isinstance(recorded, dict) and isinstance(computed, dict):
        for key in {**recorded, **computed}:
            here = f"{path}.{key}" if path else str(key)
            if (key in recorded) != (key in computed):
                yield f"{here} is {'recorded' if key in recorded else 'computed'} only"
            else:
                yield from differences(recorded[key], computed[key], here)
    elif isinstance(recorded, list) and isinstance(computed, list) and len(recorded) == len(computed):
        for number, pair in enumerate(zip(recorded, computed, strict=True)):
            yield from differences(*pair, f"{path}[{number}]")
    elif not _equal(
        recorded, computed, RESAMPLING_TOLERANCE if path.rpartition(".")[2] in RESAMPLED_FIELDS else EXACT_TOLERANCE
    ):
        yield f"{path} is recorded as {_short(recorded)}, computed as {_short(computed)}"


def _read_evidence(path: Path) -> Any:
    try:
        return read_json(path, f"expected the evidence.json of a run: {EVIDENCE_PATH}")
    except VerdictError as error:
        raise UsageError(str(error)) from error


def _read_verdict(path: Path) -> Verdict | None:
    if not path.is_file():
        return None
    verdict = read_json(path, "expected the verdict that a run wrote beside its evidence")
    if not isinstance(verdict, dict) or not {"decision", *NOT_COMPARED} <= verdict.keys():
        raise VerdictError(f"{path} is not a verdict; delete it to judge the evidence alone")
    return cast(Verdict, verdict)


def _comparable_fields(verdict: Verdict) -> dict[str, Any]:
    return {key: value for key, value in verdict.items() if key not in NOT_COMPARED}


def _equal(recorded: Any, computed: Any, tolerance: float) -> bool:
    if all(isinstance(value, int | float) and not isinstance(value, bool) for value in (recorded, computed)):
        return math.isclose(recorded, computed, rel_tol=0, abs_tol=tolerance)
    return type(recorded) is type(computed) and recorded == computed


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _measure(recorded: Evidence, measured: Measurement, probabilities: Probabilities) -> Measurement:
    answers, resamples = recorded["answers"], recorded["resamples"]
    how = measured["provider"], measured["variant"], resamples, threshold_of(measured)
    result = evaluate(answers, probabilities, *how)
    result["worst"] = measured["worst"]
    return result


def _summarise(recorded: MinimalPairResult) -> MinimalPairResult:
    return summarise({name: phenomenon["outcomes"] for name, phenomenon in recorded["phenomena"].items()})
