"""Where the files of a container are on this host, if they are.

In this order: the root that the storage driver overlay2 mounted, its layers (of a container that has ended, or where
the mount is not seen from here), and the root of the container's first process, whatever the storage driver. The engine
may be another host's, and a path or process of its may be something else here: the first two have names that occur
nowhere else, and a process is taken for the container's only if its cgroup says so. Under gVisor and in virtual
machines the first process is one of the host's, whose root has not the file that the engine puts into every container.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from .attributes import Files

MARK = ".dockerenv"


PROCESSES = ("/proc", "/host/proc")
"""Where the host's processes are: in a node that runs in a container, the second one."""


def files_of(container: Mapping[str, Any], processes: Sequence[str] = PROCESSES) -> tuple[Files | None, str]:
    """The files of a container by what the engine tells of it, to be closed; or None and why they cannot be read."""
    reasons = []
    ways: list[Callable[[Mapping[str, Any]], Iterator[str]]] = [_mounted, _layers]
    ways += [partial(_of_process, place) for place in processes if os.path.isdir(place)]
    for way in ways:
        try:
            roots = list(way(container))
            if roots:
                return Files(roots), ""
        except OSError as error:
            reasons.append(f"{error.filename}: {error.strerror}")
    return None, "; ".join(reasons) or "the engine does not tell where they are"


def _overlay(container: Mapping[str, Any], name: str) -> str:
    driver = container.get("GraphDriver") or {}
    return str((driver.get("Data") or {}).get(name) or "") if driver.get("Name") == "overlay2" else ""


def _mounted(container: Mapping[str, Any]) -> Iterator[str]:
    merged = _overlay(container, "MergedDir")
    if merged and os.stat(merged).st_dev != os.stat(os.path.dirname(merged)).st_dev:
        yield merged


def _layers(container: Mapping[str, Any]) -> Iterator[str]:
    upper, lower = _overlay(container, "UpperDir"), _overlay(container, "LowerDir")
    if upper and lower:
        yield upper
        yield from lower.split(":")


def _of_process(processes: str, container: Mapping[str, Any]) -> Iterator[str]:
    pid = int((container.get("State") or {}).get("Pid") or 0)
    if not pid:
        return
    root = f"{processes}/{pid}/root"
    with open(f"{processes}/{pid}/cgroup") as groups:
        if str(container["Id"]) not in groups.read():
            return
    if os.path.lexists(f"{root}/{MARK}") and not os.path.samefile(root, "/"):
        yield root
