"""The daemon's first steps: its command line and its ports, and only then all its other modules, whose import is most
of what a start takes. Whoever connects meanwhile waits for the answer instead of being refused. If a port cannot be
had, the daemon says so in one line and exits with 1."""

from __future__ import annotations

import os
import sys

from . import command_line
from .command_line import UsageError
from .ports import Ports


def main(arguments: list[str]) -> int:
    """Run to the end; the result is the exit code."""
    try:
        options = command_line.parse(arguments, dict(os.environ))
    except UsageError as error:
        return say(str(error), 2)
    if options.help:
        sys.stdout.write(command_line.USAGE)
        return 0
    if options.remove is not None:
        remove(options.remove)
    try:
        ports = Ports(options)
    except OSError as error:
        return say(str(error), 1)
    from .daemon import run
    from .refusal import Refusal

    try:
        return run(options, ports)
    except OSError as error:
        return say(str(error), 1)
    except Refusal as refusal:
        return say(f"--image-user: {refusal.error}", 1)


def remove(path: str) -> None:
    """Remove what had to be there for the sandbox to start. If it cannot be removed that is said, and nothing more."""
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass
    except OSError as error:
        say(f"--remove {path}: {error.strerror}", 0)


def say(text: str, code: int) -> int:
    """A line for who started the daemon; ``code`` is given back."""
    sys.stderr.write(f"indexify-container-daemon: {text}\n")
    return code
