"""Gathers sentences without labels that anyone can have: examples of WordNet's glosses, and fortunes.

    python tests/benchmarks/gather_text.py FILE

On Debian or Ubuntu: both come as packages (wordnet-base 3.0, fortunes 1.99), which are fetched and unpacked, not
installed. What `ablate_finetune.py --text` was measured with.
"""

import argparse
import re
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

PACKAGES = ("wordnet-base", "fortunes")
SHORTEST, LONGEST = 4, 30  # words of a fortune's sentence; others are headings, or read no better than noise
EXAMPLE_SHORTEST = 3  # words of an example
PLAIN = re.compile(r"[A-Za-z0-9 ,.;:'\"!?()-]+")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        subprocess.run(["apt-get", "download", *PACKAGES], cwd=scratch, check=True, stdout=subprocess.DEVNULL)
        for package in Path(scratch).glob("*.deb"):
            subprocess.run(["dpkg", "-x", package, scratch], check=True)
        share = Path(scratch) / "usr" / "share"
        found = [*dict.fromkeys(examples(share / "wordnet")), *dict.fromkeys(fortunes(share / "games" / "fortunes"))]
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
            said = re.sub(r"\s+", " ", item.partition("\n\t\t--")[0])
            for sentence in re.split(r'(?<=[.!?])\s+(?=[A-Z"])', said):
                words = len(sentence.split())
                whole = re.match(r'["A-Z]', sentence) and re.search(r'[.!?]"?$', sentence)
                if whole and SHORTEST <= words <= LONGEST and PLAIN.fullmatch(sentence):
                    yield sentence


if __name__ == "__main__":
    main()
