"""Our own CoLA-format sentences: a seeded grammar, so the product runs before anyone brings data.

Every sentence comes in a minimal pair whose bad half *rearranges the words of the good half*, so no bag of words can
tell them apart: the order, and who agrees with whom, is all there is to learn. A template is an example sentence in the
words of the train lexicon; each braced word is replaced by another of its class in the same form. The holdout draws
from a second lexicon, so it shares templates and function words with the training file but not one content word.

File format: https://nyu-mll.github.io/CoLA/ (source, label, author's mark, sentence; tabs, no header). The list of
phenomena follows the syntax textbooks; sentences, templates and word lists were written for this file.

    python -c "from pathlib import Path; from tasks.data.sample_corpus import write_sample; write_sample(Path('data'))"
"""

import random
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from string import Formatter
from typing import Literal, NamedTuple

from tasks.core.files import write_text

Split = Literal["train", "holdout"]
WordForms = dict[str, list[list[str]]]  # class -> entries -> forms of one entry

TRAIN_FILE, TRAIN_ROWS = "in_domain_train.tsv", 4000
HOLDOUT_FILE, HOLDOUT_ROWS = "out_of_domain_dev.tsv", 800
MAX_DRAWS = 1000  # draws for one new pair before we call its templates exhausted

# Entries are parted by spaces, their forms by slashes. No noun or adjective begins with a vowel, so "a" is always
# right, and every verb has one form for past and participle, so that the two can trade places within a pair.
CONTENT_WORDS: dict[Split, dict[str, str]] = {
    "train": {
        "he": "Thomas Peter Henry Oliver Daniel Martin Victor Samuel David Robert",
        "she": "Mary Susan Alice Helen Laura Emma Sarah Julia Anna Kate",
        "male": "man/men boy/boys waiter/waiters king/kings",
        "female": "woman/women girl/girls waitress/waitresses queen/queens",
        "person": "teacher/teachers doctor/doctors pilot/pilots farmer/farmers lawyer/lawyers singer/singers "
        "nurse/nurses baker/bakers painter/painters writer/writers student/students driver/drivers",
        "thing": "lamp/lamps chair/chairs basket/baskets bottle/bottles mirror/mirrors table/tables ladder/ladders "
        "carpet/carpets clock/clocks piano/pianos bicycle/bicycles box/boxes",
        "place": "garden kitchen school village station park",
        "meet": "meet/meets/met/meeting thank/thanks/thanked/thanking help/helps/helped/helping "
        "visit/visits/visited/visiting follow/follows/followed/following hug/hugs/hugged/hugging "
        "trust/trusts/trusted/trusting teach/teaches/taught/teaching",
        "buy": "buy/buys/bought/buying sell/sells/sold/selling paint/paints/painted/painting "
        "drag/drags/dragged/dragging clean/cleans/cleaned/cleaning repair/repairs/repaired/repairing "
        "move/moves/moved/moving keep/keeps/kept/keeping",
        "smile": "smile/smiles/smiled/smiling laugh/laughs/laughed/laughing sneeze/sneezes/sneezed/sneezing "
        "yawn/yawns/yawned/yawning snore/snores/snored/snoring sleep/sleeps/slept/sleeping "
        "cry/cries/cried/crying blush/blushes/blushed/blushing",
        "blame": "blamed/blame defended/defend described/describe praised/praise",
        "say": "said/say claimed/claim thought/think",
        "know": "knows sees explains",
        "urge": "urged persuaded told",
        "make": "made saw",
        "try": "tried planned hoped",
        "give": "gave handed lent",
        "seem": "seems",
        "pick": "picked/up threw/away turned/off",
        "tall": "tall/taller/tallest young/younger/youngest rich/richer/richest strong/stronger/strongest "
        "kind/kinder/kindest brave/braver/bravest proud/prouder/proudest fast/faster/fastest",
        "careful": "careful patient cheerful generous famous nervous",
        "red": "red heavy wooden yellow new small",
        "quietly": "quietly slowly quickly gladly carefully",
    },
    "holdout": {
        "he": "George Edward Arthur Simon Walter Philip Adrian Richard",
        "she": "Diana Nancy Martha Clara Ruth Sophie Linda Rachel",
        "male": "prince/princes gentleman/gentlemen duke/dukes monk/monks",
        "female": "princess/princesses lady/ladies duchess/duchesses nun/nuns",
        "person": "dentist/dentists sailor/sailors neighbor/neighbors guard/guards reporter/reporters banker/bankers "
        "soldier/soldiers manager/managers dancer/dancers scientist/scientists",
        "thing": "wagon/wagons helmet/helmets jacket/jackets candle/candles blanket/blankets bucket/buckets "
        "suitcase/suitcases hammer/hammers camera/cameras knife/knives",
        "place": "castle library market hotel museum theater",
        "meet": "greet/greets/greeted/greeting warn/warns/warned/warning hire/hires/hired/hiring "
        "ignore/ignores/ignored/ignoring rescue/rescues/rescued/rescuing respect/respects/respected/respecting "
        "insult/insults/insulted/insulting",
        "buy": "borrow/borrows/borrowed/borrowing polish/polishes/polished/polishing fix/fixes/fixed/fixing "
        "drop/drops/dropped/dropping bring/brings/brought/bringing carry/carries/carried/carrying "
        "inspect/inspects/inspected/inspecting",
        "smile": "cough/coughs/coughed/coughing giggle/giggles/giggled/giggling faint/faints/fainted/fainting "
        "kneel/kneels/knelt/kneeling sigh/sighs/sighed/sighing tremble/trembles/trembled/trembling",
        "blame": "criticized/criticize protected/protect admired/admire",
        "say": "believed/believe suspected/suspect insisted/insist",
        "know": "remembers forgets understands",
        "urge": "forced ordered encouraged",
        "make": "let watched",
        "try": "refused decided agreed",
        "give": "sent offered showed",
        "seem": "appears",
        "pick": "put/down took/out pushed/back",
        "tall": "short/shorter/shortest poor/poorer/poorest weak/weaker/weakest smart/smarter/smartest "
        "wise/wiser/wisest loud/louder/loudest calm/calmer/calmest",
        "careful": "curious popular talented creative jealous modest",
        "red": "blue dusty golden cheap purple rusty",
        "quietly": "silently suddenly rapidly secretly calmly",
    },
}

