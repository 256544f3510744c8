"""A split leaks nothing, loses no row uncounted, and depends on sentences and seed alone."""

import random
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tasks.core.errors import DataRejected
from tasks.data import splitting
from tasks.data.normalization import normalise
from tasks.data.snapshots import read_snapshot, write_snapshot
from tasks.data.splitting import (
    Split,
    drop_labelled,
    hash_fraction,
    plan_split,
    split_rows,
    split_snapshot,
    validation_sources,
)

unhurried = settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.too_slow])  # slow is not wrong

# Few words with many spellings: repeats, conflicts and leaks are common.
spellings = st.tuples(st.sampled_from("abcdefghij"), st.sampled_from(["{}", "{}.", " {} ", "«{}»"])).map(
    lambda pair: pair[1].format(pair[0])
)
tables = st.lists(st.tuples(spellings, st.integers(0, 1)), max_size=25)


def frame(rows: list[tuple[str, int]]) -> pd.DataFrame:
    return pd.DataFrame({"sentence": [row[0] for row in rows], "label": [row[1] for row in rows]})


def numbered(start: int, stop: int) -> pd.DataFrame:
    return frame([(f"Sentence number {i}.", i % 2) for i in range(start, stop)])


def normalised(rows: pd.DataFrame) -> set[str]:
    return {normalise(sentence) for sentence in rows["sentence"]}


@unhurried
@given(tables, st.lists(spellings, max_size=4), st.floats(0.05, 0.95), st.integers(0, 2**32 - 1))
def test_no_normalised_sentence_is_on_two_sides_or_twice(
    rows: list[tuple[str, int]], holdout: list[str], share: float, seed: int
) -> None:
    train, validation, _ = split_rows(frame(rows), holdout, share, seed)
    sides = [normalised(train), normalised(validation), {normalise(sentence) for sentence in holdout}]
    assert not sides[0] & sides[1] | sides[0] & sides[2] | sides[1] & sides[2]
    assert (len(sides[0]), len(sides[1])) == (len(train), len(validation))


VARIANTS = [str.lower, str.upper, str.title, str.split, "{}.".format, "“{}”".format, "{} ?!".format, " {}\u00a0".format]


def vary(sentence: str, rng: random.Random) -> str:
    """Change case, punctuation and spacing a few times."""
    for change in rng.choices(VARIANTS, k=3):
        changed = change(sentence)
        sentence = changed if isinstance(changed, str) else rng.choice(["  ", ", ", " — ", "\u3000"]).join(changed)
    return sentence


@pytest.mark.parametrize("seed", range(20))
def test_near_duplicates_are_on_one_side_at_most(seed: int) -> None:
    rng = random.Random(seed)
    words = ["cat", "dog", "Zoë", "naïve", "fine", "résumé", "x2", "语言", "2024", "don't"]
    plain = [" ".join(rng.choices(words, k=4)) for _ in range(120)]
    rows = frame([(vary(rng.choice(plain), rng), int(rng.random() < 0.97)) for _ in range(400)])
    holdout = [vary(sentence, rng) for sentence in plain[:20]]
    train, validation, counts = split_rows(rows, holdout, 0.3, seed)
    sides = [normalised(train), normalised(validation), {normalise(sentence) for sentence in holdout}]
    assert not sides[0] & sides[1] | sides[0] & sides[2] | sides[1] & sides[2]
    assert min(counts.values()) > 0
    assert sum(counts.values()) == 400
    assert (len(sides[0]), len(sides[1])) == (counts["train"], counts["validation"])


def test_variants_of_a_sentence_are_one_normalised_sentence() -> None:
    rng = random.Random(0)
    assert {normalise(vary("Zoë's cat ran 2 miles", rng)) for _ in range(200)} == {"zoë s cat ran 2 miles"}


