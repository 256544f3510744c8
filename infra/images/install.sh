#!/bin/sh
# Fills a virtual environment with what one image holds. The Dockerfiles run it, and the tests do, without root.
#
#     infra/images/install.sh inference /opt/verdict    the packages of one image, as constraints.txt pins them
#     infra/images/install.sh package /opt/verdict      this project's own code, without its dependencies
#     infra/images/install.sh runtime /opt/verdict      verdict-inference, without its dependencies
#     infra/images/install.sh sbom /opt/verdict         share/sbom.json: what the environment holds, in CycloneDX
#
# The Dockerfiles take two steps, so that a change of the code downloads no package again; `inference package` takes both.
# PYTHON names the interpreter of a new environment [python3]; pip's own settings are respected.
set -eu

usage() {
  echo "usage: $0 worker|inference|prefect|mlflow|package|runtime|sbom... VENV" >&2
  exit 2
}

[ $# -ge 2 ] || usage
steps=''
while [ $# -gt 1 ]; do
  case $1 in
    worker | inference | prefect | mlflow | package | runtime | sbom) steps="$steps $1" ;;
    *) usage ;;
  esac
  shift
done
venv=$1
source=$(CDPATH='' cd -- "$(dirname -- "$0")/../.." && pwd)
constraints=$source/constraints.txt

# pip stays outside of the environment: what runs in the image cannot install anything.
tool=$(mktemp -d)
trap 'rm -rf "$tool"' EXIT
python=${PYTHON:-python3}
"$python" -m venv "$tool"
"$tool/bin/python" -m pip install --quiet --disable-pip-version-check --constraint "$constraints" pip

install() {
  "$tool/bin/python" -m pip --python "$venv/bin/python" install --quiet --disable-pip-version-check --no-cache-dir \
    --constraint "$constraints" "$@"
}

# The dependencies of a distribution and of some of its extras, one a line: `requirements_with PYPROJECT EXTRA...`. Its own
# code is installed last, by 'package' or 'runtime', so an extra that names others of them is replaced by these.
requirements_with() {
  pyproject=$source/$1
  shift
  "$tool/bin/python" -c '
import re
import sys
from tomllib import load
project = load(open(sys.argv[1], "rb"))["project"]
def expand(extra):
    for item in project["optional-dependencies"][extra]:
        own = re.fullmatch(re.escape(project["name"]) + r"\[(.*)\]", item)
        yield from (each for name in own[1].split(",") for each in expand(name)) if own else [item]
print(*project["dependencies"], *(each for extra in sys.argv[2:] for each in expand(extra)), sep="\n")' "$pyproject" "$@"
}

# Wheels only: no code from an index runs while an image is built.
for step in $steps; do
  case $step in
    worker)
      "$python" -m venv --without-pip "$venv"
      requirements_with pyproject.toml all gpu kubernetes ray > "$tool/requirements.txt"
      install --only-binary :all: --requirement "$tool/requirements.txt"
      ;;
    inference)
      "$python" -m venv --without-pip "$venv"
      requirements_with infra/inference/pyproject.toml mlflow > "$tool/requirements.txt"
      install --only-binary :all: --requirement "$tool/requirements.txt" --group "$source/pyproject.toml:$step"
      ;;
    package)
      install --no-deps --build-constraint "$constraints" "$source"
      ;;
    runtime)
      install --no-deps --build-constraint "$constraints" "$source/infra/inference"
      ;;
    sbom)
      "$tool/bin/python" -m pip install --quiet --disable-pip-version-check --no-cache-dir --only-binary :all: \
        --require-hashes --requirement "$source/infra/locks/tools.txt"
      mkdir -p "$venv/share"
      "$tool/bin/cyclonedx-py" environment --no-validate --output-reproducible --output-file "$venv/share/sbom.json" \
        "$venv/bin/python"
      ;;
    *)
      "$python" -m venv --without-pip "$venv"
      install --only-binary :all: --group "$source/pyproject.toml:$step"
      ;;
  esac
done
