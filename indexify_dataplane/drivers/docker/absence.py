"""A start whose engine is away for a moment, because it is started anew or updated: the start waits for it.

Interleavings that matter: the container is removed, or the node stops, while its start waits (both end the wait at
once); the engine goes away again and again (what was waited before counts).
"""

from __future__ import annotations

import time
from typing import Any

from twisted.logger import Logger

from ..base import DriverError
from ..blocking import Cancelled
from .failures import EXPECTED, EngineAway

log = Logger()

FIRST_PAUSE, LONGEST_PAUSE = 0.1, 1.0
PING_SECONDS = 1.0
"""How long an engine may take to say that it is there: one that is coming up lets callers wait."""


class Absence:
    """Of the engine, as one start sees it, in the thread of that start. ``seconds`` is how long it may wait in all."""

    def __init__(
        self, *, client: Any, container_id: str, seconds: float, cancelled: Cancelled, closed: Cancelled
    ) -> None:
        self._client = client
        self._container_id = container_id
        self._seconds = seconds
        self._cancelled = cancelled
        self._closed = closed
        self._given_up = Cancelled()
        self._pause = FIRST_PAUSE
        self._waited = 0.0

    def over(self, error: EngineAway) -> bool:
        """Wait until the engine answers. False if it does not in time, or nobody waits for this start any more."""
        with self._cancelled.calling(self._given_up.set), self._closed.calling(self._given_up.set):
            if self._given_up.is_set() or self._waited >= self._seconds:
                return False
            log.warn(
                "waiting for the Docker engine, which is away", container_id=self._container_id, error=str(error),
                for_secs=round(self._seconds - self._waited, 1),
            )  # fmt: skip
            while self._waited < self._seconds:
                began = time.monotonic()
                if self._given_up.wait(min(self._pause, self._seconds - self._waited)):
                    return False
                there = self._answers()
                self._waited += time.monotonic() - began
                self._pause = min(2 * self._pause, LONGEST_PAUSE)
                if there:
                    log.info(
                        "the Docker engine is back, the start goes on", container_id=self._container_id,
                        waited_secs=round(self._waited, 1),
                    )  # fmt: skip
                    return True
        return False

    def failure(self, error: EngineAway) -> DriverError:
        """What a start fails with that has waited long enough."""
        waited = f"{self._waited:.1f} of {self._seconds:g} s (startup_timeout_secs)"
        made = DriverError(f"{error}; it was waited for {waited}")
        made.reason = error.reason
        return made

    def _answers(self) -> bool:
        try:
            answer = self._client.get(f"{self._client.base_url}/_ping", timeout=PING_SECONDS)
        except EXPECTED:
            return False
        return bool(answer.status_code == 200)
