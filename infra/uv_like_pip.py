"""Runs uv with the index, links and certificates that pip is configured with: `uv_like_pip.py UV ARGUMENTS...`

uv installs the same files in a fraction of pip's time, but reads neither pip's configuration nor PIP_* variables.

TORCH_BACKEND (a value of uv's --torch-backend, such as cpu) chooses among PyTorch's own indexes, but only where pip is
configured with no index or folder of wheels: whoever configured one decides which build of torch is in it.
"""

import ast
import os
import subprocess
import sys

UV_NAMES = {
    "index-url": "UV_DEFAULT_INDEX",
    "extra-index-url": "UV_INDEX",
    "no-index": "UV_NO_INDEX",
    "find-links": "UV_FIND_LINKS",
    "trusted-host": "UV_INSECURE_HOST",
    "timeout": "UV_HTTP_TIMEOUT",
    "cert": "SSL_CERT_FILE",
}
SOURCES = {"UV_DEFAULT_INDEX", "UV_INDEX", "UV_NO_INDEX", "UV_FIND_LINKS"}
SECTIONS = ("global", "install", ":env:")  # each before those that override it


def uv_variables(configuration: str, torch_backend: str = "") -> dict[str, str]:
    """Return uv's variables for what `pip config list` printed: lines of section.name='value'."""
    lines = [line.partition("=") for line in configuration.splitlines()]
    # To pip all indexes are equal; uv would take a package from the first one that has any version of it.
    variables = {"UV_INDEX_STRATEGY": "unsafe-best-match"}
    for section in SECTIONS:
        for key, _, value in lines:
            name = key.removeprefix(f"{section}.")
            if name in UV_NAMES:
                separator = "," if name == "find-links" else " "
                variables[UV_NAMES[name]] = separator.join(ast.literal_eval(value).split())
    if torch_backend and not variables.keys() & SOURCES:
        variables["UV_TORCH_BACKEND"] = torch_backend
    return variables


def main() -> None:
    """Become uv; its own variables, where they are set, stay."""
    command = [sys.executable, "-m", "pip", "config", "list"]
    listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    try:
        os.execvpe(sys.argv[1], sys.argv[1:], uv_variables(listed, os.environ.get("TORCH_BACKEND", "")) | os.environ)
    except OSError as error:
        sys.exit(f"{sys.argv[1]} cannot be run: {error.strerror}")


if __name__ == "__main__":
    main()
