"""Gathers sentences without labels that anyone can have: what `ablate_finetune.py --text` was measured with.

    python tests/benchmarks/gather_text.py FILE
    python tests/benchmarks/gather_text.py FILE --corpora DIR

On Debian or Ubuntu: examples of WordNet's glosses and fortunes, from packages (wordnet-base 3.0, fortunes 1.99) that
are fetched and unpacked, not installed. `--corpora` adds four corpora of NLTK's data (Brown, MASC, ABC's news, State of
the Union addresses) and Tatoeba's English sentences, which are downloaded to DIR unless they are there. By NLTK's index
Brown may be used for non-commercial purposes, MASC for any, the addresses are public domain, and ABC's news name no
licence; Tatoeba is CC BY 2.0 FR.
"""

import argparse
import hashlib
import re
import subprocess
import tempfile
import urllib.request
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path

PACKAGES = ("wordnet-base", "fortunes")
SHORTEST, LONGEST = 4, 30  # words of a sentence of a text; others are headings, or read no better than noise
EXAMPLE_SHORTEST = 3  # words of an example
PLAIN = re.compile(r"[A-Za-z0-9 ,.;:'\"!?()-]+")
NLTK_DATA = "https://raw.githubusercontent.com/nltk/nltk_data/5db857e6f7df11eabb5e5665836db9ec8df07e28/packages/corpora"
TATOEBA = "https://raw.githubusercontent.com/devdio/flyai_datasets/683f4c2e6f79feaaac23d55040871a8b80a962cb"
CORPORA = {  # address -> SHA-256
    f"{NLTK_DATA}/brown.zip": "9b275f9b3b95d7bd66ccfb7cd259f445a13bbe5d1f4107aba09fd3e8364bafa6",
    f"{NLTK_DATA}/masc_tagged.zip": "678a5141cf3381bedb1839c58a330507337be07c7c71603279c0ef5337032304",
    f"{NLTK_DATA}/abc.zip": "129bb6001beb828049a90a59b7dd3c2f0594a47012e48fc5177dfae38e658565",
    f"{NLTK_DATA}/state_union.zip": "366c1dc82b2abf896f42b2ec50ba802a0141a29f75d29ca48a7a243ce5bfbe8d",
    f"{TATOEBA}/jpn.txt": "edcccde9d90c330d3197ff478f863f9f80b92319407f1d2d2cdadaebfb58ed31",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--corpora", type=Path, metavar="DIR", help="folder of the corpora")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        subprocess.run(["apt-get", "download", *PACKAGES], cwd=scratch, check=True, stdout=subprocess.DEVNULL)
        for package in Path(scratch).glob("*.deb"):
            subprocess.run(["dpkg", "-x", package, scratch], check=True)
        share = Path(scratch) / "usr" / "share"
        found = [*dict.fromkeys(examples(share / "wordnet")), *dict.fromkeys(fortunes(share / "games" / "fortunes"))]
    if options.corpora:
        found = list(dict.fromkeys([*found, *corpora(options.corpora)]))
    options.file.write_text("".join(f"{sentence}\n" for sentence in found), encoding="utf-8")
    print(f"{len(found)} sentences")


def examples(folder: Path) -> Iterator[str]:
    """Yield what stands in quotes in the glosses of WordNet's data files."""
    for name in ("verb", "adv", "noun", "adj"):
        for line in (folder / f"data.{name}").read_text(encoding="latin-1").splitlines():
            head, bar, gloss = line.partition("|")
            if bar and not head.startswith("  "):
                quoted = (text.strip() for text in re.findall(r'"([^"]+)"', gloss))
                yield from (text for text in quoted if len(text.split()) >= EXAMPLE_SHORTEST)


def fortunes(folder: Path) -> Iterator[str]:
    """Yield whole sentences in plain letters from the fortune files."""
    for path in sorted(folder.iterdir()):
        if path.suffix:  # an index, or a link
            continue
        for item in path.read_text(encoding="utf-8", errors="ignore").split("\n%\n"):
            yield from whole_sentences([item.partition("\n\t\t--")[0]])


def corpora(folder: Path) -> Iterator[str]:
    """Yield whole sentences of CORPORA, which are downloaded to a folder unless they are there."""
    folder.mkdir(parents=True, exist_ok=True)
    for address, digest in CORPORA.items():
        path = folder / Path(address).name
        if not path.exists():
            urllib.request.urlretrieve(address, path)
        if hashlib.sha256(path.read_bytes()).hexdigest() != digest:
            raise SystemExit(f"{path} is not the file that was measured; delete it")
        if path.suffix == ".zip":
            yield from whole_sentences(paragraphs(path))
        else:  # Tatoeba: sentence, tab, translation
            lines = path.read_text(encoding="utf-8").splitlines()
            yield from whole_sentences((line.partition("\t")[0] for line in lines), EXAMPLE_SHORTEST)


def paragraphs(path: Path) -> Iterator[str]:
    """Yield the paragraphs of a corpus of NLTK's data; of a tagged one each sentence, as it was before tagging."""
    tag = {"brown": "/", "masc_tagged": "_"}.get(path.stem)
    with zipfile.ZipFile(path) as archive:
        for name in sorted(archive.namelist()):
            if name.endswith("/") or Path(name).name in ("README", "CONTENTS", "cats.txt", "categories.txt"):
                continue
            lines = archive.read(name).decode("utf-8", errors="ignore").splitlines()
            if tag:
                yield from (join_words(word.rpartition(tag)[0] for word in line.split()) for line in lines)
            else:
                yield from (line.strip() for line in lines)


def join_words(words: Iterable[str]) -> str:
    """Return words as text: without spaces before punctuation, after brackets, and within words that were divided."""
    text = re.sub(r"``|''", '"', " ".join(words))
    text = re.sub(r" (n't|'\w{1,2})\b", r"\1", text)
    text = re.sub(r"([.;?!])( [.;?!])+$", r"\1", text)  # the Brown corpus writes some marks twice
    text = re.sub(r" ([.,;:?!)])", r"\1", re.sub(r"\( ", "(", text))
    return re.sub(r'" ([^"]+?) "', r'"\1"', text)


def whole_sentences(paragraphs: Iterable[str], shortest: int = SHORTEST) -> Iterator[str]:
    """Yield the sentences of paragraphs that are whole and of plain letters, of `shortest` to LONGEST words."""
    for paragraph in paragraphs:
        text = re.sub(r"\s+", " ", paragraph)
        for sentence in re.split(r'(?<=[.!?])\s+(?=[A-Z"])', text):
            whole = re.match(r'["A-Z]', sentence) and re.search(r'[.!?]"?$', sentence)
            if whole and shortest <= len(sentence.split()) <= LONGEST and PLAIN.fullmatch(sentence):
                yield sentence


if __name__ == "__main__":
    main()
