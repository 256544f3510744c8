"""Pairs of Ed25519 keys in a folder: NAME.key and NAME.pem."""

from pathlib import Path

PRIVATE, PUBLIC = ".key", ".pem"


def write_keys(folder: Path, *names: str) -> Path:
    """Write a new pair of keys for each name; return the folder, whose .pem files are the public ones."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

    folder.mkdir()
    for name in names:
        key = Ed25519PrivateKey.generate()
        (folder / f"{name}{PRIVATE}").write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
        public = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        (folder / f"{name}{PUBLIC}").write_bytes(public)
    return folder
