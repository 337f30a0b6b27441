"""Deadlines that user code gave to its waits; the executor leaves it to the node to keep them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from google.protobuf.timestamp_pb2 import Timestamp

from ..reactor import Clock


class WatcherTimers:
    """Calls ``passed`` with the id of a watcher at its deadline, which is wall-clock time on the wire."""

    def __init__(self, *, clock: Clock, wall: Callable[[], float], passed: Callable[[str], None]) -> None:
        self._clock = clock
        self._wall = wall
        self._passed = passed
        self._timers: dict[str, Any] = {}

    def set(self, watcher_id: str, deadline: Timestamp) -> None:
        left = max(0.0, deadline.seconds + deadline.nanos / 1e9 - self._wall())
        self._timers[watcher_id] = self._clock.callLater(left, self._ring, watcher_id)

    def cancel(self, watcher_id: str) -> None:
        timer = self._timers.pop(watcher_id, None)
        if timer is not None and timer.active():
            timer.cancel()

    def cancel_all(self) -> None:
        for watcher_id in tuple(self._timers):
            self.cancel(watcher_id)

    def _ring(self, watcher_id: str) -> None:
        del self._timers[watcher_id]
        self._passed(watcher_id)
