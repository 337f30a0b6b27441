"""The first Python code in a container: gives the user's environment back, then becomes the guest daemon.

The bundle carries this file as ``main.pyc``. The dynamic loader and libc read ``LD_*``, ``GLIBC_TUNABLES`` and
``LC_ALL`` when the process starts and never again, so the node starts the container without the user's values (see
``environment.py``) and passes them as ``INDEXIFY_CHILD_ENV_<NAME>``: ``=value`` for a variable that was set, an empty
text for one that was not. From here on the daemon's ``os.environ`` is the user's own, and children inherit nothing of
the loader's. Imports only what the daemon imports too.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import MutableMapping

ORIGINAL_PREFIX = "INDEXIFY_CHILD_ENV_"
GUEST_PACKAGE = "indexify_dataplane.guest"
PROCESS_NAME = "indexify-daemon"  # 15 characters: all that the kernel keeps


def restore(environment: MutableMapping[str, str]) -> None:
    """Undo what ``environment.guarded`` did; variables without a record stay as they are."""
    for key in [key for key in environment if key.startswith(ORIGINAL_PREFIX)]:
        name, record = key[len(ORIGINAL_PREFIX) :], environment.pop(key)
        if not name:
            continue
        if record.startswith("="):
            environment[name] = record[1:]
        else:
            environment.pop(name, None)


def run() -> None:
    """Never returns normally: the daemon ends the process with its own code."""
    restore(os.environ)
    try:
        with open("/proc/self/comm", "w") as comm:
            comm.write(PROCESS_NAME)
    except OSError:
        # Without /proc the process keeps the loader's name; nothing depends on it.
        sys.stderr.write("the process name could not be set: /proc/self/comm is not writable\n")
    spec = importlib.util.find_spec(GUEST_PACKAGE + ".__main__")
    if spec is None or spec.loader is None:
        raise SystemExit(f"the bundle is incomplete: {GUEST_PACKAGE}.__main__ is missing")
    code = spec.loader.get_code(spec.name)  # type: ignore[attr-defined]
    scope = sys.modules["__main__"].__dict__
    scope.update(__name__="__main__", __package__=GUEST_PACKAGE, __spec__=spec, __file__=spec.origin)
    exec(code, scope)


if __name__ == "__main__":
    run()
