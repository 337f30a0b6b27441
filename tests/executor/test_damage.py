"""Real executors whose arguments, results and children's values are cut off, changed or cannot be stored on the way:
the node's failure, never the user's, and the container goes on."""

from __future__ import annotations

import hashlib
from typing import Any

from attrs import evolve
from twisted.internet.defer import Deferred

from indexify_dataplane.blobs.s3 import S3Settings, S3Store
from indexify_dataplane.core.model import Completed, Failed, FailureReason, Payload
from tests.blobs.faulty_s3 import COMPLETE, GET, PUT_PART, FaultyS3
from tests.blobs.moto_server import ENVIRONMENT, REGION, endpoint, new_bucket, set_environment
from tests.executor.support import NEW, OLD, Container, ExecutorTestCase

Reason = FailureReason


class Damage:
    """In files and in S3 alike."""

    async def fails(self: Any, container: Container, argument: Payload) -> Failed:
        outcome = await self.perform(container, self.make_allocation(container.spec.id, argument))
        self.assertIsInstance(outcome, Failed)
        self.assertEqual((outcome.reason, outcome.blame_container), (Reason.INTERNAL_ERROR, False))
        await self.nothing_is_left()
        return outcome  # type: ignore[no-any-return]

    async def nothing_is_left(self: Any) -> None:
        self.assertEqual(list(await self.blobs.open_uploads(f"{self.base}/ns/app/")), [])
        self.assertEqual((self.executors._allocations, self.executors._runs), ({}, {}))

    async def test_arguments_that_are_not_what_was_announced(self: Any) -> None:
        container = await self.start("greet")
        argument = await self.argument("World")
        await self.fails(container, evolve(argument, sha256=hashlib.sha256(b"something else").hexdigest()))
        await self.fails(container, evolve(argument, size=argument.size + 10))
        await self.fails(container, evolve(argument, uri=f"{argument.uri}-gone"))
        self.assertEqual(await self.value(await self.invoke(container, "World")), "hello World")
        await self.nothing_is_left()

    async def test_a_childs_value_that_is_damaged_when_it_arrives(self: Any) -> None:
        container = await self.start("catch_anything")
        await self.start("double")
        self.hold_children = True
        requested = self.request()
        running = Deferred.fromCoroutine(self.invoke(container, 4))
        request = await requested
        (update,) = request.updates.updates
        damaged = False

        def result(call_id: str, outcome: Completed) -> bytes:
            nonlocal damaged
            damaged = True
            wrong = evolve(outcome.value, sha256=hashlib.sha256(b"something else").hexdigest())
            return ExecutorTestCase.result(self, call_id, evolve(outcome, value=wrong))

        self.patch(self, "result", result)
        await self.run_call(update.function_call)
        outcome = await running
        self.assertTrue(damaged)
        if isinstance(outcome, Failed):  # Newer releases end the allocation, older ones tell its code.
            self.assertEqual((outcome.reason, outcome.blame_container), (Reason.INTERNAL_ERROR, False))
        else:
            self.assertIn("Error", await self.value(outcome))
        await self.nothing_is_left()


class InFiles(Damage):
    """A store that is a directory."""

    async def nothing_is_left(self: Any) -> None:
        self.assertEqual(self.left_over(), [])


class InS3(Damage):
    """A store whose answers can be disturbed."""

    def setUp(self: Any) -> None:
        set_environment(ENVIRONMENT, self.addCleanup)
        self.faulty = FaultyS3()
        self.addCleanup(self.faulty.close)
        self.s3 = S3Settings(endpoint_url=self.faulty.endpoint, region=REGION)
        super().setUp()
        self.base = f"s3://{new_bucket()}/base"
        self.undisturbed = S3Store(S3Settings(endpoint_url=endpoint(), region=REGION))

    async def test_answers_that_are_cut_off_or_refused_are_asked_for_again(self: Any) -> None:
        container = await self.start("greet")
        argument = await self.argument("World")
        cut = self.faulty.cut(GET, times=1)
        busy = self.faulty.refuse(PUT_PART, times=2)
        outcome = await self.perform(container, self.make_allocation(container.spec.id, argument))
        self.assertEqual(await self.value(outcome), "hello World")
        self.assertEqual((len(cut.met), len(busy.met)), (1, 2))
        await self.nothing_is_left()

    async def test_arguments_that_are_changed_on_the_way(self: Any) -> None:
        container = await self.start("greet")
        argument = await self.argument("World")
        changed = self.faulty.change(GET, lambda body: body.replace(b"World", b"Earth"))
        await self.fails(container, argument)
        changed.lift()
        self.assertEqual(await self.value(await self.invoke(container, "World")), "hello World")

    async def test_a_result_that_no_store_takes(self: Any) -> None:
        container = await self.start("greet")
        for pattern, status in ((PUT_PART, "503 Slow Down"), (PUT_PART, "403 Forbidden"), (COMPLETE, "403 Forbidden")):
            argument = await self.argument("World")
            refused = self.faulty.refuse(pattern, status)
            await self.fails(container, argument)
            self.assertTrue(refused.met, pattern)
            refused.lift()
        self.assertEqual(await self.value(await self.invoke(container, "World")), "hello World")


class StateProtocolInFiles(InFiles, ExecutorTestCase):
    release = OLD


class EventLogInFiles(InFiles, ExecutorTestCase):
    release = NEW


class StateProtocolInS3(InS3, ExecutorTestCase):
    release = OLD


class EventLogInS3(InS3, ExecutorTestCase):
    release = NEW
