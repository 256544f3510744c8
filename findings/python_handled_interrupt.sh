#!/usr/bin/env bash
# CPython 3.11.7 (any 3.11 to 3.13 that PYTHON names); no packages.
#
# Behaviour: a KeyboardInterrupt that arises while exec() or eval() runs text is noted for good. A program that was started
# with `python -m`, handles it and ends with sys.exit(7) is then killed by SIGINT at its very end: its exit code is lost.
# Started as a file it ends with 7, and so does one whose text was compiled before. Text is executed by many imports, as
# collections.namedtuple evaluates some, so Ctrl-C during the start of a command shows it now and then.
#
# Seen:
#   python -m, exec of text: handled, then -2
#   python -m, exec of a code object: handled, then 7
#   file, exec of text: handled, then 7
#   file, exec of a code object: handled, then 7
#   python -m, exec of text, a subclass of KeyboardInterrupt: handled, then 7
set -euo pipefail
script=$(realpath "$0") && dir=$(mktemp -d) && trap 'rm -rf "$dir"' EXIT && cd "$dir"
cat > program.py <<'PY'
import os
import signal
import sys


class Stopped(KeyboardInterrupt):
    pass


def stop(number, frame):
    raise Stopped


text = "os.kill(os.getpid(), signal.SIGINT)\nfor _ in range(10**6): pass"
signal.signal(signal.SIGINT, stop if "subclass" in sys.argv[1] else signal.default_int_handler)
try:
    exec(compile(text, "text", "exec") if "code" in sys.argv[1] else text)
except KeyboardInterrupt:
    print("handled", end=", ", flush=True)
sys.exit(7)
PY
cat > start.py <<'PY'
import subprocess
import sys

for way, *what in (
    ("python -m", "exec of text"),
    ("python -m", "exec of a code object"),
    ("file", "exec of text"),
    ("file", "exec of a code object"),
    ("python -m", "exec of text", "a subclass of KeyboardInterrupt"),
):
    name = ", ".join(what)
    program = ["-m", "program"] if way == "python -m" else ["program.py"]
    done = subprocess.run([sys.executable, *program, name], capture_output=True, text=True)
    print(f"{way}, {name}: {done.stdout}then {done.returncode}")
PY
"${PYTHON:-python3}" start.py | tee seen
diff seen <(sed -n '/^# Seen:/,/^set/s/^#   //p' "$script")
