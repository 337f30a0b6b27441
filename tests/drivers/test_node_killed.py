"""A node that is killed with SIGKILL: its sandboxes go on and are adopted, its executors are gone, nothing is lost."""

from __future__ import annotations

import json
import os
import signal
import sys
from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.error import ProcessTerminated
from twisted.internet.protocol import ProcessProtocol
from twisted.python.failure import Failure
from twisted.trial.unittest import TestCase

from indexify_dataplane.core.model import ExitStatus, Handle, Kind
from indexify_dataplane.drivers.fork_exec import ForkExecDriver
from indexify_dataplane.drivers.fork_exec.processes import alive
from indexify_dataplane.drivers.fork_exec.run_directory import Life
from tests.contracts.driver import PATIENCE, until
from tests.contracts.driver_fork_exec import ForkExecPlace

NODE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "node.py")
ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))


class _Node(ProcessProtocol):
    """A process that runs the driver; prints one line of JSON when everything is started, or asked to be killed."""

    def __init__(self) -> None:
        self.line: Deferred[Any] = Deferred()
        self.ended: Deferred[int | None] = Deferred()
        self._text = b""
        self._errors = b""

    def outReceived(self, data: bytes) -> None:
        self._text += data
        if b"\n" in self._text and not self.line.called:
            self.line.callback(json.loads(self._text))

    def errReceived(self, data: bytes) -> None:
        self._errors += data

    def processEnded(self, reason: Failure) -> None:
        if not self.line.called:
            self.line.errback(AssertionError(f"the node ended early: {reason.value} {self._errors.decode()}"))
        self.ended.callback(reason.value.signal if isinstance(reason.value, ProcessTerminated) else None)


class NodeKilled(TestCase):
    def setUp(self) -> None:
        self.place = ForkExecPlace(reactor)
        self.addCleanup(lambda: Deferred.fromCoroutine(self.place.close()))

    def node(self, *arguments: str) -> tuple[_Node, Any]:
        protocol = _Node()
        command = [sys.executable, "-m", "tests.drivers.node", self.place.state_dir, self.place.executor, *arguments]
        environment = {**os.environ, "PYTHONPATH": ROOT}
        # In a group of its own, so that a signal to the group is one to the node and its group alone.
        transport = reactor.spawnProcess(protocol, "setsid", ["setsid", *command], env=environment)
        return protocol, transport

    async def adopted(self, driver: ForkExecDriver) -> dict[str, Handle]:
        return {found.container_id: found.handle for found in await driver.list_containers()}

    async def test_sandboxes_go_on_and_executors_do_not(self) -> None:
        node, transport = self.node("a", "b", "f:function")
        started = await node.line.addTimeout(PATIENCE, reactor)
        os.killpg(transport.pid, signal.SIGTERM)
        os.kill(transport.pid, signal.SIGKILL)
        await node.ended
        driver = await self.place.open()
        handles = await self.adopted(driver)
        self.assertEqual({name: handles[name].id for name in handles}, started)
        main = Life.of(handles["f"]).main

        async def gone() -> bool:
            return not alive(main)

        await until(gone, "the executor is gone")
        self.assertEqual(
            {found.container_id: found.alive for found in await driver.list_containers()},
            {"a": True, "b": True, "f": False},
        )
        self.assertEqual(await driver.inspect(handles["f"]), ExitStatus())
        told: Deferred[ExitStatus] = Deferred()
        driver.watch(handles["a"], told.callback)
        await self.place.exit(handles["a"], 6)
        self.assertEqual(await told.addTimeout(PATIENCE, reactor), ExitStatus(code=6))
        self.assertIsNone(await driver.inspect(handles["b"]))
        await driver.kill(handles["b"])
        await driver.kill(handles["f"])
        self.assertEqual(list(await self.adopted(driver)), ["a"])

    async def test_killed_between_spawn_and_record(self) -> None:
        """The sandbox comes up on its own, and the next node, asking at once, gets a handle with addresses."""
        node, _ = self.node("--die-after-spawn", "a")
        await node.line.addTimeout(PATIENCE, reactor)
        self.assertEqual(await node.ended, signal.SIGKILL)
        driver = await self.place.open()
        (found,) = await driver.list_containers()
        self.assertEqual((found.container_id, found.kind, found.alive), ("a", Kind.SANDBOX, True))
        self.assertEqual(await driver.upstream(found.handle, 9501), _address(found.handle.http_address))
        await self.place.exit(found.handle, 2)
        told: Deferred[ExitStatus] = Deferred()
        driver.watch(found.handle, told.callback)
        self.assertEqual(await told.addTimeout(PATIENCE, reactor), ExitStatus(code=2))


def _address(text: str | None) -> tuple[str, int]:
    host, _, port = (text or "").rpartition(":")
    return host, int(port)
