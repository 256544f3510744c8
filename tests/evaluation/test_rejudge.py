"""Recorded evidence gives the same verdict again, and alterations are found."""

import copy
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import call
from toy import SPLIT, circumstances, policy

from tasks.core.errors import UsageError, VerdictError
from tasks.core.files import write_json
from tasks.evaluation.evidence import EVIDENCE_SCHEMA
from tasks.evaluation.judge import judge, stamp
from tasks.evaluation.measurement import compare, evaluate
from tasks.evaluation.minimal_pairs import load_pairs, summarise
from tasks.evaluation.rejudge import differences, recompute, rejudge


def suite(share: float) -> Any:
    names = dict.fromkeys(pair.phenomenon for pair in load_pairs())
    return summarise({name: "1" * round(20 * share) + "0" * (20 - round(20 * share)) for name in names})


def make_evidence(compared: bool = True) -> Any:
    """Return evidence on 200 sentences: the candidate is right on nine in ten, the champion on eight."""
    rng = np.random.default_rng(0)
    label = rng.integers(0, 2, 200)
    rows: Any = {"label": label.tolist(), "source": ["a", "b"] * 100, "words": rng.integers(2, 20, 200).tolist()}

    def answer(right: float) -> list[float]:
        truth = np.where(rng.random(200) < right, label, 1 - label)
        return [round(float(value), 9) for value in np.where(truth, 0.5, 0.0) + rng.random(200) / 2.1]

    ours, theirs = answer(0.9), answer(0.8)
    candidate = evaluate(rows, ours, "CPU", "fp32", 200)
    champion = {
        "version": "3",
        "digest": "old",
        "training_digest": "t",
        "measurement": evaluate(rows, theirs, "CPU", "fp32", 200),
        "minimal_pairs": suite(0.7),
        "fault": None,
    }
    return {
        **circumstances(champion_state="active" if compared else "none"),
        "digest": "new",
        "schema_version": EVIDENCE_SCHEMA,
        "holdout_digest": "h",
        "split": SPLIT,
        "leak": {"left": 1, "remaining": 0, "sentences": []},
        "candidate": candidate,
        "variants": {"fp32": candidate},
        "minimal_pairs": suite(0.8),
        "secondary": None,
        "champion": champion if compared else None,
        "comparison": compare(rows, ours, theirs, 200) if compared else None,
        "answers": {**rows, "variants": {"fp32": ours}, "champion": theirs if compared else None},
        "resamples": 200,
        "versions": {"python": "3"},
        "git_commit": "c",
    }


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., str]:
    """Write evidence, and the verdict that follows from it, as a run does; return the evidence's path."""

    def written(evidence: Any, verdict: Any = None) -> str:
        write_json(tmp_path / "evidence.json", evidence)
        signed = stamp(judge(make_evidence(), policy()), "2026-01-01T00:00:00+00:00", "somebody")
        write_json(tmp_path / "verdict.json", signed if verdict is None else verdict)
        return str(tmp_path / "evidence.json")

    return written


@pytest.mark.parametrize("compared", [True, False])
def test_unaltered_evidence_recomputes_to_itself(compared: bool) -> None:
    evidence = make_evidence(compared)
    before = copy.deepcopy(evidence)
    assert recompute(json.loads(json.dumps(evidence))) == before
    assert recompute(evidence) == evidence == before


def test_models_with_thresholds_of_their_own_recompute_to_themselves(write: Callable[..., str]) -> None:
    evidence = make_evidence()
    answers, rows = evidence["answers"], evidence["answers"]
    ours, theirs = answers["variants"]["fp32"], answers["champion"]
    evidence["candidate"] = evidence["variants"]["fp32"] = evaluate(rows, ours, "CPU", "fp32", 200, 0.4)
    evidence["champion"]["measurement"] = evaluate(rows, theirs, "CPU", "fp32", 200, 0.7)
    evidence["comparison"] = compare(rows, ours, theirs, 200, (0.4, 0.7))
    before = copy.deepcopy(evidence)
    assert recompute(evidence) == before
    verdict = stamp(judge(evidence, policy()), "2026-01-01T00:00:00+00:00", "somebody")
    assert rejudge(write(evidence, verdict))["contradictions"] == []
    altered = change(evidence, "candidate", "decision_threshold", to=0.3)
    assert any(
        line.startswith("evidence: candidate.interval.mcc") for line in rejudge(write(altered))["contradictions"]
    )


