"""What a person asks and decides: status, compare, approve, reject, rollback, history; on real stores."""

import json
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from job_cache import FlowHome
from registry_store import add_version, aliases, bundle_folder, changes_of, new_store, set_alias
from toy import SPLIT, facts

from flows.cli import app
from flows.commands import compare, review
from tasks.core.errors import UsageError, VerdictError
from tasks.core.files import json_digest, write_json
from tasks.core.policy import load_policy
from tasks.evaluation.evidence import gather_evidence
from tasks.evaluation.judge import judge
from tasks.inference.bundle import MODEL_NAME, write_manifest
from tasks.registry import audit_log, promotion, register, tracking
from tasks.registry.mlflow_client import connect
from tasks.registry.store import MlflowStore, locate_store

Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def home(home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A home with an empty store, and no Prefect server: other tests may have one up."""
    from prefect.settings import PREFECT_API_URL, temporary_settings

    monkeypatch.setenv("VERDICT_HOME", str(home))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("VERDICT_ACTOR", "ada")
    with temporary_settings(restore_defaults={PREFECT_API_URL}):
        yield home


@pytest.fixture
def store(home: Path) -> MlflowStore:
    return locate_store(str(home))


def fill(store: MlflowStore, home: Path) -> MlflowStore:
    """Promote versions 1 to 3 one after the other; 4 is on HOLD against 3."""
    for before, name in zip([None, "1", "2"], "abc", strict=True):
        version = add_version(store, home, name, mcc="0.5")
        promotion.promote(store, version, kind="promote", expected=before, reason=f"better {name}")
    held = add_version(store, home, "d", verdict="HOLD", compared_with="3", verdict_digest="e" * 64)
    promotion.set_challenger(store, held)
    return store


@pytest.fixture(scope="module")
def filled(flow_home: FlowHome, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of a home with such a store."""
    flow_home.clear()
    fill(locate_store(str(flow_home.folder)), flow_home.folder)
    kept = tmp_path_factory.mktemp("filled") / "home"
    flow_home.keep(kept)
    return kept


@pytest.fixture
def reigning(filled: Path, store: MlflowStore, flow_home: FlowHome) -> MlflowStore:
    flow_home.put_back(filled)
    return store


@pytest.fixture(scope="module")
def untouched(empty_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Such a store for what is refused, which leaves no trace."""
    folder = tmp_path_factory.mktemp("untouched")
    fill(new_store(empty_store, folder), folder)
    return folder


@pytest.fixture
def verdict(capsys: pytest.CaptureFixture[str]) -> Command:
    def call(*arguments: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as ended:
            app.main(arguments)
        printed = capsys.readouterr()
        return int(ended.value.code or 0), printed.out, printed.err

    return call


def test_an_approved_hold_becomes_champion_and_says_who_and_why(
    reigning: MlflowStore, home: Path, verdict: Command
) -> None:
    code, out, _ = verdict("approve", "4", "--reason", "better on questions", "--json")
    answer = json.loads(out)
    assert (code, answer["kind"], answer["from"], answer["to"]) == (0, "approve", "3", "4")
    assert (answer["actor"], answer["reason"], answer["verdict"]) == ("ada", "better on questions", "e" * 64)
    assert aliases(reigning) == {"champion": "4"}
    history = json.loads(verdict("history", "--json")[1])
    assert {"time", "actor", "kind", "from", "to", "reason"} <= history[-1].keys()
    assert changes_of(history)[-1] == ("approve", "3", "4")


def test_approving_the_champion_says_that_the_reason_is_not_recorded(reigning: MlflowStore, verdict: Command) -> None:
    code, out, _ = verdict("approve", "3", "--reason", "it is good")
    first, second, _, last = out.splitlines()
    assert (code, aliases(reigning)) == (0, {"champion": "3"} | {"challenger": "4"})
    assert first.startswith("version 3 is champion already, since 20")
    assert second.startswith("promote of version 3 by ")
    assert last == "not recorded  it is good"


def test_a_rejected_hold_is_no_challenger_any_more(reigning: MlflowStore, verdict: Command) -> None:
    code, out, _ = verdict("reject", "4", "--reason", "worse on questions")
    assert (code, aliases(reigning)) == (0, {"champion": "3"})
    assert out == "reject of version 4 by ada: champion 3 -> 3\nreason    worse on questions\n"
    code, _, err = verdict("approve", "4", "--reason", "on second thoughts")
    assert (code, err) == (
        1,
        "error: version 4 has the verdict REJECT; expected a HOLD to approve, see: verdict status\n",
    )


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["approve", "4", "--reason", "  "], 2, "the reason is empty; expected --reason TEXT"),
        (["reject", "4", "--reason", ""], 2, "the reason is empty"),
        (["rollback", "--reason", " "], 2, "the reason is empty"),
        (["approve", "4"], 2, "Missing option '--reason'"),
        (["rollback"], 2, "Missing option '--reason'"),
        (["approve", "four", "--reason", "x"], 2, "version 'four' is not a number; expected one that `verdict status`"),
        (["compare", "four"], 2, "version 'four' is not a number"),
        (["compare", "1", "two"], 2, "version 'two' is not a number"),
        (["rollback", "--to", "x", "--reason", "x"], 2, "version 'x' is not a number"),
        (["approve", "9", "--reason", "x"], 1, "has no version '9' in sqlite:"),
        (["reject", "9", "--reason", "x"], 1, "has no version '9' in sqlite:"),
        (["compare", "9"], 1, "has no version '9' in sqlite:"),
        (["compare", "3"], 2, "version 3 cannot be compared with the champion, which it is itself"),
        (["compare", "1", "2"], 1, "versions 1 and 2 were judged on other rows"),
        (["approve", "1", "--reason", "x"], 1, "version 1 has the verdict PROMOTE; expected a HOLD to approve"),
        (["reject", "1", "--reason", "x"], 1, "version 1 has the verdict PROMOTE; expected a HOLD to reject"),
        (["reject", "3", "--reason", "x"], 1, "version 3 is champion by now; take it back: verdict rollback"),
        (["rollback", "--to", "3", "--reason", "x"], 2, "version 3 is the champion already"),
        (["rollback", "--to", "4", "--reason", "x"], 2, "version 4 never was the champion; expected a former one (1,"),
        (["rollback", "--to", "9", "--reason", "x"], 2, "version 9 never was the champion"),
    ],
)
def test_a_refusal_is_one_line_and_moves_nothing(
    untouched: Path,
    monkeypatch: pytest.MonkeyPatch,
    verdict: Command,
    arguments: list[str],
    code: int,
    message: str,
) -> None:
    monkeypatch.setenv("VERDICT_HOME", str(untouched))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    found, out, err = verdict(*arguments)
    assert (found, out) == (code, "")
    assert err.startswith("error: ")
    assert message in err
    assert err.count("\n") <= 2
    store = locate_store(str(untouched))
    assert aliases(store) == {"champion": "3", "challenger": "4"}
    assert len(audit_log.read_changes(store)) == 3


@pytest.mark.parametrize(
    "arguments",
    [
        ["approve", "1", "--reason", "x"],
        ["reject", "1", "--reason", "x"],
        ["compare", "1"],
        ["rollback", "--reason", "x"],
    ],
)
def test_an_empty_store_is_reported_and_stays_empty(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, verdict: Command, arguments: list[str]
) -> None:
    monkeypatch.setenv("VERDICT_HOME", str(tmp_path / "stores"))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    code, out, err = verdict(*arguments)
    assert (code, out) == (1, "")
    assert f"there is no {'champion' if arguments[0] == 'compare' else 'version'} yet: nothing is in" in err
    assert f"nothing is in {tmp_path / 'stores'} (no mlflow.db); run: verdict retrain, or name the folder" in err
    assert not (tmp_path / "stores").exists()
    assert verdict("history", "--json")[:2] == (1, "[]\n")
    code, out, err = verdict("history")
    assert (code, out) == (1, "no champion yet; train the first one: verdict retrain\n")
    assert err.startswith(f"error: there is no version yet: nothing is in {tmp_path / 'stores'} (no mlflow.db)")
    # Of a folder below the one that is meant, that one is named.
    (tmp_path / "stores").mkdir()
    (tmp_path / "stores" / "mlflow.db").touch()
    monkeypatch.setenv("VERDICT_HOME", str(tmp_path / "below" / "stores"))
    assert (
        f"; run: verdict retrain, or name the folder that is meant: VERDICT_HOME={tmp_path / 'stores'}"
        in verdict("status")[2]
    )


def test_rollback_goes_back_step_by_step_and_is_recorded(reigning: MlflowStore, verdict: Command) -> None:
    assert verdict("rollback", "--reason", "complaints")[0] == 0
    assert aliases(reigning)["champion"] == "2"
    code, out, _ = verdict("rollback", "--reason", "still complaints", "--json")
    answer = json.loads(out)
    assert (code, answer["kind"], answer["from"], answer["to"], answer["actor"]) == (0, "rollback", "2", "1", "ada")
    code, _, err = verdict("rollback", "--reason", "more")
    assert (code, aliases(reigning)["champion"]) == (1, "1")
    way_back = "it is the first champion, with none before it to roll back to; replace it: verdict retrain"
    assert err.startswith(f"error: version 1 is champion; {way_back} with other data")
    assert f"version 1 is champion by now; {way_back}" in verdict("reject", "1", "--reason", "bad")[2]
    assert verdict("rollback", "--to", "3", "--reason", "it was not the model")[0] == 0
    assert aliases(reigning)["champion"] == "3"
    entries = json.loads(verdict("history", "--json")[1])
    assert changes_of(entries)[3:] == [("rollback", "3", "2"), ("rollback", "2", "1"), ("rollback", "1", "3")]


def test_a_dry_run_says_what_it_would_do_and_moves_nothing(reigning: MlflowStore, verdict: Command) -> None:
    code, out, _ = verdict("rollback", "--reason", "x", "--dry-run")
    assert code == 0
    assert out == "would do  rollback: champion 3 -> 2; its files are intact; nothing was changed\n"
    assert json.loads(verdict("rollback", "--reason", "x", "--dry-run", "--json")[1])["dry_run"]
    assert aliases(reigning)["champion"] == "3"
    assert len(audit_log.read_changes(reigning)) == 3


@pytest.mark.parametrize("dry", [[], ["--dry-run"]])
def test_nobody_is_rolled_back_to_a_damaged_or_deleted_version(
    reigning: MlflowStore, home: Path, verdict: Command, dry: list[str]
) -> None:
    (bundle_folder(home, "b") / "model.onnx").write_text("something else")
    code, _, err = verdict("rollback", "--reason", "x", *dry)
    assert (code, aliases(reigning)["champion"]) == (1, "3")
    assert "bundle of version 2: model.onnx does not match its SHA-256 in bundle.json" in err
    assert err.endswith("or name another former champion: verdict rollback --to VERSION\n")
    with connect(reigning) as client:
        client.delete_model_version(MODEL_NAME, "2")
    code, _, err = verdict("rollback", "--reason", "x", *dry)
    assert (code, aliases(reigning)["champion"]) == (1, "3")
    assert "has no version '2'" in err
    assert verdict("rollback", "--to", "1", "--reason", "x", *dry)[0] == 0


def test_a_version_that_took_the_number_of_a_former_champion_is_none(reigning: MlflowStore, home: Path) -> None:
    register.tag_version(reigning, "2", {"bundle_digest": "f" * 64})
    model = bundle_folder(home, "b")
    (model / "model.onnx").write_text("another model")
    register.tag_version(reigning, "2", {"bundle_digest": write_manifest(model, facts(max_length=16), {})["digest"]})
    with pytest.raises(VerdictError, match=r"version 2 holds bundle [0-9a-f]{12}, registered was"):
        review.rollback(None, "x", False, str(home))
    assert aliases(reigning)["champion"] == "3"


def test_a_champion_that_vanished_is_reported_and_can_be_brought_back(
    reigning: MlflowStore, home: Path, verdict: Command
) -> None:
    with connect(reigning) as client:
        client.delete_registered_model_alias(MODEL_NAME, "champion")
    status = json.loads(verdict("status", "--json")[1])
    assert (status["champion"], status["champion_state"]) == (None, "lost")
    assert status["notices"] == [
        "champion 3 was lost: its alias was removed or its version deleted, not by this program"
    ]
    assert "champion   none, it was lost\n" in verdict("status")[1]
    assert verdict("rollback", "--reason", "it was an accident")[0] == 0
    assert aliases(reigning)["champion"] == "3"
    assert changes_of(json.loads(verdict("history", "--json")[1]))[3:] == [("lost", "3", None), ("rollback", None, "3")]


def test_status_notices_a_move_that_no_record_explains_and_history_shows_it(
    reigning: MlflowStore, verdict: Command
) -> None:
    set_alias(reigning, "1")
    status = json.loads(verdict("status", "--json")[1])
    assert (status["champion"]["version"], status["champion_state"]) == ("1", "active")
    assert status["notices"] == ["the champion's alias went from version 3 to version 1 and no record explains it"]
    assert f"notice     {status['notices'][0]}\n" in verdict("status")[1]
    (row,) = (line for line in verdict("history")[1].splitlines() if "unexplained" in line)
    assert row.split()[:5] == ["?", "?", "unexplained", "3", "1"]
    assert verdict("rollback", "--reason", "not by hand")[0] == 0
    assert aliases(reigning)["champion"] == "3"
    assert json.loads(verdict("status", "--json")[1])["notices"] == []


def test_status_and_doctor_report_a_champion_whose_files_are_damaged(
    reigning: MlflowStore, home: Path, verdict: Command
) -> None:
    status = json.loads(verdict("status", "--json")[1])
    assert (status["champion"]["fault"], status["champion_state"], status["notices"]) == (None, "active", [])
    checks = {check["check"]: check for check in json.loads(verdict("doctor", "--json")[1])}
    assert checks["MLflow store"]["seen"].endswith("champion 3, its files are intact, not signed")
    assert checks["signatures"]["seen"] == "what is written here is not signed; trusted: no key"
    assert "signature  not signed\n" in verdict("status")[1]
    verified = json.loads(verdict("verify", "3", "--json")[1])
    assert verified["files"] == {"all files, code included": "not signed", "the bundle": "not signed"}
    (record,) = verified["records"]
    assert (record.startswith("record 3, promote by "), record.endswith(": not signed")) == (True, True)
    assert verdict("verify", "3")[1].startswith("intact      version 3, bundle ")
    (bundle_folder(home, "c") / "tokenizer.json").unlink()
    status = json.loads(verdict("status", "--json")[1])
    assert status["champion"]["fault"].startswith("bundle of version 3 lacks tokenizer.json")
    assert "damaged    bundle of version 3 lacks tokenizer.json" in verdict("status")[1]
    for target, fault in (
        ("3", "bundle of version 3 lacks tokenizer.json"),
        (str(bundle_folder(home, "c")), "lacks tokenizer.json"),
        (str(home / "nowhere"), "is no version number and no folder"),
        ("9", "has no version '9'"),
    ):
        code, out, err = verdict("verify", target)
        assert (code in (1, 2), out, fault in err) == (True, "", True), target
    code, out, _ = verdict("doctor")
    assert code == 1
    assert "fails  MLflow store: bundle of version 3 lacks tokenizer.json" in out
    shutil.rmtree(bundle_folder(home, "c").parents[1])
    status = json.loads(verdict("status", "--json")[1])
    assert status["champion"]["fault"].startswith("version 3: its files cannot be read (")


def test_the_history_survives_the_registered_model(reigning: MlflowStore, verdict: Command) -> None:
    with connect(reigning) as client:
        client.delete_registered_model(MODEL_NAME)
    entries = json.loads(verdict("history", "--json")[1])
    assert changes_of(entries) == [
        ("promote", None, "1"),
        ("promote", "1", "2"),
        ("promote", "2", "3"),
        ("lost", "3", None),
    ]


# From here on with models that answer.


@pytest.fixture
def judged(
    home: Path, store: MlflowStore, exported: Any, toy_split: tuple[str, str, str]
) -> Callable[[int, str | None], str]:
    """Register a real bundle with its evidence on the toy holdout, compared with a version; on HOLD."""
    digest = Path(toy_split[2]).stem
    (home / "snapshots").mkdir()
    shutil.copy(toy_split[2], home / "snapshots")

    def add(length: int, compared: str | None) -> str:
        bundle = Path(shutil.copytree(exported["bundle"], home / f"bundle-{length}"))
        manifest = write_manifest(bundle, facts(max_length=length), {})
        policy = load_policy().model_copy(update={"threshold": 0.0, "variant_difference": 1.0})
        evidence = gather_evidence(
            str(bundle),
            {"digest": digest, "path": toy_split[2]},
            None,
            None,
            split=SPLIT,
            training=toy_split[:2],
            context={
                "champion_state": "none",
                "holdout_uses": 0,
                "drift": [],
                "training_digest": "d" * 64,
                "policy": policy.model_dump(),
            },
            device="cpu",
            resamples=200,
        )
        run = tracking.open_run(store, f"{length:016d}", {"finetune.max_length": length}, {})
        held = judge(evidence, policy)
        write_json(home / "evidence.json", evidence)
        write_json(home / "verdict.json", held)
        tracking.log_files(store, run, [str(home / "evidence.json"), str(home / "verdict.json")], "records")
        tracking.close_run(store, run, "FINISHED")
        tags = {"verdict": "HOLD", "holdout": digest, "compared_with": compared or "", "mcc": "0.5"}
        tags["verdict_digest"] = json_digest(held)
        return register.register_bundle(store, run, str(bundle), manifest["digest"], tags, "a bundle")

    return add


def test_two_versions_are_measured_side_by_side_on_the_holdout(
    judged: Callable[..., str], home: Path, store: MlflowStore, verdict: Command
) -> None:
    first, second = judged(16, None), judged(3, None)  # the second reads two words of each sentence
    set_alias(store, first)
    code, out, _ = verdict("compare", second, "--device", "cpu", "--json")
    answer = json.loads(out)
    assert (code, answer["basis"], answer["rows"]) == (0, "measured", 80)
    assert [side["version"] for side in answer["versions"]] == [second, first]
    cut, whole = answer["versions"]
    assert cut["mcc"] < whole["mcc"]
    assert answer["comparison"]["difference"] == pytest.approx(cut["mcc"] - whole["mcc"])
    assert answer["comparison"]["differing"] >= len(answer["comparison"]["sentences"]) > 0
    assert answer["changes"] == [{"what": "finetune.max_length", "first": "3", "second": "16"}]
    shown_ = verdict("compare", second, first, "--device", "cpu")[1]
    assert re.search(r"^made with +version 2 +version 1 *\nfinetune\.max_length +3 +16 *$", shown_, re.MULTILINE)
    differing, listed = answer["comparison"]["differing"], len(answer["comparison"]["sentences"])
    first = f", the first {listed} of {differing}" if differing > listed else ""
    assert f'sentences that they label differently{first}, with the probability of "acceptable":\n' in shown_
    assert re.search(
        r"^label +version 2 +version 1 +sentence *\n(un)?acceptable +0\.\d\d +0\.\d\d +\w", shown_, re.MULTILINE
    )
    assert f"version {second}" in shown_
    assert "difference -" in shown_
    shutil.rmtree(home / "snapshots")
    recorded = json.loads(verdict("compare", second, "--json")[1])
    assert recorded["basis"] == "recorded"
    figures = ("mcc", "accuracy", "auroc", "brier")
    assert [{name: side[name] for name in figures} for side in recorded["versions"]] == [
        {name: pytest.approx(side[name]) for name in figures} for side in answer["versions"]
    ]
    assert recorded["comparison"]["difference"] == pytest.approx(answer["comparison"]["difference"])


def test_a_comparison_with_a_missing_champion_is_refused(judged: Callable[..., str], verdict: Command) -> None:
    code, out, err = verdict("compare", judged(16, None))
    assert (code, out) == (1, "")
    assert err.startswith("error: there is no champion yet in sqlite:")
    assert err.endswith("; or name a second version: verdict compare 1 B\n")


def test_a_hold_is_judged_again_where_another_champion_reigns_by_now(
    judged: Callable[..., str], home: Path, store: MlflowStore
) -> None:
    worse, held = judged(3, None), judged(16, None)
    promotion.promote(store, worse, kind="promote", expected=None, reason="first")
    move = review.approve(held, "the better one", str(home))
    assert (move["from"], move["to"]) == (worse, held)
    with connect(store) as client:
        run = client.get_model_version(MODEL_NAME, held).run_id
        path = client.download_artifacts(run, f"records/verdict-against-{worse}.json", str(home))
    again = json.loads(Path(path).read_text())
    assert (again["champion"], again["actor"]) == (worse, "ada")
    assert again["decision"] in {"HOLD", "PROMOTE"}
    assert move["verdict"] == json_digest(again)


def test_a_hold_that_is_worse_than_the_champion_by_now_is_refused(
    judged: Callable[..., str], home: Path, store: MlflowStore
) -> None:
    worse, better = judged(3, None), judged(16, None)
    promotion.promote(store, better, kind="promote", expected=None, reason="first")
    with pytest.raises(VerdictError, match=f"version {worse} was judged again, against champion {better}: REJECT: "):
        review.approve(worse, "the other one", str(home))
    assert aliases(store) == {"champion": better}


def test_a_hold_whose_champion_vanished_is_judged_again_without_one(
    judged: Callable[..., str], home: Path, store: MlflowStore
) -> None:
    first, held = judged(15, None), judged(16, "1")
    promotion.promote(store, first, kind="promote", expected=None, reason="first")
    with connect(store) as client:
        client.delete_registered_model_alias(MODEL_NAME, "champion")
    assert review.approve(held, "somebody must reign", str(home))["from"] is None
    assert aliases(store) == {"champion": held}


def test_what_cannot_be_judged_again_is_refused(judged: Callable[..., str], home: Path, store: MlflowStore) -> None:
    first, held = judged(15, None), judged(16, "7")
    promotion.promote(store, first, kind="promote", expected=None, reason="first")
    shutil.rmtree(home / "snapshots")
    message = f"version {held} was compared with champion 7, the champion is {first} now, and the holdout .* is missing"
    with pytest.raises(VerdictError, match=message):
        review.approve(held, "x", str(home))
    unknown = add_version(store, home, "x", verdict="HOLD", compared_with="7")
    with pytest.raises(VerdictError, match="and its evidence is missing to judge it again; run: verdict retrain"):
        review.approve(unknown, "x", str(home))
    assert aliases(store) == {"champion": first}


def forge(store: MlflowStore, version: str, name: str, change: Callable[[Any], None]) -> None:
    """Change a document in the artifacts of a version's run."""
    with connect(store) as client:
        run = client.get_run(client.get_model_version(MODEL_NAME, version).run_id)
    path = Path(run.info.artifact_uri.removeprefix("file://")) / "records" / name
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))


