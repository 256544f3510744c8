"""What a result was made with: versions of libraries, and the commit of the code."""

import importlib.metadata
import platform
import subprocess
from pathlib import Path

RECORDED_PACKAGES = (
    "verdict-mlops",
    "torch",
    "transformers",
    "onnx",
    "onnxruntime-gpu",
    "onnxruntime",
    "tokenizers",
    "numpy",
    "prefect",
    "mlflow",
    "great-expectations",
)


def library_versions() -> dict[str, str]:
    """Return the versions of Python and of the installed libraries among RECORDED_PACKAGES."""
    found = {"python": platform.python_version()}
    for package in RECORDED_PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def git_commit() -> str:
    """Return the commit of the checkout, with "-dirty" if it was changed; "unknown" when installed."""
    folder = Path(__file__).resolve().parents[2]
    if not (folder / ".git").exists():  # installed: a repository around it is not ours
        return "unknown"
    try:
        # Unlike `git describe --dirty` it does not write to the repository.
        status = subprocess.run(
            ["git", "--no-optional-locks", "status", "--porcelain=v2", "--branch", "--untracked-files=no"],
            cwd=folder, capture_output=True, text=True, timeout=10, check=True,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    facts = [line.split() for line in status.stdout.splitlines()]
    commit = next((fact[2] for fact in facts if fact[:2] == ["#", "branch.oid"] and fact[2].isalnum()), "unknown")
    return f"{commit}-dirty" if any(fact[0] != "#" for fact in facts) else commit