# Shared by both files.
FUNCTION_WORDS = {
    "near": "near behind beside",
    "will": "will might must should could",
    "they": "they/them he/him she/her we/us I/me",
}

# Phenomenon -> (good, bad) templates. The bad half must be wrong under every reading, whatever words are drawn: a verb
# of class "smile" never takes an object, and no name or noun leaves its gender open where a pronoun depends on it.
SENTENCE_TEMPLATES: dict[str, tuple[tuple[str, str], ...]] = {
    "agreement": (
        ("the {teacher} {meets} the {doctors}.", "the {doctors} {meets} the {teacher}."),
        ("the {teachers} {smile} and the {doctor} {laughs}.", "the {teachers} {laughs} and the {doctor} {smile}."),
        (
            "the {teacher} is {tall} and the {doctors} are {rich}.",
            "the {teacher} are {tall} and the {doctors} is {rich}.",
        ),
        ("the {lamps} {near} the {chair} are {red}.", "the {chair} {near} the {lamps} are {red}."),
        ("the {lamp} {near} the {chairs} is {red}.", "the {chairs} {near} the {lamp} is {red}."),
    ),
    "binding": (
        ("{Mary} {said} that {Thomas} {blamed} himself.", "{Thomas} {said} that {Mary} {blamed} himself."),
        ("{Mary} {blamed} herself and {Thomas} {smiled}.", "{Thomas} {blamed} herself and {Mary} {smiled}."),
        ("the {men} {near} the {girl} {blamed} themselves.", "the {girl} {near} the {men} {blamed} themselves."),
        ("{Mary} {smiled} when {Thomas} {blamed} himself.", "{Mary} {smiled} when himself {blamed} {Thomas}."),
        ("the {woman} {blamed} herself {near} the {boy}.", "herself {blamed} the {woman} {near} the {boy}."),
    ),
    "island": (
        ("who did {Mary} {meet} after she {thanked} {Thomas}?", "who did {Mary} {meet} {Thomas} after she {thanked}?"),
        (
            "which {teacher} did the {doctor} who {bought} the {lamp} {meet}?",
            "which {lamp} did the {doctor} who {bought} {meet} the {teacher}?",
        ),
        ("who did {Thomas} and {Mary} {meet}?", "who did {Thomas} {meet} {Mary} and?"),
        ("whose {lamp} did {Thomas} {buy}?", "whose did {Thomas} {buy} {lamp}?"),
        ("how many {lamps} did the {teacher} {buy}?", "how many did the {teacher} {buy} {lamps}?"),
    ),
    "case": (
        ("{they} {met} the {teacher}.", "the {teacher} {met} {they}."),
        ("the {teacher} {met} {them}.", "{them} {met} the {teacher}."),
        ("{Mary} {said} that {they} {met} {Thomas}.", "{Mary} {said} that {Thomas} {met} {they}."),
        ("{Mary} {bought} the {lamp} for {them}.", "{them} {bought} the {lamp} for {Mary}."),
        ("{they} {met} {Mary} and {Thomas} {thanked} {them}.", "{them} {met} {Mary} and {Thomas} {thanked} {they}."),
    ),
    "argument": (
        ("{Thomas} {smiled} and {Mary} {bought} the {lamp}.", "{Thomas} {bought} and {Mary} {smiled} the {lamp}."),
        (
            "the {teacher} {smiled} when {Thomas} {bought} the {lamp}.",
            "the {teacher} {smiled} the {lamp} when {Thomas} {bought}.",
        ),
        (
            "{Mary} {bought} the {lamp} before the {teacher} {smiled}.",
            "{Mary} {bought} before the {teacher} {smiled} the {lamp}.",
        ),
        ("{Mary} {gave} the {teacher} a {lamp} and {smiled}.", "{Mary} {smiled} the {teacher} a {lamp} and {gave}."),
    ),
    "determiner": (
        ("this {teacher} {met} these {doctors}.", "these {teacher} {met} this {doctors}."),
        ("those {teachers} {bought} that {lamp}.", "that {teachers} {bought} those {lamp}."),
        ("every {teacher} {bought} several {lamps}.", "several {teacher} {bought} every {lamps}."),
        ("many {teachers} {bought} a {lamp}.", "a {teachers} {bought} many {lamp}."),
        ("{Mary} {bought} one {lamp} and two {chairs}.", "{Mary} {bought} two {lamp} and one {chairs}."),
    ),
    "npi": (
        ("no {teacher} {near} the {doctor} ever {smiled}.", "the {teacher} {near} no {doctor} ever {smiled}."),
        ("nobody who the {teacher} {met} ever {smiled}.", "the {teacher} who nobody {met} ever {smiled}."),
        ("no {teacher} {bought} any {lamps}.", "any {teacher} {bought} no {lamps}."),
        (
            "{Mary} {smiled} but {Thomas} did not {laugh} at all.",
            "{Mary} {smiled} at all but {Thomas} did not {laugh}.",
        ),
        ("the {teacher} did not {meet} anybody.", "anybody did not {meet} the {teacher}."),
    ),
    "ellipsis": (
        (
            "{Thomas} {bought} the {lamp} and {Mary} the {chair}.",
            "{Thomas} the {lamp} and {Mary} {bought} the {chair}.",
        ),
        ("the {teacher} {smiled} and {Mary} did too.", "the {teacher} did and {Mary} {smiled} too."),
        ("{Thomas} {bought} the {lamp} and {Mary} did too.", "{Thomas} did and {Mary} {bought} the {lamp} too."),
        (
            "{Thomas} {will} {buy} the {lamp} but {Mary} {will} not.",
            "{Thomas} {will} {buy} but {Mary} {will} not the {lamp}.",
        ),
        (
            "{Mary} {bought} two {lamps} and the {teacher} {bought} three.",
            "{Mary} {bought} two {lamps} and the {teacher} three {bought}.",
        ),
    ),
    "question": (
        ("{will} the {teacher} {buy} the {lamp}?", "{buy} the {teacher} {will} the {lamp}?"),
        ("what {will} the {teacher} {buy}?", "what the {teacher} {will} {buy}?"),
        ("{Thomas} {knows} what {Mary} {will} {buy}.", "{Thomas} {knows} what {will} {Mary} {buy}."),
        ("is the {teacher} who is {tall} {careful}?", "is the {teacher} who {tall} is {careful}?"),
        ("where did {Thomas} {buy} the {lamp}?", "where {Thomas} did {buy} the {lamp}?"),
    ),
    "passive": (
        ("the {teacher} was {met} by {Mary}.", "the {teacher} {met} was by {Mary}."),
        ("{Thomas} {smiled} while the {lamp} was {sold}.", "{Thomas} {sold} while the {lamp} was {smiled}."),
        (
            "the {lamps} were {sold} and the {teachers} {smiled}.",
            "the {lamps} were {smiled} and the {teachers} {sold}.",
        ),
        ("{Mary} has been {met} by the {teacher}.", "{Mary} been has {met} by the {teacher}."),
    ),
    "order": (
        ("the {tall} {teacher} {bought} a {red} {lamp}.", "the {teacher} {tall} {bought} a {lamp} {red}."),
        ("the {teacher} {quietly} {bought} the {lamp}.", "the {teacher} {bought} {quietly} the {lamp}."),
        ("{Mary} and the {teacher} {picked} it {up}.", "{Mary} and the {teacher} {picked} {up} it."),
        ("the {teacher} {smiled} in the {garden}.", "the {teacher} {smiled} the {garden} in."),
        ("{Mary} is a very {careful} {teacher}.", "{Mary} is very a {careful} {teacher}."),
    ),
    "auxiliary": (
        (
            "{Thomas} is {buying} the {lamp} and {Mary} has {sold} the {chair}.",
            "{Thomas} has {buying} the {lamp} and {Mary} is {sold} the {chair}.",
        ),
        (
            "{Thomas} {will} {buy} the {lamp} that {Mary} {sold}.",
            "{Thomas} {will} {sold} the {lamp} that {Mary} {buy}.",
        ),
        ("{Thomas} did not {smile} but {Mary} {laughed}.", "{Thomas} did not {laughed} but {Mary} {smile}."),
        ("the {teacher} {will} have {met} {Mary}.", "the {teacher} have {will} {met} {Mary}."),
        (
            "{Mary} {tried} to {buy} the {lamp} that {Thomas} {sold}.",
            "{Mary} {tried} to {sold} the {lamp} that {Thomas} {buy}.",
        ),
    ),
    "relative": (
        ("the {teacher} who {Mary} {met} {bought} it.", "the {teacher} who {Mary} {met} it {bought}."),
        (
            "the {teacher} who {smiled} {bought} the {lamp} which {Mary} {sold}.",
            "the {teacher} which {smiled} {bought} the {lamp} who {Mary} {sold}.",
        ),
        (
            "the {teacher} whose {lamp} {Mary} {bought} {smiled}.",
            "the {teacher} {lamp} whose {Mary} {bought} {smiled}.",
        ),
        ("{Thomas} {sold} the {lamp} that {Mary} {bought}.", "{Thomas} {sold} that {Mary} the {lamp} {bought}."),
        (
            "the {lamp} that {Mary} {bought} is {red} but {Thomas} {sold} it.",
            "the {lamp} that {Mary} {bought} it is {red} but {Thomas} {sold}.",
        ),
    ),
    "comparative": (
        ("{Mary} is {taller} than the {young} {teacher}.", "{Mary} is {young} than the {taller} {teacher}."),
        (
            "{Mary} is as {tall} as {Thomas} and {younger} than {Susan}.",
            "{Mary} is as {younger} as {Thomas} and {tall} than {Susan}.",
        ),
        (
            "the {teacher} is more {careful} and {taller} than {Mary}.",
            "the {teacher} is more {taller} and {careful} than {Mary}.",
        ),
        ("the {tallest} {teacher} is {younger} than {Mary}.", "the {younger} {teacher} is {tallest} than {Mary}."),
        ("{Mary} {bought} more {lamps} than {Thomas}.", "more {Mary} {bought} {lamps} than {Thomas}."),
    ),
    "tag": (
        ("{Thomas} {met} {Mary}, didn't he?", "{Mary} {met} {Thomas}, didn't he?"),
        ("you {met} {Mary}, didn't you?", "{Mary} {met} you, didn't you?"),
        ("the {men} {met} {Mary}, didn't they?", "{Mary} {met} the {men}, didn't they?"),
        ("the {man} is very {tall}, isn't he?", "the {man} is very {tall}, he isn't?"),
        ("the {teachers} are very {tall}, aren't they?", "the {teachers} are very {tall}, they aren't?"),
    ),
    "control": (
        ("it {seems} that the {teacher} is {tall}.", "the {teacher} {seems} that it is {tall}."),
        ("{Mary} {urged} {Thomas} to {defend} himself.", "{Thomas} {urged} {Mary} to {defend} himself."),
        (
            "{Mary} {made} {Thomas} {smile} but {urged} {Susan} to {laugh}.",
            "{Mary} {made} {Thomas} to {smile} but {urged} {Susan} {laugh}.",
        ),
        ("{Thomas} {tried} to {meet} the {teacher}.", "{Thomas} {tried} the {teacher} to {meet}."),
    ),
}


