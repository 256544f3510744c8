"""A shadow compares two versions on the champion's batches, and neither its time nor its errors reach a request."""

import threading
import time
from pathlib import Path
from typing import Any

import mlflow
import pytest
from challengers import ScriptedAddress, ScriptedModel
from http_server import RegistryHome, copy_registry_home, running_server, wait_until
from prometheus_client import CollectorRegistry, generate_latest

from tasks.evaluation.shadow_summary import describe_shadow
from tasks.registry import register
from tasks.registry.shadow_record import read_shadow
from tasks.serving import shadow as module
from tasks.serving.challenger import Challenger, ChallengerConfig, challenger_address, open_challenger
from tasks.serving.challenger_metrics import ShadowCollector
from tasks.serving.champion import Champion
from tasks.serving.shadow import Shadow


def make(load: float = 1.0, **options: Any) -> tuple[Any, ScriptedModel, ScriptedModel, ScriptedAddress]:
    ours, theirs = ScriptedModel("1", "cat", "dog"), ScriptedModel("2", "cat")
    address = ScriptedAddress(theirs)
    shadow = Shadow(ScriptedAddress(ours), address, load, **options)  # type: ignore[arg-type]
    return shadow, ours, theirs, address


def offer(shadow: Any, model: ScriptedModel, *sentences: str, seconds: float = 0.004) -> None:
    shadow.offer(model.predict(sentences), seconds)


def test_the_same_batches_are_computed_and_compared() -> None:
    shadow, ours, theirs, _ = make()
    assert shadow.summary() is None
    offer(shadow, ours, "a cat", "a dog", "a bird")
    offer(shadow, ours, "a cat")
    wait_until(lambda: shadow.summary() and shadow.summary()["sentences"] == 4)
    shadow.close()
    summary = shadow.summary()
    assert theirs.seen == [["a cat", "a dog", "a bird"], ["a cat"]]
    assert (summary["sentences"], summary["equal"], summary["dropped"], summary["failures"]) == (4, 3, 0, 0)
    assert (summary["champion"]["version"], summary["challenger"]["version"]) == ("1", "2")
    assert summary["champion"]["p50_ms"] == summary["champion"]["p99_ms"] == 4.0
    assert 0 < summary["challenger"]["p50_ms"] < 4


def test_flags_give_the_mcc_of_both_and_the_last_one_of_a_sentence_counts() -> None:
    shadow, _, _, _ = make()
    for sentence, label in (("a cat", 1), ("a dog", 0), ("a dog", 1), ("a bird", 0), ("a fish", 0)):
        shadow.flag(sentence, label)
        wait_until(lambda: not shadow._flags)
    shadow.close()
    summary = shadow.summary()
    assert (summary["flags"], summary["champion"]["mcc"]) == (4, pytest.approx(1.0))
    assert summary["challenger"]["mcc"] == pytest.approx(0.5773503)  # tp 1, fn 1, tn 2


def test_a_full_queue_drops_batches_and_an_offer_never_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SHADOW_QUEUE", 2)
    shadow, ours, theirs, _ = make()
    offer(shadow, ours, "a cat")
    wait_until(shadow.summary)
    offered = threading.Event()
    theirs.sleep = lambda _: offered.wait(60)
    offer(shadow, ours, "slow")
    wait_until(lambda: not shadow._batches)
    for _ in range(5):
        offer(shadow, ours, "a cat", "a dog")
    assert shadow.summary()["dropped"] == 6
    offered.set()
    shadow.close()


def test_the_load_bounds_the_share_of_the_time() -> None:
    shadow, ours, theirs, _ = make(load=0.1)
    theirs.seconds = 0.02
    started = time.perf_counter()
    for _ in range(4):
        offer(shadow, ours, "a cat")
    wait_until(lambda: len(theirs.seen) == 4)
    assert time.perf_counter() - started > 3 * 0.02 / 0.1
    shadow.close()


def test_errors_of_the_challenger_are_counted_and_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    shadow, ours, theirs, _ = make()
    theirs.fails = True
    for _ in range(3):
        offer(shadow, ours, "a cat")
    wait_until(lambda: len(theirs.seen) == 3)
    shadow.close()
    assert shadow.summary()["failures"] == 3
    assert [record.getMessage() for record in caplog.records if record.levelname == "WARNING"] == [
        "shadow: the challenger failed (RuntimeError: a fault); the champion is not affected"
    ]


