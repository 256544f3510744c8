"""Further ways to corrupt a sentence, tried beside those of tasks/training/corruption.py.

`ngram` puts in what often follows the word before, where that has not been seen before the word behind: locally
fluent, unlike a random word. The others break one rule of English grammar each, by word lists of our own: agreement,
negative polarity, binding, extraction out of islands, strong determiners after "there is". Sentences, as in the other
corruptions, are those of the training file and of `data.text`; nothing comes from a test set or its generator.
"""

from collections import Counter, defaultdict

import numpy as np

from tasks.training.corruption import CorpusWords, Corruption, SplitSentence

REFLEXIVES = ["myself", "yourself", "himself", "herself", "itself", "ourselves", "themselves"]
SUBJECTS = {"i": "myself", "he": "himself", "she": "herself", "we": "ourselves", "they": "themselves"}
NUMBER = {
    "is": "are", "are": "is", "was": "were", "were": "was", "has": "have", "have": "has", "does": "do", "do": "does",
    "this": "these", "these": "this", "that": "those", "those": "that", "am": "is", "a": "two", "each": "many",
    "many": "each", "every": "several", "several": "every",
}  # fmt: skip
NEGATORS = {"not", "n't", "never", "no", "nobody", "nothing", "none", "without", "hardly", "few"}
POLARITY = {"any", "ever", "yet", "anyone", "anybody", "anything", "anywhere", "either", "anymore"}
POSITIVE = {"some": "any", "someone": "anyone", "somebody": "anybody", "something": "anything", "somewhere": "anywhere"}
AUXILIARIES = {"is", "are", "was", "were", "has", "have", "had", "will", "would", "can", "could", "should", "must"}
ISLANDS = {
    "whether", "because", "if", "after", "before", "while", "although", "who", "which", "and", "or", "when", "since",
    "unless", "until", "where", "why", "how",
}  # fmt: skip
QUESTIONS = {"who", "what", "which"}
BRIDGES = {"think", "say", "believe", "claim", "said", "thought", "believed", "suppose", "know", "hope"}
BE = {"is", "are", "was", "were", "'s", "be", "been"}
WEAK = {"a", "an", "some", "no", "many", "several", "two", "three", "few", "any"}
STRONG = ["every", "each", "all", "most", "both", "the"]
BOUNDARY = "\n"  # before the first and behind the last word


def _find(words: list[str], wanted: set[str]) -> list[int]:
    return [index for index, word in enumerate(words) if word.lower() in wanted]


class Ngrams:
    """What follows each word, and all trigrams, of a corpus; made at first use."""

    def __init__(self) -> None:
        self._corpus: list[SplitSentence] | None = None
        self._next: dict[str, tuple[list[str], np.ndarray]] = {}
        self._seen: set[tuple[str, str, str]] = set()

    def replace(self, words: list[str], corpus: CorpusWords, rng: np.random.Generator) -> list[str] | None:
        """Replace a word by one that follows the word before it elsewhere, but not between these two."""
        self._count(corpus.sentences)
        index = int(rng.integers(len(words)))
        before = words[index - 1] if index else BOUNDARY
        behind = words[index + 1] if index + 1 < len(words) else BOUNDARY
        candidates, weights = self._next.get(before, ([], np.zeros(0)))
        if len(candidates) < 2:
            return None
        word = candidates[int(rng.choice(len(candidates), p=weights))]
        if word == words[index] or (before, word, behind) in self._seen:
            return None
        words[index] = word
        return words

    def _count(self, sentences: list[SplitSentence]) -> None:
        if self._corpus is sentences:
            return
        self._corpus, self._seen = sentences, set()
        following: dict[str, Counter[str]] = defaultdict(Counter)
        for sentence in sentences:
            padded = [BOUNDARY, *sentence.words, BOUNDARY]
            for before, word, behind in zip(padded, padded[1:], padded[2:], strict=False):
                following[before][word] += 1
                self._seen.add((before, word, behind))
        self._next = {
            before: (list(counts), np.fromiter(counts.values(), float) / counts.total())
            for before, counts in following.items()
        }


def agreement(words: list[str], _: CorpusWords, rng: np.random.Generator) -> list[str] | None:
    """Replace a verb or determiner by that of the other number."""
    found = _find(words, set(NUMBER))
    if not found:
        return None
    index = rng.choice(found)
    words[index] = NUMBER[words[index].lower()]
    return words


def polarity(words: list[str], _: CorpusWords, rng: np.random.Generator) -> list[str] | None:
    """Leave a negative polarity item without its negation, or put one where there is none."""
    negated, items, positive = (_find(words, wanted) for wanted in (NEGATORS, POLARITY, set(POSITIVE)))
    if negated and items:
        del words[rng.choice(negated)]
        return words
    if negated:
        return None
    if positive:
        index = rng.choice(positive)
        words[index] = POSITIVE[words[index].lower()]
        return words
    auxiliaries = [index for index in _find(words, AUXILIARIES) if index > 0]  # no questions
    if not auxiliaries or _find(words, QUESTIONS | {"if", "whether"}):
        return None
    words.insert(rng.choice(auxiliaries) + 1, "ever")
    return words


def binding(words: list[str], _: CorpusWords, rng: np.random.Generator) -> list[str] | None:
    """Give a reflexive another antecedent, or put one where a subject stands."""
    reflexives, subjects = _find(words, set(REFLEXIVES)), _find(words, set(SUBJECTS))
    if reflexives:
        index = rng.choice(reflexives)
        words[index] = REFLEXIVES[rng.integers(len(REFLEXIVES))]
        return words
    if not subjects:
        return None
    index = rng.choice(subjects)
    words[index] = SUBJECTS[words[index].lower()]
    return words


def islands(words: list[str], _: CorpusWords, rng: np.random.Generator) -> list[str] | None:
    """Move the last words out of an island to the front, or put "that" before the trace of a subject."""
    bridges = [at for at in _find(words, BRIDGES) if at + 2 < len(words) and words[at + 1].lower() in AUXILIARIES]
    if words[0].lower() in QUESTIONS and bridges and not _find(words, {"that"}):
        words.insert(rng.choice(bridges) + 1, "that")
        return words
    borders = [index for index in _find(words, ISLANDS) if 0 < index < len(words) - 3]
    if not borders:
        return None
    count = int(rng.integers(1, 3))
    return [*words[-count:], ",", *words[:-count]]


def there(words: list[str], _: CorpusWords, rng: np.random.Generator) -> list[str] | None:
    """Put a strong determiner behind "there is"."""
    for index in _find(words, {"there"}):
        if index + 2 < len(words) and words[index + 1].lower() in BE:
            determiners = [at for at in _find(words, WEAK) if at > index]
            strong = STRONG[rng.integers(len(STRONG))]
            if determiners:
                words[determiners[0]] = strong
            else:
                words.insert(index + 2, strong)
            return words
    return None


KINDS: dict[str, Corruption] = {
    "ngram": Ngrams().replace,
    "agreement": agreement,
    "polarity": polarity,
    "binding": binding,
    "islands": islands,
    "there": there,
}
