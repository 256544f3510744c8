"""Names the extra of the installation that a command needs, where a package of it is missing."""

# Commands that are not listed work with every installation.
COMMANDS_OF_EXTRA = {
    "train": ("retrain", "check", "watch", "sweep"),
    "schedule": (
        *("status", "compare", "approve", "reject", "rollback", "history", "verify", "judge", "requests"),
        *("deploy", "prune", "score", "backup", "restore", "upgrade"),
    ),
    "serve": ("serve", "export-triton"),
}
EXTRA_OF_PACKAGE = {"onnxruntime": "cpu", "ray": "ray"}  # packages that an option or the device needs


def explain_missing(package: str, command: str) -> str:
    """Return one line on what is not installed, and how to install it.

    Args:
        package: the module that cannot be imported.
        command: that was called.
    """
    extra = next((name for name, commands in COMMANDS_OF_EXTRA.items() if command in commands), "all")
    if package in EXTRA_OF_PACKAGE:
        extra = EXTRA_OF_PACKAGE[package]
    wanted = "the extra 'cpu', or 'gpu' with an NVIDIA GPU" if extra == "cpu" else f"the extra '{extra}'"
    return (
        f"verdict {command} needs the package {package}, which is not installed; expected {wanted}: "
        f"pip install 'verdict-mlops[{extra}]' (in a clone: make install)"
    )
