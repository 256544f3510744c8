"""What the server of the export's subprocesses imports before it forks the first one."""

from tasks.core.quick_imports import collection_paused

with collection_paused():
    import tasks.export.onnx_export  # noqa: F401
