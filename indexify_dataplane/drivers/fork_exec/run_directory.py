"""The directory of one container's life: what the next node needs to adopt it or to clean up after it.

    <state_dir>/fork_exec/<container id>/     0700
        manifest.json   who and what; there before anything is spawned
        lock            locked as long as the container is being started or lives
        process.json    the processes, written by the supervisor (sandbox) or the node (function)
        ports.json      where the daemon listens, written by the daemon
        status.json     how it ended, written by the supervisor
        output.log[.N]  its output       supervisor.log  the supervisor's own       work/  its working directory

A directory is filled under another name, locked, and then renamed: one that can be seen has a manifest and, if nobody
holds its lock, nothing alive in it. To be removed it is renamed first, too: a node that is killed while it deletes
files leaves nothing that looks like a container. Everything here blocks.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import shutil
import time
import uuid
from typing import Any

from attrs import asdict, frozen

from ...core.model import ExitStatus, Handle, Kind
from ..base import DriverError
from .processes import Process

_PLAIN = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,127}")
_UNFINISHED = ".new-"
_GONE = ".gone-"
UNFINISHED_AGE = 600.0
"""Seconds after which a directory that was never finished belongs to a dead node."""


def directory_name(container_id: str) -> str:
    """The id itself where it can be a file name, else a hash of it."""
    if _PLAIN.fullmatch(container_id):
        return container_id
    return "id-" + hashlib.sha256(container_id.encode("utf-8", "surrogatepass")).hexdigest()


@frozen
class Manifest:
    """Who and what. ``created`` is wall clock, seconds; ``run_id`` is this life's own."""

    executor_id: str
    container_id: str
    kind: str
    run_id: str
    created: float
    cgroups: tuple[str, ...] = ()

    @classmethod
    def new(cls, executor_id: str, container_id: str, kind: Kind, cgroups: tuple[str, ...], run_id: str) -> Manifest:
        return cls(executor_id, container_id, kind.value, run_id, time.time(), cgroups)


@frozen
class Ended:
    """``clean`` says that nothing of the container is left alive."""

    status: ExitStatus
    clean: bool


@frozen
class Life:
    """The driver's part of a handle: which life of which container, and its processes as far as they are known."""

    container_id: str
    kind: Kind
    run_id: str
    supervisor: Process | None = None
    main: Process | None = None

    @property
    def handle_id(self) -> str:
        return f"{self.container_id}#{self.run_id}"

    def opaque(self) -> str:
        return json.dumps(
            {
                "container": self.container_id,
                "kind": self.kind.value,
                "run": self.run_id,
                "supervisor": self.supervisor and [self.supervisor.pid, self.supervisor.started],
                "main": self.main and [self.main.pid, self.main.started],
            }
        )

    @classmethod
    def of(cls, handle: Handle) -> Life:
        """DriverError for a handle that is not of this driver's making."""
        try:
            value = json.loads(handle.opaque)
            return cls(
                str(value["container"]),
                Kind(value["kind"]),
                str(value["run"]),
                _process(value["supervisor"]),
                _process(value["main"]),
            )
        except (ValueError, KeyError, TypeError) as error:
            raise DriverError(f"the handle {handle.id} is not one of fork_exec: {error!r}") from error


def _process(value: Any) -> Process | None:
    return Process(int(value[0]), int(value[1])) if value else None


def new_run_id() -> str:
    return uuid.uuid4().hex


