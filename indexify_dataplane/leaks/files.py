"""Run directories and cgroups of child processes. Blocking; nothing is changed by looking."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence

from ..drivers.base import DriverError
from ..drivers.fork_exec.cgroups import LEAF, PREFIX, Mount, members, own_paths, read_mounts, remove
from ..drivers.fork_exec.run_directory import RunDirectory
from .found import Found

DIRECTORY, CGROUP = "run directory", "cgroup"
RUN_ID = 32
"""Characters of a run's id."""
YOUNG_SECS = 60.0
"""A cgroup that was made less than this ago may still be waiting for its first process."""


def things(
    state_dir: str, *, proc: str = "/proc/self", now: Callable[[], float] = time.time
) -> tuple[list[Found], list[str]]:
    """What the fork-exec driver has on this host below ``state_dir``, and cgroups of runs that have no directory."""
    found, problems, runs = [], [], set()
    place = os.path.join(os.path.abspath(state_dir), "fork_exec")
    for name in sorted(os.listdir(place)) if os.path.isdir(place) else ():
        if name.startswith("."):
            continue  # half made or half deleted; the driver clears these whenever it looks
        try:
            manifest = RunDirectory(os.path.join(place, name)).manifest()
        except DriverError as error:
            problems.append(str(error))
            continue
        if manifest is None:
            found.append(Found(DIRECTORY, name, place=place))
            continue
        runs.add(manifest.run_id)
        found.append(Found(DIRECTORY, name, manifest.container_id, manifest.executor_id, place))
    for directory in _cgroups(proc):
        run_id = os.path.basename(directory).removeprefix(PREFIX)
        # Another node in the same cgroup has its run directories elsewhere; its cgroups have processes, or will have
        # some in a moment.
        if run_id not in runs:
            needed = _age(directory, now()) < YOUNG_SECS or bool(members([directory]))
            found.append(Found(CGROUP, directory, place="cgroup", needed=needed))
    return found, problems


def _age(directory: str, now: float) -> float:
    """Seconds since a cgroup was made; one that is gone is as good as old."""
    try:
        return now - os.stat(directory).st_ctime
    except FileNotFoundError:
        return YOUNG_SECS


def _cgroups(proc: str) -> Iterator[str]:
    """Directories that are named like a container's, beside the node's own cgroup."""
    with open(f"{proc}/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
        mounts = read_mounts(file.read())
    with open(f"{proc}/cgroup", encoding="utf-8", errors="surrogateescape") as file:
        own = own_paths(file.read())
    for parent in dict.fromkeys(_parents(mounts, own)):
        for each in os.scandir(parent):
            if each.is_dir() and each.name.startswith(PREFIX) and len(each.name) == len(PREFIX) + RUN_ID:
                yield each.path


def _parents(mounts: Sequence[Mount], own: Mapping[str, str]) -> Iterator[str]:
    """Where the driver makes cgroups: in the node's own, or above it where that is a leaf."""
    for mount in mounts:
        named = [""] if mount.version == 2 else [each for each in own if each in mount.options]
        path = next((own[each] for each in named if each in own), None)
        if path is None:
            continue
        inside = path[len(mount.root) :] if mount.root != "/" and path.startswith(mount.root) else path
        parent = os.path.normpath(f"{mount.point}/{inside}")
        if os.path.basename(parent) == LEAF:
            parent = os.path.dirname(parent)
        if os.path.isdir(parent):
            yield parent


def remove_cgroup(leak: Found) -> str | None:
    """Why it stays, or None."""
    try:
        remove([leak.name])
    except DriverError as error:
        return str(error)
    return None
