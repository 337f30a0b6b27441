"""The reactor of the process and the only bridges between Twisted and the rest of the world.

``Deferred.fromFuture`` passes asyncio's CancelledError on as it is; it is no ``Exception``, so ``addTimeout`` and
``except Exception`` do not see it. ``from_asyncio`` translates it. ``deferToThread`` drops context variables, which
carry the log context; ``Pool.run`` keeps them.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import queue
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, ParamSpec, Protocol, TypeVar

from twisted.internet.defer import CancelledError, Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

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
    this pool and nothing else. All methods belong to the reactor's thread, but ``stop``, which blocks.

    ``patience``: seconds that calls have to finish when the pool is stopped, for calls that may hang; those that take
    longer are left to themselves and end with the process. None: as long as they take.

    Twisted's own pool costs twice the CPU time for a call (93 against 55 microseconds, measured for one that does
    nothing), most of it in locks over which its threads wait for each other.
    """

    def __init__(self, reactor: Any, name: str, size: int, *, patience: float | None = None) -> None:
        # The reactor's own way makes a timed call of it, without a delay: one more turn of the loop and two timers.
        loop: asyncio.AbstractEventLoop | None = getattr(reactor, "_asyncioEventloop", None)
        self._tell = reactor.callFromThread if loop is None else loop.call_soon_threadsafe
        self._name = name
        self._size = size
        self._patience = patience
        self._queue: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._threads: list[threading.Thread] = []
        self.calls = 0
        """Calls under way, those that wait for a thread included."""
        self._started = self._stopped = False
        self._lock = threading.Lock()

    def start(self) -> None:
        with self._lock:
            if not self._started:
                self._started, self._stopped = True, False
                for _ in range(self.calls):
                    self._grow()

    def stop(self) -> None:
        """Let queued calls finish and join the threads; blocks until they are done or patience is at its end."""
        with self._lock:
            if not self._started:
                return
            self._started, self._stopped = False, True
            threads, self._threads = self._threads, []
            calls = self._queue
            self._queue = queue.SimpleQueue()  # what a thread that hangs leaves in the old one is not of the next life
            for _ in threads:
                calls.put(None)
        until = None if self._patience is None else time.monotonic() + self._patience
        for each in threads:
            each.join(None if until is None else max(0.0, until - time.monotonic()))
        if any(each.is_alive() for each in threads):
            log.warn("calls that do not end are left", pool=self._name, patience_secs=self._patience)

    def run(self, call: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Deferred[T]:
        """Run ``call`` in a thread with the caller's context variables. Cancelling the Deferred gives the answer up;
        the call itself goes on, because a thread cannot be stopped. Before ``start`` calls wait for it, after ``stop``
        none is made any more and its Deferred never fires. Errs back with RuntimeError where the system permits not
        even one thread."""
        deferred: Deferred[T] = Deferred()
        context = contextvars.copy_context()

        def work() -> None:
            tell: Callable[[Any], None] = deferred.callback
            try:
                result: Any = context.run(call, *args, **kwargs)
            except BaseException:
                tell, result = deferred.errback, Failure()
            # The loop may be closed: the call was left when patience ended, and nobody waits for it any more.
            with contextlib.suppress(RuntimeError):
                self._tell(settle, tell, result)

        def settle(tell: Callable[[Any], None], result: Any) -> None:
            self.calls -= 1
            if not deferred.called:
                tell(result)

        with self._lock:
            if self._stopped:
                return deferred
            self.calls += 1
            problem = self._grow() if self._started else None
            if problem is None:
                self._queue.put(work)
        if problem is not None:
            settle(deferred.errback, problem)
        return deferred

    def _grow(self) -> Exception | None:
        """One thread more if there are fewer than calls under way; why there is none at all. Under the lock."""
        if len(self._threads) < min(self._size, self.calls):
            # The interpreter waits for threads before it ends, but for those that may hang.
            thread = threading.Thread(
                target=_serve, args=(self._queue,), daemon=self._patience is not None,
                name=f"PoolThread-{self._name}-{len(self._threads)}",
            )  # fmt: skip
            try:
                thread.start()
            except RuntimeError as error:
                log.warn("no thread can be started", pool=self._name, threads=len(self._threads), error=str(error))
                return None if self._threads else error
            self._threads.append(thread)
        return None


def _serve(calls: queue.SimpleQueue[Callable[[], None] | None]) -> None:
    """What a thread of a pool does until it is told to end."""
    while (call := calls.get()) is not None:
        call()
        del call  # and with it what the call had, or it would live until the next one
