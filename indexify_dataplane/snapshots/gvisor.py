"""Snapshots under gVisor where runsc keeps what a sandbox writes in an overlay of its own, which no export of the
engine sees: ``runsc tar rootfs-upper`` writes the overlay as a tar, and an annotation makes a new sandbox begin with
it, on top of its image. Only a runsc that has this command is used so; all others keep the root file system on the
host, and the engine's export is the whole of it.

No release with the command was at hand: this way is tested with a stand-in for runsc alone.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from ..core.model import Handle
from ..drivers.base import DriverError, SnapshotImpossible, StartOrder, UpperLayer
from ..drivers.blocking import Cancelled
from .docker import READ_BYTES, tag_of

ANNOTATION = "dev.gvisor.tar.rootfs.upper"
ANNOTATIONS_SINCE = (1, 43)
"""The engine's API that passes annotations on to the runtime."""
HELP_SECONDS = 10.0
POLL_SECONDS = 0.05

_COMMAND = re.compile(r"^\s+tar\s", re.MULTILINE)


def path_of(runtime: str | None, info: Mapping[str, Any]) -> str | None:
    """Where the program of ``runtime`` is, by the engine's ``info``; None unless it is gVisor's and on this host."""
    told = (info.get("Runtimes") or {}).get(runtime or "") or {}
    path = str(told.get("path") or "")
    if runtime != "runsc" or not os.path.isabs(path) or not os.access(path, os.X_OK):
        return None
    return path


def offers_upper(path: str) -> bool:
    """Whether this runsc has ``tar``. Raises nothing: one that cannot be asked has not."""
    try:
        told = subprocess.run([path, "help"], capture_output=True, text=True, timeout=HELP_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return _COMMAND.search(told.stdout + told.stderr) is not None


class Uppers:
    """Takes and gives back the overlays of sandboxes. ``scratch`` holds one tar for each that is being copied or
    started; ``mark`` tells this node's from those of others."""

    def __init__(self, *, runsc: str, root: str, scratch: str, mark: str, api_version: str) -> None:
        self._runsc = runsc
        self._root = root
        self._scratch = Path(scratch)
        self._mark = mark
        self._annotations = tuple(map(int, api_version.split("."))) >= ANNOTATIONS_SINCE

    def open(self) -> None:
        """Make the scratch directory, and remove what an earlier life of this node left there. Raises DriverError."""
        try:
            self._scratch.mkdir(mode=0o700, parents=True, exist_ok=True)
            found = self._scratch.lstat()
            if found.st_uid != os.getuid() or self._scratch.is_symlink():
                raise DriverError(f"snapshot_local_dir: {self._scratch} belongs to somebody else")
            for left in self._scratch.glob(f"{self._mark}-*.tar"):
                left.unlink(missing_ok=True)
        except OSError as error:
            raise DriverError(f"snapshot_local_dir: {self._scratch} cannot be used: {error.strerror}") from error

    def _file(self, use: str, container_id: str) -> Path:
        return self._scratch / f"{self._mark}-{use}-{tag_of(container_id)}.tar"

    @contextmanager
    def exported(self, handle: Handle, cancelled: Cancelled) -> Iterator[Iterable[bytes]]:
        """What the container wrote on top of its image. Raises DriverError."""
        name = handle.opaque or handle.id[:12]
        file = self._file("taken", name)
        sudo = () if os.getuid() == 0 else ("sudo", "-n")
        command = [*sudo, self._runsc, "--root", self._root, "tar", "rootfs-upper", "--file", str(file), handle.id]
        try:
            self._run(command, f"the file system of container {name} cannot be written", cancelled)
            with open(file, "rb") as opened:
                yield UpperLayer(iter(lambda: opened.read(READ_BYTES), b""))
        except OSError as error:
            raise DriverError(f"the file system of container {name}: {file}: {error.strerror}") from error
        finally:
            with suppress(FileNotFoundError):
                file.unlink()

    def _run(self, command: list[str], what: str, cancelled: Cancelled) -> None:
        with (
            subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process,
            cancelled.calling(process.kill),
        ):
            _, said = process.communicate()
        cancelled.check()
        if process.returncode:
            text = said.decode(errors="replace").strip()[-500:]
            raise DriverError(f"{what}: runsc ended with {process.returncode}: {text}")

    def begin_with(self, order: StartOrder, body: dict[str, Any], cancelled: Cancelled) -> None:
        """Have the container of ``body`` begin with the order's snapshot. Raises DriverError."""
        assert order.snapshot is not None
        if not self._annotations:
            least = ".".join(map(str, ANNOTATIONS_SINCE))
            raise SnapshotImpossible(f"snapshot {order.snapshot.uri} needs a Docker engine with API {least} or newer")
        file = self._file("restored", order.container_id)
        try:
            with open(file, "wb", opener=lambda path, flags: os.open(path, flags | os.O_NOFOLLOW, 0o600)) as opened:
                for piece in order.snapshot.read(cancelled.check):
                    opened.write(piece)
        except OSError as error:
            raise DriverError(f"snapshot {order.snapshot.uri}: {file}: {error.strerror}") from error
        body["HostConfig"]["Annotations"] = {ANNOTATION: str(file)}

    def forget(self, container_id: str) -> None:
        """Its start is over, well or not."""
        self._file("restored", container_id).unlink(missing_ok=True)
