"""What can be told and done about containers by their run directories alone, whoever started them. Blocking."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Collection, Mapping

from attrs import define, field, frozen

from ...core.model import ExitStatus, Handle, Kind
from ..base import DriverError, Listed, StartOrder
from . import cgroups, output
from .cgroups import Cgroups
from .processes import Row, below, end_all, marked
from .run_directory import Life, Manifest, RunDirectory, directory_name, new_run_id, scan

LOOPBACK = "127.0.0.1"
PORTS_PATIENCE = 2.0
"""Seconds that listing waits for daemons which a dead node had just started, so that they can be adopted."""


@define
class Run:
    """One start in progress: everything that has been made for it and may have to be taken back."""

    life: Life
    directory: RunDirectory | None = None
    lock: int = -1
    cgroups: tuple[str, ...] = ()
    descriptors: list[int] = field(factory=list)

    def close_files(self) -> None:
        """Close what was only for the child. In the reactor's thread, like ``close``, because a kill may meet a
        start."""
        for descriptor in self.descriptors:
            os.close(descriptor)
        self.descriptors.clear()

    def close(self) -> None:
        """Give the lock up, too; it goes on in the supervisor, if there is one."""
        self.close_files()
        if self.lock >= 0:
            os.close(self.lock)
            self.lock = -1


@frozen
class Listing:
    """What is there, and sentences about what cannot be understood."""

    containers: tuple[Listed, ...]
    problems: tuple[str, ...]


class Runs:
    """The run directories below one root."""

    def __init__(self, *, root: str, driver: str, executor_id: str) -> None:
        self._root = root
        self.driver = driver
        self._executor_id = executor_id
        self.cgroups = Cgroups()

    def open(self) -> None:
        """DriverError when the root cannot be used."""
        try:
            os.makedirs(self._root, mode=0o700, exist_ok=True)
            self.cgroups = cgroups.detect()
        except OSError as error:
            raise DriverError(f"the directory of the driver cannot be used: {error}") from error

    @staticmethod
    def begin(order: StartOrder) -> Run:
        """A start of which nothing has been made yet."""
        return Run(Life(order.container_id, order.kind, new_run_id()))

    def prepare(self, run: Run, order: StartOrder) -> None:
        """Make the directory, the lock, the cgroups and the child's files; what was made is in ``run`` even if this
        fails. DriverError if the container is there already; what a dead one left is removed."""
        try:
            existing = RunDirectory(os.path.join(self._root, directory_name(order.container_id)))
            if os.path.lexists(existing.path):
                if existing.locked():
                    raise DriverError(f"container {order.container_id} is running already")
                self._clear(existing)
            places = self.cgroups.places(run.life.run_id)
            manifest = Manifest.new(order.executor_id, order.container_id, order.kind, places, run.life.run_id)
            run.directory, run.lock = RunDirectory.create(self._root, manifest)
            self.cgroups.create(run.life.run_id, order.resources)
            run.cgroups = places
            run.descriptors.append(os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC))
            name = "supervisor.log" if order.kind is Kind.SANDBOX else "output.log"
            flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
            run.descriptors.append(os.open(run.directory.file(name), flags, 0o600))
        except OSError as error:
            raise DriverError(f"the start of {order.container_id} cannot be prepared: {error}") from error

    def _clear(self, directory: RunDirectory) -> None:
        manifest = directory.manifest()
        if manifest is None:
            directory.remove()
        else:
            self.destroy(directory.life(manifest))

    def find(self, life: Life) -> tuple[RunDirectory, Life] | None:
        """The directory of exactly this life, with all that is known of its processes by now."""
        directory = RunDirectory(os.path.join(self._root, directory_name(life.container_id)))
        manifest = directory.manifest()
        if manifest is None or manifest.run_id != life.run_id:
            return None
        return directory, directory.life(manifest)

    def handle(self, directory: RunDirectory, life: Life) -> Handle:
        ports = directory.ports() if life.kind is Kind.SANDBOX else None
        return Handle(
            driver=self.driver,
            id=life.handle_id,
            daemon_address=f"{LOOPBACK}:{ports[0]}" if ports else None,
            http_address=f"{LOOPBACK}:{ports[1]}" if ports else None,
            ip=LOOPBACK,
            opaque=life.opaque(),
        )

    def inspect(self, life: Life) -> ExitStatus | None:
        found = self.find(life)
        if found is None:
            return ExitStatus()
        # In this order: the status is written before the lock is given up.
        locked, ended = found[0].locked(), found[0].ended()
        if ended is not None:
            return ended.status
        return None if locked else ExitStatus()

    def logs(self, life: Life, lines: int) -> str:
        found = self.find(life)
        if found is None:
            return ""
        try:
            return output.tail(found[0].output, lines)
        except OSError as error:
            raise DriverError(f"the output of {life.container_id} cannot be read: {error}") from error

    def last_words(self, run: Run) -> str:
        """What a start that failed printed, as the end of a sentence."""
        if run.directory is None:
            return ""
        text = output.tail(run.directory.file("supervisor.log"), 20) + output.tail(run.directory.output, 20)
        return f"; it printed: {text.strip()}" if text.strip() else ""

    def destroy(self, life: Life, tell: Callable[[ExitStatus], None] | None = None) -> None:
        """Kill whatever lives of it and remove what is left of it; DriverError names what would not go. ``tell`` gets
        the status before the file with it is removed."""
        found = self.find(life)
        if found is not None:
            directory, life = found
            ended = directory.ended()
            manifest = directory.manifest()
            places = manifest.cgroups if manifest is not None else ()
        else:
            directory, ended, places = None, None, self.cgroups.places(life.run_id)
        locked = directory is not None and directory.locked()
        if ended is None or not ended.clean or locked or cgroups.members(places):
            if ended is None and tell is not None:
                tell(ExitStatus(signal=signal.SIGKILL))  # before it is seen to end
            left = end_all(_belongs_to(life, places))
            if left:
                raise DriverError(f"processes {left} of container {life.container_id} cannot be ended")
        cgroups.remove(places)
        if directory is None:
            return
        ended = ended or directory.ended()
        if tell is not None:
            tell(ended.status if ended is not None else ExitStatus(signal=signal.SIGKILL))
        directory.remove()

    def list(self, own: Collection[str]) -> Listing:
        """All containers of all executors; ``own`` are the runs that live as children of this very process."""
        until = time.monotonic() + PORTS_PATIENCE
        containers: list[Listed] = []
        try:
            directories, problems = scan(self._root)
        except OSError as error:
            raise DriverError(f"the run directories cannot be listed: {error}") from error
        for directory in directories:
            try:
                manifest = directory.manifest()
                if manifest is None:
                    if os.path.lexists(directory.path):
                        problems.append(f"{directory.path} has no manifest")
                    continue
                if self._never_began(directory, manifest, own):
                    self.destroy(directory.life(manifest))
                    continue
                containers.append(self._listed(directory, manifest, own, until))
            except (DriverError, OSError) as error:
                problems.append(str(error))
        return Listing(tuple(containers), tuple(problems))

    def _never_began(self, directory: RunDirectory, manifest: Manifest, own: Collection[str]) -> bool:
        """A node was killed after it had prepared a sandbox and before there was a supervisor, which opens the output
        before anything else: nothing has run, so it is no container, and its start can be repeated."""
        mine = manifest.executor_id == self._executor_id and manifest.run_id not in own
        began = directory.locked() or os.path.lexists(directory.output) or directory.ended() is not None
        return mine and Kind(manifest.kind) is Kind.SANDBOX and not began

    def _listed(self, directory: RunDirectory, manifest: Manifest, own: Collection[str], until: float) -> Listed:
        kind = Kind(manifest.kind)
        adoptable = kind is Kind.SANDBOX and manifest.executor_id == self._executor_id and manifest.run_id not in own
        while True:
            alive = directory.locked() and directory.ended() is None
            if not (alive and adoptable and directory.ports() is None) or time.monotonic() > until:
                break
            time.sleep(0.01)
        life = directory.life(manifest)
        handle = self.handle(directory, life)
        return Listed(manifest.container_id, manifest.executor_id, kind, handle, alive)


def _belongs_to(life: Life, places: tuple[str, ...]) -> Callable[[Mapping[int, Row]], set[int]]:
    """Everything of this life: by cgroup, by parents, by session, and by the mark in the environment."""
    sessions: set[int] = set()

    def find(rows: Mapping[int, Row]) -> set[int]:
        roots = set()
        for process in (life.supervisor, life.main):
            if process is not None and (row := rows.get(process.pid)) is not None and row.process == process:
                roots.add(process.pid)
                if row.session == process.pid:  # not before its setsid: until then it is in the node's own session
                    sessions.add(row.session)
        found = roots | below(rows, roots) | marked(life.run_id, rows) | cgroups.members(places)
        return found | {pid for pid, row in rows.items() if row.session in sessions}

    return find
