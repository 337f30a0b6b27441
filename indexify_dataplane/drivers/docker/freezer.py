"""Freezing a container through the freezer file of its cgroup: 0.1 ms, where the engine's pause takes ten.

Both versions of cgroups; the container's directory is looked for where engines make it. One that is elsewhere (an
engine in a container, a parent of its own) cannot be frozen, and goes on.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

from ..base import DriverError

PLACES = ("docker/{id}", "system.slice/docker-{id}.scope")
"""Under the cgroupfs and the systemd driver."""
PATIENCE = 1.0
"""Seconds until every process has to be stopped; one in an uninterruptible sleep may take longer."""


class Freezer:
    """Blocking. ``root`` is where cgroups are mounted."""

    def __init__(self, root: Path = Path("/sys/fs/cgroup")) -> None:
        first = root / "freezer"
        self._old = first.is_dir()
        self._base = first if self._old else root
        self._file = "freezer.state" if self._old else "cgroup.freeze"
        self._words = ("THAWED", "FROZEN") if self._old else ("0", "1")

    def usable(self) -> bool:
        """Whether containers can be frozen from here at all."""
        there = self._old or (self._base / "cgroup.controllers").exists()
        return there and os.access(self._base, os.W_OK)

    def freeze(self, identity: str) -> None:
        """Return when nothing of it runs any more. Raises DriverError, and then it runs."""
        file = self._find(identity)
        if file is None:
            raise DriverError(f"container {identity[:12]} has no cgroup in {self._base} that could be frozen")
        self._write(file, self._words[1])
        deadline = time.monotonic() + PATIENCE
        while not self._stopped(file):
            if time.monotonic() > deadline:
                self._write(file, self._words[0])
                raise DriverError(f"container {identity[:12]} is not frozen after {PATIENCE:g} s")
            time.sleep(0.002)

    def thaw(self, identity: str) -> None:
        """Nothing happens to one that is not frozen, or is gone. Raises DriverError."""
        file = self._find(identity)
        if file is not None:
            self._write(file, self._words[0])

    def _find(self, identity: str) -> Path | None:
        for place in PLACES:
            file = self._base / place.format(id=identity) / self._file
            if file.exists():
                return file
        return None

    def _stopped(self, file: Path) -> bool:
        try:
            if self._old:
                return file.read_text().strip() == self._words[1]
            return "frozen 1" in (file.parent / "cgroup.events").read_text()
        except OSError as error:
            raise DriverError(f"{file} cannot be read: {error.strerror}") from error

    def _write(self, file: Path, word: str) -> None:
        try:
            file.write_text(word)
        except FileNotFoundError:
            return  # it is gone
        except OSError as error:
            raise DriverError(f"{file} cannot be written: {error.strerror}") from error
