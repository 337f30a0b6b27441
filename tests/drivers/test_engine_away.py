"""Starts whose engine is away for a moment: a real engine behind a socket that comes, goes and loses answers."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.protocol import ClientFactory, Factory, Protocol, connectionDone
from twisted.logger import LogLevel, globalLogPublisher
from twisted.python.failure import Failure
from twisted.trial.unittest import TestCase

from indexify_dataplane.config_model import DockerDriver as Section
from indexify_dataplane.core.model import Handle, Kind, TerminationReason
from indexify_dataplane.drivers.base import DriverError
from indexify_dataplane.drivers.docker import names
from indexify_dataplane.drivers.docker.driver import DockerDriver
from indexify_dataplane.drivers.threaded import ThreadedDriver
from tests.contracts.driver import order, until
from tests.engine import require
from tests.guestbundle.sources import real_daemon

BEGINS, GOES_ON = "waiting for the Docker engine, which is away", "the Docker engine is back, the start goes on"
SLEEP = ("/bin/sleep", "1000")


class _Caller(Protocol):
    """One connection of the driver."""

    def __init__(self, front: Front) -> None:
        self._front = front
        self._loses = False
        self._waiting = b""
        self.engine: _Engine | None = None

    def connectionMade(self) -> None:
        self._front.callers.add(self)
        made = _ToEngine.forProtocol(lambda: _Engine(self))
        reactor.connectUNIX(self._front.engine_path, made)  # type: ignore[attr-defined]

    def dataReceived(self, data: bytes) -> None:
        request = data.partition(b"\r\n")[0].decode(errors="replace")
        if self._front.loses is not None and self._front.loses in request:
            self._front.loses, self._loses = None, True
        if self.engine is None:
            self._waiting += data
        else:
            self.engine.transport.write(data)  # type: ignore[attr-defined]

    def connected_to(self, engine: _Engine) -> None:
        self.engine = engine
        engine.transport.write(self._waiting)  # type: ignore[attr-defined]

    def answered(self, data: bytes) -> None:
        if self._loses:
            if self._front.leaves_then:
                self._front.leave()
            self.transport.abortConnection()  # type: ignore[attr-defined]
        else:
            self.transport.write(data)  # type: ignore[attr-defined]

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self._front.callers.discard(self)
        if self.engine is not None:
            self.engine.transport.loseConnection()  # type: ignore[attr-defined]


class _ToEngine(ClientFactory):
    noisy = False


class _Engine(Protocol):
    def __init__(self, caller: _Caller) -> None:
        self._caller = caller

    def connectionMade(self) -> None:
        self._caller.connected_to(self)

    def dataReceived(self, data: bytes) -> None:
        self._caller.answered(data)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self._caller.transport.loseConnection()  # type: ignore[attr-defined]


class Front(Factory):
    """An engine's socket at another path. ``loses``: the answer to the next request whose first line has this is lost,
    and with ``leaves_then`` the engine is away from then on."""

    noisy = False

    def __init__(self, engine_path: str, path: str) -> None:
        self.engine_path, self.path = engine_path, path
        self.callers: set[_Caller] = set()
        self.loses: str | None = None
        self.leaves_then = False
        self._port: Any = None

    def buildProtocol(self, address: Any) -> Protocol:
        return _Caller(self)

    def come(self) -> None:
        self._port = reactor.listenUNIX(self.path, self)  # type: ignore[attr-defined]

    def leave(self) -> Deferred[None] | None:
        port, self._port = self._port, None
        for each in list(self.callers):
            each.transport.abortConnection()  # type: ignore[attr-defined]
        return port.stopListening() if port is not None else None  # type: ignore[no-any-return]


class EngineAway(TestCase):
    def setUp(self) -> None:
        self.engine = require(self)
        self.image = self.engine.image("busybox")
        self.directory = tempfile.mkdtemp(prefix="engine-away-")
        self.addCleanup(shutil.rmtree, self.directory)
        bundle = real_daemon()
        shutil.copytree(bundle.path, Path(self.directory, "bundles", bundle.path.name))
        self.front = Front(self.engine.address.removeprefix("unix://"), os.path.join(self.directory, "engine.sock"))
        self.front.come()
        self.addCleanup(lambda: self.front.leave())
        self.name = os.path.basename(self.directory)
        self.addCleanup(self.discard)
        self.told: list[Any] = []
        globalLogPublisher.addObserver(self.told.append)
        self.addCleanup(globalLogPublisher.removeObserver, self.told.append)

    def there(self) -> list[Any]:
        api = self.engine.client.api
        return list(api.containers(all=True, filters={"label": [f"{names.CONTAINER}={self.name}"]}))

    def discard(self) -> None:
        for each in self.there():
            self.engine.client.api.remove_container(each["Id"], force=True, v=True)

    def lines(self, message: str, level: LogLevel) -> list[Any]:
        return [each for each in self.told if each["log_level"] is level and each["log_format"] == message]

    async def waits(self) -> None:
        async def told() -> bool:
            return bool(self.lines(BEGINS, LogLevel.warn))

        await until(told, "the start waits for the engine")

    async def opened(self, startup_timeout: float = 60.0) -> ThreadedDriver:
        driver = DockerDriver(
            settings={Kind.SANDBOX: Section()}, address=f"unix://{self.front.path}", state_dir=self.directory,
            pull_timeout=30.0, environ={}, startup_timeout=startup_timeout,
        )  # fmt: skip
        made = ThreadedDriver(reactor=reactor, driver=driver, poll_interval=60.0)
        await made.open()
        self.addCleanup(lambda: None if made.closed else Deferred.fromCoroutine(made.close()))
        return made

    def start(self, driver: ThreadedDriver) -> Deferred[Handle]:
        return Deferred.fromCoroutine(driver.start(order(self.name, image=self.image, argv=SLEEP)))

    async def test_a_driver_opens_though_the_engine_goes_away_between_two_answers(self) -> None:
        self.front.loses = "/info"
        driver = await self.opened()
        self.assertIsNone(self.front.loses)
        self.assertEqual(len(self.lines("waiting for the Docker engine", LogLevel.warn)), 1)
        handle = await self.start(driver)
        self.assertEqual([each["Id"] for each in self.there()], [handle.id])

    async def test_a_start_waits_until_it_is_back(self) -> None:
        driver = await self.opened()
        self.front.leave()
        starting = self.start(driver)
        await self.waits()
        self.assertNoResult(starting)
        self.front.come()
        handle = await starting
        self.assertEqual([each["Id"] for each in self.there()], [handle.id])
        (begins,), (goes_on,) = self.lines(BEGINS, LogLevel.warn), self.lines(GOES_ON, LogLevel.info)
        self.assertEqual((begins["container_id"], goes_on["container_id"]), (self.name, self.name))
        self.assertIn("the engine cannot be reached", begins["error"])

    async def test_a_start_that_is_given_up_meanwhile_ends_at_once(self) -> None:
        driver = await self.opened()
        self.front.leave()
        starting = self.start(driver)
        await self.waits()
        began = reactor.seconds()  # type: ignore[attr-defined]
        starting.cancel()
        with self.assertRaises(CancelledError):
            await starting
        self.assertLess(reactor.seconds() - began, 5.0)  # type: ignore[attr-defined]

    async def test_so_does_one_whose_driver_is_closed(self) -> None:
        driver = await self.opened()
        self.front.leave()
        starting = self.start(driver)
        await self.waits()
        began = reactor.seconds()  # type: ignore[attr-defined]
        await driver.close()
        with self.assertRaisesRegex(DriverError, "the engine cannot be reached"):
            await starting
        self.assertLess(reactor.seconds() - began, 5.0)  # type: ignore[attr-defined]

    async def test_an_engine_that_stays_away_fails_the_start(self) -> None:
        driver = await self.opened(startup_timeout=0.5)
        self.front.leave()
        try:
            await self.start(driver)
        except DriverError as error:
            self.assertIn("the engine cannot be reached: ", str(error))
            self.assertIn("0.5 of 0.5 s (startup_timeout_secs)", str(error))
            self.assertIs(error.reason, TerminationReason.STARTUP_FAILED_INTERNAL_ERROR)
        else:
            self.fail("started without an engine")
        self.assertEqual(len(self.lines(BEGINS, LogLevel.warn)), 1)

    async def test_a_lost_answer_makes_no_second_container(self) -> None:
        driver = await self.opened()
        for request in ("/containers/create", "/start"):
            self.front.loses = request
            handle = await self.start(driver)
            self.assertIsNone(self.front.loses)
            self.assertEqual([each["Id"] for each in self.there()], [handle.id], request)
            self.assertIsNone(await driver.inspect(handle))
            await driver.kill(handle)

    async def test_what_cannot_be_cleaned_up_is_when_it_is_back(self) -> None:
        """The answer is lost, the engine away, and the time over; the container was made, or runs."""
        driver = await self.opened(startup_timeout=0.3)
        self.front.leaves_then = True
        for request in ("/containers/create", "/start"):
            self.front.loses = request
            with self.assertRaisesRegex(DriverError, "the engine cannot be reached|the connection to the engine broke"):
                await self.start(driver)
            self.assertEqual(len(self.there()), 1, request)
            self.front.come()

            async def gone() -> bool:
                return not self.there()

            await until(gone, "the container is gone")
