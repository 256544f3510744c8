#!/usr/bin/env bash
# typer 0.29.2 with click 8.3.1; the control is typer 0.25.1, the last line of releases that stands on click itself.
#
# Behaviour: since 0.26.0 (May 2026) typer contains a copy of click and no longer knows the library. What a command or
# a library under it raises or asks of click is foreign: a UsageError is a traceback and exit code 1 instead of a line
# and 2, a question that is answered with no is a traceback instead of "Aborted", the exit code of click's Exit is lost,
# and there is no current context. typer no longer installs click; where another package does, nothing fails before
# such an exception is raised.
#
# Seen:
#   0.25.1 usage: exit code 2, no traceback
#   0.25.1 abort: exit code 1, no traceback
#   0.25.1 leave: exit code 7, no traceback
#   0.25.1 context: exit code 0, no traceback
#   0.29.2 usage: exit code 1, traceback
#   0.29.2 abort: exit code 1, traceback
#   0.29.2 leave: exit code 1, traceback
#   0.29.2 context: exit code 1, traceback
#   0.29.2 requires click: no
set -euo pipefail
script=$(realpath "$0") && dir=$(mktemp -d) && trap 'rm -rf "$dir"' EXIT && cd "$dir"
cat > app.py <<'PY'
import click
import typer

app = typer.Typer()


@app.command()
def usage():
    raise click.UsageError("no such colour")


@app.command()
def abort():
    click.confirm("sure?", abort=True)


@app.command()
def leave():
    raise click.exceptions.Exit(7)


@app.command()
def context():
    print(click.get_current_context().info_name)


app()
PY
for version in 0.25.1 0.29.2; do
  "${PYTHON:-python3}" -m venv "$version"
  "$version/bin/pip" install --quiet --disable-pip-version-check "typer==$version" click==8.3.1 > pip.log 2>&1 \
    || { cat pip.log; exit 2; }
  for command in usage abort leave context; do
    code=0; echo n | "$version/bin/python" app.py "$command" > out 2>&1 || code=$?
    if grep --quiet Traceback out; then how=traceback; else how='no traceback'; fi
    echo "$version $command: exit code $code, $how"
  done
done > seen
"0.29.2/bin/python" - >> seen <<'PY'
import importlib.metadata

needed = [line for line in importlib.metadata.requires("typer") or [] if line.startswith("click")]
print("0.29.2 requires click:", "yes" if needed else "no")
PY
cat seen
diff seen <(sed -n 's/^#   \(0\.\)/\1/p' "$script")
