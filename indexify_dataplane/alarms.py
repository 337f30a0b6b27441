"""Things to be told later: a heap and one timer, because a delayed call per entry costs ten times the memory."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from typing import Any, Generic, TypeVar

from .reactor import Clock

T = TypeVar("T")


class Alarms(Generic[T]):
    """Calls ``ring`` with each item at its time (seconds on ``clock``); items of one time ring in the order set."""

    def __init__(self, *, clock: Clock, ring: Callable[[T], Any]) -> None:
        self._clock = clock
        self._ring = ring
        self._heap: list[tuple[float, int, T]] = []
        self._count = 0
        self._timer: Any = None
        self._timer_at = 0.0

    def __len__(self) -> int:
        return len(self._heap)

    def set(self, at: float, item: T) -> None:
        self._count += 1
        heapq.heappush(self._heap, (at, self._count, item))
        self._arm()

    def stop(self) -> None:
        self._heap.clear()
        if self._timer is not None and self._timer.active():
            self._timer.cancel()
        self._timer = None

    def _arm(self) -> None:
        if not self._heap:
            return
        at = self._heap[0][0]
        if self._timer is not None and self._timer.active():
            if self._timer_at <= at:
                return
            self._timer.cancel()
        self._timer_at = at
        self._timer = self._clock.callLater(max(0.0, at - self._clock.seconds()), self._due)

    def _due(self) -> None:
        self._timer = None
        now = self._clock.seconds()
        while self._heap and self._heap[0][0] <= now:
            _, _, item = heapq.heappop(self._heap)
            self._ring(item)
        self._arm()
