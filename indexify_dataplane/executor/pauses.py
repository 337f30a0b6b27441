"""Waiting on the injected clock."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from typing import TypeVar

from twisted.internet.defer import Deferred

from ..blobs.base import BlobError
from ..reactor import Clock

T = TypeVar("T")


async def sleep(clock: Clock, seconds: float) -> None:
    waiting: Deferred[None] = Deferred()
    timer = clock.callLater(seconds, waiting.callback, None)
    try:
        await waiting
    finally:
        if timer.active():
            timer.cancel()


async def patiently(clock: Clock, pauses: Iterable[float], call: Callable[[], Awaitable[T]]) -> T:
    """``call`` again after each of ``pauses`` (seconds) as long as it raises a BlobError that may pass."""
    for pause in pauses:
        try:
            return await call()
        except BlobError as error:
            if not error.retryable:
                raise
        await sleep(clock, pause)
    return await call()
