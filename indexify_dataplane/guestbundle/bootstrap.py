"""The first Python code in a container: gives the user's environment back, then becomes the guest daemon.

The bundle carries this file as ``main.pyc``. The dynamic loader and libc read ``LD_*``, ``GLIBC_TUNABLES`` and
``LC_ALL`` when the process starts and never again, so the node starts the container without the user's values (see
``environment.py``) and passes those that were set as ``INDEXIFY_ORIGINAL_<NAME>``. From here on the daemon's
``os.environ`` is the user's own, and children inherit nothing of the loader's.
"""

from __future__ import annotations

import os
import sys
from importlib import import_module
from importlib.machinery import PathFinder

TYPE_CHECKING = False  # spares the daemon the typing module
if TYPE_CHECKING:
    from collections.abc import MutableMapping

ORIGINAL_PREFIX = "INDEXIFY_ORIGINAL_"
# What the daemon itself runs with: no locale files of another libc, and no LC_CTYPE set by the interpreter for itself
# and all children, which it does where the locale is C but not chosen explicitly.
OWN_VALUES = {"LC_ALL": "C"}
GUEST_PACKAGE = "indexify_dataplane.guest"
PROCESS_NAME = "indexify-daemon"  # 15 characters: all that the kernel keeps


def restore(environment: MutableMapping[str, str]) -> None:
    """Undo what ``environment.guarded`` did."""
    for name, value in OWN_VALUES.items():
        if environment.get(name) == value:
            del environment[name]
    for key in [key for key in environment if key.startswith(ORIGINAL_PREFIX)]:
        value = environment.pop(key)
        if key != ORIGINAL_PREFIX:
            environment[key[len(ORIGINAL_PREFIX) :]] = value


def name_process() -> bool:
    """Show up in process lists as the daemon, not as its loader. False where the kernel has no way to (gVisor, or no
    /proc); nothing depends on it."""
    try:
        with open("/proc/self/comm", "w") as comm:
            comm.write(PROCESS_NAME)
    except OSError:
        return False
    return True


def run() -> None:
    """Never returns normally: the daemon ends the process with its own code."""
    restore(os.environ)
    name_process()
    spec = PathFinder.find_spec(GUEST_PACKAGE + ".__main__", import_module(GUEST_PACKAGE).__path__)
    if spec is None or spec.loader is None:
        raise SystemExit(f"the bundle is incomplete: {GUEST_PACKAGE}.__main__ is missing")
    code = spec.loader.get_code(spec.name)  # type: ignore[attr-defined]
    scope = sys.modules["__main__"].__dict__
    scope.update(__name__="__main__", __package__=GUEST_PACKAGE, __spec__=spec, __file__=spec.origin)
    exec(code, scope)


if __name__ == "__main__":
    run()