def test_the_verdict_is_the_same_again_except_for_time_and_actor(write: Callable[..., str]) -> None:
    outcome = rejudge(write(make_evidence()))
    assert outcome["contradictions"] == []
    assert outcome["verdict"]["decision"] == "PROMOTE"
    assert outcome["recorded"] == {
        **outcome["verdict"],
        "time": "2026-01-01T00:00:00+00:00",
        "actor": "somebody",
    }


def test_without_a_verdict_beside_it_evidence_is_judged_alone(write: Callable[..., str], tmp_path: Path) -> None:
    path = write(make_evidence())
    (tmp_path / "verdict.json").unlink()
    outcome = rejudge(path)
    assert (outcome["recorded"], outcome["contradictions"]) == (None, [])
    assert outcome["verdict"]["rules"] == ["better_than_champion"]


def change(evidence: Any, *path: Any, to: Any) -> Any:
    changed = copy.deepcopy(evidence)
    inner = changed
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = to
    return changed


@pytest.mark.parametrize(
    ("path", "value", "expected"),
    [
        (("candidate", "interval", "mcc"), 0.99, "evidence: candidate.interval.mcc is recorded as 0.99"),
        (("comparison", "p_better"), 1e-9, "evidence: comparison.p_better is recorded as 1e-09"),
        (("comparison", "low"), 0.9, "evidence: comparison.low is recorded as 0.9"),
        (("minimal_pairs", "share"), 1.0, "evidence: minimal_pairs.share is recorded as 1.0"),
        (("champion", "measurement", "per_source", "a", "mcc"), 0.0, "champion.measurement.per_source.a.mcc"),
        (("answers", "variants", "fp32", 3), 0.0001, "evidence: "),
        (("holdout_uses",), 50, "verdict: numbers.holdout_uses is recorded as 0, computed as 50"),
        (("policy", "threshold"), 0.99, "verdict: decision is recorded as 'PROMOTE', computed as 'REJECT'"),
    ],
)
def test_altered_evidence_contradicts_itself(write: Callable[..., str], path: Any, value: Any, expected: str) -> None:
    outcome = rejudge(write(change(make_evidence(), *path, to=value)))
    assert any(expected in text for text in outcome["contradictions"])


def test_the_verdict_follows_the_probabilities_and_not_the_recorded_figures(write: Callable[..., str]) -> None:
    evidence = make_evidence()
    lie = change(evidence, "comparison", "p_better", to=0.9)
    assert rejudge(write(lie))["verdict"]["rules"] == ["better_than_champion"]
    swapped = copy.deepcopy(evidence)
    answers = swapped["answers"]
    answers["variants"]["fp32"], answers["champion"] = answers["champion"], answers["variants"]["fp32"]
    assert rejudge(write(swapped))["verdict"]["rules"] == ["worse_than_champion"]


def test_an_altered_verdict_is_a_contradiction(write: Callable[..., str]) -> None:
    verdict = judge(make_evidence(), policy())
    outcome = rejudge(write(make_evidence(), {**verdict, "decision": "HOLD"}))
    assert outcome["contradictions"] == ["verdict: decision is recorded as 'HOLD', computed as 'PROMOTE'"]
    with pytest.raises(VerdictError, match=r"verdict\.json is not a verdict"):
        rejudge(write(make_evidence(), ["not a verdict"]))


def test_another_policy_gives_its_own_verdict_without_contradictions(write: Callable[..., str], tmp_path: Path) -> None:
    text = (Path(__file__).parents[2] / "mlflow" / "policy.toml").read_text()
    strict = tmp_path / "strict.toml"
    strict.write_text(text.replace("threshold = 0.454", "threshold = 0.95"))
    outcome = rejudge(write(make_evidence()), str(strict))
    assert (outcome["verdict"]["decision"], outcome["contradictions"]) == ("REJECT", [])
    assert outcome["verdict"]["policy"]["threshold"] == 0.95


