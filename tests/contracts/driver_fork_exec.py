"""The place of the fork-exec driver: real processes, the stand-in daemon told over its port."""

from __future__ import annotations

import base64
import os
import shutil
import sys
import tempfile
from collections.abc import Mapping
from typing import Any

from attrs import evolve
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import TCP4ClientEndpoint, connectProtocol
from twisted.protocols.basic import LineOnlyReceiver
from twisted.python.failure import Failure

from indexify_dataplane.config_model import ForkExec
from indexify_dataplane.core.model import Handle
from indexify_dataplane.drivers.base import Driver, StartOrder
from indexify_dataplane.drivers.fork_exec import ForkExecDriver
from indexify_dataplane.reactor import Pool

STANDIN = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "drivers", "standin.py")


class _Line(LineOnlyReceiver):
    """One order and its answer; an end without an answer is one, too."""

    delimiter = b"\n"
    MAX_LENGTH = 1 << 20

    def __init__(self) -> None:
        self.answer: Deferred[str] = Deferred()

    def lineReceived(self, line: bytes) -> None:
        if not self.answer.called:
            self.answer.callback(line.decode())
        if self.transport is not None:
            self.transport.loseConnection()

    def connectionLost(self, reason: Failure = None) -> None:  # type: ignore[assignment]
        if not self.answer.called:
            self.answer.callback("")
        self.lost.callback(None)

    def connectionMade(self) -> None:
        self.lost: Deferred[None] = Deferred()


async def tell(reactor: Any, handle: Handle, line: str) -> str:
    """Have the stand-in behind ``handle`` do something; its answer."""
    host, _, port = (handle.daemon_address or "").rpartition(":")
    connection = await connectProtocol(TCP4ClientEndpoint(reactor, host, int(port)), _Line())
    connection.sendLine(line.encode())
    answer = await connection.answer
    await connection.lost
    return answer


class ForkExecPlace:
    """A state directory; every driver on it is a node of its own."""

    knows_listeners = True

    def __init__(self, reactor: Any, settings: ForkExec | None = None) -> None:
        self.reactor = reactor
        self.settings = settings or ForkExec()
        self.state_dir = tempfile.mkdtemp(prefix="fork-exec-")
        self._open: list[tuple[ForkExecDriver, Pool]] = []
        self.executor = os.path.join(self.state_dir, "function-executor")
        with open(self.executor, "w") as file:
            file.write(f'#!/bin/sh\nexec {sys.executable} -I -S {STANDIN} "$@"\n')
        os.chmod(self.executor, 0o755)

    async def open(self, environment: Mapping[str, str] | None = None, **changes: Any) -> ForkExecDriver:
        pool = Pool(self.reactor, "fork-exec", 4)
        driver = ForkExecDriver(
            **{
                "reactor": self.reactor,
                "state_dir": self.state_dir,
                "executor_id": "executor-1",
                "settings": self.settings,
                "pool": pool,
                "fe_binary_path": self.executor,
                "daemon_command": [sys.executable, "-I", "-S", STANDIN],
                "environment": environment,
                **changes,
            }
        )
        pool.start()
        await driver.open()
        self._open.append((driver, pool))
        return driver

    async def drop(self, driver: Driver) -> None:
        """It only stops looking: nothing that it started is told anything."""
        for opened, _ in self._open:
            if opened is driver:
                opened._sandboxes.close()

    async def close(self) -> None:
        driver = await self.open()
        drivers, self._open = self._open, []
        try:
            for found in await driver.list_containers():
                await driver.kill(found.handle)
            for driver, _ in drivers:
                await driver.close()
        finally:
            for _, pool in drivers:
                pool.stop()
            shutil.rmtree(self.state_dir)

    def hanging(self, order: StartOrder) -> StartOrder:
        return evolve(order, argv=("hang",))

    def failing(self, order: StartOrder) -> StartOrder:
        return evolve(order, argv=("fail",))

    async def tell(self, handle: Handle, line: str) -> str:
        return await tell(self.reactor, handle, line)

    async def exit(self, handle: Handle, code: int) -> None:
        await self.tell(handle, f"exit {code}")

    async def signal(self, handle: Handle, number: int) -> None:
        await self.tell(handle, f"signal {number}")

    async def ignore_sigterm(self, handle: Handle) -> None:
        await self.tell(handle, "ignore-term")

    async def write(self, handle: Handle, output: bytes) -> None:
        await self.tell(handle, "print " + base64.b64encode(output).decode())

    async def listen(self, handle: Handle) -> tuple[int, tuple[str, int]]:
        _, port = (await self.tell(handle, "child")).split()
        return int(port), ("127.0.0.1", int(port))
