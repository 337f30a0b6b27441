"""The fork-exec driver with the daemon that ships."""

from __future__ import annotations

import json
import os

from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import TCP4ClientEndpoint, connectProtocol
from twisted.internet.protocol import Protocol
from twisted.python.failure import Failure
from twisted.trial.unittest import TestCase

from indexify_dataplane.core.model import ExitStatus
from indexify_dataplane.drivers.fork_exec import guest_command
from indexify_dataplane.drivers.fork_exec.processes import alive, below, table
from indexify_dataplane.drivers.fork_exec.run_directory import Life
from tests.contracts.driver import PATIENCE, order, until
from tests.contracts.driver_fork_exec import ForkExecPlace


class _Get(Protocol):
    """One HTTP/1.0 request; the whole answer."""

    def __init__(self, path: str) -> None:
        self.answer: Deferred[bytes] = Deferred()
        self._path = path
        self._received = b""

    def connectionMade(self) -> None:
        self.transport.write(f"GET {self._path} HTTP/1.0\r\nHost: x\r\nConnection: close\r\n\r\n".encode())

    def dataReceived(self, data: bytes) -> None:
        self._received += data

    def connectionLost(self, reason: Failure = None) -> None:  # type: ignore[assignment]
        self.answer.callback(self._received)


async def get(address: tuple[str, int], path: str) -> bytes:
    connection = await connectProtocol(TCP4ClientEndpoint(reactor, *address), _Get(path))
    return await connection.answer.addTimeout(PATIENCE, reactor)


class RealDaemon(TestCase):
    def setUp(self) -> None:
        self.place = ForkExecPlace(reactor)
        self.addCleanup(lambda: Deferred.fromCoroutine(self.place.close()))

    async def test_it_serves_runs_the_entrypoint_and_ends_in_order(self) -> None:
        driver = await self.place.open(daemon_command=guest_command())
        entrypoint = ("python3", "-u", "-m", "http.server", "0", "--bind", "127.0.0.1")
        handle = await driver.start(order("a", argv=entrypoint))
        health = await get(await driver.upstream(handle, 9501), "/api/v1/health")
        self.assertTrue(json.loads(health.partition(b"\r\n\r\n")[2])["healthy"])

        async def serving() -> bool:
            return "Serving HTTP" in await driver.logs(handle, 20)

        await until(serving, "the entrypoint serves")
        port = int((await driver.logs(handle, 20)).partition("127.0.0.1 port ")[2].split()[0])
        self.assertTrue((await get(await driver.upstream(handle, port), "/")).startswith(b"HTTP/1.0 200"))
        supervisor = Life.of(handle).supervisor
        rows = table()
        tree = [rows[pid].process for pid in below(rows, [supervisor.pid])]
        self.assertEqual(len(tree), 2)
        told: Deferred[ExitStatus] = Deferred()
        driver.watch(handle, told.callback)
        await driver.terminate(handle)
        self.assertEqual(await told.addTimeout(PATIENCE, reactor), ExitStatus(code=0))
        self.assertFalse(any(alive(process) for process in tree))
        await driver.kill(handle)
        self.assertEqual(os.listdir(os.path.join(self.place.state_dir, "fork_exec")), [])