def test_answers_and_policy_in_the_artifacts_of_a_run_make_no_worse_model_champion(
    judged: Callable[..., str], home: Path, store: MlflowStore
) -> None:
    worse, better = judged(3, None), judged(16, None)
    promotion.promote(store, better, kind="promote", expected=None, reason="first")

    def answer_all(evidence: Any) -> None:
        right = [float(label) for label in evidence["answers"]["label"]]
        evidence["answers"]["variants"] = dict.fromkeys(evidence["answers"]["variants"], right)
        evidence["candidate"]["interval"]["mcc"] = 1.0
        evidence["policy"] |= {"reject_confidence": 0.9999}
        evidence["resamples"] = 1

    forge(store, worse, "evidence.json", answer_all)
    with pytest.raises(VerdictError, match=f"against champion {better}: REJECT: "):
        review.approve(worse, "x", str(home))
    forge(store, worse, "verdict.json", lambda held: held["policy"].update(reject_confidence=0.9999))
    with pytest.raises(
        VerdictError, match=f"the verdict of version {worse} in its MLflow run has digest .* registered"
    ):
        review.approve(worse, "x", str(home))
    forge(store, worse, "evidence.json", lambda evidence: evidence.update(digest="f" * 64))
    message = f"the evidence of version {worse} in its MLflow run has digest ffffffffffff, registered was .*--force"
    with pytest.raises(VerdictError, match=message):
        review.approve(worse, "x", str(home))
    assert aliases(store) == {"champion": better}
    shutil.rmtree(home / "snapshots")
    with pytest.raises(VerdictError, match=message):
        compare.compare(worse, better, "cpu", str(home))


def test_recorded_evidence_of_altered_files_or_without_a_required_signature_is_not_compared(
    judged: Callable[..., str], home: Path, store: MlflowStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = judged(3, None), judged(16, None)
    shutil.rmtree(home / "snapshots")
    register.tag_version(store, second, {"manifest_digest": "f" * 64})
    with pytest.raises(VerdictError, match=f"version {second} holds manifest .*, registered was ffffffffffff"):
        compare.compare(first, second, "cpu", str(home))
    monkeypatch.setenv("VERDICT_REQUIRE_SIGNATURE", "1")
    with pytest.raises(VerdictError, match=f"version {first} is not signed, and VERDICT_REQUIRE_SIGNATURE is set"):
        compare.compare(first, second, "cpu", str(home))


def test_comparing_with_itself_is_no_comparison(judged: Callable[..., str], home: Path) -> None:
    version = judged(16, None)
    with pytest.raises(UsageError, match=f"version {version} cannot be compared with itself"):
        compare.compare(version, version, "cpu", str(home))
