"""From a container's process to a sandbox that can be used: its daemon answers, and a held one is told to go on.

Interleaving that matters: the container ends while its daemon is asked. Its address may be nobody's by then, and asking
would last until the kernel gives up, so the end breaks the question off.
"""

from __future__ import annotations

from attrs import frozen
from twisted.internet.defer import CancelledError, Deferred

from ..core.model import ExitStatus, Handle, TerminationReason
from ..daemon_client import Daemons, DaemonUnreachable
from ..drivers.base import Driver, DriverError
from ..metrics import Metrics
from ..reactor import Clock, sleep

SHORTEST_PAUSE, LONGEST_PAUSE = 0.01, 0.1
"""Seconds between two questions."""
PAUSE_SHARE = 0.1
"""A pause as a part of the time that was waited already: what is lost by asking late stays small beside it."""


@frozen
class Timing:
    """Seconds: how long a container may take from process to healthy, and how its health is asked."""

    startup_timeout: float = 60.0
    health_timeout: float = 5.0


class Readiness:
    """Waits for daemons."""

    def __init__(self, *, clock: Clock, daemons: Daemons, timing: Timing, metrics: Metrics) -> None:
        self._clock = clock
        self._daemons = daemons
        self._timing = timing
        self._metrics = metrics

    async def wait(self, driver: Driver, handle: Handle, address: str) -> None:
        """Return when the sandbox can be used. Raises DriverError."""
        began = self._clock.seconds()
        try:
            await self._wait(driver, handle, address, began)
        except DriverError:
            self._metrics.counter("sandbox.daemon_connect_errors").add()
            raise
        took = self._clock.seconds() - began
        self._metrics.histogram("sandbox.daemon_connect_latency_seconds").observe(took)

    async def _wait(self, driver: Driver, handle: Handle, address: str, began: float) -> None:
        ends: list[ExitStatus] = []
        asking: Deferred[str | None] | None = None

        def exited(status: ExitStatus) -> None:
            ends.append(status)
            if asking is not None:
                asking.cancel()

        stop = driver.watch(handle, exited)
        try:
            while True:
                asking = Deferred.fromCoroutine(self._ask(handle, address))
                try:
                    problem = await asking
                except CancelledError:
                    if not ends:
                        raise
                    problem = None
                asking = None
                if ends:
                    raise _ended(ends[0])
                if problem is None:
                    return
                waited = self._clock.seconds() - began
                pause = min(LONGEST_PAUSE, max(SHORTEST_PAUSE, PAUSE_SHARE * waited))
                if waited + pause > self._timing.startup_timeout:
                    raise DriverError(f"not ready after {self._timing.startup_timeout:g} s: {problem}")
                await sleep(self._clock, pause)
        finally:
            stop()

    async def _ask(self, handle: Handle, address: str) -> str | None:
        """None when it can be used, else why not yet."""
        timeout = self._timing.health_timeout
        try:
            if handle.held:
                await self._daemons.go(address, timeout, handle.token)
            elif not await self._daemons.healthy(address, timeout, handle.token):
                return f"the daemon at {address} is not healthy"
        except DaemonUnreachable as error:
            return str(error)
        return None


def _ended(status: ExitStatus) -> DriverError:
    how = f"signal {status.signal}" if status.signal is not None else f"exit code {status.code}"
    if status.oom:
        error = DriverError(f"the container was killed for lack of memory while its daemon was starting ({how})")
        error.reason = TerminationReason.OOM
        return error
    return DriverError(f"the container ended while its daemon was starting: {how}")
