"""What ``ThreadedDriver`` adds to a driver that blocks: nobody waits for a hung call, and nothing is left by one."""

from __future__ import annotations

import contextvars
import threading

from twisted.internet import reactor
from twisted.internet.defer import CancelledError, Deferred
from twisted.trial.unittest import TestCase

from indexify_dataplane.core.model import Handle
from indexify_dataplane.drivers.base import DriverError, StartOrder
from indexify_dataplane.drivers.blocking import Cancelled
from indexify_dataplane.drivers.threaded import ThreadedDriver
from indexify_dataplane.testing.memory_driver import MemoryHost
from tests.contracts.driver import order, until
from tests.contracts.driver_places import BlockingExample

CONTEXT: contextvars.ContextVar[str] = contextvars.ContextVar("CONTEXT", default="")


class Stuck(BlockingExample):
    """Starts and inspections hang, deaf to everything, until ``release`` is set."""

    def __init__(self, host: MemoryHost) -> None:
        super().__init__(host, tells_exits=True)
        self.release = threading.Event()
        self.entered = threading.Semaphore(0)
        self.seen: list[str] = []

    def start(self, order: StartOrder, cancelled: Cancelled) -> Handle:
        if order.argv == ("stuck",):
            self.entered.release()
            self.release.wait()
            return super().start(order, Cancelled())
        self.seen.append(CONTEXT.get())
        return super().start(order, cancelled)

    def logs(self, handle: Handle, lines: int) -> str:
        self.release.wait()
        return ""


class Threaded(TestCase):
    def setUp(self) -> Deferred[None]:
        return Deferred.fromCoroutine(self._set_up())

    async def _set_up(self) -> None:
        self.host = MemoryHost()
        self.blocking = Stuck(self.host)
        self.driver = await self.make()

    async def make(self, **changes: float) -> ThreadedDriver:
        driver = ThreadedDriver(
            reactor=reactor, driver=self.blocking, start_threads=2, quick_threads=2, **{"patience": 0.05, **changes}
        )
        await driver.open()
        self.addCleanup(lambda: Deferred.fromCoroutine(self._close(driver)))
        return driver

    async def _close(self, driver: ThreadedDriver) -> None:
        self.blocking.release.set()
        await until(self._idle, "all threads are done")
        await driver.close()

    async def _idle(self) -> bool:
        return not any(pool.calls for pool in self.pools())

    def pools(self):
        return (self.driver._starts, self.driver._quick)

    async def test_hung_starts_keep_nobody_waiting(self) -> None:
        running = await self.driver.start(order("running"))
        hung = [Deferred.fromCoroutine(self.driver.start(order(f"h{n}", argv=("stuck",)))) for n in range(2)]
        for _ in hung:
            self.blocking.entered.acquire()
        queued = Deferred.fromCoroutine(self.driver.start(order("queued")))
        await self.driver.kill(running)
        queued.cancel()
        with self.assertRaises(CancelledError):
            await queued
        for start in hung:
            start.cancel()
            with self.assertRaises(CancelledError):
                await start
        self.assertEqual(self.host.running(), [])
        self.blocking.release.set()
        await until(self._nothing_more_comes, "what came late was killed")

    async def _nothing_more_comes(self) -> bool:
        return self.host.started == 3 and not self.host.containers

    async def test_a_cancelled_start_that_was_never_begun_never_begins(self) -> None:
        hung = [Deferred.fromCoroutine(self.driver.start(order(f"h{n}", argv=("stuck",)))) for n in range(2)]
        for _ in hung:
            self.blocking.entered.acquire()
        queued = Deferred.fromCoroutine(self.driver.start(order("queued")))
        queued.cancel()
        with self.assertRaises(CancelledError):
            await queued
        self.blocking.release.set()
        for start in hung:
            await start
        self.assertEqual(self.host.running(), ["h0", "h1"])

    async def test_a_start_over_its_deadline_is_an_error_and_what_it_yields_is_killed(self) -> None:
        driver = await self.make(start_deadline=0.05)
        with self.assertRaises(DriverError) as caught:
            await driver.start(order("late", argv=("stuck",)))
        self.assertIn("start of late", str(caught.exception))
        self.blocking.release.set()

        async def gone() -> bool:
            return self.host.started == 1 and not self.host.containers

        await until(gone, "what came late was killed")

    async def test_a_hung_call_is_an_error(self) -> None:
        driver = await self.make(deadline=0.05)
        handle = await driver.start(order("a"))
        with self.assertRaises(DriverError) as caught:
            await driver.logs(handle, 1)
        self.assertIn("example: logs did not end within 0.05 s", str(caught.exception))
        self.assertIsNone(await driver.inspect(handle))

    async def test_the_log_context_goes_along(self) -> None:
        token = CONTEXT.set("bound")
        try:
            await self.driver.start(order("a"))
        finally:
            CONTEXT.reset(token)
        self.assertEqual(self.blocking.seen, ["bound"])
