"""Learning of the end of a process that need not be a child: its pidfd becomes readable."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from .processes import Process, alive


class ExitWatch:
    """Calls ``ended`` once, in the reactor's thread and never from inside the constructor. ``stop`` is idempotent."""

    def __init__(self, reactor: Any, process: Process, ended: Callable[[], None]) -> None:
        self._reactor = reactor
        self._process = process
        self._ended = ended
        self._soon: Any = None
        self._descriptor = -1
        try:
            self._descriptor = os.pidfd_open(process.pid)
        except ProcessLookupError:
            pass
        # Only now: a pid that was reused before the descriptor was taken shows another start time.
        if self._descriptor >= 0 and alive(process):
            reactor.addReader(self)
        else:
            self._close()
            self._soon = reactor.callLater(0, self._tell)

    def stop(self) -> None:
        if self._soon is not None and self._soon.active():
            self._soon.cancel()
        if self._descriptor >= 0:
            self._reactor.removeReader(self)
            self._close()

    def _close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def _tell(self) -> None:
        self._ended()

    def fileno(self) -> int:
        return self._descriptor

    def doRead(self) -> None:
        self.stop()
        self._tell()

    def connectionLost(self, reason: Any) -> None:
        """The reactor is going down, or refuses the descriptor: nothing more will be told."""
        self._close()

    def logPrefix(self) -> str:
        return f"exit of process {self._process.pid}"
