"""Starts the daemon: as ``-m indexify_dataplane.guest``, or as a plain file under ``python -I`` with no path set up.

The directory of this file is made a package of its own when it runs as a file, so that nothing above it is imported;
the same trick starts it from inside a bundle. ``ssl`` and ``_hashlib`` are hidden before anything can import them:
both map OpenSSL, 4 MB resident that nothing here uses.
"""

from __future__ import annotations

import sys


def start() -> int:
    """Load the daemon with few modules and run it; the result is the exit code."""
    for heavy in ("ssl", "_hashlib"):
        sys.modules[heavy] = None  # type: ignore[assignment]
    package = __package__
    if not package:
        from types import ModuleType

        package = "indexify_guest"
        module = ModuleType(package)
        module.__path__ = [__file__.rpartition("/")[0] or "."]
        sys.modules[package] = module
    from importlib import import_module

    code = import_module(package + ".entry").main(sys.argv[1:])
    return int(code)


if __name__ == "__main__":
    sys.exit(start())
