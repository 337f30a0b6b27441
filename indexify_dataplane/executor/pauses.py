"""Waiting on the injected clock."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from typing import TypeVar

from ..blobs.base import BlobError
from ..reactor import Clock, sleep

T = TypeVar("T")


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
