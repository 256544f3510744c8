"""Whether a process works on a job or sweep."""

from tasks.core.folder_locks import is_locked

__all__ = ["is_locked"]
