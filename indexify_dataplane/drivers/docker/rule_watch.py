"""Looks at intervals whether the rules of network policies are still in force: nobody tells when somebody else has
flushed the packet filter, or loaded it anew."""

from __future__ import annotations

import threading
from collections.abc import Callable

from twisted.application.service import Service
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import LoopingCall
from twisted.logger import Logger

from ...reactor import Calls, Clock
from ..base import DriverError

log = Logger()


class RuleWatch(Service):
    """``check`` looks and repairs, in ``calls``, a pool of its own: a packet filter that hangs delays nothing else. The
    first look is ``interval`` seconds after the start, the next one waits for the one before."""

    name = "rule-watch"

    def __init__(self, *, clock: Clock, calls: Calls, check: Callable[[], None], interval: float) -> None:
        self._calls = calls
        self._check = check
        self._interval = interval
        self._told: str | None = None
        self._looking: Deferred[None] | None = None
        self._loop = LoopingCall(self._begin)
        self._loop.clock = clock  # type: ignore[assignment]

    def startService(self) -> None:
        super().startService()  # type: ignore[no-untyped-call]
        self._calls.start()
        self._loop.start(self._interval, now=False)

    def stopService(self) -> None:
        super().stopService()  # type: ignore[no-untyped-call]
        if self._loop.running:
            self._loop.stop()
        if self._looking is not None:
            self._looking.cancel()
        # Joining blocks, and a call that hangs would keep the process.
        threading.Thread(target=self._calls.stop, name="rule watch stop", daemon=True).start()

    def _begin(self) -> Deferred[None]:
        self._looking = Deferred.fromCoroutine(self._look())
        return self._looking

    async def _look(self) -> None:
        """What goes wrong is told when it begins, not every time."""
        try:
            await self._calls.run(self._check)
        except CancelledError:
            return
        except DriverError as error:
            if self._told != str(error) and self.running:
                log.error("rules of the packet filter cannot be checked, trying again", error=str(error))
            self._told = str(error)
        except Exception:
            # A look that ended so would be the last one.
            log.failure("unexpected error while rules were checked")
        else:
            if self._told is not None:
                log.info("rules of the packet filter are checked again")
            self._told = None
        finally:
            self._looking = None