def test_each_pair_of_versions_is_counted_and_published_by_itself() -> None:
    published: list[Any] = []
    shadow, ours, _, address = make(publish=published.append)
    offer(shadow, ours, "a cat")
    wait_until(shadow.summary)
    address.model = None  # as where the alias is removed
    offer(shadow, ours, "a cat")
    wait_until(lambda: not shadow._batches)
    address.model = ScriptedModel("3")
    offer(shadow, ours, "a cat", "a dog")
    wait_until(lambda: shadow.summary()["challenger"]["version"] == "3")
    shadow.close()
    figures = [(each["challenger"]["version"], each["sentences"], each["equal"]) for each in published]
    assert figures == [("2", 1, 1), ("3", 2, 0)]


def test_metrics_show_the_figures() -> None:
    shadow, ours, _, _ = make()
    registry = CollectorRegistry()
    registry.register(ShadowCollector(shadow))
    assert generate_latest(registry) == b""
    offer(shadow, ours, "a cat", "a dog")
    shadow.flag("a cat", 1)
    wait_until(lambda: shadow.summary() and shadow.summary()["flags"] and shadow.summary()["sentences"])
    shadow.close()
    text = generate_latest(registry).decode()
    for line in (
        'verdict_shadow_sentences_total{challenger="2",champion="1"} 2.0',
        'verdict_shadow_equal_sentences_total{challenger="2",champion="1"} 1.0',
        'verdict_shadow_batch_seconds{quantile="0.99",version="1"} 0.004',
        'verdict_shadow_mcc{version="2"} 0.0',
        "verdict_shadow_flags 1.0",
    ):
        assert line in text


@pytest.mark.parametrize(
    ("model", "address"),
    [("challenger", "models:/acceptability@challenger"), ("7", "7"), ("models:/a/1", "models:/a/1"), ("./b", "./b")],
)
def test_an_alias_is_an_address_of_the_registry(model: str, address: str) -> None:
    assert challenger_address(model) == address


@pytest.fixture
def home(original_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RegistryHome:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return copy_registry_home(original_home, tmp_path / "home")


def test_a_served_challenger_follows_its_alias_and_its_page_has_the_figures(home: RegistryHome) -> None:
    register.move_alias(home.store, "champion", "1")
    register.move_alias(home.store, "challenger", "3")  # damaged: it does not keep the server from starting
    folder = str(home.folder)
    with (
        Champion.open("models:/acceptability@champion", 3_600, "cpu", folder) as champion,
        Challenger.open("models:/acceptability@challenger", 3_600, "cpu", folder, require_model=False) as challenger,
    ):
        assert challenger.facing("1") is None
        register.move_alias(home.store, "challenger", "2")
        challenger.refresh()
        assert [challenger.facing(version) is None for version in ("1", "2")] == [False, True]
        with running_server(champion, beside=(challenger, ChallengerConfig(shadow=True, load=1.0), folder)) as client:
            answer = client.post("/v1/judge", json={"sentences": ["the cat sees the dog"] * 3}).json()
            wait_until(lambda: "verdict_shadow_sentences_total" in client.get("/metrics").text)
        first = read_shadow(home.store, "2", "1")
        with running_server(champion, beside=(challenger, ChallengerConfig(shadow=True, load=1.0), folder)) as client:
            client.post("/v1/judge", json={"sentences": ["the dog sees the cat"] * 2})
            wait_until(lambda: "verdict_shadow_sentences_total" in client.get("/metrics").text)
        register.drop_alias(home.store, "challenger", "2")
        challenger.refresh()
        assert challenger.facing("1") is None
    assert {entry["version"] for entry in answer["predictions"]} == {"1"}
    summary = read_shadow(home.store, "2", "1")
    assert summary is not None
    assert first is not None
    assert (first["sentences"], first["equal"], first["servers"]) == (3, 3, 1)
    assert (summary["sentences"], summary["equal"], summary["servers"]) == (5, 5, 2)  # a restart loses nothing
    client = mlflow.MlflowClient(home.store["uri"], registry_uri=home.store["uri"])
    tags = client.get_model_version("acceptability", "2").tags
    assert tags["shadow"] == describe_shadow(summary)
    assert tags["shadow"].startswith("100.0% of 5 labels equal to version 1's; a batch took ")
    assert read_shadow(home.store, "2", "9") is None


def test_an_alias_that_nobody_set_is_followed_with_a_warning_that_names_the_likely_one(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("challenge", "challenger"):
        open_challenger(ChallengerConfig(name, shadow=True), 3_600.0, "cpu", str(tmp_path)).close()
    (warning,) = [record.getMessage() for record in caplog.records if record.name == "tasks.serving.challenger"]
    assert warning.startswith("did you mean 'challenger'? the alias 'challenge' is not set; verdict sets the aliases")