@unhurried
@given(tables, st.lists(spellings, max_size=4))
def test_counts_add_up_to_the_rows(rows: list[tuple[str, int]], holdout: list[str]) -> None:
    train, validation, counts = split_rows(frame(rows), holdout, 0.3, 0)
    assert sum(counts.values()) == len(rows)
    assert (counts["train"], counts["validation"]) == (len(train), len(validation))


@unhurried
@given(tables, tables)
def test_adding_rows_moves_no_old_row_to_the_other_side(old: list[tuple[str, int]], new: list[tuple[str, int]]) -> None:
    train, validation, _ = split_rows(frame(old), [], 0.4, 7)
    more_train, more_validation, _ = split_rows(frame(new + old), [], 0.4, 7)
    assert not normalised(train) & normalised(more_validation)
    assert not normalised(validation) & normalised(more_train)


@unhurried
@given(tables, tables)
def test_old_rows_leave_only_when_a_row_added_later_contradicts_them(
    old: list[tuple[str, int]], new: list[tuple[str, int]]
) -> None:
    labels: dict[str, set[int]] = {}
    for sentence, label in old + new:
        labels.setdefault(normalise(sentence), set()).add(label)
    before = split_rows(frame(old).assign(line=range(len(old))), [], 0.4, 7)
    after = split_rows(frame(old + new).assign(line=range(len(old + new))), [], 0.4, 7)
    for was, now in zip(before[:2], after[:2], strict=True):
        stays = [
            line for line, text in zip(was["line"], was["sentence"], strict=True) if len(labels[normalise(text)]) == 1
        ]
        assert [line for line in now["line"] if line < len(old)] == stays


@unhurried
@given(tables.flatmap(lambda rows: st.tuples(st.just(rows), st.permutations(rows))))
def test_row_order_does_not_matter(pair: tuple[list[tuple[str, int]], list[tuple[str, int]]]) -> None:
    one, other = (split_rows(frame(list(rows)), ["a"], 0.4, 7) for rows in pair)
    assert [normalised(rows) for rows in one[:2]] == [normalised(rows) for rows in other[:2]]
    assert one[2] == other[2]


def test_another_order_gives_the_same_rows_on_each_side() -> None:
    rows = numbered(0, 300).assign(line=range(300))
    shuffled = rows.sample(frac=1, random_state=1)
    one, other = (split_rows(table, ["sentence number 7"], 0.4, 7) for table in (rows, shuffled))
    for side in (0, 1):
        assert sorted(other[side]["line"]) == one[side]["line"].tolist()
        assert other[side]["line"].tolist() == [line for line in shuffled["line"] if line in set(one[side]["line"])]


def test_the_split_depends_on_the_normalised_sentence_and_the_seed_alone() -> None:
    _, validation, _ = split_rows(numbered(0, 300), [], 0.3, 2018)
    expected = [text for text in numbered(0, 300)["sentence"] if hash_fraction(normalise(text), "2018") < 0.3]
    assert validation["sentence"].tolist() == expected


def test_fraction_looks_uniform_and_stays_the_same() -> None:
    found = np.array([hash_fraction(f"text {number}", "key") for number in range(20_000)])
    assert found.min() >= 0
    assert found.max() < 1
    assert np.histogram(found, 10, (0, 1))[0] == pytest.approx(2000, abs=200)
    assert hash_fraction("the cat sat", "holdout") == 0.4084241544495186  # or old rows would change sides
    assert hash_fraction("the cat sat", "holdout") != hash_fraction("the cat sat", "2018")


def test_rows_keep_their_order_and_columns_and_the_input_stays() -> None:
    rows = numbered(0, 50).assign(line=range(50))
    before = rows.copy()
    train, validation, _ = split_rows(rows, [], 0.3, 0)
    pd.testing.assert_frame_equal(rows, before)
    assert list(train.columns) == ["sentence", "label", "line"]
    assert sorted([*train["line"], *validation["line"]]) == list(range(50))
    assert train["line"].is_monotonic_increasing
    assert train.index.tolist() == list(range(len(train)))


