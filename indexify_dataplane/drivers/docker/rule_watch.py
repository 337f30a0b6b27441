"""Looks at intervals whether the rules of network policies are still in force: nobody tells when somebody else has
flushed the packet filter, or loaded it anew."""

from __future__ import annotations

from collections.abc import Callable

from twisted.internet.defer import CancelledError
from twisted.logger import Logger

from ...reactor import Calls, Clock
from ..base import DriverError
from .rounds import Rounds

log = Logger()


class RuleWatch(Rounds):
    """``check`` looks and repairs."""

    name = "rule-watch"

    def __init__(self, *, clock: Clock, calls: Calls, check: Callable[[], None], interval: float) -> None:
        super().__init__(clock=clock, calls=calls, interval=interval, at_once=False)
        self._check = check
        self._told: str | None = None

    async def round(self) -> None:
        """What goes wrong is told when it begins, not every time."""
        try:
            await self._calls.run(self._check)
        except CancelledError:
            raise
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
