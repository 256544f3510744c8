#!/usr/bin/env bash
# CPython 3.11.7 and 3.13.0 (any 3.11 to 3.13 that PYTHON names), Linux; no packages.
#
# Behaviour: where the address space ends while compile() parses valid source, it raises MemoryError or SystemError
# ("returned NULL without setting an exception"), by how much is left; once,
# on another machine, SyntaxError. So an import of a library that has no compiled file
# yet may fail with an error that names neither memory nor the library, and a program that handles MemoryError misses it.
#
# Seen:
#   with  0.2 MB left: SystemError: <built-in function compile> returned NULL without setting an exception
#   with  3.0 MB left: MemoryError
#   with 20.0 MB left: MemoryError
#   without a limit: compiled
set -euo pipefail
script=$(realpath "$0") && dir=$(mktemp -d) && trap 'rm -rf "$dir"' EXIT && cd "$dir"
cat > program.py <<'PY'
import resource
import sys

source = "\n".join(f"def f{i}(a, b): return [a, b, {{1: i}}, (a + b) * i]" for i in range(20_000))
spare = float(sys.argv[1])
with open("/proc/self/statm") as file:
    used = int(file.read().split()[0]) * resource.getpagesize()
_, most = resource.getrlimit(resource.RLIMIT_AS)
if spare:
    resource.setrlimit(resource.RLIMIT_AS, (used + int(spare * 1e6), most))
try:
    compile(source, "library.py", "exec")
    outcome = "compiled"
except BaseException as error:
    outcome = ": ".join(filter(None, (type(error).__name__, str(error))))
resource.setrlimit(resource.RLIMIT_AS, (most, most))
print(f"with {spare:4.1f} MB left: {outcome}" if spare else f"without a limit: {outcome}")
PY
for spare in 0.2 3 20 0; do "${PYTHON:-python3}" program.py "$spare"; done | tee seen
diff seen <(sed -n '/^# Seen:/,/^set/s/^#   //p' "$script")