class RunDirectory:
    """One directory, by its path; reading it never assumes that it is (still) there."""

    def __init__(self, path: str) -> None:
        self.path = path

    def file(self, name: str) -> str:
        return os.path.join(self.path, name)

    @property
    def output(self) -> str:
        return self.file("output.log")

    @classmethod
    def create(cls, root: str, manifest: Manifest) -> tuple[RunDirectory, int]:
        """Make it; returns it with the locked descriptor, which the caller owns. DriverError if it is there already."""
        unfinished = cls(os.path.join(root, _UNFINISHED + manifest.run_id))
        final = cls(os.path.join(root, directory_name(manifest.container_id)))
        os.mkdir(unfinished.path, 0o700)
        lock = -1
        try:
            os.mkdir(unfinished.file("work"), 0o700)
            unfinished.write("manifest.json", asdict(manifest))
            lock = os.open(unfinished.file("lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            try:
                os.rename(unfinished.path, final.path)
            except OSError as error:
                raise DriverError(f"the run directory {final.path} is in use: {error.strerror}") from error
        except BaseException:
            if lock >= 0:
                os.close(lock)
            unfinished.remove()
            raise
        return final, lock

    def write(self, name: str, value: Any) -> None:
        """Replace one small file as a whole."""
        path = self.file(name)
        with open(path + ".new", "w", encoding="utf-8", opener=_private) as file:
            json.dump(value, file)
        os.replace(path + ".new", path)

    def manifest(self) -> Manifest | None:
        """None when there is none; DriverError when it cannot be understood."""
        value = self._read("manifest.json")
        if value is None:
            return None
        try:
            manifest = Manifest(**{**value, "cgroups": tuple(value["cgroups"])})
            Kind(manifest.kind)
        except (TypeError, KeyError, ValueError) as error:
            raise DriverError(f"{self.file('manifest.json')} is no manifest: {error!r}") from error
        return manifest

    def locked(self) -> bool:
        """Whether the container is being started or lives."""
        try:
            descriptor = os.open(self.file("lock"), os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            return False
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(descriptor)
        return False

    def ended(self) -> Ended | None:
        """What the supervisor wrote about the end, if it did."""
        value = self._read("status.json")
        if value is None:
            return None
        try:
            status = ExitStatus(code=value["code"], signal=value["signal"], oom=bool(value["oom"]))
            return Ended(status, bool(value["clean"]))
        except (TypeError, KeyError) as error:
            raise DriverError(f"{self.file('status.json')} is no status: {error!r}") from error

    def life(self, manifest: Manifest) -> Life:
        value = self._read("process.json") or {}
        try:
            supervisor, main = value.get("supervisor"), value.get("daemon")
            return Life(
                manifest.container_id,
                Kind(manifest.kind),
                manifest.run_id,
                Process(supervisor, value["supervisor_started"]) if supervisor else None,
                Process(main, value["daemon_started"]) if main else None,
            )
        except (TypeError, KeyError, AttributeError) as error:
            raise DriverError(f"{self.file('process.json')} names no processes: {error!r}") from error

    def ports(self) -> tuple[int, int] | None:
        """The daemon's gRPC and HTTP ports; None before it listens."""
        value = self._read("ports.json")
        if value is None:
            return None
        try:
            return int(value["grpc"]), int(value["http"])
        except (TypeError, KeyError, ValueError) as error:
            raise DriverError(f"{self.file('ports.json')} names no ports: {error!r}") from error

    def remove(self) -> None:
        """Delete it with all it holds; no error when it is gone."""
        gone = RunDirectory(os.path.join(os.path.dirname(self.path), _GONE + new_run_id()))
        try:
            os.rename(self.path, gone.path)
        except FileNotFoundError:
            return
        except OSError as error:
            raise DriverError(f"the run directory {self.path} cannot be removed: {error}") from error
        gone.delete()

    def delete(self) -> None:
        """Delete one that has the name of one that is gone, or that never was finished; somebody else may do so at
        the same time."""
        for attempt in range(3):
            try:
                shutil.rmtree(self.path)
            except FileNotFoundError:
                if not os.path.lexists(self.path):
                    return
            except OSError as error:
                if attempt == 2:
                    raise DriverError(f"the run directory {self.path} cannot be removed: {error}") from error
            else:
                return

    def _read(self, name: str) -> Any:
        try:
            with open(self.file(name), encoding="utf-8") as file:
                return json.load(file)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (OSError, ValueError) as error:
            raise DriverError(f"{self.file(name)} cannot be read: {error}") from error


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def scan(root: str) -> tuple[list[RunDirectory], list[str]]:
    """All finished directories, by name, and sentences about what a dead node left half made or half deleted and that
    could not be removed now."""
    found: list[RunDirectory] = []
    problems: list[str] = []
    for name in sorted(os.listdir(root)):
        directory = RunDirectory(os.path.join(root, name))
        try:
            if name.startswith(_UNFINISHED):
                if time.time() - os.stat(directory.path).st_mtime > UNFINISHED_AGE:
                    directory.remove()
            elif name.startswith(_GONE):
                directory.delete()
            else:
                found.append(directory)
        except FileNotFoundError:
            continue
        except DriverError as error:
            problems.append(str(error))
    return found, problems
