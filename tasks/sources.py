"""Where data comes from: a folder with CoLA's files, or the bundled sample.

In a folder the files are found by CoLA's names. `in_domain_train.tsv` trains, `out_of_domain_dev.tsv` is the holdout
that judges, and `in_domain_dev.tsv`, where there is one, is a second holdout that is only reported.
"""

from pathlib import Path
from typing import TypedDict

from tasks.errors import WrongUsage
from tasks.sample_corpus import HOLDOUT_FILE, TRAIN_FILE, write_sample

SAMPLE = "sample"
REPORTED_FILE = "in_domain_dev.tsv"


class Sources(TypedDict):
    """The files of one run; `reported` is a holdout that is measured but does not judge."""

    address: str
    train: str
    holdout: str
    reported: str | None


def locate_sources(address: str, train: str, holdout: str, sample_folder: str) -> Sources:
    """Find the files behind an address.

    Args:
        address: a folder, or "sample" for the bundled corpus.
        train: name of the training file, in the folder or a path of its own; empty for CoLA's name.
        holdout: name of the judging file, likewise.
        sample_folder: where the bundled corpus is written when it is asked for.

    Raises:
        WrongUsage: if the address or a file is not there.
    """
    if not address:
        raise WrongUsage(f"no data given; expected a folder with {TRAIN_FILE} and {HOLDOUT_FILE}: --data DIR")
    if address == SAMPLE:
        write_sample(Path(sample_folder))
        folder = Path(sample_folder)
    else:
        folder = Path(address)
        if not folder.is_dir():
            raise WrongUsage(f"data folder {address!r} does not exist; expected a folder with {TRAIN_FILE}: --data DIR")
    train_file = _find(folder, train, TRAIN_FILE, "--train")
    holdout_file = _find(folder, holdout, HOLDOUT_FILE, "--holdout")
    if Path(train_file).samefile(holdout_file):
        raise WrongUsage(
            f"{train_file} is both training file and holdout; expected two files: --train FILE --holdout FILE"
        )
    reported = folder / REPORTED_FILE
    spare = reported.is_file() and not any(reported.samefile(used) for used in (train_file, holdout_file))
    return Sources(address=address, train=train_file, holdout=holdout_file, reported=str(reported) if spare else None)


def _find(folder: Path, given: str, usual: str, option: str) -> str:
    """Return the path of a file: the usual one of the folder, or one given relative to folder or working directory."""
    name = given or usual
    for path in (folder / name, Path(given)):
        if path.is_file():
            return str(path)
    there = ", ".join(sorted(path.name for path in folder.glob("*.tsv"))) or "no .tsv file"
    raise WrongUsage(f"{folder} holds no file {name!r} (it holds {there}); name it: {option} FILE")