def test_same_seed_same_choice_and_another_seed_another_choice() -> None:
    sides = [normalised(split_rows(numbered(0, 200), [], 0.2, seed)[1]) for seed in (1, 1, 2)]
    assert sides[0] == sides[1]
    assert sides[0] != sides[2]


def test_share_of_validation_is_near_the_expected_one() -> None:
    _, validation, _ = split_rows(numbered(0, 4000), [], 0.1, 2018)
    assert 340 <= len(validation) <= 460  # 400 expected, standard deviation 19


@pytest.mark.parametrize(("share", "rows"), [(0.0, (30, 0)), (1.0, (0, 30))])
def test_extreme_shares_fill_one_side(share: float, rows: tuple[int, int]) -> None:
    train, validation, _ = split_rows(numbered(0, 30), [], share, 0)
    assert (len(train), len(validation)) == rows


def test_sentence_of_a_holdout_leaves_however_it_is_spelled() -> None:
    train, _, counts = split_rows(frame([("The cat sat.", 1), ("A dog ran.", 1)]), ["the CAT sat"], 0.0, 0)
    assert train["sentence"].tolist() == ["A dog ran."]
    assert counts == Split(train=1, validation=0, in_holdout=1, conflicting=0, repeated=0)


def test_sentence_with_both_labels_leaves_with_all_its_rows() -> None:
    train, _, counts = split_rows(frame([("It ran.", 1), ("A dog ran.", 1), ("It ran!", 0), ("it ran", 0)]), [], 0.0, 0)
    assert train["sentence"].tolist() == ["A dog ran."]
    assert counts == Split(train=1, validation=0, in_holdout=0, conflicting=3, repeated=0)


def test_first_of_repeated_sentences_stays() -> None:
    train, _, counts = split_rows(frame([("It ran.", 1), ("IT RAN", 1), ("A dog ran.", 1), ("it ran!", 1)]), [], 0.0, 0)
    assert train["sentence"].tolist() == ["It ran.", "A dog ran."]
    assert counts == Split(train=2, validation=0, in_holdout=0, conflicting=0, repeated=2)


def test_a_row_is_counted_under_the_first_reason_that_applies() -> None:
    rows = frame([("a", 0), ("a", 1), ("a", 1), ("b", 0), ("b", 1), ("b", 1), ("c", 1), ("c", 1)])
    counts = split_rows(rows, ["A!"], 0.0, 0)[2]
    assert counts == Split(train=1, validation=0, in_holdout=3, conflicting=3, repeated=1)


def test_no_rows_split_into_nothing() -> None:
    train, validation, counts = split_rows(frame([]), ["a"], 0.5, 0)
    assert train.empty
    assert validation.empty
    assert set(counts.values()) == {0}


def snapshot(folder: Path, name: str, sentences: list[str]) -> str:
    path = folder / name
    path.write_text("".join(f"s\t1\t\t{sentence}\n" for sentence in sentences), encoding="utf-8")
    return write_snapshot([str(path)], str(folder / "snapshots"))["path"]


def test_snapshot_is_split_into_two_files_that_read_back(tmp_path: Path) -> None:
    rows = snapshot(tmp_path, "train.tsv", [f"Sentence {i}." for i in range(60)])
    holdouts = [snapshot(tmp_path, "a.tsv", ["sentence 1"]), snapshot(tmp_path, "b.tsv", ["sentence 2", "other"])]
    train, validation, counts = split_snapshot(rows, holdouts, str(tmp_path / "out"), 0.3, 0)
    assert (train, validation) == (str(tmp_path / "out/train.parquet"), str(tmp_path / "out/validation.parquet"))
    expected = split_rows(read_snapshot(rows), ["sentence 1", "sentence 2"], 0.3, 0)
    pd.testing.assert_frame_equal(read_snapshot(train), expected[0])
    pd.testing.assert_frame_equal(read_snapshot(validation), expected[1])
    assert counts == expected[2]
    assert counts["in_holdout"] == 2


