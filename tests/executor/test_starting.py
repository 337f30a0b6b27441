"""Executors that cannot be used: each start ends with a sentence."""

from __future__ import annotations

import grpc
from twisted.internet.defer import Deferred

from indexify_dataplane.core.model import (
    FailureReason,
    TerminationReason,
)
from indexify_dataplane.perform.executors import StartupFailed
from tests.executor.scripted_case import ScriptedTestCase

Code = grpc.StatusCode
Reason = FailureReason


class Starting(ScriptedTestCase):
    """The gate and the mapping of failures at startup."""

    async def refused(self, **info: str) -> StartupFailed:
        await self.connect()
        await self.executors.release("c1")
        for name, value in info.items():
            setattr(self.executor.info, name, value)
        with self.assertRaises(StartupFailed) as caught:
            await self.executors.initialize(self.spec, self.handle, lambda: False)
        self.assertEqual(caught.exception.reason, TerminationReason.STARTUP_FAILED_INTERNAL_ERROR)
        return caught.exception

    async def test_an_unknown_version_is_named_with_what_is_supported(self) -> None:
        text = str(await self.refused(version="0.2.0", sdk_version="0.6.1"))
        for part in ("0.2.0", "tensorlake 0.6.1", "0.2.98 to 0.4.31", "0.4.32 to 0.5"):
            self.assertIn(part, text)

    async def test_a_release_without_ids_is_refused(self) -> None:
        self.assertIn("0.2.97", str(await self.refused(version="0.1.1", sdk_version="0.2.97")))

    async def test_an_application_without_code_is_refused(self) -> None:
        await self.connect()
        self.executor.initialized = False
        with self.assertRaises(StartupFailed) as caught:
            await self.executors.initialize(self.spec, self.handle, lambda: False)
        self.assertIn("no application code", str(caught.exception))

    async def test_a_process_that_dies_first_is_not_waited_for(self) -> None:
        await self.connect()
        await self.executor.stop()
        with self.assertRaises(StartupFailed) as caught:
            await self.executors.initialize(self.spec, self.handle, lambda: True)
        self.assertIn("ended while it started", str(caught.exception))

    async def test_nobody_listens_for_a_minute(self) -> None:
        await self.connect()
        await self.executor.stop()
        starting = Deferred.fromCoroutine(self.executors.initialize(self.spec, self.handle, lambda: False))
        await self.until(lambda: self.clock.getDelayedCalls() or starting.called)
        self.clock.advance(61)
        with self.assertRaises(StartupFailed) as caught:
            await starting
        self.assertIn("60 s", str(caught.exception))

    async def test_a_start_can_be_cancelled(self) -> None:
        await self.connect()
        await self.executor.stop()
        starting = Deferred.fromCoroutine(self.executors.initialize(self.spec, self.handle, lambda: False))
        starting.cancel()
        await self.assertFailure(starting, Exception)
