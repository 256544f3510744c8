"""Every door compares a version's files with what the registry holds."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlflow.pyfunc
import pytest
from registered import make_champion_store
from toy import facts

from flows.commands import predict as commands
from flows.commands.predict import find_model
from tasks.core.errors import VerdictError
from tasks.core.files import read_json
from tasks.inference.bundle import MANIFEST, write_manifest
from tasks.registry import lookup
from tasks.registry.code_digest import BUNDLE_PATH
from tasks.registry.store import MlflowStore, locate_store
from tasks.registry.verification import verify_version
from tasks.serving.batch_scoring import score_file
from tasks.serving.champion import Champion
from tasks.serving.triton import export_repository


@pytest.fixture(scope="module")
def original(empty_store: Path, exported: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_champion_store(tmp_path_factory.mktemp("genuine"), empty_store, exported)


@pytest.fixture
def home(original: Path) -> Any:
    """The home of a champion whose files are put back after the test."""
    model = model_folder(original)
    kept = shutil.copytree(model, original / "kept", symlinks=True)
    yield original
    shutil.rmtree(model)
    kept.rename(model)


def model_folder(home: Path) -> Path:
    return Path(lookup.resolve_version(locate_store(str(home)), fetch=True)["bundle"]).parents[1]


def put_another_bundle(model: Path) -> None:
    """Seal a shorter bundle in the place of the one that was registered."""
    write_manifest(model / BUNDLE_PATH, facts(max_length=8), {})


def forge_facts(model: Path) -> None:
    """Seal the registered graphs again, with other metrics, another origin and a card of one's own."""
    (model / BUNDLE_PATH / "card.md").write_text("# The best model\n")
    write_manifest(model / BUNDLE_PATH, facts(dataset="e" * 64, git_commit="f" * 40), {"fp32": {"mcc": 0.99}})


def package_of(model: Path) -> Path:
    (package,) = (model / "code").glob("verdict_runtime_*")
    return package


def alter_code(model: Path) -> None:
    path = package_of(model) / "inference" / "classifier.py"
    path.write_text(path.read_text() + "\n")


def add_bytecode(model: Path) -> None:
    """Put bytecode where Python would execute it instead of the module."""
    folder = package_of(model) / "inference" / "__pycache__"
    folder.unlink()
    folder.mkdir()
    (folder / "classifier.cpython-311.pyc").write_bytes(b"bytecode")


def link_a_package(model: Path) -> None:
    """Let `import tokenizers` find a folder elsewhere: the code's folder comes first on sys.path."""
    elsewhere = model.parent / "elsewhere"
    elsewhere.mkdir(exist_ok=True)
    (model / "code" / "tokenizers").symlink_to(elsewhere)


BUNDLES: dict[str, Callable[[Path], None]] = {"another bundle": put_another_bundle, "forged facts": forge_facts}
CODE: dict[str, Callable[[Path], None]] = {"code": alter_code, "bytecode": add_bytecode, "link": link_a_package}


def refusals(home: Path, tmp_path: Path) -> dict[str, str]:
    """Return what each door says about the champion; empty where it opens."""
    store: MlflowStore = locate_store(str(home))
    text = tmp_path / "in.txt"
    text.write_text("the cat sees the dog\n")

    def score(out: str) -> None:
        version, bundle, digest = find_model("1", str(home))
        score_file(str(text), out, bundle, version, "cpu", manifest_digest=digest)

    def export(out: str) -> None:
        version, bundle, digest = find_model("models:/acceptability@champion", str(home))
        export_repository(bundle, out, version, manifest_digest=digest)

    def serve(_: str) -> None:
        with Champion.open(device="cpu", home=str(home)):
            pass

    doors: dict[str, Callable[[str], Any]] = {
        "predict": lambda _: commands.predict(["the cat"], "1", "cpu", str(home)),
        "score": score,
        "export-triton": export,
        "approve": lambda _: verify_version(store, "1"),
        "serve": serve,
    }
    said = {}
    for name, door in doors.items():
        said[name] = ""
        try:
            door(str(tmp_path / f"{name}.parquet"))
        except VerdictError as error:
            said[name] = str(error)
    return said


def test_every_door_opens_to_the_files_that_were_registered(
    home: Path, tmp_path: Path, own_mlflow_address: None
) -> None:
    mlflow.set_tracking_uri(f"sqlite:///{home}/mlflow.db")
    assert mlflow.pyfunc.load_model("models:/acceptability@champion").predict(["the cat"])["version"].tolist() == ["1"]
    assert refusals(home, tmp_path) == dict.fromkeys(("predict", "score", "export-triton", "approve", "serve"), "")


@pytest.mark.parametrize("name", BUNDLES)
def test_another_bundle_in_place_of_the_registered_one_is_refused_by_every_door(
    home: Path, tmp_path: Path, name: str, own_mlflow_address: None
) -> None:
    BUNDLES[name](model_folder(home))
    said = refusals(home, tmp_path)
    held = read_json(model_folder(home) / BUNDLE_PATH / MANIFEST)
    assert "\n" not in "".join(said.values())
    for door, text in said.items():
        assert held["manifest_digest"][:12] in text or held["digest"][:12] in text, door
    mlflow.set_tracking_uri(f"sqlite:///{home}/mlflow.db")
    with pytest.raises(Exception, match=f"its manifest is {held['manifest_digest'][:12]}, expected was"):
        mlflow.pyfunc.load_model("models:/acceptability@champion")


@pytest.mark.parametrize("name", CODE)
def test_altered_code_is_refused_by_every_door_that_has_it(home: Path, tmp_path: Path, name: str) -> None:
    CODE[name](model_folder(home))
    said = refusals(home, tmp_path)
    assert said.pop("serve") == ""  # fetches the bundle alone, and runs none of that code
    for door, text in said.items():
        assert text.startswith("version 1 holds files around its bundle "), door


def test_loading_a_version_leaves_no_bytecode_in_the_store(home: Path, own_mlflow_address: None) -> None:
    mlflow.set_tracking_uri(f"sqlite:///{home}/mlflow.db")
    mlflow.pyfunc.load_model("models:/acceptability@champion")
    assert list(model_folder(home).rglob("*.pyc")) == []
    verify_version(locate_store(str(home)), "1")
