"""How long an allocation may go without progress. Time spent waiting for a child call does not count."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..reactor import Clock


class Deadline:
    """Calls ``passed`` once, ``seconds`` after the last ``restart``, unless held; 0 seconds mean no limit."""

    def __init__(self, *, clock: Clock, seconds: float, passed: Callable[[], None]) -> None:
        self._clock = clock
        self._seconds = seconds
        self._passed = passed
        self._timer: Any = None
        self._held = False
        self._at = 0.0
        self._over = False

    def restart(self) -> None:
        """There was progress."""
        if self._over or not self._seconds:
            return
        self._at = self._clock.seconds() + self._seconds
        if not self._held and (self._timer is None or not self._timer.active()):
            self._timer = self._clock.callLater(self._seconds, self._ring)

    def hold(self, held: bool) -> None:
        """While held no time passes; afterwards the whole limit is there again."""
        if held == self._held:
            return
        self._held = held
        if not held:
            self.restart()
        elif self._timer is not None and self._timer.active():
            self._timer.cancel()

    def stop(self) -> None:
        self._over = True
        if self._timer is not None and self._timer.active():
            self._timer.cancel()

    def _ring(self) -> None:
        left = self._at - self._clock.seconds()
        if left > 0:  # Moved since the timer was set; resetting it on every progress would cost more.
            self._timer = self._clock.callLater(left, self._ring)
            return
        self._over = True
        self._passed()
