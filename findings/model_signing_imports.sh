#!/usr/bin/env bash
# model-signing 1.1.1 (OpenSSF's library that signs model files).
#
# Behaviour: the wheel installs with all that its metadata asks for, and cannot be imported: it imports `OpenSSL`, which
# is pyOpenSSL, and does not declare it. In environments where something else brings pyOpenSSL along nobody notices.
# With pyOpenSSL it refuses the key type that most signing tools start with, Ed25519: its keys are those of P-256,
# P-384 and P-521 alone, and the error is one of Python's, not one of its own.
#
# Seen:
#   alone: ModuleNotFoundError: No module named 'OpenSSL'
#   with pyOpenSSL: imported
#   with pyOpenSSL, an Ed25519 key: AttributeError: 'cryptography.hazmat.bindings._rust.openssl.ed25519' object has no attribute 'curve'
set -euo pipefail
script=$(realpath "$0") && dir=$(mktemp -d) && trap 'rm -rf "$dir"' EXIT && cd "$dir"
"${PYTHON:-python3}" -m venv env
install() {
  env/bin/pip install --quiet --disable-pip-version-check "$@" > pip.log 2>&1 || { cat pip.log; exit 2; }
}
install model-signing==1.1.1 cryptography==50.0.2
mkdir model && echo weights > model/weights
cat > check.py <<'PY'
import sys

try:
    import model_signing
except ModuleNotFoundError as error:
    sys.exit(print(f"{sys.argv[1]}: {type(error).__name__}: {error}"))
print(f"{sys.argv[1]}: imported")
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

with open("key.pem", "wb") as file:
    file.write(Ed25519PrivateKey.generate().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
try:
    model_signing.signing.Config().use_elliptic_key_signer(private_key="key.pem").sign("model", "signature")
except Exception as error:
    print(f"{sys.argv[1]}, an Ed25519 key: {type(error).__name__}: {error}")
PY
env/bin/python check.py alone | tee seen
install pyOpenSSL==26.4.0
env/bin/python check.py "with pyOpenSSL" | tee -a seen
diff seen <(sed -n 's/^#   \(alone\|with\)/\1/p' "$script")
