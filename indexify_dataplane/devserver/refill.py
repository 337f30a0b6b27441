"""When a pool may be given another warm container after the last ones could not start.

Without this, an image that does not exist would be started again as fast as heartbeats can report that it failed.
"""

from __future__ import annotations

from collections.abc import Callable

from indexify_dataplane.reactor import Clock

from .alarm import Alarm

FIRST_SECS, LONGEST_SECS = 1.0, 60.0

Key = tuple[str, str]


class Refill:
    """Counts, per pool, the starts that failed in a row; ``wake`` is called when a pool's wait is over."""

    def __init__(self, clock: Clock, wake: Callable[[], None]) -> None:
        self._clock = clock
        self._wake = wake
        self._failures: dict[Key, int] = {}
        self._waits: dict[Key, Alarm] = {}

    def failed(self, pool: Key) -> None:
        failures = self._failures[pool] = self._failures.get(pool, 0) + 1
        wait = self._waits.setdefault(pool, Alarm(self._clock))
        wait.set(min(FIRST_SECS * 2.0 ** min(failures - 1, 10), LONGEST_SECS), self._wake)

    def started(self, pool: Key) -> None:
        self._failures.pop(pool, None)
        wait = self._waits.pop(pool, None)
        if wait is not None:
            wait.stop()

    def may(self, pool: Key) -> bool:
        """Whether the pool need not wait."""
        wait = self._waits.get(pool)
        return wait is None or not wait.is_set

    def stop(self) -> None:
        for wait in self._waits.values():
            wait.stop()
        self._waits.clear()
        self._failures.clear()
