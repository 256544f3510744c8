"""Whether a package that an installation may lack is there."""

import importlib.util


def is_installed(module: str) -> bool:
    """Return whether a top-level module can be imported with its contents.

    A folder without `__init__.py`, such as Gradio 6.31.0 leaves behind when it is uninstalled, is a package to Python,
    an empty one.
    """
    spec = importlib.util.find_spec(module)
    return spec is not None and spec.origin is not None
