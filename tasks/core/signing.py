"""Signatures with Ed25519 over files and records: who vouches for what a store holds.

    VERDICT_SIGNING_KEY        private key that signs: a PEM file, or its text
    VERDICT_TRUSTED_KEYS       public keys whose signatures count: PEM files or folders of them (separated as in PATH),
                               or their text; a file's name is the signer's; the public part of VERDICT_SIGNING_KEY
                               counts too
    VERDICT_REQUIRE_SIGNATURE  1: what is unsigned, or signed with another key, is refused

    openssl genpkey -algorithm ed25519 -out ada.key && openssl pkey -in ada.key -pubout -out ada.pem

A signature is a DSSE envelope (https://github.com/secure-systems-lab/dsse), for files around an in-toto statement that
lists them (https://in-toto.io/Statement/v1), so other tools can check it. `cryptography` signs and verifies, which
MLflow and Prefect bring along; it is imported only where there is a signature and a key. OpenSSF's model-signing 1.1.1
has no Ed25519 and brings the whole of sigstore (findings/model_signing_imports.sh); securesystemslib 1.6.0, whose
envelopes are the same, imports boto3 where it is installed: a third of a second in every command that checks.
"""

import base64
import hashlib
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from .errors import UsageError, VerdictError, first_line
from .files import read_json, write_json
from .timestamps import utc_now

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

KEY_VARIABLE, TRUSTED_VARIABLE = "VERDICT_SIGNING_KEY", "VERDICT_TRUSTED_KEYS"
REQUIRE_VARIABLE = "VERDICT_REQUIRE_SIGNATURE"
SIGNATURE = "signature.json"  # in the folder whose files it covers
STATEMENT = {"_type": "https://in-toto.io/Statement/v1", "predicateType": "urn:verdict:files:v1"}
STATEMENT_FORM = "application/vnd.in-toto+json"
KEY_DIGITS = 12  # hex digits of a key's id that are shown
PUBLIC_KEY = re.compile(r"-----BEGIN PUBLIC KEY-----.*?-----END PUBLIC KEY-----", re.DOTALL)
MAKE_KEY = "make one: openssl genpkey -algorithm ed25519 -out NAME.key"

Envelope = dict[str, Any]


class Signer(NamedTuple):
    """Who signed: the id of the key, the name of a trusted key (empty: another key, nothing was checked), and when."""

    key: str
    name: str
    time: str = ""

    @property
    def trusted(self) -> bool:
        """Whether the signature was checked with a trusted key."""
        return bool(self.name)


def describe_signer(signer: Signer | None) -> str:
    """Return who signed, for people."""
    if signer is None:
        return "not signed"
    key = f"key {signer.key[:KEY_DIGITS]}"
    if not signer.trusted:
        return f"signed with {key}, which is not among {TRUSTED_VARIABLE}: not checked"
    return f"signed by {signer.name} ({key})" + (f", {signer.time}" if signer.time else "")


def signature_required() -> bool:
    """Return whether unsigned files and records are refused."""
    value = os.environ.get(REQUIRE_VARIABLE, "").strip().lower()
    if value not in ("", "0", "false", "no", "1", "true", "yes"):
        raise UsageError(f"{REQUIRE_VARIABLE} is {value!r:.40}; expected 1 or 0")
    return value in ("1", "true", "yes")


def require_signer(signer: Signer | None, what: str) -> None:
    """Refuse what a trusted key did not sign, where that is required.

    Raises:
        VerdictError: if it is required.
    """
    if signature_required() and not (signer and signer.trusted):
        raise VerdictError(f"{what} is {describe_signer(signer)}, and {REQUIRE_VARIABLE} is set; see: verdict verify")


def require_key() -> None:
    """Refuse to start what could not be signed or compared at its end.

    Raises:
        UsageError: if a key cannot be read, or a signature is required and there is no key.
    """
    trusted = trusted_keys() if _has_keys() else {}
    if signature_required() and not (trusted and os.environ.get(KEY_VARIABLE)):
        raise UsageError(f"{REQUIRE_VARIABLE} is set and {KEY_VARIABLE} is not; {MAKE_KEY}")


def describe_key() -> str:
    """Return whether what is written now is signed, for people."""
    key = signing_key()
    return f"signed with key {key_id(key.public_key())[:KEY_DIGITS]}" if key else "not signed"


def sign(payload: bytes, form: str) -> Envelope | None:
    """Return a DSSE envelope of a payload; None where there is no key."""
    key = signing_key()
    if key is None:
        return None
    signature = {"keyid": key_id(key.public_key()), "sig": _encode64(key.sign(_signed_bytes(payload, form)))}
    return {"payload": _encode64(payload), "payloadType": form, "signatures": [signature]}


def check(envelope: Envelope, what: str) -> Signer:
    """Return who signed an envelope.

    Raises:
        VerdictError: if it is no envelope, or its signature is not that of the trusted key that it names.
    """
    try:
        (held,) = envelope["signatures"]
        key, signature = str(held["keyid"]), base64.b64decode(held["sig"], validate=True)
        signed = _signed_bytes(base64.b64decode(envelope["payload"], validate=True), envelope["payloadType"])
    except (KeyError, ValueError, TypeError, AttributeError) as error:
        raise VerdictError(f"{what} has a damaged signature") from error
    trusted = trusted_keys() if _has_keys() else {}
    if key not in trusted:
        return Signer(key, "")
    from cryptography.exceptions import InvalidSignature

    name, public = trusted[key]
    try:
        public.verify(signature, signed)
    except InvalidSignature as error:
        raise VerdictError(
            f"{what} was altered: it does not have the signature of {name} (key {key[:KEY_DIGITS]}) that it bears"
        ) from error
    return Signer(key, name)


