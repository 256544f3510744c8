"""Profiles are exact; each figure drifts alone; chance, row order and the top-k limit are no drift."""

import codecs
import json
import random
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from cola_like import COLA_DIR
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import jensenshannon
from scipy.stats import chi2_contingency, ks_2samp

from tasks.core.errors import VerdictError
from tasks.core.settings import GateSettings
from tasks.data import drift
from tasks.data.drift import (
    MIN_EXPECTED_COUNT,
    OTHER_CATEGORY,
    DataProfile,
    DriftResult,
    compare_profiles,
    profile_snapshot,
)
from tasks.data.normalization import normalise
from tasks.data.snapshots import SNAPSHOT_SCHEMA, iter_snapshot, write_snapshot

hypothesis_settings = settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.too_slow])

Rows = Sequence[tuple[str, int, str]]  # source, label, sentence

LIMITS = GateSettings()
WORDS = ["able", "bird", "cold", "dusk", "echo", "fish", "gold", "hill", "iron", "jump"]
OTHERS = ["kiln", "lamp", "moon", "nest", "oaks", "pine", "quay", "rain", "snow", "tree"]
counts = st.dictionaries(st.sampled_from(["", "a", "b", "c", "d", "e", OTHER_CATEGORY]), st.integers(1, 50), min_size=1)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path


def write(folder: Path, rows: Rows, name: str = "rows.parquet") -> str:
    """Write rows as a snapshot."""
    sources, labels, sentences = zip(*rows, strict=True) if rows else ((), (), ())
    columns = [["f"] * len(rows), range(1, len(rows) + 1), sources, labels, [""] * len(rows), sentences]
    arrays = [
        pa.array(list(column), field.type) for column, field in zip(columns[1:], list(SNAPSHOT_SCHEMA)[1:], strict=True)
    ]
    files = pa.array(columns[0], pa.string()).dictionary_encode()
    pq.write_table(pa.table([files, *arrays], schema=SNAPSHOT_SCHEMA), folder / name)
    return str(folder / name)


def profile(folder: Path, rows: Rows) -> DataProfile:
    return profile_snapshot(write(folder, rows), "d" * 64, ["h"])


def figures(**changes: dict[str, int]) -> DataProfile:
    """Return a profile of these counts."""
    plain = {"labels": {"0": 1, "1": 1}, "characters": {"9": 2}, "sources": {"s": 2}, "words": {"w": 2}} | changes
    rows = max(sum(plain[key].values()) for key in ("labels", "characters", "sources"))
    return DataProfile(dataset="d", rows=rows, **plain)  # type: ignore[typeddict-item]


def compare(new: DataProfile, old: DataProfile, **limits: float) -> dict[str, DriftResult]:
    return {shift["name"]: shift for shift in compare_profiles(new, old, LIMITS.model_copy(update=limits))}


def drifted(new: DataProfile, old: DataProfile, **limits: float) -> set[str]:
    return {name for name, shift in compare(new, old, **limits).items() if shift["drifted"]}


def corpus(
    rows: int = 400,
    acceptable: int = 200,
    sources: Sequence[str] = ("s", "t"),
    width: int = 2,
    words: Sequence[str] = WORDS,
) -> Rows:
    """Make rows in which every word is as common as any other, and all sentences have the same number of words."""
    return [
        (
            sources[row % len(sources)],
            int(row < acceptable),
            " ".join(words[(row * width + place) % len(words)] for place in range(width)),
        )
        for row in range(rows)
    ]


def chatter(rows: int, seed: int, vocabulary: int = 3000) -> Rows:
    """Make rows with many rare words and sources, as text has them."""
    rng = np.random.default_rng(seed)
    made = []
    for _ in range(rows):
        length = int(rng.integers(3, 12))
        words = [f"w{int(rank)}" for rank in rng.zipf(1.3, length) if rank < vocabulary] or ["w1"]
        made.append((f"s{int(rng.zipf(1.8)) % 40}", int(rng.random() < 0.7), " ".join(words)))
    return made


# Profiles


def test_profile_counts_exactly(folder: Path) -> None:
    rows = [
        ("gj04", 1, "The cat, the CAT!"),
        ("gj04", 0, "A cat."),
        ("ab12", 1, "Élan vital."),
        ("", 1, "..."),
    ]
    assert profile(folder, rows) == DataProfile(
        dataset="d" * 64,
        holdouts=["h"],
        rows=4,
        labels={"0": 1, "1": 3},
        characters={"3": 1, "6": 1, "11": 1, "17": 1},
        sources={"gj04": 2, "ab12": 1, "": 1},
        words={"cat": 2, "...": 1, "a": 1, "the": 1, "vital": 1, "élan": 1},
    )


