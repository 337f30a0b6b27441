"""The interface of drivers that block by nature; ``threaded`` makes a ``Driver`` of one."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence
from typing import Protocol

from ..core.model import ExitStatus, Handle, Kind
from .base import DriverError, Listed, StartOrder


class Cancelled:
    """Tells blocking work that nobody wants its result any more. Thread-safe."""

    def __init__(self) -> None:
        self._event = threading.Event()

    def set(self) -> None:
        self._event.set()

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

    def open(self) -> None: ...

    def close(self) -> None: ...

    def start(self, order: StartOrder, cancelled: Cancelled) -> Handle:
        """Look at ``cancelled`` between steps; whatever is raised, leave nothing behind."""

    def terminate(self, handle: Handle) -> None: ...

    def kill(self, handle: Handle) -> None: ...

    def inspect(self, handle: Handle) -> ExitStatus | None: ...

    def list_containers(self) -> Sequence[Listed]: ...

    def logs(self, handle: Handle, lines: int) -> str: ...

    def upstream(self, handle: Handle, port: int) -> tuple[str, int]: ...

    def exits(self, stopped: Cancelled) -> Iterable[str]:
        """Ids of handles that may have ended, as the platform tells of it, until ``stopped`` is set. It blocks; it may
        return or raise when the platform breaks off, and is called again. Empty where nothing tells."""
