"""Every door compares a version's files with what the registry holds."""

import errno
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlflow.pyfunc
import pytest
from registered import make_champion_store
from signing_keys import PRIVATE, PUBLIC, write_keys
from toy import facts

from flows.commands import predict as commands
from flows.commands.predict import find_model
from flows.commands.verify import verify
from tasks.core.errors import VerdictError
from tasks.core.files import read_json
from tasks.inference.bundle import MANIFEST, sign_bundle, write_manifest
from tasks.registry import lookup, register
from tasks.registry.code_digest import BUNDLE_PATH, digest_wrapping
from tasks.registry.store import MlflowStore, locate_store
from tasks.registry.verification import inspect_version, verify_version
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


@pytest.fixture(scope="module")
def signed_original(empty_store: Path, exported: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home whose champion, code included, and its bundle are signed by ada."""
    folder = tmp_path_factory.mktemp("signed")
    keys = write_keys(folder / "keys", "ada", "eve")
    bundle = Path(shutil.copytree(exported["bundle"], folder / "bundle"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VERDICT_SIGNING_KEY", str(keys / f"ada{PRIVATE}"))
        sign_bundle(bundle)
        return make_champion_store(folder, empty_store, exported | {"bundle": str(bundle)})


@pytest.fixture
def signed(signed_original: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """That home, for whoever requires ada's signature; its files are put back after the test."""
    monkeypatch.setenv("VERDICT_TRUSTED_KEYS", str(signed_original / "keys" / f"ada{PUBLIC}"))
    monkeypatch.setenv("VERDICT_REQUIRE_SIGNATURE", "1")
    model = model_folder(signed_original)
    kept = shutil.copytree(model, signed_original / "kept", symlinks=True)
    yield signed_original
    shutil.rmtree(model)
    kept.rename(model)


def forge_registry(home: Path, model: Path) -> None:
    """Let the registry hold the digests of other files, as whoever may write to it can."""
    manifest = read_json(model / BUNDLE_PATH / MANIFEST)
    digests = manifest["digest"], manifest["manifest_digest"], digest_wrapping(model)
    tags = zip(("bundle_digest", "manifest_digest", "wrapping_digest"), digests, strict=True)
    register.tag_version(locate_store(str(home)), "1", dict(tags))


def test_what_ada_signed_opens_every_door_that_requires_it(
    signed: Path, tmp_path: Path, own_mlflow_address: None
) -> None:
    assert set(refusals(signed, tmp_path).values()) == {""}
    mlflow.set_tracking_uri(f"sqlite:///{signed}/mlflow.db")
    mlflow.pyfunc.load_model("models:/acceptability@champion")
    said = verify("1", str(tmp_path / "copy"), str(signed))
    assert all(text.startswith("signed by ada (key ") for text in said["files"].values())
    assert len(said["files"]) == 2
    assert verify(str(tmp_path / "copy"), "", "")["files"] == said["files"]
    assert verify(str(tmp_path / "copy" / BUNDLE_PATH), "", "")["not_covered"][0].startswith("the code of")


@pytest.mark.parametrize("name", [*BUNDLES, *CODE])
def test_forged_files_are_refused_though_the_registry_was_forged_too(signed: Path, tmp_path: Path, name: str) -> None:
    model = model_folder(signed)
    (BUNDLES | CODE)[name](model)
    forge_registry(signed, model)
    said = refusals(signed, tmp_path)
    if name in CODE:
        assert said.pop("serve") == ""
    assert all("sign" in text for text in said.values()), said
    with pytest.raises(VerdictError, match=r"sign|registered"):  # the copy has a folder instead of a link
        verify("1", str(tmp_path / "copy"), str(signed))
    assert not (tmp_path / "copy").exists()


def test_a_copy_that_ends_halfway_is_removed(signed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def copy_half(source: Path, target: str, **_: Any) -> None:
        (Path(target) / "MLmodel").write_text("half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("flows.commands.verify.shutil.copytree", copy_half)
    with pytest.raises(OSError, match="No space left"):
        verify("1", str(tmp_path / "copy"), str(signed))
    assert not (tmp_path / "copy").exists()


def test_unsigned_versions_are_reported_and_refused_only_where_a_signature_is_required(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, own_mlflow_address: None
) -> None:
    store = locate_store(str(home))
    assert set(verify("1", "", str(home))["files"].values()) == {"not signed"}
    assert inspect_version(store, "1") == (None, "not signed")
    with Champion.open(device="cpu", home=str(home)) as champion:
        assert champion.status()["signature"] == "not signed"
    monkeypatch.setenv("VERDICT_REQUIRE_SIGNATURE", "1")
    said = refusals(home, tmp_path)
    assert all("not signed, and VERDICT_REQUIRE_SIGNATURE is set" in text for text in said.values()), said
    mlflow.set_tracking_uri(f"sqlite:///{home}/mlflow.db")
    with pytest.raises(Exception, match="not signed, and VERDICT_REQUIRE_SIGNATURE is set"):
        mlflow.pyfunc.load_model("models:/acceptability@champion")
