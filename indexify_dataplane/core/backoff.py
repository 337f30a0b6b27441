"""Growing pauses between attempts."""

from __future__ import annotations

from typing import Protocol


class Rng(Protocol):
    """The part of ``random.Random`` that is needed here; injected, so that a test can replay it."""

    def uniform(self, a: float, b: float) -> float: ...


class Backoff:
    """Pauses of ``first`` seconds, multiplied by ``factor`` up to ``maximum``, each scattered by up to ``jitter`` of
    itself in both directions, so that the nodes of a cluster do not come back in step."""

    def __init__(self, *, first: float, maximum: float, rng: Rng, factor: float = 2.0, jitter: float = 0.2) -> None:
        self._first = first
        self._maximum = maximum
        self._factor = factor
        self._jitter = jitter
        self._rng = rng
        self._next = first
        self.attempts = 0

    def next(self) -> float:
        """The pause after one more failure, in seconds."""
        pause = min(self._next, self._maximum)
        self._next = min(self._next * self._factor, self._maximum)
        self.attempts += 1
        return pause * self._rng.uniform(1 - self._jitter, 1 + self._jitter)

    def reset(self) -> None:
        self._next = self._first
        self.attempts = 0
