"""The sandbox's entrypoint: started once, its output shown as the daemon's own, first to get a signal."""

from __future__ import annotations

import signal
from collections.abc import Callable

from .children import Identity
from .logs import Log
from .process import Order
from .processes import Processes
from .refusal import Refusal


class Entrypoint:
    """``copies`` get what it writes to standard output and standard error, for ``docker logs``."""

    def __init__(
        self,
        *,
        argv: tuple[str, ...],
        identity: Identity | None,
        processes: Processes,
        copies: tuple[Callable[[bytes], None], Callable[[bytes], None]],
        log: Log,
    ) -> None:
        self._argv = argv
        self._identity = identity
        self._processes = processes
        self._copies = copies
        self._log = log

    def start(self) -> None:
        """A failure is logged: the sandbox stays up without its entrypoint, as it does when that ends."""
        if not self._argv:
            return
        command, *args = self._argv
        order = Order(command=command, args=tuple(args), stdin=True, identity=self._identity, copies=self._copies)
        try:
            self._processes.entrypoint = self._processes.start(order)
        except Refusal as refusal:
            self._log.error("the entrypoint could not be started", error=refusal.error)

    def send(self, number: int) -> str | None:
        """Signal the entrypoint if it runs, else every running process; the text of the error if that fails."""
        processes = self._processes.all()
        if not processes:
            return "No processes spawned"
        running = [process for process in processes if process.alive]
        if not running:
            return f"No running process found ({len(processes)} processes exited)"
        try:
            signal.Signals(number)
        except ValueError:
            return "Invalid signal number"
        entrypoint = self._processes.entrypoint
        if entrypoint is not None and entrypoint.alive:
            running = [entrypoint]
        error: str | None = None
        for process in running:
            try:
                self._processes.signal(process, number)
            except Refusal:
                error = f"Failed to send signal to pid {process.pid}"
        return error