def test_a_word_counts_once_a_row_however_often_it_occurs(folder: Path) -> None:
    assert profile(folder, [("s", 1, "the more the merrier"), ("s", 1, "The!")])["words"]["the"] == 2


def test_profile_is_json(folder: Path) -> None:
    made = profile(folder, chatter(50, 0))
    assert json.loads(json.dumps(made)) == made


def test_profile_is_the_same_text_in_any_order_of_rows(folder: Path) -> None:
    rows = list(chatter(300, 0))
    texts = {json.dumps(profile(folder, random.Random(seed).sample(rows, len(rows)))) for seed in range(4)}
    assert len(texts) == 1


def test_profile_does_not_depend_on_batches(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(folder, chatter(300, 0))
    whole = profile_snapshot(path, "d")
    for size in (1, 7, 299):
        monkeypatch.setattr(drift, "iter_snapshot", lambda path, columns, size=size: iter_snapshot(path, columns, size))
        assert profile_snapshot(path, "d") == whole


def test_words_of_a_large_file_are_counted_in_rows_from_all_of_it(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [*corpus(200), *corpus(200, words=OTHERS)]
    whole = profile(folder, rows)
    monkeypatch.setattr(drift, "DRIFT_SAMPLE_ROWS", 57)  # every 7th row
    for size in (1, 5, 13, 400):
        monkeypatch.setattr(drift, "iter_snapshot", lambda path, columns, size=size: iter_snapshot(path, columns, size))
        sampled = profile(folder, rows)
        expected = Counter(word for row in rows[::7] for word in set(normalise(row[2]).split()))
        assert sampled["words"] == expected
        assert {key: sampled[key] for key in sampled if key != "words"} == {  # type: ignore[literal-required]
            key: whole[key]  # type: ignore[literal-required]
            for key in whole
            if key != "words"
        }
    assert set(expected) == {*WORDS, *OTHERS}


def test_profile_of_no_rows(folder: Path) -> None:
    assert profile(folder, []) == DataProfile(
        dataset="d" * 64, holdouts=["h"], rows=0, labels={}, characters={}, sources={}, words={}
    )


def test_a_missing_snapshot_is_an_error_of_one_line(folder: Path) -> None:
    with pytest.raises(VerdictError, match=r"^snapshot .* cannot be read \(.*\); delete it and run again$"):
        profile_snapshot(str(folder / "none.parquet"), "d")


def test_profile_of_a_snapshot_that_was_read_from_a_file(folder: Path) -> None:
    (folder / "mine.tsv").write_text("s\t1\t\tA cat.\ns\t0\t*\tCat a.\n")
    snapshot = write_snapshot([str(folder / "mine.tsv")], str(folder))
    made = profile_snapshot(snapshot["path"], snapshot["digest"])
    assert (made["dataset"], made["rows"], made["words"]) == (snapshot["digest"], 2, {"a": 2, "cat": 2})


# One figure at a time


def test_identical_profiles_have_no_distance_and_nothing_drifts(folder: Path) -> None:
    for rows in (corpus(), chatter(500, 1), [("s", 1, "One.")]):
        made = profile(folder, rows)
        shifts = compare(made, made, max_label_shift=0, max_length_shift=0, max_source_shift=0, max_vocabulary_shift=0)
        assert list(shifts) == ["label", "length", "source", "vocabulary"]
        assert {shift["distance"] for shift in shifts.values()} == {0.0}
        assert all(shift["p"] == pytest.approx(1) for shift in shifts.values())
        assert not any(shift["drifted"] for shift in shifts.values())


def test_twice_the_same_rows_are_no_drift(folder: Path) -> None:
    once, twice = profile(folder, corpus()), profile(folder, [*corpus(), *corpus()])
    assert {shift["distance"] for shift in compare(twice, once).values()} == {0.0}


@pytest.mark.parametrize(
    ("changed", "name", "distance"),
    [
        (corpus(acceptable=320), "label", 0.3),
        (corpus(acceptable=0), "label", 0.5),
        (corpus(width=5), "length", 1.0),
        ([*corpus(200, 100), *corpus(200, 100, width=5)], "length", 0.5),
        (corpus(sources=("s", "u")), "source", 0.5**0.5),
        (corpus(sources=("u", "v")), "source", 1.0),
        (corpus(words=OTHERS), "vocabulary", 1.0),
        (corpus(words=[*WORDS[:5], *OTHERS[5:]]), "vocabulary", 0.5**0.5),
    ],
)
def test_one_change_drifts_exactly_its_own_figure(folder: Path, changed: Rows, name: str, distance: float) -> None:
    old, new = profile(folder, corpus()), profile(folder, changed)
    shifts = compare(new, old)
    assert shifts[name]["distance"] == pytest.approx(distance)
    assert shifts[name]["p"] < 1e-9
    assert {other: shift["distance"] for other, shift in shifts.items() if other != name} == pytest.approx(
        dict.fromkeys({"label", "length", "source", "vocabulary"} - {name}, 0.0)
    )
    assert drifted(new, old) == {name}
    assert drifted(old, new) == {name}


def test_a_result_holds_its_statistic_limit_and_setting(folder: Path) -> None:
    shifts = compare(profile(folder, corpus()), profile(folder, corpus(acceptable=0)), max_label_shift=0.25)
    assert (shifts["label"]["limit"], shifts["label"]["setting"]) == (0.25, "gate.max_label_shift")
    assert {name: shift["statistic"] for name, shift in shifts.items()} == {
        "label": "difference of the acceptable share, chi-squared test",
        "length": "Kolmogorov-Smirnov distance of characters",
        "source": "Jensen-Shannon distance of sources, chi-squared test",
        "vocabulary": "Jensen-Shannon distance of words, chi-squared test",
    }
    assert json.loads(json.dumps(shifts)) == shifts


def test_distance_that_is_just_the_limit_is_no_drift(folder: Path) -> None:
    old, new = profile(folder, corpus(acceptable=0)), profile(folder, corpus(acceptable=100))
    assert drifted(new, old, max_label_shift=0.25) == set()
    assert drifted(new, old, max_label_shift=0.2499) == {"label"}


def test_p_value_that_is_not_below_the_level_is_no_drift(folder: Path) -> None:
    old, new = profile(folder, corpus(acceptable=200)), profile(folder, corpus(acceptable=240))
    p = compare(new, old)["label"]["p"]
    assert 0.001 < p < 0.01
    assert drifted(new, old, drift_level=p) == set()
    assert drifted(new, old, drift_level=p * 1.001) == {"label"}


def test_a_small_distance_in_large_files_is_no_drift() -> None:
    old = figures(labels={"0": 500_000, "1": 500_000}, characters={"9": 1_000_000}, sources={"s": 1_000_000})
    new = figures(labels={"0": 490_000, "1": 510_000}, characters={"9": 1_000_000}, sources={"s": 1_000_000})
    assert compare(new, old)["label"]["p"] < 1e-40
    assert drifted(new, old) == set()


def test_profile_without_rows_is_compared_with_nothing(folder: Path) -> None:
    empty, full = profile(folder, []), profile(folder, corpus())
    assert compare_profiles(empty, full, LIMITS) == []
    assert compare_profiles(full, empty, LIMITS) == []
    assert compare_profiles(empty, empty, LIMITS) == []


def test_nearly_equal_counts_have_a_distance_that_is_a_number() -> None:
    rng = np.random.default_rng(1)
    for _ in range(400):
        share = rng.dirichlet(np.ones(int(rng.integers(2, 40))))
        old = {f"s{place}": int(count) + 1 for place, count in enumerate(rng.multinomial(10**8, share))}
        shift = compare(figures(sources=old | {"s0": old["s0"] + 1}), figures(sources=old))["source"]
        assert 0 <= shift["distance"] < 1e-3


# Chance


def test_random_halves_of_one_corpus_do_not_drift(folder: Path) -> None:
    rows = list(chatter(4000, 0))
    for seed in range(6):
        shuffled = random.Random(seed).sample(rows, len(rows))
        assert drifted(profile(folder, shuffled[:2000]), profile(folder, shuffled[2000:])) == set(), seed


def test_random_halves_do_not_drift_whatever_the_top_k(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = list(chatter(2000, 0))
    for seed in range(3):
        monkeypatch.setattr(drift, "TOP_K", 2_000)
        shuffled = random.Random(seed).sample(rows, len(rows))
        halves = shuffled[:1000], shuffled[1000:]
        new, old = (profile(folder, half) for half in halves)
        assert len(new["words"]) != len(old["words"])
        for limit in (min(len(new["words"]), len(old["words"])), 300, 30):  # the first cuts only one of them off
            monkeypatch.setattr(drift, "TOP_K", limit)
            cut = [profile(folder, half) for half in halves]
            assert compare(*cut)["vocabulary"]["p"] > 0.01, (seed, limit)
            assert drifted(*cut) == set(), (seed, limit)


def test_false_positives_of_small_samples_are_at_most_the_significance_level(folder: Path) -> None:
    rows = chatter(1500, 0)
    whole = profile(folder, rows)
    for size in (3, 10, 60):
        rng = random.Random(size)
        found: Counter[str] = Counter()
        for _ in range(60):
            found.update(drifted(profile(folder, rng.sample(rows, size)), whole))
        assert all(count <= 3 for count in found.values()), (size, found)  # 0.6 expected at a level of 0.01
        assert found.total() <= 4, (size, found)


def test_a_few_rows_without_anything_in_common_are_not_significant(folder: Path) -> None:
    for size in (1, 2, 3, 4):
        new, old = profile(folder, [("u", 0, "kiln lamp moon.")] * size), profile(folder, [("s", 1, "able.")] * size)
        shifts = compare(new, old)
        assert {shift["distance"] for shift in shifts.values()} == {1.0}, size
        assert all(0.01 < shift["p"] <= 1 for shift in shifts.values()), size
        assert drifted(new, old) == set(), size


def test_a_small_file_from_another_domain_is_drift(folder: Path) -> None:
    old = profile(folder, chatter(1500, 0))
    new = profile(folder, [("app", 1, f"{word} {other} hello there") for word in OTHERS for other in WORDS[:4]])
    assert drifted(new, old) >= {"source", "vocabulary"}


# Agreement with scipy on the rows themselves


def explode(rows: Rows) -> pd.Series:
    return pd.Series([word for row in rows for word in sorted(set(normalise(row[2]).split()))])


def tabulate(new: pd.Series, old: pd.Series) -> pd.DataFrame:
    both = pd.concat([new, old], ignore_index=True)
    which = np.array(["new"] * len(new) + ["old"] * len(old))
    return pd.crosstab(which, both.to_numpy())


@pytest.mark.parametrize("seed", range(4))
def test_figures_are_those_of_scipy_on_the_raw_rows(folder: Path, seed: int) -> None:
    first, second = chatter(700, seed), [*chatter(300, seed + 50), *corpus(60)]
    shifts = compare(profile(folder, first), profile(folder, second))
    new, old = (pd.DataFrame(rows, columns=["source", "label", "sentence"]) for rows in (first, second))

    assert shifts["label"]["distance"] == pytest.approx(abs(new["label"].mean() - old["label"].mean()))
    assert shifts["label"]["p"] == pytest.approx(chi2_contingency(tabulate(new["label"], old["label"])).pvalue)

    lengths = ks_2samp(new["sentence"].str.len(), old["sentence"].str.len())
    assert (shifts["length"]["distance"], shifts["length"]["p"]) == pytest.approx((lengths.statistic, lengths.pvalue))

    for name, table in (
        ("source", tabulate(new["source"], old["source"])),
        ("vocabulary", tabulate(explode(first), explode(second))),
    ):
        assert shifts[name]["distance"] == pytest.approx(jensenshannon(*table.to_numpy(), base=2))
        smaller = table.sum(axis=1).min() / table.to_numpy().sum()
        rare = table.sum() * smaller < MIN_EXPECTED_COUNT
        assert rare.any()
        merged = table.loc[:, ~rare].assign(rare=table.loc[:, rare].sum(axis=1))
        assert shifts[name]["p"] == pytest.approx(chi2_contingency(merged).pvalue)


def test_where_nothing_is_rare_the_test_is_that_of_scipy_on_all_columns(folder: Path) -> None:
    first, second = corpus(sources=["s", "s", "t"]), corpus(sources=["s", "t", "t", "u"])
    shift = compare(profile(folder, first), profile(folder, second))["source"]
    table = tabulate(pd.Series([row[0] for row in first]), pd.Series([row[0] for row in second]))
    assert shift["p"] == pytest.approx(chi2_contingency(table).pvalue)


# The top-k limit


def test_the_most_frequent_words_and_sources_are_listed_and_the_others_counted_together(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(drift, "TOP_K", 2)
    rows = [("s", 1, "b a"), ("s", 1, "b a"), ("r", 1, "b c"), ("t", 1, "d e"), ("", 1, "c")]
    made = profile(folder, rows)
    assert made["words"] == {
        "b": 3,
        "a": 2,
        OTHER_CATEGORY: 4,
    }  # of a and c, equally frequent, the alphabetically first
    assert made["sources"] == {"s": 2, "": 1, OTHER_CATEGORY: 2}
    monkeypatch.setattr(drift, "TOP_K", 4)
    assert profile(folder, rows)["sources"] == {"s": 2, "": 1, "r": 1, "t": 1}


def distance(new: dict[str, int], old: dict[str, int]) -> float:
    return compare(figures(words=new), figures(words=old))["vocabulary"]["distance"]


def test_what_may_be_among_unlisted_words_counts_there_up_to_the_rarest_listed_one() -> None:
    new, old = {"a": 50, "b": 30, "d": 10, OTHER_CATEGORY: 10}, {"a": 40, "b": 20, "c": 30, OTHER_CATEGORY: 10}
    # All 10 unlisted words of the old profile may be d; of the new one's no more than 10 are c, as d is listed with 10.
    expected = jensenshannon([50, 30, 10, 10], [40, 20, 10, 30], base=2)
    assert distance(new, old) == pytest.approx(expected)
    assert distance(old, new) == pytest.approx(expected)


def test_unlisted_words_are_no_more_than_they_are() -> None:
    whole, cut = {"a": 50, "b": 30, "d": 10, "e": 10}, {"a": 40, "c": 20, "d": 30, OTHER_CATEGORY: 10}
    # b and e share the 10 unlisted ones: they would need 20 and 10. c is known not to occur.
    expected = jensenshannon([50, 30, 0, 10, 10], [40, 20 / 3, 20, 30, 10 / 3], base=2)
    assert distance(whole, cut) == pytest.approx(expected)
    assert distance(cut, whole) == pytest.approx(expected)


def test_another_vocabulary_is_drift_although_both_lists_are_cut_off(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(drift, "TOP_K", 40)
    rows = list(chatter(2000, 0))
    old = profile(folder, rows)
    new = profile(folder, [(source, label, sentence.replace("w", "v")) for source, label, sentence in rows])
    assert not set(new["words"]) & set(old["words"]) - {OTHER_CATEGORY}
    assert drifted(new, old) == drifted(old, new) == {"vocabulary"}


@pytest.mark.skipif(not COLA_DIR, reason="needs CoLA: COLA_DIR=DIR")
def test_cola_in_another_alphabet_is_drift_and_its_halves_are_not(folder: Path) -> None:
    lines = (Path(COLA_DIR) / "raw" / "in_domain_train.tsv").read_text("utf-8").splitlines()
    rows = [(source, int(label), sentence) for source, label, _, sentence in (line.split("\t") for line in lines)]
    whole = profile(folder, rows)
    rotated = profile(folder, [(source, label, codecs.encode(sentence, "rot13")) for source, label, sentence in rows])
    assert compare(rotated, whole)["vocabulary"]["distance"] == pytest.approx(0.82, abs=0.005)
    assert drifted(rotated, whole) == {"vocabulary"}
    halves = random.Random(0).sample(rows, len(rows))
    assert drifted(profile(folder, halves[: len(rows) // 2]), profile(folder, halves[len(rows) // 2 :])) == set()


@hypothesis_settings
@given(counts, counts)
def test_distance_and_p_are_symmetric(new: dict[str, int], old: dict[str, int]) -> None:
    there = compare(figures(words=new, sources=new), figures(words=old, sources=old))
    back = compare(figures(words=old, sources=old), figures(words=new, sources=new))
    for name in ("source", "vocabulary"):
        assert there[name]["distance"] == back[name]["distance"]
        assert there[name]["p"] == pytest.approx(back[name]["p"])
        assert 0 <= there[name]["distance"] <= 1
        assert 0 <= there[name]["p"] <= 1


@hypothesis_settings
@given(counts)
def test_equal_counts_have_no_distance_with_or_without_unlisted_ones(made: dict[str, int]) -> None:
    assert distance(made, made) == 0.0


def test_a_smaller_top_k_never_increases_a_distance(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = chatter(300, 3), chatter(200, 4)
    found = []
    for limit in (10_000, 200, 50, 10, 1):
        monkeypatch.setattr(drift, "TOP_K", limit)
        found.append(compare(profile(folder, first), profile(folder, second))["vocabulary"]["distance"])
    assert found == sorted(found, reverse=True)


def test_the_empty_source_is_a_source(folder: Path) -> None:
    old, new = profile(folder, corpus(sources=[""])), profile(folder, corpus(sources=["s"]))
    assert compare(new, old)["source"]["distance"] == 1.0
    assert drifted(new, old) == {"source"}


def test_no_word_or_source_equals_the_key_of_unlisted_ones(folder: Path) -> None:
    (folder / "mine.csv").write_text('source,label,text\n"a\tb",1,One.\ns,1,"Two\tthree."\n\u0009,1,Four.\n', "utf-8")
    snapshot = write_snapshot([str(folder / "mine.csv")], str(folder))
    assert (snapshot["kept"], snapshot["quarantined"]) == (0, 3)
    assert OTHER_CATEGORY == "\t"
