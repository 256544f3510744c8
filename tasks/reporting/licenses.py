"""Finds whose encoder and data a model was made of, as far as that is known without asking anybody."""

from pathlib import Path

from tasks.core.addresses import HUB_PREFIX
from tasks.core.files import sha256_of
from tasks.data.sample_corpus import TRAIN_FILE
from tasks.training.pretrained import PACKAGED, PACKAGED_LICENSE

ENCODER_PAGE = "README.md"  # its header names the licence, where the publisher wrote one
# CoLA's training file: the book's, and "raw", "tokenized" and the archive of the authors' release 1.1.
COLA_FILES = {
    "55d77501a11cb129c74190652661d846589319a2c8710033c5bb2d37f08e70cd",
    "f320a10f92d3bce6b29152fde322a362eac39238e50d8de0c8815457fdf4fc12",
    "6b79f1dee9e885c73d47f1657e2776f44b587c0cfba2cafdcdc6f05a7acbc160",
    "2cf856f46df11c143d38e0cf2f9f34ff2fdb088c521cd859f5c4b9581683278b",
}


def encoder_license(encoder: str) -> str | None:
    """Return the licence of an encoder's weights as the Hub abbreviates it; None where none is stated.

    Args:
        encoder: the setting finetune.encoder.
    """
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.repocard import metadata_load
    from yaml import YAMLError

    if encoder == PACKAGED:
        return PACKAGED_LICENSE
    try:
        folder, name = Path(encoder), encoder.removeprefix(HUB_PREFIX)
        page = folder / ENCODER_PAGE if folder.is_dir() else try_to_load_from_cache(name, ENCODER_PAGE)
        header = metadata_load(page) if isinstance(page, str | Path) else None
    except (OSError, ValueError, YAMLError):
        return None
    stated = (header or {}).get("license")
    return stated if isinstance(stated, str) else None


def is_cola(addresses: list[str]) -> bool:
    """Return whether any of these addresses of data is the Corpus of Linguistic Acceptability."""
    return any(map(_names_cola, addresses))


def _names_cola(address: str) -> bool:
    if address.startswith(HUB_PREFIX):
        return address.partition("@")[0].lower().endswith("/cola")
    if any(f"#sha256={digest}" in address for digest in COLA_FILES):
        return True
    path = Path(address)
    file = path / TRAIN_FILE if path.is_dir() else path
    return file.is_file() and sha256_of(file) in COLA_FILES
