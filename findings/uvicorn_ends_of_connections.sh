#!/usr/bin/env bash
# uvicorn 0.54.0 with h11 0.16.0 (an HTTP server for ASGI applications).
#
# Behaviour: a client that closes its sending side after a complete request, as `nc -N` and many simple clients do, gets
# no byte of its answer unless the application answers at once: the connection is closed when the end of the client's
# side is read. And while the server stops gracefully, the answer to a request in flight does not say that its
# connection is closed after it (RFC 9112, 9.6: a server that closes should send `Connection: close`): a client that
# keeps connections sends its next request into a closed one.
#
# Seen:
#   answer to a request in flight: HTTP/1.1 200 OK
#   answer after the sending side was closed: nothing
#   answer while the server stops: HTTP/1.1 200 OK, says Connection: close: False, then closed
set -euo pipefail
script=$(realpath "$0") && dir=$(mktemp -d) && trap 'rm -rf "$dir"' EXIT && cd "$dir"
"${PYTHON:-python3}" -m venv env
env/bin/pip install --quiet --disable-pip-version-check uvicorn==0.54.0 h11==0.16.0 > pip.log 2>&1 || { cat pip.log; exit 2; }
cat > check.py <<'PY'
import asyncio
import socket
import threading
import time

import uvicorn


async def app(scope, receive, send):
    await asyncio.sleep(0.5)
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"ok"})


def ask(close_sending_side):
    connection = socket.create_connection(bound.getsockname())
    connection.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
    if close_sending_side:
        connection.shutdown(socket.SHUT_WR)
    return connection


def first_line(answer):
    return answer.split(b"\r\n")[0].decode() or "nothing"


bound = socket.create_server(("127.0.0.1", 0))
server = uvicorn.Server(uvicorn.Config(app, http="h11", lifespan="off", log_level="critical"))
thread = threading.Thread(target=server.run, args=([bound],))
thread.start()
time.sleep(1)
print("answer to a request in flight:", first_line(ask(False).recv(1_000)))
print("answer after the sending side was closed:", first_line(ask(True).recv(1_000)))
connection = ask(False)
time.sleep(0.2)
server.should_exit = True
answer = b"".join(iter(lambda: connection.recv(1_000), b""))  # until it is closed
said = b"connection: close" in answer.lower()
print(f"answer while the server stops: {first_line(answer)}, says Connection: close: {said}, then closed")
thread.join()
PY
env/bin/python check.py | tee seen
diff seen <(sed -n 's/^#   \(answer\)/\1/p' "$script")