@pytest.mark.parametrize("seed", range(5))
def test_a_plan_of_the_split_is_what_the_split_does(seed: int, tmp_path: Path) -> None:
    texts = [f"s\t{i % 2}\t\tSentence {i % 50}.\n" for i in range(70)]  # some repeated, some with both labels
    (tmp_path / "train.tsv").write_text("".join(texts))
    path = write_snapshot([str(tmp_path / "train.tsv")], str(tmp_path))["path"]
    rows = read_snapshot(path)
    train, validation, _ = split_rows(rows, ["sentence 3"], 0.3, seed)
    kept = {*train["line"], *validation["line"]}
    plan = plan_split(path, rows.assign(dropped=[line not in kept for line in rows["line"]]), 0.3, seed)
    assert plan.rows.tolist() == [[(side["label"] == label).sum() for label in (0, 1)] for side in (train, validation)]
    assert set(rows["line"][plan.validates]) >= set(validation["line"])
    assert not set(rows["line"][plan.validates]) & set(train["line"])


def test_a_plan_ends_where_both_sides_have_both_labels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(splitting, "PLANNED_ROWS", 10)
    path = snapshot(tmp_path, "train.tsv", [f"Sentence {i}." for i in range(60)])
    labels = pd.DataFrame({"label": [i % 2 for i in range(60)], "dropped": False})
    plan = plan_split(path, labels, 0.5, 0)
    assert (len(plan.validates), plan.rows.sum()) == (10, 10)
    assert len(plan_split(path, labels.assign(label=1), 0.5, 0).validates) == 60


@pytest.mark.parametrize(("share", "side"), [(1.0, "train"), (0.0, "validation")])
def test_empty_side_is_refused_with_the_counts(tmp_path: Path, share: float, side: str) -> None:
    rows = snapshot(tmp_path, "train.tsv", ["One.", "Two."])
    with pytest.raises(
        DataRejected, match=f"no {side} row is left after the split .*'{side}': 0.*expected more rows in"
    ):
        split_snapshot(rows, [], str(tmp_path / "out"), share, 0)
    assert not (tmp_path / "out" / f"{side}.parquet").exists()


def test_text_keeps_no_sentence_that_has_a_label_and_none_twice(tmp_path: Path) -> None:
    paths = {}
    for name, texts in {
        "text": ["One sees.", "two SEE", "Three see.", "one sees", "Four see.", "Five sees."],
        "holdout": ["Two see."],
        "validation": ["four see!"],
        "train": ["Five sees"],
    }.items():
        paths[name] = str(tmp_path / f"{name}-given.parquet")
        frame([(text, 1) for text in texts]).to_parquet(paths[name])
    known = [paths[name] for name in ("train", "validation", "holdout")]
    path, left = drop_labelled(paths["text"], known, str(tmp_path))
    assert read_snapshot(path)["sentence"].tolist() == ["One sees.", "Three see."]
    assert left == 4


def test_text_of_known_sentences_alone_is_empty(tmp_path: Path) -> None:
    known = str(tmp_path / "known.parquet")
    frame([("One sees.", 1)]).to_parquet(known)
    path, left = drop_labelled(known, [known], str(tmp_path))
    assert read_snapshot(path).empty
    assert left == 1


# Whole sources

sized = st.dictionaries(st.sampled_from("abcdefghijkl"), st.integers(1, 60), min_size=2)


def sourced(rows: list[tuple[str, int, str]]) -> pd.DataFrame:
    return frame([row[:2] for row in rows]).assign(source=[row[2] for row in rows])


@unhurried
@given(sized, st.floats(0.02, 0.49), st.integers(0, 2**32 - 1), st.randoms())
def test_sources_are_chosen_by_their_names_and_sizes_alone(
    rows: dict[str, int], share: float, seed: int, rng: random.Random
) -> None:
    chosen = validation_sources(rows, share, seed)
    shuffled = list(rows.items())
    rng.shuffle(shuffled)
    assert validation_sources(dict(shuffled), share, seed) == chosen
    assert 0 < len(chosen) < len(rows)
    smallest, wanted = min(rows.values()), share * sum(rows.values())
    assert abs(sum(rows[source] for source in chosen) - wanted) <= max(smallest, wanted)


