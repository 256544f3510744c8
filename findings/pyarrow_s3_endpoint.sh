#!/usr/bin/env bash
# pyarrow 25.0.1, on Linux. Python 3.11 or later.
#
# Behaviour: AWS's two variables for a store that is not Amazon's are read by `FileSystem.from_uri("s3://...")`, but not by the
# constructor `S3FileSystem()` of the same class: it goes to amazonaws.com, with a request that is signed with the keys of the
# other store. Only its argument `endpoint_override` counts.
#
# Seen, with a proxy on loopback that writes down whom a request is for:
#   AWS_ENDPOINT_URL, S3FileSystem(): bucket.s3.us-east-1.amazonaws.com
#   AWS_ENDPOINT_URL, FileSystem.from_uri: the endpoint
#   AWS_ENDPOINT_URL_S3, S3FileSystem(): bucket.s3.us-east-1.amazonaws.com
#   AWS_ENDPOINT_URL_S3, FileSystem.from_uri: the endpoint
#   endpoint_override: the endpoint
set -euo pipefail
script=$(realpath "$0") && dir=$(mktemp -d) && trap 'rm -rf "$dir"' EXIT && cd "$dir"
"${PYTHON:-python3}" -m venv env || exit 2
env/bin/pip install --quiet --disable-pip-version-check pyarrow==25.0.1 || exit 2
cat > show.py <<'PY'
import contextlib
import os
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlencode

from pyarrow import fs

asked = []


class Proxy(BaseHTTPRequestHandler):
    def answer(self):
        asked.append(self.path if self.command == "CONNECT" else self.headers["Host"])
        self.send_response(404)
        self.end_headers()

    do_CONNECT = do_GET = do_HEAD = do_PUT = answer

    def log_message(self, *_):
        pass


server = ThreadingHTTPServer(("127.0.0.1", 0), Proxy)
threading.Thread(target=server.serve_forever, daemon=True).start()
port = server.server_port
proxy = {"scheme": "http", "host": "127.0.0.1", "port": port}
endpoint = f"http://127.0.0.1:{port}"
once = {"proxy_options": proxy, "region": "us-east-1", "retry_strategy": fs.AwsStandardS3RetryStrategy(max_attempts=1)}
for name in ("http_proxy", "https_proxy"):  # from_uri has no option for a proxy
    os.environ[name] = os.environ[name.upper()] = endpoint


def show(title, open_store):
    asked.clear()
    with contextlib.suppress(OSError):
        open_store().get_file_info("bucket/key")
    hosts = {host.partition(":")[0] for host in asked}
    print(f"{title}:", ", ".join("the endpoint" if host == "127.0.0.1" else host for host in sorted(hosts)) or "nobody")


for variable in ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"):
    os.environ[variable] = endpoint
    show(f"{variable}, S3FileSystem()", lambda: fs.S3FileSystem(**once))
    show(f"{variable}, FileSystem.from_uri", lambda: fs.FileSystem.from_uri("s3://bucket?region=us-east-1")[0])
    del os.environ[variable]
show("endpoint_override", lambda: fs.S3FileSystem(endpoint_override=endpoint, region="us-east-1"))
PY
AWS_ACCESS_KEY_ID=id AWS_SECRET_ACCESS_KEY=secret AWS_EC2_METADATA_DISABLED=true env/bin/python show.py | tee seen
diff seen <(sed -n '/^# Seen, /,/^set/s/^#   //p' "$script")