def sign_files(folder: Path, digests: Mapping[str, str]) -> None:
    """Sign the names and SHA-256 of files in a folder, where there is a key; write SIGNATURE there."""
    subject = [{"name": name, "digest": {"sha256": digest}} for name, digest in sorted(digests.items())]
    statement = {**STATEMENT, "subject": subject, "predicate": {"time": utc_now()}}
    if envelope := sign(json.dumps(statement).encode(), STATEMENT_FORM):
        write_json(folder / SIGNATURE, envelope)


def check_files(folder: Path, digests: Mapping[str, str], what: str) -> Signer | None:
    """Return who signed exactly these names and SHA-256 in the SIGNATURE of a folder; None where there is none.

    Raises:
        VerdictError: if the signature is of other files, or not that of the trusted key that it names.
    """
    if not (folder / SIGNATURE).is_file():
        return None
    envelope = read_json(folder / SIGNATURE, "fetch the files again")
    signer = check(envelope, what)
    try:
        statement = json.loads(base64.b64decode(envelope["payload"], validate=True))
        signed = {each["name"]: each["digest"]["sha256"] for each in statement["subject"]}
        time, form = str(statement["predicate"]["time"]), (envelope["payloadType"], statement["_type"])
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise VerdictError(f"{what} has a damaged signature") from error
    if signed != dict(digests) or form != (STATEMENT_FORM, STATEMENT["_type"]):
        differing = sorted(name for name in signed.keys() | digests.keys() if signed.get(name) != digests.get(name))
        raise VerdictError(
            f"{what} was altered after it was signed: {(differing or [SIGNATURE])[0]} is not what the signature covers"
        )
    return signer._replace(time=time)


def signing_key() -> "Ed25519PrivateKey | None":
    """Return the key that signs; None where there is none.

    Raises:
        UsageError: if it is no Ed25519 private key.
    """
    value = os.environ.get(KEY_VARIABLE, "").strip()
    if not value:
        return None
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:  # the value is never shown: it may be the key itself
        text = value if value.startswith("-----") else Path(value).read_text(encoding="ascii")
        key = load_pem_private_key(text.encode(), None)
    except (OSError, ValueError, TypeError) as error:
        reason = error.strerror if isinstance(error, OSError) else first_line(error, 80)
        raise UsageError(f"{KEY_VARIABLE} is no private key in PEM form ({reason}); {MAKE_KEY}") from error
    if not isinstance(key, Ed25519PrivateKey):
        raise UsageError(f"{KEY_VARIABLE} is a key of another kind than Ed25519; {MAKE_KEY}")
    return key


def key_id(key: "Ed25519PublicKey") -> str:
    """Return the id of a key: what `openssl pkey -pubin -in NAME.pem -outform DER | sha256sum` prints."""
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    return hashlib.sha256(key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)).hexdigest()


def trusted_keys() -> "dict[str, tuple[str, Ed25519PublicKey]]":
    """Return the names and keys whose signatures count, by key id.

    Raises:
        UsageError: if one of them cannot be read.
    """
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    found: dict[str, tuple[str, Ed25519PublicKey]] = {}
    if own := signing_key():
        found[key_id(own.public_key())] = ("this program's own key", own.public_key())
    for name, text in _public_texts(os.environ.get(TRUSTED_VARIABLE, "").strip()):
        try:
            key = load_pem_public_key(text.encode())
        except (ValueError, TypeError) as error:
            raise UsageError(f"{TRUSTED_VARIABLE}: {name} is no public key in PEM form") from error
        if not isinstance(key, Ed25519PublicKey):
            raise UsageError(f"{TRUSTED_VARIABLE}: {name} is a key of another kind than Ed25519")
        found[key_id(key)] = (name, key)
    return found


def _has_keys() -> bool:
    return bool(os.environ.get(TRUSTED_VARIABLE) or os.environ.get(KEY_VARIABLE))


def _signed_bytes(payload: bytes, form: str) -> bytes:
    """Return what is signed: DSSE's encoding of a payload and its type."""
    return b"DSSEv1 %d %b %d %b" % (len(form.encode()), form.encode(), len(payload), payload)


def _encode64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _public_texts(value: str) -> list[tuple[str, str]]:
    """Return the name and text of each public key that a variable names or holds."""
    if value.startswith("-----"):
        return [(f"key {number}", text) for number, text in enumerate(PUBLIC_KEY.findall(value), start=1)]
    texts = []
    for place in filter(None, value.split(os.pathsep)):
        files = sorted(Path(place).glob("*.pem")) if Path(place).is_dir() else [Path(place)]
        for path in files:
            try:
                found = PUBLIC_KEY.findall(path.read_text(encoding="utf-8"))
            except (OSError, ValueError) as error:
                raise UsageError(f"{TRUSTED_VARIABLE}: {path} cannot be read ({first_line(error, 80)})") from error
            if not found:
                raise UsageError(f"{TRUSTED_VARIABLE}: {path} holds no public key in PEM form")
            texts += [(path.stem, text) for text in found]
    return texts
