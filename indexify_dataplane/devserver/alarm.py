"""One timer per purpose."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from indexify_dataplane.reactor import Clock


class Alarm:
    """A timer that can be set, set anew and stopped at any time."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._call: Any = None

    @property
    def is_set(self) -> bool:
        return self._call is not None and bool(self._call.active())

    def set(self, seconds: float, effect: Callable[[], None]) -> None:
        """Have ``effect`` called in ``seconds``, in place of what was set before."""
        self.stop()
        self._call = self._clock.callLater(seconds, effect)

    def stop(self) -> None:
        if self.is_set:
            self._call.cancel()
        self._call = None
