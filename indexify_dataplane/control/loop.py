"""A service whose life is one coroutine."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

from twisted.application.service import Service
from twisted.internet.defer import CancelledError, Deferred
from twisted.python.failure import Failure

from ..reactor import Clock


class LoopService(Service, ABC):
    """Runs ``run()`` from startService to stopService. ``died`` errbacks if it ends by itself: nobody else would
    notice, and a node whose heartbeat has died must not go on as if it lived."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._loop: Deferred[None] | None = None
        self._waiters: list[Deferred[None]] = []
        self._may_end = False
        self.died: Deferred[None] = Deferred()

    @property
    def alive(self) -> bool:
        return self._loop is not None

    @abstractmethod
    async def run(self) -> None:
        """The service's life; ends only by being cancelled."""

    def startService(self) -> None:
        super().startService()  # type: ignore[no-untyped-call]
        self._may_end = False
        loop = self._loop = Deferred.fromCoroutine(self.run())
        loop.addBoth(self._over)

    def stopService(self) -> Deferred[None] | None:
        """Cancel the loop; the Deferred fires when it has let go of everything."""
        super().stopService()  # type: ignore[no-untyped-call]
        if self._loop is None:
            return None
        ended = self.when_ended()
        self._may_end = True
        self._loop.cancel()
        return ended

    def when_ended(self) -> Deferred[None]:
        """Fires when the loop is over, however it ended. Cancelling it gives up the waiting only."""
        waiter: Deferred[None] = Deferred()
        if self._loop is None:
            waiter.callback(None)
        else:
            self._waiters.append(waiter)
        return waiter

    def limit(self, work: Deferred[None], seconds: float) -> Deferred[None]:
        """Cancel ``work`` after ``seconds``; it then errbacks with Twisted's TimeoutError."""
        timekeeper: Any = self._clock
        return work.addTimeout(max(0.0, seconds), timekeeper)

    async def pause(self, seconds: float) -> None:
        """Sleep on the service's clock; ends with the loop."""
        woken: Deferred[None] = Deferred()
        timer = self._clock.callLater(max(0.0, seconds), woken.callback, None)
        try:
            await woken
        finally:
            if timer.active():
                timer.cancel()

    def _over(self, result: Any) -> None:
        self._loop = None
        if isinstance(result, Failure):
            if not (self._may_end and result.check(CancelledError)):
                self.died.errback(result)
        elif not self._may_end:
            self.died.errback(RuntimeError(f"{type(self).__name__} ended although nobody stopped it"))
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            if not waiter.called:
                waiter.callback(None)
