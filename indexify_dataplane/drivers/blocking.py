"""The interface of drivers that block by nature; ``threaded`` makes a ``Driver`` of one."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

from ..core.model import ExitStatus, Handle, Kind, NetworkPolicy
from .base import DriverError, Listed, StartOrder

EVERYTHING = "*"
"""What ``exits`` tells when any watched container may have ended."""


class Cancelled:
    """Tells blocking work that nobody wants its result any more. Thread-safe."""

    def __init__(self) -> None:
        self._event = threading.Event()
        self._lock = threading.Lock()
        self._calls: list[Callable[[], None]] = []

    def set(self) -> None:
        with self._lock:
            self._event.set()
            calls, self._calls = self._calls, []
        for call in calls:
            call()

    @contextmanager
    def calling(self, call: Callable[[], None]) -> Iterator[None]:
        """For work that blocks in a read: have ``call`` break it off, at once if it is set already; it never raises."""
        with self._lock:
            late = self._event.is_set()
            if not late:
                self._calls.append(call)
        if late:
            call()
        try:
            yield
        finally:
            with self._lock:
                if call in self._calls:
                    self._calls.remove(call)

    def is_set(self) -> bool:
        return self._event.is_set()

    def wait(self, seconds: float) -> bool:
        """Pause for at most this long; whether it is set. What such work uses instead of sleeping."""
        return self._event.wait(seconds)

    def check(self) -> None:
        """DriverError if it is set; to be called between the steps of a start."""
        if self._event.is_set():
            raise DriverError("nobody waits for this any more")


class BlockingDriver(Protocol):
    """The methods of ``Driver`` as plain calls, made from several threads at once; same meaning, same errors."""

    @property
    def name(self) -> str: ...

    def enforces_policies(self) -> bool: ...

    def survives_node(self, kind: Kind) -> bool: ...

    def takes_snapshots(self, kind: Kind) -> bool: ...

    def export(self, handle: Handle, cancelled: Cancelled) -> AbstractContextManager[Iterable[bytes]]: ...

    def open(self) -> None: ...

    def close(self) -> None: ...

    def start(self, order: StartOrder, cancelled: Cancelled) -> Handle:
        """Look at ``cancelled`` between steps; whatever is raised, leave nothing behind."""

    def terminate(self, handle: Handle) -> None: ...

    def kill(self, handle: Handle) -> None: ...

    def inspect(self, handle: Handle) -> ExitStatus | None: ...

    def list_containers(self) -> Sequence[Listed]: ...

    def logs(self, handle: Handle, lines: int) -> str: ...

    def apply_policy(self, handle: Handle, container_id: str, policy: NetworkPolicy | None) -> None: ...

    def freezes(self) -> bool: ...

    def freeze(self, handle: Handle) -> None: ...

    def thaw(self, handle: Handle) -> None: ...

    def upstream(self, handle: Handle, port: int) -> tuple[str, int]: ...

    def exits(self, stopped: Cancelled) -> Iterable[str]:
        """Ids of handles that may have ended, as the platform tells of it, until ``stopped`` is set; ``EVERYTHING``
        when it may be any. It blocks; it may return or raise when the platform breaks off, and is called again. Empty
        where nothing tells."""

    def surely_runs(self, handle: Handle) -> bool:
        """Whether it is known to run and its end will be told by ``exits``, so that nobody need look. Asked in the
        reactor's thread: must not block. False is always right."""
