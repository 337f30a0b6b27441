"""Reads the kernel's text files. Pure: text in, plain values out; None or nothing where the text does not say it."""

from __future__ import annotations

import re

from attrs import frozen


def cpu_count(cpuinfo: str) -> int | None:
    """The ``processor`` entries of ``/proc/cpuinfo``. Some architectures also write ``Processor`` for the model."""
    found = sum(1 for line in cpuinfo.splitlines() if re.match(r"processor\s*:", line))
    return found or None


def memory(meminfo: str, field: str) -> int | None:
    """``field`` of ``/proc/meminfo`` (``MemTotal``, ``MemAvailable``) in bytes."""
    found = re.search(rf"^{re.escape(field)}:\s*([0-9]+)\s*kB\s*$", meminfo, re.ASCII | re.MULTILINE)
    return int(found[1]) * 1024 if found else None


@frozen
class CpuTime:
    """Ticks of all CPUs since the system started."""

    idle: int
    total: int

    def free_percent_since(self, earlier: CpuTime) -> float | None:
        """Share of the time between the two that no CPU used, 0 to 100; None if no time passed or it ran backwards."""
        total = self.total - earlier.total
        if total <= 0:
            return None
        return min(100.0, max(0.0, 100.0 * (self.idle - earlier.idle) / total))


def cpu_time(stat: str) -> CpuTime | None:
    """The line ``cpu`` of ``/proc/stat``. Waiting for I/O is idle; guest time is part of user time already."""
    found = re.search(r"^cpu +([0-9 ]+)$", stat, re.ASCII | re.MULTILINE)
    numbers = [int(part) for part in found[1].split()][:8] if found else []
    if len(numbers) < 4:
        return None
    return CpuTime(idle=sum(numbers[3:5]), total=sum(numbers))


@frozen
class CgroupPaths:
    """Where this process is in the hierarchies that limit it, below their mount points. None: not in one."""

    unified: str | None = None
    cpu: str | None = None
    memory: str | None = None


def cgroup_paths(cgroup: str) -> CgroupPaths:
    """``/proc/self/cgroup``, version 1, 2 or both."""
    paths: dict[str, str] = {}
    for line in cgroup.splitlines():
        parts = line.split(":", 2)
        if len(parts) != 3:
            continue
        number, controllers, path = parts
        for name in ("unified",) if number == "0" and not controllers else controllers.split(","):
            paths[name] = path
    return CgroupPaths(unified=paths.get("unified"), cpu=paths.get("cpu"), memory=paths.get("memory"))


@frozen
class CgroupMount:
    """A mounted hierarchy: ``root`` is the group that is seen at ``point``. ``controllers`` is empty for version 2."""

    root: str
    point: str
    controllers: frozenset[str]


def cgroup_mounts(mountinfo: str) -> tuple[CgroupMount, ...]:
    """``/proc/self/mountinfo``."""
    found = []
    for line in mountinfo.splitlines():
        before, separator, after = line.partition(" - ")
        left, right = before.split(), after.split()
        if not separator or len(left) < 5 or len(right) < 3 or right[0] not in ("cgroup", "cgroup2"):
            continue
        options = frozenset(right[2].split(",")) if right[0] == "cgroup" else frozenset[str]()
        found.append(CgroupMount(root=_unescape(left[3]), point=_unescape(left[4]), controllers=options))
    return tuple(found)


def _unescape(path: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), path)


def cpu_max(text: str) -> float | None:
    """``cpu.max`` of cgroup 2 in CPUs; None when there is no limit."""
    parts = text.split()
    if len(parts) != 2 or not all(re.fullmatch("[0-9]+", part, re.ASCII) for part in parts) or int(parts[1]) == 0:
        return None
    return int(parts[0]) / int(parts[1]) or None


def cfs_quota(quota: str, period: str) -> float | None:
    """``cpu.cfs_quota_us`` and ``cpu.cfs_period_us`` of cgroup 1 in CPUs; None when there is no limit (-1)."""
    return cpu_max(f"{quota.strip()} {period.strip()}")


def memory_limit(text: str) -> int | None:
    """``memory.max`` or ``memory.limit_in_bytes``; None without one (``max``, or near 2**63)."""
    text = text.strip()
    if not re.fullmatch("[0-9]+", text, re.ASCII):
        return None
    limit = int(text)
    return limit if 0 < limit < 2**60 else None
