"""The reactor of the process and the only bridges between Twisted and the rest of the world.

``Deferred.fromFuture`` passes asyncio's CancelledError on as it is; it is no ``Exception``, so ``addTimeout`` and
``except Exception`` do not see it. ``from_asyncio`` translates it. ``deferToThread`` drops context variables, which
carry the log context; ``Pool.run`` keeps them.
"""

from __future__ import annotations

import asyncio
import contextvars
import sys
import threading
from collections.abc import Awaitable, Callable, Coroutine
from functools import partial
from typing import Any, ParamSpec, Protocol, TypeVar

from twisted.internet.defer import CancelledError, Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.python.threadpool import ThreadPool

log = Logger()

T = TypeVar("T")
P = ParamSpec("P")


class Clock(Protocol):
    """The part of a reactor that knows the time; ``twisted.internet.task.Clock`` in tests. Times are seconds."""

    def seconds(self) -> float: ...

    def callLater(self, delay: float, call: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        """Schedule ``call``; the result has ``active()`` and ``cancel()``."""


async def sleep(clock: Clock, seconds: float) -> None:
    """Wait on the injected clock. Cancelling it leaves no timer behind."""
    waiting: Deferred[None] = Deferred()
    timer = clock.callLater(seconds, waiting.callback, None)
    try:
        await waiting
    finally:
        if timer.active():
            timer.cancel()


def install() -> None:
    """Install the asyncio reactor, on uvloop where it is installed and asked for. Harmless when it is there already;
    RuntimeError when another reactor is."""
    import os

    from twisted.internet import asyncioreactor

    if "twisted.internet.reactor" in sys.modules:
        from twisted.internet import reactor

        if not isinstance(reactor, asyncioreactor.AsyncioSelectorReactor):
            raise RuntimeError(
                f"the asyncio reactor is needed, but {type(reactor).__name__} is installed already; "
                "start with --reactor=asyncio or leave the option out"
            )
        return
    loop: asyncio.AbstractEventLoop
    if os.environ.get("INDEXIFY_UVLOOP") == "1":
        import uvloop

        loop = uvloop.new_event_loop()
    else:
        loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    asyncioreactor.install(loop)


def from_asyncio(work: Coroutine[Any, Any, T] | Awaitable[T]) -> Deferred[T]:
    """Run an asyncio coroutine or awaitable on the reactor's loop. Cancelling the Deferred cancels the task; a
    cancelled task errs back with Twisted's CancelledError. The caller owns the Deferred."""
    future: asyncio.Future[T] = asyncio.ensure_future(work)

    def translate(failure: Failure) -> Failure:
        if failure.check(asyncio.CancelledError):
            return Failure(CancelledError())
        return failure

    def cancel(_: Deferred[Any]) -> None:
        future.cancel()

    deferred: Deferred[T] = Deferred(cancel)

    def done(future: asyncio.Future[T]) -> None:
        if deferred.called:
            if not future.cancelled():
                future.exception()
            return
        if future.cancelled():
            deferred.errback(Failure(CancelledError()))
            return
        error = future.exception()
        if error is None:
            deferred.callback(future.result())
        else:
            deferred.errback(Failure(error))

    future.add_done_callback(done)
    deferred.addErrback(translate)
    return deferred


def to_asyncio(work: Deferred[T]) -> asyncio.Future[T]:
    """Await a Deferred from an asyncio coroutine; cancelling the future cancels the Deferred."""
    return work.asFuture(asyncio.get_event_loop())


class Calls(Protocol):
    """Where blocking calls run: a ``Pool``, or at once in a simulation."""

    def start(self) -> None: ...

    def stop(self) -> None: ...

    def run(self, call: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Deferred[T]:
        """Run ``call`` and give its result, or errback with what it raises."""


class Pool:
    """A bounded thread pool of one owner. Calls queue when all its threads are busy; a hung call takes one thread of
    this pool and nothing else.

    ``patience``: seconds that calls have to finish when the pool is stopped, for calls that may hang; those that take
    longer are left to themselves and end with the process. None: as long as they take.
    """

    def __init__(self, reactor: Any, name: str, size: int, *, patience: float | None = None) -> None:
        self._reactor = reactor
        self._name = name
        self._threads = ThreadPool(0, size, name)
        self._patience = patience
        if patience is not None:
            # The interpreter waits for other threads before it ends.
            self._threads.threadFactory = partial(threading.Thread, daemon=True)  # type: ignore[assignment]
        self._started = False

    def start(self) -> None:
        if not self._started:
            self._started = True
            self._threads.start()

    def stop(self) -> None:
        """Let queued calls finish and join the threads; blocks until they are done or patience is at its end."""
        if not self._started:
            return
        self._started = False
        if self._patience is None:
            self._threads.stop()
            return
        ending = threading.Thread(target=self._threads.stop, name=f"{self._name} stop", daemon=True)
        ending.start()
        ending.join(self._patience)
        if ending.is_alive():
            log.warn("calls that do not end are left", pool=self._name, patience_secs=self._patience)

    def run(self, call: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Deferred[T]:
        """Run ``call`` in a thread with the caller's context variables. Cancelling the Deferred gives the answer up;
        the call itself goes on, because a thread cannot be stopped."""
        deferred: Deferred[T] = Deferred()
        context = contextvars.copy_context()

        def finished(success: bool, result: Any) -> None:
            self._reactor.callFromThread(settle, success, result)

        def settle(success: bool, result: Any) -> None:
            if not deferred.called:
                (deferred.callback if success else deferred.errback)(result)

        self._threads.callInThreadWithCallback(finished, lambda: context.run(call, *args, **kwargs))
        return deferred
