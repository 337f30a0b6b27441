"""Resource limits of child processes by cgroups, v1 or v2, where this process may create them. Blocking.

One cgroup per container, named after its run, right below the node's own cgroup. On v2 a cgroup that holds processes
cannot hand controllers to children, so a node that is alone in its cgroup moves itself into a leaf beside them.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Mapping, Sequence

from attrs import field, frozen

from ...core.model import Resources
from ..base import DriverError

CONTROLLERS = ("memory", "cpu", "pids")
CPU_PERIOD_US = 100_000
LEAST_QUOTA_US = 1_000
"""The kernel refuses less."""
MOST_PIDS = 4096
"""Processes and threads of one container; keeps a fork bomb from taking the host's last pid."""
REMOVE_PATIENCE = 2.0
PREFIX = "indexify-"
LEAF = "indexify-node"


@frozen
class Mount:
    """One line of mountinfo about a cgroup hierarchy; ``root`` is the cgroup that is mounted at ``point``."""

    point: str
    root: str
    version: int
    options: frozenset[str]


def read_mounts(mountinfo: str) -> list[Mount]:
    """The cgroup mounts in the text of ``/proc/self/mountinfo``."""
    mounts = []
    for line in mountinfo.splitlines():
        left, separator, right = line.partition(" - ")
        fields, tail = left.split(), right.split()
        if separator and len(fields) >= 5 and len(tail) >= 3 and tail[0] in ("cgroup", "cgroup2"):
            version = 2 if tail[0] == "cgroup2" else 1
            mounts.append(Mount(_unescape(fields[4]), _unescape(fields[3]), version, frozenset(tail[2].split(","))))
    return mounts


def _unescape(path: str) -> str:
    return path.replace("\\040", " ").replace("\\011", "\t").replace("\\012", "\n").replace("\\134", "\\")


def own_paths(cgroup: str) -> dict[str, str]:
    """From the text of ``/proc/self/cgroup``: controller (``""`` for v2) to this process's cgroup."""
    paths = {}
    for line in cgroup.splitlines():
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        for controller in controllers.split(","):
            paths[controller] = path
    return paths


def _below(mount: Mount, path: str) -> str:
    """The directory of a cgroup; what is mounted may itself be a cgroup (a container without a cgroup namespace)."""
    if mount.root != "/" and (path == mount.root or path.startswith(mount.root + "/")):
        path = path[len(mount.root) :]
    return os.path.normpath(mount.point + "/" + path)


