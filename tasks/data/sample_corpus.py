"""Generates the bundled corpus: sentences in CoLA's format from a seeded grammar, so that Verdict runs without data.

Every sentence comes in a minimal pair whose bad half reorders the words of the good half, so a bag-of-words model
cannot separate them; what can be learnt is word order and agreement. A template in sample_grammar.toml is an example
sentence; each braced word is replaced by another of its class in the same form. The holdout is drawn from a second
lexicon: it shares templates and function words with the training file, but no content word.

File format: https://nyu-mll.github.io/CoLA/ (source, label, author's mark, sentence; tabs, no header).

    python -c "from pathlib import Path; from tasks.data.sample_corpus import write_sample; write_sample(Path('data'))"
"""

import random
import tomllib
from dataclasses import dataclass
from functools import cache, cached_property
from importlib import resources
from pathlib import Path
from string import Formatter
from typing import Literal, NamedTuple

from tasks.core.files import write_text
from tasks.data.cola_format import Row, format_row

TRAIN_FILE, TRAIN_ROWS = "in_domain_train.tsv", 4000
HOLDOUT_FILE, HOLDOUT_ROWS = "out_of_domain_dev.tsv", 800
MAX_DRAWS = 1000  # draws in search of one new pair before a template counts as exhausted

Split = Literal["train", "holdout"]
Words = dict[str, list[list[str]]]  # class -> entries -> forms of an entry


@dataclass(frozen=True)
class Grammar:
    """The word lists and templates of sample_grammar.toml."""

    content_words: dict[str, Words]
    """By split."""
    function_words: Words
    templates: dict[str, list[tuple[str, str]]]
    """(good, bad) templates by phenomenon; its name is the source code of its rows."""

    @cached_property
    def positions(self) -> dict[str, tuple[str, int, int]]:
        """Class, entry and form of each word that a template may brace."""
        return {
            form: (name, row, column)
            for name, entries in (self.content_words["train"] | self.function_words).items()
            for row, forms in enumerate(entries)
            for column, form in enumerate(forms)
        }


class SamplePair(NamedTuple):
    """A minimal pair: `bad` holds the words of `good`, in another order."""

    source: str
    good: str
    bad: str


@cache
def load_grammar() -> Grammar:
    """Read sample_grammar.toml."""
    raw = tomllib.loads(resources.files("tasks.data").joinpath("sample_grammar.toml").read_text(encoding="utf-8"))
    return Grammar(
        {split: _split_forms(classes) for split, classes in raw["content_words"].items()},
        _split_forms(raw["function_words"]),
        {phenomenon: [(good, bad) for good, bad in pairs] for phenomenon, pairs in raw["templates"].items()},
    )


def generate_pairs(split: Split, count: int, seed: int) -> list[SamplePair]:
    """Draw minimal pairs, no sentence twice, cycling through the phenomena and the templates of each.

    A shorter list is the beginning of a longer one with the same split and seed.

    Raises:
        ValueError: if `split` is unknown, `count` is negative, or the templates cannot give that many pairs.
    """
    grammar = load_grammar()
    if split not in grammar.content_words:
        raise ValueError(f"split is {split!r}; expected one of {', '.join(grammar.content_words)}")
    if count < 0:
        raise ValueError(f"count is {count}; expected 0 or more pairs")
    rng = random.Random(f"{seed}/{split}")  # a text seed is hashed by value: same draw on every machine
    words = grammar.content_words[split] | grammar.function_words
    phenomena = list(grammar.templates)
    seen: set[str] = set()
    pairs = []
    for i in range(count):
        cycle, which = divmod(i, len(phenomena))
        templates = grammar.templates[phenomena[which]]
        pair = _draw_new(phenomena[which], templates[cycle % len(templates)], words, rng, seen)
        seen.update(pair[1:])
        pairs.append(pair)
    return pairs


def generate(split: Split, count: int, seed: int) -> list[Row]:
    """Return `count` shuffled rows: both halves of count / 2 pairs, so exactly half are acceptable.

    Raises:
        ValueError: if `count` is odd or negative, or as `generate_pairs` does.
    """
    if count < 0 or count % 2:
        raise ValueError(f"count is {count}; expected an even number of rows, sentences come in pairs")
    pairs = generate_pairs(split, count // 2, seed)
    rows = [row for source, good, bad in pairs for row in ((source, 1, "", good), (source, 0, "*", bad))]
    random.Random(seed).shuffle(rows)
    return [Row(line, *row) for line, row in enumerate(rows, start=1)]


def write_sample(folder: Path, seed: int = 2018) -> None:
    """Write 4,000 training and 800 holdout rows into `folder`; the same seed gives the same bytes."""
    sides: dict[Split, tuple[str, int]] = {"train": (TRAIN_FILE, TRAIN_ROWS), "holdout": (HOLDOUT_FILE, HOLDOUT_ROWS)}
    for split, (name, rows) in sides.items():
        path, text = folder / name, "".join(map(format_row, generate(split, rows, seed)))
        if not path.is_file() or path.read_bytes() != text.encode():  # a file that is right keeps its time
            write_text(path, text)


def _split_forms(classes: dict[str, list[str]]) -> Words:
    return {name: [entry.split("/") for entry in entries] for name, entries in classes.items()}


def _draw_new(source: str, template: tuple[str, str], words: Words, rng: random.Random, seen: set[str]) -> SamplePair:
    """Fill one template until neither half is in `seen`.

    Raises:
        ValueError: if no draw succeeds.
    """
    for _ in range(MAX_DRAWS):
        good, bad = _fill(template, words, rng)
        if good not in seen and bad not in seen:
            return SamplePair(source, good, bad)
    raise ValueError(f"no new {source} sentence in {MAX_DRAWS} draws of {template[0]!r}; request fewer sentences")


def _fill(template: tuple[str, str], words: Words, rng: random.Random) -> tuple[str, str]:
    """Replace each braced word by one of its class, the same in both halves; different words stay different."""
    positions = load_grammar().positions
    slots = {form: positions[form] for _, form, _, _ in Formatter().parse(template[0]) if form}
    classes = dict.fromkeys(name for name, _, _ in slots.values())  # not a set: its order differs from run to run
    drawn = {name: rng.sample(words[name], len(words[name])) for name in classes}
    filled = {slot: drawn[name][row][column] for slot, (name, row, column) in slots.items()}
    good, bad = (half.format_map(filled) for half in template)
    return good[0].upper() + good[1:], bad[0].upper() + bad[1:]