class SamplePair(NamedTuple):
    """A minimal pair: `bad` holds the words of `good`, in another order."""

    source: str
    good: str
    bad: str


class Row(NamedTuple):
    """One line of a CoLA file; `mark` is "*" where `label` is 0 and empty where it is 1."""

    source: str
    label: int
    mark: str
    sentence: str


def phenomena() -> tuple[str, ...]:
    """Name the phenomena in a fixed order; each name is the source code of its rows."""
    return tuple(SENTENCE_TEMPLATES)


def lexicon(split: Split) -> frozenset[str]:
    """Return every form of every content word (noun, verb, name, adjective, adverb) of one split, as spelled."""
    return frozenset(form for entries in _parse(CONTENT_WORDS[split]).values() for forms in entries for form in forms)


def generate_pairs(split: Split, count: int, seed: int) -> list[SamplePair]:
    """Draw minimal pairs, no sentence twice, taking phenomena and their templates in turn.

    A shorter list is the beginning of a longer one with the same split and seed.

    Raises:
        ValueError: if `split` is unknown, `count` is negative, or the templates cannot give that many pairs.
    """
    if split not in CONTENT_WORDS:
        raise ValueError(f"split is {split!r}; expected one of {', '.join(CONTENT_WORDS)}")
    if count < 0:
        raise ValueError(f"count is {count}; expected 0 or more pairs")
    rng = random.Random(f"{seed}/{split}")  # a text seed is hashed by value: same draw on every machine
    words = _parse(CONTENT_WORDS[split] | FUNCTION_WORDS)
    seen: set[str] = set()
    pairs = []
    for i in range(count):
        turn, which = divmod(i, len(SENTENCE_TEMPLATES))
        source = phenomena()[which]
        templates = SENTENCE_TEMPLATES[source]
        pair = _draw_new(source, templates[turn % len(templates)], words, rng, seen)
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
    rows = [row for source, good, bad in pairs for row in (Row(source, 1, "", good), Row(source, 0, "*", bad))]
    random.Random(seed).shuffle(rows)
    return rows


