"""What every driver promises (``drivers/base.py``), as tests. A driver's own module adds a ``Place`` to run them in."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Protocol

from attrs import evolve
from twisted.internet import reactor
from twisted.internet.defer import CancelledError, Deferred, gatherResults
from twisted.internet.task import deferLater

from indexify_dataplane.core.model import ExitStatus, Handle, Kind, NetworkPolicy
from indexify_dataplane.drivers.base import Driver, DriverError, PolicyRefused, PortRefused, StartOrder

PATIENCE = 20.0


class Place(Protocol):
    """A host on which drivers are made, and the hand that makes containers do things."""

    async def open(self) -> Driver:
        """A new driver on the host, opened: a node that starts."""

    async def drop(self, driver: Driver) -> None:
        """The driver's node is gone without a word; what outlives it goes on."""

    async def close(self) -> None:
        """Remove everything."""

    def hanging(self, order: StartOrder) -> StartOrder:
        """The order changed (or the host told) so that the container exists but the start does not return."""

    def failing(self, order: StartOrder) -> StartOrder:
        """... so that the start fails."""

    knows_listeners: bool
    """Whether its driver refuses a port on which nothing of the container listens; else the connection fails."""

    async def exit(self, handle: Handle, code: int) -> None: ...

    async def signal(self, handle: Handle, number: int) -> None: ...

    async def ignore_sigterm(self, handle: Handle) -> None: ...

    async def write(self, handle: Handle, output: bytes) -> None: ...

    async def listen(self, handle: Handle) -> tuple[int, tuple[str, int]]:
        """Make a process of the container listen; its port and where the proxy should reach it."""


async def until(condition: Callable[[], Awaitable[bool]], what: str) -> None:
    """Look again and again until it holds."""
    ends = reactor.seconds() + PATIENCE  # type: ignore[attr-defined]
    while not await condition():
        if reactor.seconds() > ends:  # type: ignore[attr-defined]
            raise AssertionError(f"never: {what}")
        await deferLater(reactor, 0.005)  # type: ignore[arg-type]


def order(container_id: str, **changes: Any) -> StartOrder:
    return StartOrder(**{"container_id": container_id, "executor_id": "executor-1", "kind": Kind.SANDBOX, **changes})