def test_a_file_that_is_no_json_is_not_to_be_deleted(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("Remember the milk.")
    with pytest.raises(UsageError, match=r"notes\.txt cannot be read as JSON .*; expected the evidence\.json of a run"):
        rejudge(str(tmp_path / "notes.txt"))


@pytest.mark.parametrize(
    "broken",
    [
        [],
        {},
        "text",
        {"answers": {}},
        {"schema_version": EVIDENCE_SCHEMA},
        change(make_evidence(), "schema_version", to=EVIDENCE_SCHEMA + 1),
        change(make_evidence(), "answers", "label", to=[0, 1]),
        change(make_evidence(), "answers", "variants", to={}),
        change(make_evidence(), "answers", "label", to=["x"] * 200),
        change(make_evidence(), "answers", "label", to=[-1] * 200),
        change(make_evidence(), "resamples", to=10**12),
        change(make_evidence(), "candidate", to=None),
        change(make_evidence(), "answers", "variants", "fp32", 3, to=1.5),
        change(make_evidence(), "answers", "variants", "fp32", 3, to=float("nan")),
        change(make_evidence(), "holdout_uses", to=float("nan")),
        change(make_evidence(), "leak", to={}),
    ],
)
def test_invalid_evidence_is_rejected_in_one_line(write: Callable[..., str], broken: Any) -> None:
    path = write({})
    Path(path).write_text(json.dumps(broken))
    with pytest.raises(VerdictError) as caught:
        rejudge(path)
    assert re.search(r"is not evidence that can be judged|has schema version|lacks|is no evidence", str(caught.value))
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_a_usage_error() -> None:
    with pytest.raises(UsageError, match=r"'nowhere\.json' is not a file"):
        rejudge("nowhere.json")


def test_differences_name_the_path_and_tolerate_rounding() -> None:
    assert list(differences({"a": [1.0, 2]}, {"a": [1.0 + 1e-12, 2]})) == []
    assert list(differences({"a": [1.0, 2]}, {"a": [1.0, 3]})) == ["a[1] is recorded as 2, computed as 3"]
    assert list(differences({"a": 1}, {"b": 1})) == ["a is recorded only", "b is computed only"]
    assert list(differences({"a": True}, {"a": 1})) == ["a is recorded as True, computed as 1"]
    assert list(differences({"low": 0.1}, {"low": 0.11})) == []


def test_the_command_prints_the_verdict_and_ends_with_one_where_something_differs(
    write: Callable[..., str], capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, _ = call(capsys, "judge", write(make_evidence()))
    assert (code, out.splitlines()[0][:8]) == (0, "PROMOTE:")
    assert "recorded  PROMOTE by somebody, 2026-01-01T00:00:00+00:00" in out
    code, out, _ = call(capsys, "judge", write(change(make_evidence(), "holdout_uses", to=50)))
    assert code == 1
    assert "differs   verdict: numbers.holdout_uses is recorded as 0, computed as 50" in out


def test_the_command_prints_one_strict_json_document(
    write: Callable[..., str], capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, _ = call(capsys, "judge", write(make_evidence()), "--json")
    document = json.loads(out, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert (code, document["verdict"]["decision"], document["contradictions"]) == (0, "PROMOTE", [])


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["judge", "nowhere.json"], 2, "is not a file"),
        (["judge", "{path}", "--policy", "nowhere.toml"], 2, "cannot be read"),
    ],
)
def test_usage_errors_are_one_line(
    write: Callable[..., str], capsys: pytest.CaptureFixture[str], arguments: list[str], code: int, message: str
) -> None:
    path = write(make_evidence())
    ended, out, err = call(capsys, *(argument.replace("{path}", path) for argument in arguments))
    assert (ended, out) == (code, "")
    assert err.startswith("error: ")
    assert message in err
    assert len(err.splitlines()) == 1
