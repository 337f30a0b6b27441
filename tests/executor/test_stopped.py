"""Real executors that stop reading: their process is stopped, connections stay open, and what is sent to them fills the
windows of HTTP/2 and of TCP until nothing goes out any more."""

from __future__ import annotations

import hashlib
import os
import signal
from typing import Any

from attrs import evolve
from twisted.internet.defer import Deferred

from indexify_dataplane.core.model import Failed, FailureReason, Payload, TerminationReason
from indexify_dataplane.executor import client
from indexify_dataplane.perform.executors import StartupFailed
from tests.executor.support import NEW, OLD, Container, ExecutorTestCase

Reason = FailureReason
LARGE = 24 << 20
"""Bytes that fit into no window."""


class Stopped:
    """What the node does with an executor that lives and does nothing."""

    def stop(self: Any, container: Container) -> None:
        container.process.transport.signalProcess("STOP")

    def nothing_is_left(self: Any) -> None:
        self.assertEqual(self.left_over(), [])
        self.assertEqual((self.executors._allocations, self.executors._runs), ({}, {}))
        self.assertEqual(self.clock.getDelayedCalls(), [])

    async def running(self: Any, how: str) -> tuple[Container, Deferred[Any]]:
        container = await self.start("misbehave")
        running = Deferred.fromCoroutine(self.invoke(container, how))
        await container.process.says("begun")
        return container, running

    async def test_out_of_time(self: Any) -> None:
        container, running = await self.running("sleep")
        self.stop(container)
        self.clock.advance(21)
        self.assertEqual(await running, Failed(Reason.FUNCTION_TIMEOUT, blame_container=True))
        self.nothing_is_left()

    async def test_cancelled(self: Any) -> None:
        container = await self.start("misbehave")
        allocation = self.make_allocation(container.spec.id, await self.argument("sleep"))
        running = Deferred.fromCoroutine(self.perform(container, allocation))
        await container.process.says("begun")
        self.stop(container)
        running.cancel()
        self.assertEqual(await running, Failed(Reason.ALLOCATION_CANCELLED, blame_container=True))
        self.nothing_is_left()

    async def test_for_a_moment_only(self: Any) -> None:
        container, running = await self.running("nap")
        self.stop(container)
        with self.assertRaises(Exception) as caught:
            await self.executors.healthy(container.handle, 0.2)
        self.assertIn("DEADLINE_EXCEEDED", str(caught.exception))
        container.process.transport.signalProcess(signal.SIGCONT)
        self.assertEqual(await self.value(await running), "nap")
        self.nothing_is_left()

    async def test_an_allocation_that_does_not_fit_into_the_window(self: Any) -> None:
        self.patch(client, "CREATE_SECONDS", 1.0)
        container = await self.start("misbehave")
        self.stop(container)
        argument = await self.argument("fine")
        allocation = self.make_allocation(container.spec.id, argument, metadata=bytes(LARGE))
        outcome = await self.perform(container, allocation)
        self.assertEqual(outcome, Failed(Reason.INTERNAL_ERROR, blame_container=True))
        self.nothing_is_left()

    async def test_code_that_does_not_fit_into_the_window(self: Any) -> None:
        container = await self.launch("misbehave", initialization_timeout_ms=1500)
        code = os.urandom(LARGE)
        uri = f"{self.base}/large.zip"
        await self.blobs.put(uri, [code])
        digest = hashlib.sha256(code).hexdigest()
        large = Payload(uri=uri, encoding=4, encoding_version=0, size=LARGE, sha256=digest)
        container.spec = evolve(container.spec, application=large)
        load = self.executors._code_cache.load

        async def stop_first(payload: Payload) -> bytes:
            data: bytes = await load(payload)
            self.stop(container)
            return data

        self.patch(self.executors._code_cache, "load", stop_first)
        with self.assertRaises(StartupFailed) as caught:
            await self.executors.initialize(container.spec, container.handle, lambda: container.process.gone)
        self.assertEqual(caught.exception.reason, TerminationReason.STARTUP_FAILED_FUNCTION_TIMEOUT)
        self.nothing_is_left()


class StateProtocol(Stopped, ExecutorTestCase):
    release = OLD


class EventLog(Stopped, ExecutorTestCase):
    release = NEW


del ExecutorTestCase