class DriverContract:
    """Mixed into a trial TestCase with ``make_place``."""

    assertEqual: Any
    assertIn: Any
    assertIsNone: Any
    assertIsNotNone: Any
    assertNotEqual: Any
    assertTrue: Any

    def make_place(self) -> Place:
        raise NotImplementedError

    async def _set_up(self) -> None:
        self.place = self.make_place()
        self.addCleanup(lambda: Deferred.fromCoroutine(self.place.close()))  # type: ignore[attr-defined]
        self.driver = await self.place.open()

    def setUp(self) -> Deferred[None]:
        return Deferred.fromCoroutine(self._set_up())

    async def ended(self, handle: Handle, driver: Driver | None = None) -> ExitStatus:
        told: Deferred[ExitStatus] = Deferred()
        stop = (driver or self.driver).watch(handle, told.callback)
        try:
            return await told.addTimeout(PATIENCE, reactor)  # type: ignore[arg-type]
        finally:
            stop()

    async def refused(self, work: Awaitable[Any], error: type[Exception] = DriverError) -> str:
        try:
            result = await work
        except error as raised:
            return str(raised)
        raise AssertionError(f"no {error.__name__}, but {result!r}")

    async def listed(self, driver: Driver | None = None) -> dict[str, bool]:
        return {found.container_id: found.alive for found in await (driver or self.driver).list_containers()}

    async def test_a_started_container_runs_and_is_listed(self) -> None:
        handle = await self.driver.start(order("a"))
        self.assertEqual(handle.driver, self.driver.name)
        self.assertIsNone(await self.driver.inspect(handle))
        (found,) = await self.driver.list_containers()
        self.assertEqual(
            (found.container_id, found.executor_id, found.kind, found.alive), ("a", "executor-1", Kind.SANDBOX, True)
        )
        self.assertEqual(found.handle, handle)
        for address in (handle.daemon_address, handle.http_address):
            host, _, port = (address or "").rpartition(":")
            self.assertTrue(host and 0 < int(port) < 65536, address)

    async def test_containers_of_other_executors_are_listed_as_theirs(self) -> None:
        await self.driver.start(order("a", executor_id="another"))
        (found,) = await self.driver.list_containers()
        self.assertEqual(found.executor_id, "another")

    async def test_kill_leaves_nothing_and_may_be_repeated(self) -> None:
        handle = await self.driver.start(order("a"))
        await self.driver.kill(handle)
        self.assertEqual(await self.listed(), {})
        self.assertIsNotNone(await self.driver.inspect(handle))
        await self.driver.kill(handle)

    async def test_two_kills_at_once(self) -> None:
        handle = await self.driver.start(order("a"))
        await gatherResults([Deferred.fromCoroutine(self.driver.kill(handle)) for _ in range(2)])
        self.assertEqual(await self.listed(), {})

    async def test_exit_code(self) -> None:
        handle = await self.driver.start(order("a"))
        await self.place.exit(handle, 3)
        self.assertEqual(await self.ended(handle), ExitStatus(code=3))
        self.assertEqual(await self.driver.inspect(handle), ExitStatus(code=3))
        self.assertEqual(await self.listed(), {"a": False})
        await self.driver.kill(handle)
        self.assertEqual(await self.listed(), {})

    async def test_death_by_signal(self) -> None:
        handle = await self.driver.start(order("a"))
        await self.place.signal(handle, 9)
        self.assertEqual(await self.ended(handle), ExitStatus(signal=9))

    async def test_terminate_asks(self) -> None:
        handle = await self.driver.start(order("a"))
        await self.driver.terminate(handle)
        self.assertEqual(await self.ended(handle), ExitStatus(code=0))
        await self.driver.terminate(handle)

    async def test_who_ignores_terminate_is_killed(self) -> None:
        handle = await self.driver.start(order("a"))
        await self.place.ignore_sigterm(handle)
        await self.driver.terminate(handle)
        self.assertIsNone(await self.driver.inspect(handle))
        await self.driver.kill(handle)
        self.assertEqual(await self.listed(), {})

    async def test_each_watch_tells_once_and_not_from_inside(self) -> None:
        handle = await self.driver.start(order("a"))
        told: list[str] = []
        stops = [self.driver.watch(handle, lambda _, name=name: told.append(name)) for name in ("x", "y", "z")]
        stops[2]()
        await self.place.exit(handle, 0)
        await self.ended(handle)

        async def both() -> bool:
            return len(told) >= 2

        await until(both, "both watches told")
        await self.driver.kill(handle)
        self.assertEqual(sorted(told), ["x", "y"])
        for stop in stops:
            stop()
        stop = self.driver.watch(handle, lambda _: told.append("dead"))
        self.assertEqual(sorted(told), ["x", "y"])
        stop()

    async def test_watch_of_an_ended_one_tells_soon(self) -> None:
        handle = await self.driver.start(order("a"))
        await self.place.exit(handle, 7)
        await self.ended(handle)
        self.assertEqual(await self.ended(handle), ExitStatus(code=7))

    async def test_watch_tells_of_a_kill(self) -> None:
        handle = await self.driver.start(order("a"))
        told: Deferred[ExitStatus] = Deferred()
        self.driver.watch(handle, told.callback)
        await self.driver.kill(handle)
        status = await told.addTimeout(PATIENCE, reactor)  # type: ignore[arg-type]
        self.assertIn(status, (ExitStatus(signal=9), ExitStatus()))

    async def test_a_failed_start_leaves_nothing_and_says_why(self) -> None:
        text = await self.refused(self.driver.start(self.place.failing(order("a"))))
        self.assertIn("a", text)
        self.assertEqual(await self.listed(), {})

    async def test_a_cancelled_start_leaves_nothing(self) -> None:
        start = Deferred.fromCoroutine(self.driver.start(self.place.hanging(order("a"))))
        await until(lambda: self._has("a"), "the container exists")
        start.cancel()
        await self.refused(start, CancelledError)
        self.assertEqual(await self.listed(), {})

    async def test_a_start_cancelled_at_once_leaves_nothing(self) -> None:
        start = Deferred.fromCoroutine(self.driver.start(self.place.hanging(order("a"))))
        start.cancel()
        await self.refused(start, CancelledError)
        self.assertEqual(await self.listed(), {})

    async def _has(self, container_id: str) -> bool:
        return container_id in await self.listed()

    async def test_killed_while_it_starts(self) -> None:
        start = Deferred.fromCoroutine(self.driver.start(self.place.hanging(order("a"))))
        failed = Deferred.fromCoroutine(self.refused(start))
        await until(lambda: self._has("a"), "the container exists")
        (found,) = await self.driver.list_containers()
        await self.driver.kill(found.handle)
        start.cancel()
        try:
            await failed
        except CancelledError:
            pass  # it was still about to find out
        self.assertEqual(await self.listed(), {})

    async def test_an_id_runs_once(self) -> None:
        handle = await self.driver.start(order("a"))
        await self.refused(self.driver.start(order("a")))
        self.assertIsNone(await self.driver.inspect(handle))
        self.assertEqual(await self.listed(), {"a": True})

    async def test_a_late_word_about_an_earlier_life_does_not_touch_this_one(self) -> None:
        earlier = await self.driver.start(order("a"))
        await self.driver.kill(earlier)
        now = await self.driver.start(order("a"))
        self.assertNotEqual(earlier.id, now.id)
        await self.driver.terminate(earlier)
        await self.driver.kill(earlier)
        self.assertIsNotNone(await self.driver.inspect(earlier))
        self.assertEqual(await self.ended(earlier), ExitStatus())
        await self.refused(self.driver.upstream(earlier, 9501), PortRefused)
        self.assertIsNone(await self.driver.inspect(now))

    async def test_an_ended_one_makes_room_for_its_id(self) -> None:
        earlier = await self.driver.start(order("a"))
        await self.place.exit(earlier, 1)
        await self.ended(earlier)
        now = await self.driver.start(order("a"))
        self.assertIsNone(await self.driver.inspect(now))
        self.assertEqual(await self.listed(), {"a": True})

    async def test_the_next_node_adopts(self) -> None:
        handles = [await self.driver.start(order(name)) for name in ("a", "b", "c")]
        await self.place.drop(self.driver)
        await self.place.exit(handles[1], 4)
        driver = await self.place.open()

        async def seen() -> bool:
            return await self.listed(driver) == {"a": True, "b": False, "c": True}

        await until(seen, "the next node sees all three")
        adopted = {found.container_id: found.handle for found in await driver.list_containers()}
        self.assertEqual((adopted["a"], adopted["c"]), (handles[0], handles[2]))
        self.assertEqual(adopted["b"].id, handles[1].id)  # its addresses may belong to another by now
        self.assertEqual(await driver.inspect(adopted["b"]), ExitStatus(code=4))
        self.assertEqual(await self.ended(adopted["b"], driver), ExitStatus(code=4))
        await driver.upstream(adopted["a"], 9501)
        await driver.terminate(adopted["a"])
        self.assertEqual(await self.ended(adopted["a"], driver), ExitStatus(code=0))
        for handle in adopted.values():
            await driver.kill(handle)
        self.assertEqual(await self.listed(driver), {})

    async def test_sandboxes_outlive_an_orderly_end(self) -> None:
        handle = await self.driver.start(order("a"))
        await self.driver.close()
        driver = await self.place.open()
        self.assertEqual(await driver.inspect(handle) is None, driver.survives_node(Kind.SANDBOX))

    async def test_logs_are_the_last_lines_whatever_the_bytes(self) -> None:
        handle = await self.driver.start(order("a"))
        self.assertEqual(await self.driver.logs(handle, 5), "")
        await self.place.write(handle, b"one\ntwo\xff\xfe\n" + "drei ä\n".encode())
        self.assertEqual(await self.driver.logs(handle, 2), "two\ufffd\ufffd\ndrei ä")
        self.assertEqual(await self.driver.logs(handle, 0), "")
        self.assertEqual(await self.driver.logs(handle, 100), "one\ntwo\ufffd\ufffd\ndrei ä")
        await self.place.exit(handle, 0)
        await self.ended(handle)
        self.assertEqual(await self.driver.logs(handle, 1), "drei ä")

    async def test_many_at_once(self) -> None:
        names = [f"c{number}" for number in range(6)]
        handles: list[Handle] = await gatherResults(
            [Deferred.fromCoroutine(self.driver.start(order(name))) for name in names]
        )
        self.assertEqual(await self.listed(), dict.fromkeys(names, True))
        self.assertEqual(len({handle.daemon_address for handle in handles}), 6)
        await gatherResults([Deferred.fromCoroutine(self.driver.kill(handle)) for handle in handles])
        self.assertEqual(await self.listed(), {})

    async def test_an_unknown_handle_is_one_that_ended(self) -> None:
        known = await self.driver.start(order("a"))
        for unknown in (
            Handle(self.driver.name, "nobody#1"),
            Handle(self.driver.name, "nobody#1", opaque="{"),
            evolve(known, id="x#1", opaque=""),
        ):
            await self.driver.terminate(unknown)
            await self.driver.kill(unknown)
            self.assertEqual(await self.driver.inspect(unknown), ExitStatus())
            self.assertEqual(await self.driver.logs(unknown, 10), "")
            self.assertEqual(await self.ended(unknown), ExitStatus())
            await self.refused(self.driver.upstream(unknown, 9501), PortRefused)
        self.assertIsNone(await self.driver.inspect(known))

    async def test_a_policy_is_enforced_or_refused(self) -> None:
        wanted = order("a", network_policy=NetworkPolicy(allow_internet=False))
        if self.driver.enforces_policies():
            await self.driver.start(wanted)
        else:
            await self.refused(self.driver.start(wanted), PolicyRefused)
            self.assertEqual(await self.listed(), {})

    async def test_a_frozen_one_stands_still_and_goes_on(self) -> None:
        handle = await self.driver.start(order("c1"))
        await self.driver.thaw(handle)
        if not self.driver.freezes():
            raised = None
            try:
                await self.driver.freeze(handle)
            except DriverError as error:
                raised = error
            self.assertIsNotNone(raised)
            return
        await self.driver.freeze(handle)
        await self.driver.freeze(handle)
        self.assertIsNone(await self.driver.inspect(handle))
        await self.driver.thaw(handle)
        await self.place.exit(handle, 3)
        await self.ended(handle)

    async def test_a_frozen_one_is_ended_and_killed_like_any_other(self) -> None:
        if not self.driver.freezes():
            return
        one, two = await self.driver.start(order("c1")), await self.driver.start(order("c2"))
        for handle in (one, two):
            await self.driver.freeze(handle)
        await self.driver.terminate(one)
        await self.ended(one)
        await self.driver.kill(two)
        self.assertEqual([each.container_id for each in await self.driver.list_containers() if each.alive], [])

    async def test_upstream(self) -> None:
        handle = await self.driver.start(order("a"))
        host, port = await self.driver.upstream(handle, 9501)
        self.assertEqual(f"{host}:{port}", handle.http_address)
        await self.refused(self.driver.upstream(handle, 9500), PortRefused)
        port, address = await self.place.listen(handle)
        self.assertEqual(await self.driver.upstream(handle, port), address)
        other = await self.driver.start(order("b"))
        if self.place.knows_listeners:
            await self.refused(self.driver.upstream(other, port), PortRefused)
        else:
            self.assertNotEqual(await self.driver.upstream(other, port), address)
        await self.driver.kill(handle)
        await self.refused(self.driver.upstream(handle, port), PortRefused)
        await self.refused(self.driver.upstream(handle, 9501), PortRefused)

    async def test_functions(self) -> None:
        handle = await self.driver.start(order("f", kind=Kind.FUNCTION))
        self.assertIsNotNone(handle.daemon_address)
        self.assertIsNone(handle.http_address)
        (found,) = await self.driver.list_containers()
        self.assertEqual((found.kind, found.alive, found.handle.id), (Kind.FUNCTION, True, handle.id))
        await self.refused(self.driver.upstream(handle, 9501), PortRefused)
        await self.place.exit(handle, 3)
        self.assertEqual(await self.ended(handle), ExitStatus(code=3))
        self.assertEqual(await self.driver.inspect(handle), ExitStatus(code=3))
        self.assertEqual(await self.listed(), {"f": False})
        await self.driver.kill(handle)
        self.assertEqual(await self.listed(), {})
        again = await self.driver.start(order("f", kind=Kind.FUNCTION))
        await self.driver.terminate(again)
        self.assertEqual(await self.ended(again), ExitStatus(code=0))
        last = await self.driver.start(order("g", kind=Kind.FUNCTION))
        await self.driver.close()
        driver = await self.place.open()
        self.assertEqual(await driver.inspect(last) is None, driver.survives_node(Kind.FUNCTION))
