#!/usr/bin/env bash
# mlflow 3.17.2 (here mlflow-skinny of the same version), requests 2.34.2; huggingface_hub 2.4.0 does not.
#
# Behaviour: MLflow hands its token, or name and password, to requests as a header. requests replaces that header by the
# name and password that ~/.netrc has for the host, or in its default entry: what MLFLOW_TRACKING_TOKEN or
# MLFLOW_TRACKING_USERNAME say is never sent, and nothing mentions the file. A host whose git or package index shares the
# name of its MLflow server answers 401 to the right token.
#
# Seen, what a server on loopback got (name:password where it was such a pair):
#   token: Bearer the-token
#   token, netrc has the host: of-netrc:other
#   token, netrc has a default: of-netrc:other
#   name and password: of-mlflow:secret
#   name and password, netrc has the host: of-netrc:other
#   token, netrc has the host, NETRC names an empty file: Bearer the-token
#   token of huggingface_hub, netrc has the host: Bearer hf_token
set -euo pipefail
script=$(realpath "$0") && dir=$(mktemp -d) && trap 'rm -rf "$dir"' EXIT && cd "$dir"
"${PYTHON:-python3}" -m venv env || exit 2
env/bin/pip install --quiet --disable-pip-version-check mlflow-skinny==3.17.2 requests==2.34.2 huggingface_hub==2.4.0 \
  || exit 2
cat > show.py <<'PY'
import base64
import os
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

received = []
TOKEN = {"MLFLOW_TRACKING_TOKEN": "the-token"}
PAIR = {"MLFLOW_TRACKING_USERNAME": "of-mlflow", "MLFLOW_TRACKING_PASSWORD": "secret"}
HOST, DEFAULT = "machine 127.0.0.1 login of-netrc password other\n", "default login of-netrc password other\n"


class Server(BaseHTTPRequestHandler):
    def answer(self):
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        received.append(self.headers["Authorization"])
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"{}")

    do_GET = do_POST = answer

    def log_message(self, *_):
        pass


def show(title, ask, netrc, variables):
    path = Path.home() / ".netrc"
    path.write_text(netrc)
    path.chmod(0o600)
    os.environ.update(variables)
    ask()
    for name in variables:
        del os.environ[name]
    kind, _, value = received[-1].partition(" ")
    print(f"{title}: {base64.b64decode(value).decode() if kind == 'Basic' else received[-1]}")


server = ThreadingHTTPServer(("127.0.0.1", 0), Server)
threading.Thread(target=server.serve_forever, daemon=True).start()
address = f"http://127.0.0.1:{server.server_port}"
Path("empty").touch()

import mlflow  # noqa: E402
from huggingface_hub import HfApi  # noqa: E402

search = mlflow.MlflowClient(address).search_experiments
show("token", search, "", TOKEN)
show("token, netrc has the host", search, HOST, TOKEN)
show("token, netrc has a default", search, DEFAULT, TOKEN)
show("name and password", search, "", PAIR)
show("name and password, netrc has the host", search, HOST, PAIR)
show("token, netrc has the host, NETRC names an empty file", search, HOST, TOKEN | {"NETRC": "empty"})
show("token of huggingface_hub, netrc has the host", HfApi(address, token="hf_token").whoami, HOST, {})
PY
export HOME="$dir" MLFLOW_DISABLE_TELEMETRY=true DO_NOT_TRACK=true HF_HUB_DISABLE_TELEMETRY=1
unset NETRC MLFLOW_TRACKING_TOKEN MLFLOW_TRACKING_USERNAME MLFLOW_TRACKING_PASSWORD || true
env/bin/python show.py | tee seen
diff seen <(sed -n '/^# Seen, /,/^set/s/^#   //p' "$script")