def test_large_and_small_sources_validate_alike() -> None:
    """Where the smallest came first, the same few research papers judged every model."""
    rows = {"a": 50, "b": 3, "c": 20, "d": 4, "e": 30, "f": 5}
    chosen = [validation_sources(rows, 0.3, seed) for seed in range(60)]
    assert {source for sources in chosen for source in sources} == set(rows)


def test_share_of_many_sources_is_near_the_expected_one() -> None:
    rows = {f"source {number}": 1 + number % 7 for number in range(200)}
    taken = [sum(rows[source] for source in validation_sources(rows, 0.1, seed)) for seed in range(20)]
    assert taken == pytest.approx([0.1 * sum(rows.values())] * 20, abs=4)
    assert len({tuple(validation_sources(rows, 0.1, seed)) for seed in range(20)}) == 20


@unhurried
@given(
    st.lists(st.tuples(spellings, st.integers(0, 1), st.sampled_from("pqrs")), max_size=25).flatmap(
        lambda rows: st.tuples(st.just(rows), st.permutations(rows))
    ),
    st.lists(spellings, max_size=3),
)
def test_no_source_is_on_two_sides_whatever_the_order_of_rows(
    pair: tuple[list[tuple[str, int, str]], list[tuple[str, int, str]]], holdout: list[str]
) -> None:
    if len({row[2] for row in pair[0]}) < 2:
        return
    one, other = (split_rows(sourced(list(rows)), holdout, 0.3, 5, "source") for rows in pair)
    assert not set(one[0]["source"]) & set(one[1]["source"])
    assert not normalised(one[0]) & normalised(one[1])
    assert sum(one[2].values()) == len(pair[0])
    assert [normalised(rows) for rows in one[:2]] == [normalised(rows) for rows in other[:2]]
    assert one[2] == other[2]


def test_a_plan_by_source_is_what_the_split_does(tmp_path: Path) -> None:
    texts = [f"s{i // 9}\t{i % 2}\t\tSentence {i}.\n" for i in range(70)]
    (tmp_path / "train.tsv").write_text("".join(texts))
    path = write_snapshot([str(tmp_path / "train.tsv")], str(tmp_path))["path"]
    rows = read_snapshot(path)
    train, validation, _ = split_rows(rows, [], 0.2, 3, "source")
    plan = plan_split(path, rows.assign(dropped=False), 0.2, 3, "source")
    assert rows["sentence"][plan.validates].tolist() == validation["sentence"].tolist()
    assert plan.rows.tolist() == [[(side["label"] == label).sum() for label in (0, 1)] for side in (train, validation)]


def test_one_source_is_refused_in_one_line(tmp_path: Path) -> None:
    path = snapshot(tmp_path, "train.tsv", ["One.", "Two."])
    expected = "all 2 training rows have the source 's'; expected at least two sources .*--columns source=NAME"
    with pytest.raises(DataRejected, match=expected):
        split_snapshot(path, [], str(tmp_path / "out"), 0.1, 0, "source")
    with pytest.raises(DataRejected, match=expected):
        plan_split(path, pd.DataFrame({"label": [0, 1], "dropped": False}), 0.1, 0, "source")


def test_a_side_of_one_label_is_refused_with_its_sources(tmp_path: Path) -> None:
    rows = [("p", 1), ("p", 0), ("p", 1), ("q", 1)]
    path = tmp_path / "train.tsv"
    path.write_text("".join(f"{source}\t{label}\t\tSentence {i}.\n" for i, (source, label) in enumerate(rows)))
    found = write_snapshot([str(path)], str(tmp_path))["path"]
    with pytest.raises(DataRejected, match="the validation rows are those of the sources 'q', which all have the lab"):
        split_snapshot(found, [], str(tmp_path / "out"), 0.2, 0, "source")
