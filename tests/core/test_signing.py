"""Signatures of files: what they cover, whose count, and what is refused."""

import base64
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import load_pem_public_key
from signing_keys import PRIVATE, PUBLIC, write_keys

from tasks.core.errors import UsageError, VerdictError
from tasks.core.files import sha256_of
from tasks.core.signing import (
    SIGNATURE,
    check_files,
    describe_key,
    describe_signer,
    key_id,
    require_key,
    require_signer,
    sign,
    sign_files,
    signature_required,
    trusted_keys,
)


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    return write_keys(tmp_path / "keys", "ada", "eve")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "one").write_text("1")
    return tmp_path / "files"


def digests(folder: Path) -> dict[str, str]:
    return {path.name: sha256_of(path) for path in folder.iterdir() if path.name != SIGNATURE}


def signed_by(name: str, keys: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VERDICT_SIGNING_KEY", str(keys / f"{name}{PRIVATE}"))
    sign_files(folder, digests(folder))
    monkeypatch.delenv("VERDICT_SIGNING_KEY")


def test_without_a_key_nothing_is_signed_and_nothing_refused(folder: Path) -> None:
    sign_files(folder, digests(folder))
    assert not (folder / SIGNATURE).exists()
    assert describe_signer(check_files(folder, digests(folder), "it")) == describe_key() == "not signed"
    require_signer(None, "it")
    require_key()


def test_a_trusted_key_is_named_by_its_file(keys: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    signed_by("ada", keys, folder, monkeypatch)
    for value in (str(keys / f"ada{PUBLIC}"), str(keys), f"{keys / f'eve{PUBLIC}'}{os.pathsep}{keys / f'ada{PUBLIC}'}"):
        monkeypatch.setenv("VERDICT_TRUSTED_KEYS", value)
        signer = check_files(folder, digests(folder), "it")
        assert signer is not None
        assert (signer.name, signer.trusted) == ("ada", True)
        assert describe_signer(signer).startswith(f"signed by ada (key {signer.key[:12]}), 20")
    monkeypatch.setenv("VERDICT_TRUSTED_KEYS", (keys / f"ada{PUBLIC}").read_text())
    signer = check_files(folder, digests(folder), "it")
    assert signer is not None
    assert signer.name == "key 1"


def test_a_key_given_as_text_signs_and_its_own_signature_counts(
    keys: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VERDICT_SIGNING_KEY", (keys / f"ada{PRIVATE}").read_text())
    monkeypatch.setenv("VERDICT_REQUIRE_SIGNATURE", "1")
    require_key()
    sign_files(folder, digests(folder))
    signer = check_files(folder, digests(folder), "it")
    require_signer(signer, "it")
    assert describe_key() == f"signed with key {signer.key[:12] if signer else ''}"


def test_another_key_is_not_checked_and_refused_where_a_signature_is_required(
    keys: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    signed_by("eve", keys, folder, monkeypatch)
    monkeypatch.setenv("VERDICT_TRUSTED_KEYS", str(keys / f"ada{PUBLIC}"))
    signer = check_files(folder, digests(folder), "it")
    assert "which is not among VERDICT_TRUSTED_KEYS: not checked" in describe_signer(signer)
    require_signer(signer, "it")
    monkeypatch.setenv("VERDICT_REQUIRE_SIGNATURE", "1")
    for found in (signer, None):
        with pytest.raises(VerdictError, match=r"it is .*, and VERDICT_REQUIRE_SIGNATURE is set; see: verdict verify"):
            require_signer(found, "it")
    with pytest.raises(UsageError, match="VERDICT_REQUIRE_SIGNATURE is set and VERDICT_SIGNING_KEY is not"):
        require_key()


def test_files_that_changed_appeared_or_vanished_are_named(
    keys: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    signed_by("ada", keys, folder, monkeypatch)
    monkeypatch.setenv("VERDICT_TRUSTED_KEYS", str(keys))
    for changed in ({"one": "0" * 64}, {**digests(folder), "two": "0" * 64}):
        with pytest.raises(VerdictError, match=f"it was altered after it was signed: {list(changed)[-1]} is not what"):
            check_files(folder, changed, "it")


def test_an_edited_signature_is_refused(keys: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    signed_by("ada", keys, folder, monkeypatch)
    ours = json.loads((folder / SIGNATURE).read_text())
    (folder / "one").write_text("another")
    signed_by("eve", keys, folder, monkeypatch)
    theirs = json.loads((folder / SIGNATURE).read_text())
    monkeypatch.setenv("VERDICT_TRUSTED_KEYS", str(keys / f"ada{PUBLIC}"))
    claimed = [{**theirs["signatures"][0], "keyid": ours["signatures"][0]["keyid"]}]
    for forged in ({**theirs, "signatures": claimed}, {**theirs, "signatures": ours["signatures"]}):
        (folder / SIGNATURE).write_text(json.dumps(forged))
        with pytest.raises(VerdictError, match="it was altered: it does not have the signature of ada"):
            check_files(folder, digests(folder), "it")
    for damaged in ([], {}, {"signatures": []}, {**theirs, "payload": "?"}, {**theirs, "payload": "W10="}):
        (folder / SIGNATURE).write_text(json.dumps(damaged))
        with pytest.raises(VerdictError, match="it has a damaged signature"):
            check_files(folder, digests(folder), "it")


def test_the_envelope_is_that_of_dsse(keys: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VERDICT_SIGNING_KEY", str(keys / f"ada{PRIVATE}"))
    envelope = sign(b"hello world", "http://example.com/HelloWorld")
    assert envelope is not None
    assert (envelope["payload"], envelope["payloadType"]) == ("aGVsbG8gd29ybGQ=", "http://example.com/HelloWorld")
    (signature,) = envelope["signatures"]
    key = load_pem_public_key((keys / f"ada{PUBLIC}").read_bytes())
    assert isinstance(key, Ed25519PublicKey)
    signed = b"DSSEv1 29 http://example.com/HelloWorld 11 hello world"  # of the protocol's own example
    key.verify(base64.b64decode(signature["sig"]), signed)
    assert signature["keyid"] == key_id(key)


def test_openssl_makes_the_keys_that_the_page_names(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    private, public = tmp_path / "key.pem", tmp_path / "ada.pem"
    subprocess.run(["openssl", "genpkey", "-algorithm", "ed25519", "-out", private], check=True, capture_output=True)
    subprocess.run(["openssl", "pkey", "-in", private, "-pubout", "-out", public], check=True, capture_output=True)
    monkeypatch.setenv("VERDICT_SIGNING_KEY", str(private))
    sign_files(folder, digests(folder))
    monkeypatch.delenv("VERDICT_SIGNING_KEY")
    monkeypatch.setenv("VERDICT_TRUSTED_KEYS", str(public))
    assert describe_signer(check_files(folder, digests(folder), "it")).startswith("signed by ada (")


def test_bad_keys_are_refused_in_one_line_that_does_not_show_them(
    keys: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "no.pem").write_text("no key")
    secret = "MC4CAQAwBQYDK2VwBCIEI-secret"
    for value in (
        secret,
        f"-----BEGIN PRIVATE KEY-----\n{secret}",
        str(tmp_path / "no.pem"),
        str(keys / f"ada{PUBLIC}"),
    ):
        monkeypatch.setenv("VERDICT_SIGNING_KEY", value)
        with pytest.raises(UsageError, match="VERDICT_SIGNING_KEY is no private key in PEM form") as caught:
            require_key()
        assert secret not in str(caught.value)
        assert "\n" not in str(caught.value)
    monkeypatch.delenv("VERDICT_SIGNING_KEY")
    for value in (str(tmp_path / "no.pem"), str(tmp_path / "nowhere.pem")):
        monkeypatch.setenv("VERDICT_TRUSTED_KEYS", value)
        for reads in (trusted_keys, require_key):
            with pytest.raises(UsageError, match="VERDICT_TRUSTED_KEYS: "):
                reads()
    monkeypatch.setenv("VERDICT_REQUIRE_SIGNATURE", "perhaps")
    with pytest.raises(UsageError, match="VERDICT_REQUIRE_SIGNATURE is 'perhaps'; expected 1 or 0"):
        signature_required()


def test_without_a_signature_and_a_requirement_no_library_is_imported(folder: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from tasks.core.signing import check_files, require_signer\n"
        "require_signer(check_files(Path(sys.argv[1]), {}, 'it'), 'it')\n"
        "print(sorted({'cryptography'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", script, str(folder)], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
