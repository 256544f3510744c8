"""Mutated settings files and bundles, and what the product makes of each: in a process of its own, timed and weighed.

Used by a test with dozens of them, and with thousands by tests/benchmarks/faults_mutate.py.
"""

import json
import os
import random
import resource
import select
import shutil
import signal
import time
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

from fuzzing import LONGEST_MESSAGE, MUTATIONS
from toy import WORDS

from tasks.core.errors import VerdictError
from tasks.core.files import json_digest, read_json, sha256_of, write_json
from tasks.core.policy import load_policy
from tasks.core.settings_loader import load_settings
from tasks.inference import bundle as bundles
from tasks.inference.classifier import Classifier

HANG_S = 20.0
STRUCTURES = (
    lambda size: b"[" * size,
    lambda size: b"a" + b".a" * size + b" = 1\n",
    lambda size: b"a = " + b"[" * size + b"]" * size,
    lambda size: b"a = " + b"{a = " * size,
    lambda size: b"a = 1" + b"0" * size,
    lambda size: b"".join(b"[a%d]\n" % number for number in range(size)),
    lambda size: b'a = "' + b"\\\\" * size + b'"\n',
)
VALUES: tuple[Any, ...] = (None, True, -1, 0, 10**30, 1e308, "", "\x1b[31m", [], {}, [[[]]], {"a": {}}, "A" * 100_000)


class Outcome(NamedTuple):
    """What became of one input: taken, refused in one line, or a fault (with what was seen)."""

    answer: str
    seconds: float
    megabytes: int
    """Most memory of the process, with its libraries."""


def mutate_settings(number: int, path: Path) -> None:
    """Write settings file number `number`, damaged; every second one is a policy."""
    rng = random.Random(f"settings/{number}")
    profiles = sorted(resources.files("tasks.core").joinpath("profiles").iterdir(), key=str)
    policy = Path(str(resources.files("tasks"))).parent / "mlflow" / "policy.toml"
    data = policy.read_bytes() if number % 2 else rng.choice(profiles).read_bytes()
    if rng.random() < 0.1:
        data += rng.choice(STRUCTURES)(rng.choice((10, 1_000, 50_000)))  # type: ignore[no-untyped-call]
    for mutation in rng.choices(MUTATIONS, k=rng.randint(1, 4)):
        data = mutation(rng, data)
    path.write_bytes(data)


def read_settings(number: int, path: Path) -> None:
    """Read what `mutate_settings` wrote."""
    if number % 2:
        load_policy(str(path))
    else:
        load_settings(str(path), {}, {})


def mutate_bundle(number: int, source: Path, folder: Path) -> None:
    """Copy a bundle and damage one file; in three of four the checksums fit it again, as after an attack or a bug.

    Graphs are not among those: what ONNX Runtime does with a damaged one is not ours.
    """
    rng = random.Random(f"bundle/{number}")
    shutil.copytree(source, folder)
    if number % 4 == 0:
        damaged = folder / rng.choice(sorted(path.name for path in folder.iterdir() if path.is_file()))
        damaged.write_bytes(rng.choice(MUTATIONS)(rng, damaged.read_bytes()))
        return
    name = rng.choice((bundles.TOKENIZER, bundles.MANIFEST, bundles.MANIFEST))
    document = read_json(folder / name)
    for _ in range(rng.randint(1, 3)):
        change_value(rng, document)
    manifest = document if name == bundles.MANIFEST else read_json(folder / bundles.MANIFEST)
    if name != bundles.MANIFEST:
        damaged, text = folder / name, json.dumps(document).encode()
        damaged.write_bytes(text if rng.random() < 0.7 else rng.choice(MUTATIONS)(rng, text))
        manifest["files"][name] = sha256_of(damaged)
    reseal(folder, manifest)


def change_value(rng: random.Random, document: Any) -> None:
    """Replace or remove a value somewhere in a JSON document."""
    while True:
        keys = list(document) if isinstance(document, dict) else range(len(document))
        key = rng.choice(list(keys))
        inner = document[key]
        if not inner or not isinstance(inner, dict | list) or rng.random() < 0.3:
            break
        document = inner
    if isinstance(document, dict) and len(document) > 1 and rng.random() < 0.2:
        del document[key]
    else:
        document[key] = rng.choice(VALUES)


def reseal(folder: Path, manifest: dict[str, Any]) -> None:
    """Write a manifest whose digests fit it, as far as it has what they are of."""
    try:
        manifest["digest"] = bundles._digest(manifest["files"], manifest)  # type: ignore[arg-type]
        rest = {key: value for key, value in manifest.items() if key != "manifest_digest"}
        manifest["manifest_digest"] = json_digest(rest)
        write_json(folder / bundles.MANIFEST, manifest)
    except (KeyError, TypeError, AttributeError, ValueError):
        (folder / bundles.MANIFEST).write_text(json.dumps(manifest), encoding="utf-8")


def read_bundle(folder: Path) -> None:
    """Load a bundle and classify a sentence."""
    Classifier.from_bundle(folder, "cpu", spin=False).predict([" ".join(WORDS[:6])])


def observe(read: Callable[[], None]) -> Outcome:
    """Call `read` in a forked process and return what became of it."""
    receiving, sending = os.pipe()
    started = time.monotonic()
    child = os.fork()
    if child == 0:
        os.close(receiving)
        answer = b"taken"
        try:
            read()
        except VerdictError as error:
            said = str(error)
            whole = said.isprintable() and len(said) <= LONGEST_MESSAGE
            answer = b"refused" if whole else f"no line: {said[:200]!r}".encode()
        except BaseException as error:
            answer = f"{type(error).__name__}: {str(error)[:200]!r}".encode()
        os.write(sending, answer)
        os._exit(0)
    os.close(sending)
    answered = bool(select.select([receiving], [], [], HANG_S)[0])
    answer = os.read(receiving, 2_000).decode(errors="replace") if answered else "hangs"
    os.close(receiving)
    if not answered:
        os.kill(child, signal.SIGKILL)
    _, status, used = os.wait4(child, 0)
    if answered and status:
        answer = f"ended with {status}"
    return Outcome(answer, round(time.monotonic() - started, 2), used.ru_maxrss // 1024)


def own_megabytes() -> int:
    """Return the most memory that this process had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
