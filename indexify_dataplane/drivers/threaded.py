"""Makes a ``Driver`` of a ``BlockingDriver``, once and for all of them.

Starts and all other calls have pools of their own, so hung starts never keep a kill waiting. Every call has a deadline
(DriverError); its thread cannot be stopped and stays away until the call returns by itself.

Interleavings that matter:
- A start is given up (cancelled, or over its deadline) while its thread is still at work. The thread is told; if it
  does not end soon the caller is let go, and a container that it yields later is killed here.
- A container ends while its watch is made. The watch is registered before the driver is asked whether it surely runs,
  so the end is either seen by a look or told afterwards.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from typing import Any, ParamSpec, TypeVar

from twisted.application.service import Service
from twisted.internet.defer import CancelledError, Deferred, TimeoutError, succeed
from twisted.logger import Logger
from twisted.python.failure import Failure

from ..core.model import ExitStatus, Handle, Kind, NetworkPolicy
from ..reactor import Pool
from .base import DriverError, Listed, StartOrder
from .blocking import EVERYTHING, BlockingDriver, Cancelled
from .completion import to_the_end

log = Logger()
T = TypeVar("T")
P = ParamSpec("P")


class _Start:
    """One start in a thread of its pool; decides who has it first, the thread or the one who gives it up."""

    def __init__(self, driver: BlockingDriver, order: StartOrder) -> None:
        self._driver = driver
        self._order = order
        self._lock = threading.Lock()
        self._begun = False
        self.cancelled = Cancelled()

    def run(self) -> Handle:
        with self._lock:
            self.cancelled.check()
            self._begun = True
        return self._driver.start(self._order, self.cancelled)

    def give_up(self) -> bool:
        """Tell the thread; False if it has not begun, and then it never will."""
        with self._lock:
            self.cancelled.set()
            return self._begun


class ThreadedDriver:
    """See the module's text. Times are seconds.

    ``deadline`` bounds every call but starts (``start_deadline``); ``patience`` is how long a start that was given up
    may take to clean up before its caller is let go; ``poll_interval`` is how often watched containers are looked at
    even if the platform tells nothing. ``upkeep`` is a service that runs as long as the driver is open.
    """

    def __init__(
        self,
        *,
        reactor: Any,
        driver: BlockingDriver,
        start_threads: int = 8,
        quick_threads: int = 8,
        deadline: float = 60.0,
        start_deadline: float = 1800.0,
        patience: float = 10.0,
        poll_interval: float = 5.0,
        upkeep: Service | None = None,
    ) -> None:
        self._clock = reactor
        self._driver = driver
        self._starts = Pool(reactor, f"{driver.name} starts", start_threads)
        self._quick = Pool(reactor, f"{driver.name} calls", quick_threads)
        self._exits = Pool(reactor, f"{driver.name} exits", 1)
        self._call_from_thread: Callable[..., None] = reactor.callFromThread
        self._deadline = deadline
        self._start_deadline = start_deadline
        self._patience = patience
        self._poll_interval = poll_interval
        self._upkeep: Any = upkeep
        self._watched: dict[str, set[_Watch]] = {}
        self._stopped = Cancelled()
        self._timer: Any = None
        self._heard: Deferred[None] = succeed(None)

    @property
    def name(self) -> str:
        return self._driver.name

    def enforces_policies(self) -> bool:
        return self._driver.enforces_policies()

    def survives_node(self, kind: Kind) -> bool:
        return self._driver.survives_node(kind)

    def takes_snapshots(self, kind: Kind) -> bool:
        return self._driver.takes_snapshots(kind)

    def export(self, handle: Handle, cancelled: Cancelled) -> AbstractContextManager[Iterable[bytes]]:
        return self._driver.export(handle, cancelled)

    @property
    def closed(self) -> bool:
        return self._stopped.is_set()

    async def open(self) -> None:
        for pool in (self._starts, self._quick, self._exits):
            pool.start()
        try:
            await self._call("open", self._driver.open)
        except BaseException:
            self._stop_pools()
            raise
        self._listen()
        self._poll()
        if self._upkeep is not None:
            self._upkeep.startService()

    async def close(self) -> None:
        self._stopped.set()
        if self._upkeep is not None and self._upkeep.running:
            self._upkeep.stopService()
        if self._timer is not None and self._timer.active():
            self._timer.cancel()
        for watches in self._watched.values():
            for watch in watches:
                watch.stopped = True
        self._watched.clear()
        try:
            await self._cleaned_up(self._heard, "listening for exits goes on")
            await self._call("close", self._driver.close)
        finally:
            self._stop_pools()

    def _stop_pools(self) -> None:
        # Joining blocks, and a hung call would keep the process: the pools end on their own time.
        for pool in (self._starts, self._quick, self._exits):
            threading.Thread(target=pool.stop, name=f"{self.name} stop", daemon=True).start()

    async def start(self, order: StartOrder) -> Handle:
        start = _Start(self._driver, order)
        results: list[Any] = []
        over: Deferred[None] = Deferred()
        given_up = False

        def ended(result: Any) -> None:
            results.append(result)
            if given_up:
                self._late(order, result)
            elif not over.called:
                over.callback(None)

        self._starts.run(start.run).addBoth(ended)
        try:
            await over.addTimeout(self._start_deadline, self._clock)
        except (CancelledError, TimeoutError) as error:
            if start.give_up() and not results:
                over = Deferred()
                await self._cleaned_up(over, "a start that was given up goes on")
            given_up = True
            if results and isinstance(results[0], Handle):
                await to_the_end(Deferred.fromCoroutine(self.kill(results[0])))
            if isinstance(error, CancelledError):
                raise
            problem = f"the start of {order.container_id} took longer than {self._start_deadline:g} s"
            raise DriverError(problem) from error
        if isinstance(results[0], Failure):
            results[0].raiseException()
        handle: Handle = results[0]
        return handle

    async def _cleaned_up(self, over: Deferred[None], otherwise: str) -> None:
        """Wait for a thread that was told to end, but not for ever."""
        try:
            await over.addTimeout(self._patience, self._clock)
        except (CancelledError, TimeoutError):
            log.warn("a thread does not end", problem=otherwise, driver=self.name, after_secs=self._patience)

    def _late(self, order: StartOrder, result: Any) -> None:
        """A start that was given up long ago has ended after all."""
        if isinstance(result, Handle):
            killing = Deferred.fromCoroutine(self.kill(result))
            killing.addErrback(
                lambda failure: log.failure("late container cannot be killed", failure, container_id=order.container_id)
            )

    async def terminate(self, handle: Handle) -> None:
        await self._call("terminate", self._driver.terminate, handle)

    async def kill(self, handle: Handle) -> None:
        await self._call("kill", self._driver.kill, handle)
        self._look(handle.id)

    async def inspect(self, handle: Handle) -> ExitStatus | None:
        return await self._call("inspect", self._driver.inspect, handle)

    async def list_containers(self) -> Sequence[Listed]:
        return await self._call("list containers", self._driver.list_containers)

    async def logs(self, handle: Handle, lines: int) -> str:
        return await self._call("logs", self._driver.logs, handle, lines)

    async def apply_policy(self, handle: Handle, container_id: str, policy: NetworkPolicy | None) -> None:
        await self._call("apply policy", self._driver.apply_policy, handle, container_id, policy)

    def freezes(self) -> bool:
        return self._driver.freezes()

    async def freeze(self, handle: Handle) -> None:
        await self._call("freeze", self._driver.freeze, handle)

    async def thaw(self, handle: Handle) -> None:
        await self._call("thaw", self._driver.thaw, handle)

    async def upstream(self, handle: Handle, port: int) -> tuple[str, int]:
        return await self._call("upstream", self._driver.upstream, handle, port)

    async def _call(self, what: str, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return await self._quick.run(call, *args, **kwargs).addTimeout(self._deadline, self._clock)
        except TimeoutError as error:
            raise DriverError(f"{self.name}: {what} did not end within {self._deadline:g} s") from error

    def watch(self, handle: Handle, exited: Callable[[ExitStatus], None]) -> Callable[[], None]:
        watch = _Watch(handle, exited)
        self._watched.setdefault(handle.id, set()).add(watch)
        if not self._driver.surely_runs(handle):
            self._look(handle.id)

        def stop() -> None:
            watch.stopped = True
            self._forget(watch)

        return stop

    def _forget(self, watch: _Watch) -> None:
        watches = self._watched.get(watch.handle.id)
        if watches is not None:
            watches.discard(watch)
            if not watches:
                del self._watched[watch.handle.id]

    def _heard_of(self, handle_id: str) -> None:
        for each in list(self._watched) if handle_id == EVERYTHING else (handle_id,):
            self._look(each)

    def _look(self, handle_id: str) -> None:
        for watch in self._watched.get(handle_id, ()):
            if not watch.looking:
                watch.looking = True
                Deferred.fromCoroutine(self._inspect_watched(watch)).addErrback(
                    lambda failure: log.failure("watch of a container failed", failure)
                )
            else:
                watch.again = True

    async def _inspect_watched(self, watch: _Watch) -> None:
        """A hint that comes during a look is looked into afterwards: the look may have been too early."""
        while True:
            watch.again = False
            try:
                status = await self.inspect(watch.handle)
            except DriverError as error:
                log.debug("watched container cannot be inspected", handle=watch.handle.id, error=str(error))
                status = None
            if status is not None or watch.stopped or not watch.again:
                break
        watch.looking = False
        if status is not None and not watch.stopped:
            watch.stopped = True
            self._forget(watch)
            watch.exited(status)

    def _poll(self) -> None:
        if self._stopped.is_set():
            return
        self._heard_of(EVERYTHING)
        self._timer = self._clock.callLater(self._poll_interval, self._poll)

    def _listen(self) -> None:
        self._heard = Deferred()
        hearing = self._exits.run(self._hear)
        hearing.addErrback(lambda failure: log.failure("exits are not heard any more", failure))
        hearing.chainDeferred(self._heard)

    def _hear(self) -> None:
        """In the exits' thread, until the driver is closed."""
        while not self._stopped.is_set():
            try:
                for handle_id in self._driver.exits(self._stopped):
                    self._call_from_thread(self._heard_of, handle_id)
            except DriverError as error:
                log.warn("exits are not told, looking at intervals", driver=self.name, error=str(error))
            self._stopped.wait(self._poll_interval)


class _Watch:
    """One ``watch``; ``again`` asks for another look after the one under way."""

    def __init__(self, handle: Handle, exited: Callable[[ExitStatus], None]) -> None:
        self.handle = handle
        self.exited = exited
        self.looking = False
        self.again = False
        self.stopped = False
