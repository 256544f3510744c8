"""The `verdict` command: parses, calls, prints."""
