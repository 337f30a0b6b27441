"""What this host has to give: CPUs, memory, disk and GPUs; probed once at start, reported to the server."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from attrs import evolve, frozen
from twisted.logger import Logger

from ..config_model import ResourceOverrides, ResourceReserve
from . import probes
from .gpus import GpuGroup

log = Logger()


@frozen
class HostResources:
    """The numbers of the report. ``gpus`` is None when the host has none that the server knows."""

    cpu_count: int
    memory_bytes: int
    disk_bytes: int
    gpus: GpuGroup | None = None


class ResourcesUnknown(Exception):
    """A number could neither be probed nor was it configured."""


class Files:
    """The kernel's files below ``root``. ``proc`` is the host's, where it is mounted at ``/host/proc``."""

    def __init__(self, root: str = "/") -> None:
        self.root = Path(root)
        host = self.root / "host" / "proc"
        self.mounted = host.is_dir()
        self.proc = host if self.mounted else self.root / "proc"
        self.own_proc = self.root / "proc"

    def read(self, path: Path) -> str:
        """The file's text, empty when it cannot be read."""
        try:
            return path.read_text(errors="replace")
        except OSError as error:
            log.debug("file of the kernel cannot be read", path=str(path), error=str(error))
            return ""

    def first(self, name: str, parse: Callable[[str], int | None]) -> int | None:
        """``parse`` of the host's file ``name``, else of our own."""
        found = parse(self.read(self.proc / name))
        if found is None and self.mounted:
            log.warn("host file says nothing, falling back to the own one", path=str(self.proc / name))
            found = parse(self.read(self.own_proc / name))
        return found


def probe(
    *,
    disks: Sequence[str],
    root: str = "/",
    confined: bool | None = None,
    affinity: Callable[[], int] = lambda: len(os.sched_getaffinity(0)),
    gpus: GpuGroup | None = None,
    override: ResourceOverrides | None = None,
    reserve: ResourceReserve | None = None,
) -> HostResources:
    """The host's totals, with overrides and then the reserve applied. Raises ResourcesUnknown.

    ``disks`` are the directories that hold state and containers; a file system counts once however many of them it
    holds. ``confined`` says that containers share the limits of this process (its CPU affinity and control group), as
    children do; None: yes, unless the host's ``/proc`` is mounted, which says that an engine of the host runs them.
    """
    override = override or ResourceOverrides()
    reserve = reserve or ResourceReserve()
    files = Files(root)
    limits = Limits(files) if (confined if confined is not None else not files.mounted) else None
    cpus = override.cpu_count
    if cpus is None:
        cpus = files.first("cpuinfo", probes.cpu_count) or os.cpu_count()
        if cpus is not None and limits is not None:
            cpus = max(1, math.floor(min(cpus, affinity(), limits.cpus())))
    memory = override.memory_bytes
    if memory is None:
        memory = files.first("meminfo", lambda text: probes.memory(text, "MemTotal"))
        if memory is not None and limits is not None:
            memory = min(memory, limits.memory(memory))
    disk = override.disk_bytes
    if disk is None:
        disk = disk_space(disks).total
    if cpus is None or memory is None:
        what = "resource_overrides.cpu_count" if cpus is None else "resource_overrides.memory_bytes"
        raise ResourcesUnknown(f"{files.proc} does not tell what this host has; set {what}")
    found = HostResources(cpu_count=cpus, memory_bytes=memory, disk_bytes=disk, gpus=gpus)
    left = evolve(
        found,
        cpu_count=max(0, cpus - reserve.cpu_count),
        memory_bytes=max(0, memory - reserve.memory_bytes),
        disk_bytes=max(0, disk - reserve.disk_bytes),
    )
    log.info(
        "host resources",
        source="host_proc" if files.mounted else "system",
        confined=limits is not None,
        cpu_count=left.cpu_count,
        memory_bytes=left.memory_bytes,
        disk_bytes=left.disk_bytes,
        gpu_model=gpus.model.name if gpus else None,
        gpu_count=len(gpus.uuids) if gpus else 0,
    )
    return left


class Limits:
    """The control groups this process is in; a limit of any ancestor holds as well."""

    def __init__(self, files: Files) -> None:
        self._files = files
        self._paths = probes.cgroup_paths(files.read(files.own_proc / "self" / "cgroup"))
        self._mounts = probes.cgroup_mounts(files.read(files.own_proc / "self" / "mountinfo"))

    def cpus(self) -> float:
        """CPUs of the tightest quota; infinite without one."""
        read = self._files.read
        found = [probes.cpu_max(read(group / "cpu.max")) for group in self._groups("", self._paths.unified)]
        found += [
            probes.cfs_quota(read(group / "cpu.cfs_quota_us"), read(group / "cpu.cfs_period_us"))
            for group in self._groups("cpu", self._paths.cpu)
        ]
        return min((limit for limit in found if limit is not None), default=math.inf)

    def memory(self, otherwise: int) -> int:
        """Bytes of the tightest limit; ``otherwise`` without one."""
        read = self._files.read
        found = [probes.memory_limit(read(group / "memory.max")) for group in self._groups("", self._paths.unified)]
        found += [
            probes.memory_limit(read(group / "memory.limit_in_bytes"))
            for group in self._groups("memory", self._paths.memory)
        ]
        return min((limit for limit in found if limit is not None), default=otherwise)

    def _groups(self, controller: str, path: str | None) -> Iterable[Path]:
        """The directories of our group and its ancestors, as far as they are visible."""
        if path is None:
            return
        for mount in self._mounts:
            if (controller not in mount.controllers) if controller else mount.controllers:
                continue
            point = self._files.root / mount.point.lstrip("/")
            # In a container the mount shows our own group, or the path names one of the host's that is not visible.
            below = os.path.relpath(path, mount.root)
            group = point if below.startswith("..") else Path(os.path.normpath(point / below))
            while True:
                yield group
                if group == point or point not in group.parents:
                    break
                group = group.parent


@frozen
class DiskSpace:
    """Bytes of some file systems, each counted once."""

    total: int
    available: int


def disk_space(paths: Iterable[str]) -> DiskSpace:
    """Of the file systems that hold ``paths``; for one that is not there yet, of its nearest ancestor."""
    devices: dict[int, os.statvfs_result] = {}
    for path in paths:
        place = Path(path).absolute()
        while not place.exists() and place != place.parent:
            place = place.parent
        devices.setdefault(place.stat().st_dev, os.statvfs(place))
    return DiskSpace(
        total=sum(found.f_blocks * found.f_frsize for found in devices.values()),
        available=sum(found.f_bavail * found.f_frsize for found in devices.values()),
    )
