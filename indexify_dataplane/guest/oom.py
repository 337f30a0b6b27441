"""Tells a kill by the kernel for want of memory from any other SIGKILL, through the counter of our own cgroup."""

from __future__ import annotations

import os


class OomKills:
    """Counts kills in the cgroup of this process; each is claimed by one death. ``path`` None: nobody counts here."""

    def __init__(self, *, path: str | None) -> None:
        self._path = path
        self._claimed = self._count()

    def claim(self) -> bool:
        """Whether there was a kill that no other death has claimed."""
        if self._count() > self._claimed:
            self._claimed += 1
            return True
        return False

    def _count(self) -> int:
        if self._path is None:
            return 0
        try:
            with open(self._path, encoding="ascii", errors="replace") as file:
                lines = file.read(4096).splitlines()
        except OSError:
            return 0
        for line in lines:
            name, _, value = line.partition(" ")
            if name == "oom_kill" and value.isdigit():
                return int(value)
        return 0


def counter_path(proc: str = "/proc/self") -> str | None:
    """The file with the ``oom_kill`` line: ``memory.events`` (cgroup 2) or ``memory.oom_control`` (cgroup 1)."""
    try:
        with open(f"{proc}/cgroup", encoding="utf-8", errors="surrogateescape") as file:
            groups = [line.rstrip("\n").split(":", 2) for line in file if line.count(":") >= 2]
        with open(f"{proc}/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
            mounts = [line.split() for line in file if " - " in line]
    except OSError:
        return None
    for fields in mounts:
        root, point = fields[3], fields[4]
        kind, _, options = fields[fields.index("-") + 1 :][:3]
        for _, controllers, group in groups:
            if kind == "cgroup2" and controllers == "":
                path = os.path.join(point, _inside(group, root), "memory.events")
            elif kind == "cgroup" and "memory" in controllers.split(",") and "memory" in options.split(","):
                path = os.path.join(point, _inside(group, root), "memory.oom_control")
            else:
                continue
            if os.access(path, os.R_OK):
                return path
    return None


def _inside(group: str, root: str) -> str:
    """The group's path below the mount point: what is mounted there is ``root`` of the hierarchy."""
    if root != "/" and (group == root or group.startswith(root + "/")):
        group = group[len(root) :]
    return group.lstrip("/")
