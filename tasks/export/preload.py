"""What the server of the export's subprocesses imports before it forks the first one."""

import os

from tasks.core.child_process import die_with
from tasks.core.quick_imports import collection_paused

# The server itself notices the end of its parent only when it has imported what follows.
die_with(os.getppid())

with collection_paused():
    import tasks.export.onnx_export  # noqa: F401
