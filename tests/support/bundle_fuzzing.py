"""Makes damaged bundles, the same ones for the same seed: what is damaged is in the files, the checksums fit."""

import copy
import json
import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tasks.inference.bundle import MANIFEST, TOKENIZER, VARIANTS, ModelInfo, write_manifest

VALUES: list[Any] = [
    None, True, 0, -1, 1, 3, 2**31, 10**30, 1.5, 1e308, "", "x", "[UNK]", "\0", "é" * 50, [], [[]], [None], {},
    {"type": "BPE"},
]  # fmt: skip
KEYS = ["extra", "type", "unk_token", "dropout", "merges", "vocab"]


def mutated_bundles(source: Path, folder: Path, count: int, seed: int) -> Iterator[Path]:
    """Yield damaged copies of a bundle, one at a time in the same folder; number i does not depend on `count`."""
    for number in range(count):
        rng = random.Random(f"{seed}/{number}")
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(source, folder)
        manifest = json.loads((folder / MANIFEST).read_text())
        info: Any = {key: manifest[key] for key in ModelInfo.__annotations__ if key in manifest}
        what = rng.choice(["tokenizer", "tokenizer", "facts", "graph", "manifest"])
        if what == "facts":
            info = {**info, **mutate_json(info, rng)}
        elif what == "tokenizer":
            document = mutate_json(json.loads((folder / TOKENIZER).read_text()), rng)
            (folder / TOKENIZER).write_text(json.dumps(document))
        elif what == "graph":
            path = folder / rng.choice([name for name in VARIANTS.values() if name in manifest["files"]])
            path.write_bytes(mutate_bytes(path.read_bytes(), rng))
        if what == "manifest":
            (folder / MANIFEST).write_text(json.dumps(mutate_json(manifest, rng)))
        else:
            write_manifest(folder, info, manifest["metrics"])
        yield folder


def mutate_json(document: Any, rng: random.Random) -> Any:
    """Return a copy in which one to three values are deleted, replaced or added."""
    document = copy.deepcopy(document)
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        places = list(_places(document))
        if not places:
            break
        node, key = rng.choice(places)
        chance = rng.random()
        if chance < 0.25:
            del node[key]
        elif chance < 0.85:
            node[key] = copy.deepcopy(rng.choice(VALUES))
        elif isinstance(node, dict):
            node[rng.choice(KEYS)] = copy.deepcopy(rng.choice(VALUES))
        else:
            node.append(copy.deepcopy(rng.choice(VALUES)))
    return document


def mutate_bytes(data: bytes, rng: random.Random) -> bytes:
    """Return a copy in which bytes are changed, deleted or inserted at up to 30 places."""
    content = bytearray(data)
    for _ in range(rng.choice([1, 1, 4, 30])):
        at, chance = rng.randrange(max(1, len(content))), rng.random()
        if chance < 0.6:
            content[at : at + 1] = rng.randbytes(1)
        elif chance < 0.8:
            del content[at : at + rng.randrange(50)]
        else:
            content[at:at] = rng.randbytes(rng.randrange(20))
    return bytes(content)


def _places(node: Any) -> Iterator[tuple[Any, Any]]:
    """Yield each container inside a JSON value with each of its keys or indices."""
    for key in list(node) if isinstance(node, dict) else range(len(node)) if isinstance(node, list) else ():
        yield node, key
        yield from _places(node[key])
