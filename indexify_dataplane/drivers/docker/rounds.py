"""Work on an engine that is done again and again, beside what drivers are asked for."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod

from twisted.application.service import Service
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import LoopingCall

from ...reactor import Calls, Clock


class Rounds(Service, ABC):
    """A round every ``interval`` seconds, the first one ``at_once`` or after that time; the next one waits for the one
    before. ``calls`` is a pool of its own, so that a call that hangs delays nothing but the next round."""

    def __init__(self, *, clock: Clock, calls: Calls, interval: float, at_once: bool) -> None:
        self._calls = calls
        self._interval = interval
        self._at_once = at_once
        self._under_way: Deferred[None] | None = None
        self._loop = LoopingCall(self._begin)
        self._loop.clock = clock  # type: ignore[assignment]

    @abstractmethod
    async def round(self) -> None:
        """What is done. A failure that it lets out ends all rounds."""

    def startService(self) -> None:
        super().startService()  # type: ignore[no-untyped-call]
        self._calls.start()
        self._loop.start(self._interval, now=self._at_once)

    def stopService(self) -> None:
        super().stopService()  # type: ignore[no-untyped-call]
        if self._loop.running:
            self._loop.stop()
        if self._under_way is not None:
            self._under_way.cancel()
        # Joining blocks, and a call that hangs would keep the process.
        threading.Thread(target=self._calls.stop, name=f"{self.name} stop", daemon=True).start()

    def _begin(self) -> Deferred[None]:
        self._under_way = Deferred.fromCoroutine(self._one())
        return self._under_way

    async def _one(self) -> None:
        try:
            await self.round()
        except CancelledError:
            return
        finally:
            self._under_way = None
