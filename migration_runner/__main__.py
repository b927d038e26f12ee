"""The command line; a run that has nothing to do ends before the rest is imported."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        arguments: the command line; by default that of the process.

    Returns:
        the exit code.
    """
    from migration_runner.quick import at_target

    given = sys.argv[1:] if arguments is None else list(arguments)
    if at_target(given, os.environ):
        return 0
    from migration_runner.cli import main as command

    return command(given)


if __name__ == "__main__":
    try:
        code = main()
    except KeyboardInterrupt:
        code = 130
    if any(not thread.daemon for thread in threading.enumerate() if thread is not threading.main_thread()):
        # The team's code has left it behind, and Python would wait for it.
        os._exit(code)
    sys.exit(code)
