"""Waiting for work that cannot be stopped."""

from __future__ import annotations

from typing import Any, TypeVar, cast

from twisted.internet.defer import CancelledError, Deferred
from twisted.python.failure import Failure

T = TypeVar("T")


async def to_the_end(work: Deferred[T]) -> T:
    """Await ``work`` through any cancellation of the caller, which takes effect (CancelledError) when it has ended.

    For a call in a thread: whoever cleans up after it must not do so while it is still making things.
    """
    results: list[Any] = []
    waiting: Deferred[None] = Deferred()

    def ended(result: Any) -> None:
        results.append(result)
        if not waiting.called:
            waiting.callback(None)

    work.addBoth(ended)
    cancelled: CancelledError | None = None
    while not results:
        try:
            await waiting
        except CancelledError as error:
            cancelled = error
            waiting = Deferred()
    if cancelled is not None:
        raise cancelled
    if isinstance(results[0], Failure):
        results[0].raiseException()
    return cast(T, results[0])