@frozen
class Cgroups:
    """Where cgroups can be created: per controller the directory above them. ``refusals`` says why others cannot."""

    parents: Mapping[str, str] = field(factory=dict)
    version: int = 1
    refusals: tuple[str, ...] = ()

    def places(self, run_id: str) -> tuple[str, ...]:
        """The directories that ``create`` makes, to be written down before it does."""
        return tuple(os.path.join(parent, PREFIX + run_id) for parent in dict.fromkeys(self.parents.values()))

    def create(self, run_id: str, resources: Resources) -> None:
        """Make this run's cgroups with its limits. DriverError leaves none behind."""
        made: list[str] = []
        try:
            for directory in self.places(run_id):
                os.mkdir(directory)
                made.append(directory)
            for controller in self.parents:
                for name, value in self._limits(controller, resources):
                    self._set(controller, run_id, name, value)
        except OSError as error:
            remove(made)
            raise DriverError(f"the cgroup of run {run_id} cannot be set up: {error}") from error

    def _set(self, controller: str, run_id: str, name: str, value: str) -> None:
        path = os.path.join(self.parents[controller], PREFIX + run_id, name)
        # Kernels without swap accounting have no such file; then there is nothing to limit.
        if not os.path.exists(path) and "sw" in name:
            return
        with open(path, "w") as file:
            file.write(value)

    def _limits(self, controller: str, resources: Resources) -> list[tuple[str, str]]:
        if controller == "memory" and resources.memory_bytes:
            limit = str(resources.memory_bytes)
            if self.version == 2:
                return [("memory.max", limit), ("memory.swap.max", "0")]
            return [("memory.limit_in_bytes", limit), ("memory.memsw.limit_in_bytes", limit)]
        if controller == "cpu" and resources.cpu_ms_per_sec:
            quota = max(LEAST_QUOTA_US, resources.cpu_ms_per_sec * CPU_PERIOD_US // 1000)
            if self.version == 2:
                return [("cpu.max", f"{quota} {CPU_PERIOD_US}")]
            return [("cpu.cfs_period_us", str(CPU_PERIOD_US)), ("cpu.cfs_quota_us", str(quota))]
        if controller == "pids":
            return [("pids.max", str(MOST_PIDS))]
        return []


def detect(proc: str = "/proc/self") -> Cgroups:
    """Try it: what can be created here. Never fails; what does not work is in ``refusals``."""
    try:
        with open(f"{proc}/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
            mounts = read_mounts(file.read())
        with open(f"{proc}/cgroup", encoding="utf-8", errors="surrogateescape") as file:
            own = own_paths(file.read())
    except OSError as error:
        return Cgroups(refusals=(f"{error}",))
    unified = next((mount for mount in mounts if mount.version == 2), None)
    if unified is not None and "" in own:
        directory = _below(unified, own[""])
        if set(CONTROLLERS) & _words(directory, "cgroup.controllers"):
            return _delegate(directory)
    parents: dict[str, str] = {}
    refusals: list[str] = []
    for controller in CONTROLLERS:
        mount = next((m for m in mounts if m.version == 1 and controller in m.options), None)
        if mount is None or controller not in own:
            refusals.append(f"{controller}: no such controller is mounted")
            continue
        directory = _below(mount, own[controller])
        probe = os.path.join(directory, f"{PREFIX}probe-{os.getpid()}")
        try:
            os.mkdir(probe)
            os.rmdir(probe)
        except OSError as error:
            refusals.append(f"{controller}: {error}")
        else:
            parents[controller] = directory
    return Cgroups(parents, 1, tuple(refusals))


def _words(directory: str, name: str) -> set[str]:
    try:
        with open(os.path.join(directory, name)) as file:
            return set(file.read().split())
    except OSError as error:
        # A cgroup that somebody removes between the opening and the reading answers ENODEV.
        if error.errno in (errno.ENOENT, errno.ENODEV):
            return set()
        raise


def _delegate(directory: str) -> Cgroups:
    """v2: make the controllers of ``directory`` available to its children.

    A systemd unit's own cgroup is left alone: once it hands controllers down, no process may be put into it, and while
    sandboxes keep it alive systemd could not start the node again. With ``DelegateSubgroup=`` (systemd 254) the node
    is below it.
    """
    if os.path.basename(directory) == LEAF:
        directory = os.path.dirname(directory)
    elif directory.endswith((".service", ".scope")):
        problem = f"it is a systemd unit's own; set DelegateSubgroup={LEAF} (systemd 254 or newer)"
        return Cgroups(version=2, refusals=(f"{directory}: {problem}",))
    wanted = [controller for controller in CONTROLLERS if controller in _words(directory, "cgroup.controllers")]
    refusals = tuple(f"{name}: not handed down to this cgroup" for name in CONTROLLERS if name not in wanted)
    try:
        if set(wanted) - _words(directory, "cgroup.subtree_control"):
            members = _words(directory, "cgroup.procs")
            if members and members != {str(os.getpid())}:
                problem = "other processes share the node's cgroup, so it cannot hand controllers down"
                return Cgroups(version=2, refusals=(f"{directory}: {problem}",))
            if members:
                leaf = os.path.join(directory, LEAF)
                os.makedirs(leaf, exist_ok=True)
                join([leaf], os.getpid())
            with open(os.path.join(directory, "cgroup.subtree_control"), "w") as file:
                file.write(" ".join("+" + controller for controller in wanted))
    except OSError as error:
        return Cgroups(version=2, refusals=(*refusals, f"{directory}: {error}"))
    return Cgroups(dict.fromkeys(wanted, directory), 2, refusals)


def join(directories: Sequence[str], pid: int) -> None:
    """Move a process in; ProcessLookupError when it is gone."""
    for directory in directories:
        with open(os.path.join(directory, "cgroup.procs"), "w") as file:
            file.write(str(pid))


def members(directories: Sequence[str]) -> set[int]:
    """Pids in these cgroups."""
    found: set[int] = set()
    for directory in directories:
        found |= {int(pid) for pid in _words(directory, "cgroup.procs")}
    return found


def remove(directories: Sequence[str]) -> None:
    """Remove empty cgroups; no error when they are gone. A process that just died keeps one busy for a moment."""
    until = time.monotonic() + REMOVE_PATIENCE
    for directory in directories:
        while True:
            try:
                os.rmdir(directory)
            except FileNotFoundError:
                break
            except OSError as error:
                if time.monotonic() > until:
                    raise DriverError(f"the cgroup {directory} cannot be removed: {error}") from error
                time.sleep(0.005)
            else:
                break
