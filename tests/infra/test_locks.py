"""The locks pin what constraints.txt pins, each with hashes; `make lock` writes them."""

import re
from pathlib import Path

import pytest
from manifests import INFRA, PROJECT, ROOT

LOCKS = sorted((INFRA / "locks").glob("*.txt"))
PIN = re.compile(r"([A-Za-z0-9._-]+)(?:\[[^\]]*\])?==([^ ;]+)(?: ; [^\\]*)? \\$")
HASH = re.compile(r"    --hash=sha256:[0-9a-f]{64}(?: \\)?$")


def normalize(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def read_pins(text: str) -> dict[str, str]:
    """Return the version of each package in a lock.

    Raises:
        ValueError: at a line that is neither a pin followed by hashes nor a hash.
    """
    pins, hashes = {}, 1
    for line in text.splitlines():
        if line.startswith("#"):
            continue
        if found := PIN.match(line):
            if not hashes:
                raise ValueError(f"nothing but a hash may follow {pins}")
            pins[normalize(found[1])], hashes = found[2], 0
        elif HASH.match(line):
            hashes += 1
        else:
            raise ValueError(f"no pin with hashes: {line}")
    return pins


def constraints() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    return {normalize(name): version for name, _, version in (line.partition("==") for line in lines) if version}


@pytest.mark.parametrize("lock", LOCKS, ids=lambda path: path.stem)
def test_a_lock_pins_what_constraints_pin_with_hashes(lock: Path) -> None:
    pins, known = read_pins(lock.read_text(encoding="utf-8")), constraints()
    assert {name: version for name, version in pins.items() if known.get(name, version) != version} == {}, "make lock"


def test_every_requirement_is_locked() -> None:
    extras = PROJECT["project"]["optional-dependencies"]
    wanted = {
        "runtime": [
            *PROJECT["project"]["dependencies"],
            *(text for name in extras if name not in ("dev", "tracing") for text in extras[name]),
        ],
        "dev": [*PROJECT["project"]["dependencies"], *(text for texts in extras.values() for text in texts)],
        "tools": PROJECT["dependency-groups"]["tools"],
    }
    assert wanted.keys() == {path.stem for path in LOCKS}
    for lock in LOCKS:
        names = {normalize(re.split(r"[\[<>=;! ]", text)[0]) for text in wanted[lock.stem]} - {"verdict-mlops"}
        assert names - read_pins(lock.read_text(encoding="utf-8")).keys() == set(), "make lock"


@pytest.mark.parametrize(
    "text", ["six==1.17.0\n", "six>=1 \\\n", "six==1.17.0 \\\nclick==8.5.1 \\\n", "--index-url https://example.org\n"]
)
def test_a_line_without_hashes_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        read_pins(text)
