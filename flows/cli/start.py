"""What the script `verdict` calls: a signal ends the program in one line also while it imports the commands."""

import sys

from flows.cli import stopping


def main() -> None:
    """Import the commands, and run the one that the arguments name."""
    try:
        stopping.end_on_signals()
        from flows.cli import app

        app.main()
    except KeyboardInterrupt:
        sys.exit(stopping.report())
