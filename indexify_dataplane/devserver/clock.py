"""Time as the control plane uses it: ``IReactorTime`` as a type that checkers understand, and one timer per purpose."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol


class DelayedCall(Protocol):
    """What ``callLater`` gives back (``IDelayedCall``)."""

    def active(self) -> bool: ...

    def cancel(self) -> None: ...


class Clock(Protocol):
    """A reactor's time (``IReactorTime``): a reactor, or ``task.Clock``."""

    def seconds(self) -> float: ...

    def callLater(self, delay: float, callable: Callable[..., Any], *args: Any, **kwargs: Any) -> DelayedCall: ...


class Alarm:
    """A timer that can be set, set anew and stopped at any time."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._call: DelayedCall | None = None

    @property
    def is_set(self) -> bool:
        return self._call is not None and self._call.active()

    def set(self, seconds: float, effect: Callable[[], None]) -> None:
        self.stop()
        self._call = self._clock.callLater(seconds, effect)

    def stop(self) -> None:
        if self._call is not None and self._call.active():
            self._call.cancel()
        self._call = None