def write_sample(folder: Path, seed: int = 2018) -> None:
    """Write the 4,000 training and 800 holdout rows into `folder`; the same seed gives the same bytes."""
    _write_rows(folder / TRAIN_FILE, generate("train", TRAIN_ROWS, seed))
    _write_rows(folder / HOLDOUT_FILE, generate("holdout", HOLDOUT_ROWS, seed))


def _write_rows(path: Path, rows: Iterable[Row]) -> None:
    write_text(path, "".join("\t".join(map(str, row)) + "\n" for row in rows))


def _parse(classes: dict[str, str]) -> WordForms:
    return {name: [entry.split("/") for entry in entries.split()] for name, entries in classes.items()}


@cache
def _places() -> dict[str, tuple[str, int, int]]:
    """Map each word a template may brace to its class, entry and form."""
    return {
        form: (name, row, column)
        for name, entries in _parse(CONTENT_WORDS["train"] | FUNCTION_WORDS).items()
        for row, forms in enumerate(entries)
        for column, form in enumerate(forms)
    }


def _draw_new(
    source: str, template: tuple[str, str], words: WordForms, rng: random.Random, seen: set[str]
) -> SamplePair:
    """Fill one template until neither half is in `seen`."""
    for _ in range(MAX_DRAWS):
        good, bad = _fill(template, words, rng)
        if good not in seen and bad not in seen:
            return SamplePair(source, good, bad)
    raise ValueError(f"no new {source} sentence in {MAX_DRAWS} draws of {template[0]!r}; ask for fewer sentences")


def _fill(template: tuple[str, str], words: WordForms, rng: random.Random) -> tuple[str, str]:
    """Swap each braced word for one of its class, alike in both halves; different words stay different."""
    slots = {name: _places()[name] for _, name, _, _ in Formatter().parse(template[0]) if name}
    classes = dict.fromkeys(name for name, _, _ in slots.values())  # a set's order would change from run to run
    drawn = {name: rng.sample(words[name], len(words[name])) for name in classes}
    filled = {slot: drawn[name][row][column] for slot, (name, row, column) in slots.items()}
    good, bad = (half.format_map(filled) for half in template)
    return good[0].upper() + good[1:], bad[0].upper() + bad[1:]
