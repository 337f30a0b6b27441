"""A store that answers late or not at all, in every part of an allocation's life, over real HTTP and a real client: one
outcome, in time where somebody waits for it, and no upload that nobody ends."""

from __future__ import annotations

import hashlib

from attrs import evolve
from twisted.internet.defer import CancelledError, Deferred

from indexify_dataplane.blobs.base import BlobError
from indexify_dataplane.blobs.s3 import S3Settings, S3Store
from indexify_dataplane.blobs.stores import Blobs
from indexify_dataplane.core.model import Completed, Failed, FailureReason, Payload, TerminationReason
from indexify_dataplane.perform.executors import StartupFailed
from indexify_dataplane.wireproto import function_executor_pb2 as fe
from tests.blobs.faulty_s3 import ABORT, COMPLETE, CREATE, GET, Fault, FaultyS3
from tests.blobs.moto_server import ENVIRONMENT, REGION, endpoint, new_bucket, set_environment
from tests.contracts.blob_store import put_part
from tests.executor.scripted_case import ScriptedTestCase

Reason = FailureReason
CANCELLED = Failed(Reason.ALLOCATION_CANCELLED)


class S3TestCase(ScriptedTestCase):
    """The executor is scripted, the store is not."""

    read_timeout = 60.0

    def setUp(self) -> None:
        set_environment(ENVIRONMENT, self.addCleanup)
        super().setUp()
        self.s3 = FaultyS3()
        self.addCleanup(self.s3.close)
        self.base = f"s3://{new_bucket()}/base"
        self.undisturbed = S3Store(S3Settings(endpoint_url=endpoint(), region=REGION))

    def make_blobs(self) -> Blobs:
        settings = S3Settings(endpoint_url=self.s3.endpoint, region=REGION, read_timeout=self.read_timeout)
        return Blobs(clock=self.clock, calls=self.pool, metrics=self.metrics, s3=settings)

    async def met(self, fault: Fault, count: int = 1) -> None:
        await self.until(lambda: len(fault.met) >= count)

    async def nothing_is_left(self) -> None:
        """Soon no upload is open; nothing of the allocation is kept and no timer runs."""
        await self.until(lambda: not self.undisturbed.open_uploads(self.base))
        self.assertEqual((self.executors._allocations, self.executors._runs), ({}, {}))
        self.assertEqual(self.clock.getDelayedCalls(), [])

    async def next_one_runs(self) -> None:
        """The slot is free and the store serves."""
        self.allocation = self.make_allocation("c1")
        await self.executors.prepare(self.allocation)
        running = Deferred.fromCoroutine(self.executors.run(self.allocation, self.handle, 60_000, lambda request: None))
        self.succeed(await self.written(number=len(self.executor.updates) + 1))
        self.assertIsInstance(await self.finalized(running), Completed)
        await self.nothing_is_left()

    def write(self, operation_id: str) -> fe.AllocationRequestStateOperation:
        write = fe.AllocationRequestStatePrepareWriteOperation(size=5)
        return fe.AllocationRequestStateOperation(operation_id=operation_id, state_key="key", prepare_write=write)


class SlowStore(S3TestCase):
    """An allocation that ends while the store is busy with it."""

    async def test_killed_while_its_preparation_hangs(self) -> None:
        await self.connect()
        creating = self.s3.hold(CREATE)
        allocation = self.make_allocation("c1")
        preparing = Deferred.fromCoroutine(self.executors.prepare(allocation))
        await self.met(creating)
        self.assertEqual(await self.executors.finalize(allocation, CANCELLED), CANCELLED)
        creating.lift()
        await self.assertFailure(preparing, BlobError)
        await self.next_one_runs()

    async def test_a_preparation_that_is_given_up(self) -> None:
        await self.connect()
        creating = self.s3.hold(CREATE)
        allocation = self.make_allocation("c1")
        preparing = Deferred.fromCoroutine(self.executors.prepare(allocation))
        await self.met(creating)
        preparing.cancel()
        await self.assertFailure(preparing, CancelledError)
        self.assertEqual(await self.executors.finalize(allocation, CANCELLED), CANCELLED)
        creating.lift()
        await self.next_one_runs()

    async def test_cancelled_while_a_place_for_its_result_is_made(self) -> None:
        running = await self.begin()
        creating = self.s3.hold(CREATE)
        self.executor.state(output_blob_requests=[fe.AllocationOutputBLOBRequest(id="out", size=6)])
        await self.met(creating)
        running.cancel()
        self.assertEqual(await self.finalized(running), CANCELLED)
        creating.lift()
        await self.next_one_runs()

    async def test_out_of_time_while_a_place_for_its_result_is_made(self) -> None:
        running = await self.begin(timeout_ms=5000)
        creating = self.s3.hold(CREATE)
        self.executor.state(output_blob_requests=[fe.AllocationOutputBLOBRequest(id="out", size=6)])
        await self.met(creating)
        self.clock.advance(6)
        self.assertEqual(await self.finalized(running), Failed(Reason.FUNCTION_TIMEOUT))
        creating.lift()
        await self.next_one_runs()

    async def test_cancelled_while_its_state_is_written(self) -> None:
        running = await self.begin()
        creating = self.s3.hold(CREATE)
        self.executor.state(request_state_operations=[self.write("1")])
        await self.met(creating)
        running.cancel()
        self.assertEqual(await self.finalized(running), CANCELLED)
        creating.lift()
        await self.next_one_runs()

    async def test_cancelled_while_its_state_is_committed(self) -> None:
        running = await self.begin()
        self.executor.state(request_state_operations=[self.write("1")])
        blob = (await self.updated(1))[0].request_state_operation_result.prepare_write.blob
        blob.chunks[0].etag = put_part(blob.chunks[0].uri, 0, b"value")
        completing = self.s3.hold(COMPLETE)
        commit = fe.AllocationRequestStateCommitWriteOperation(blob=blob)
        operation = fe.AllocationRequestStateOperation(operation_id="2", state_key="key", commit_write=commit)
        self.executor.state(request_state_operations=[operation])
        await self.met(completing)
        running.cancel()
        self.assertEqual(await self.finalized(running), CANCELLED)
        completing.lift()
        await self.next_one_runs()

    async def test_cancelled_while_the_arguments_of_its_call_are_completed(self) -> None:
        running = await self.begin()
        blob = await self.written(b"args", "args")
        completing = self.s3.hold(COMPLETE)
        call = fe.AllocationFunctionCall(id="1", updates=self.plan("f1"), args_blob=blob)
        self.executor.state(function_calls=[call])
        await self.met(completing)
        running.cancel()
        self.assertEqual(await self.finalized(running), CANCELLED)
        completing.lift()
        await self.next_one_runs()
        self.assertEqual(self.called, [], "the server must not hear of a call of an allocation that is over")

    async def test_a_result_whose_store_is_slow_is_late_and_complete(self) -> None:
        running = await self.begin()
        self.succeed(await self.written())
        completing, aborting = self.s3.hold(COMPLETE), self.s3.hold(ABORT)
        finalizing = Deferred.fromCoroutine(self.finalized(running))
        await self.met(completing)
        await self.met(aborting)  # of the place for a request error, at the same time
        self.assertFalse(finalizing.called)
        aborting.lift()
        completing.lift()
        outcome = await finalizing
        self.assertIsInstance(outcome, Completed)
        self.assertEqual(b"".join(self.undisturbed.read(outcome.value.uri)), b"result")
        await self.nothing_is_left()

    async def test_uploads_that_cannot_be_aborted_at_first(self) -> None:
        running = await self.begin()
        aborting = self.s3.refuse(ABORT, times=6)  # The client itself asks three times.
        running.cancel()
        finalizing = Deferred.fromCoroutine(self.finalized(running))
        await self.pass_time(finalizing)
        self.assertEqual(await finalizing, CANCELLED)
        self.assertEqual(len(aborting.met), 6)
        await self.nothing_is_left()

    async def test_a_store_that_is_down_for_long_costs_the_uploads_and_not_the_outcome(self) -> None:
        running = await self.begin()
        self.s3.refuse(ABORT)
        running.cancel()
        finalizing = Deferred.fromCoroutine(self.finalized(running))
        await self.pass_time(finalizing)
        self.assertEqual(await finalizing, CANCELLED)
        self.assertEqual(self.executors._allocations, {})
        (left,) = self.undisturbed.open_uploads(self.base)
        self.assertTrue(left.uri.endswith(f"{self.allocation.id}.req_error"))


class AnswersLost(S3TestCase):
    """What was asked is carried out, and the answer comes after the client has given up waiting."""

    read_timeout = 0.3

    async def test_a_completion_whose_answer_is_lost(self) -> None:
        running = await self.begin()
        self.succeed(await self.written())
        self.s3.hold_answer(COMPLETE, times=1)
        outcome = await self.finalized(running)
        self.assertIsInstance(outcome, Completed)
        self.assertEqual(b"".join(self.undisturbed.read(outcome.value.uri)), b"result")
        await self.nothing_is_left()


class SlowCode(S3TestCase):
    """The application's code on its way to an executor that is not initialized."""

    async def starting(self, data: bytes = b"code" * 1000) -> Deferred[None]:
        await self.connect()
        await self.executors.release("c1")
        self.executor.initialized = False
        uri = f"{self.base}/code.zip"
        self.undisturbed.write(uri, [data])
        digest = hashlib.sha256(b"code" * 1000).hexdigest()
        code = Payload(uri=uri, encoding=4, encoding_version=0, size=4000, sha256=digest)
        self.spec = evolve(self.spec, application=code)
        return Deferred.fromCoroutine(self.executors.initialize(self.spec, self.handle, lambda: False))

    async def refused(self, starting: Deferred[None]) -> str:
        await self.pass_time(starting)
        with self.assertRaises(StartupFailed) as caught:
            await starting
        self.assertEqual(caught.exception.reason, TerminationReason.STARTUP_FAILED_INTERNAL_ERROR)
        self.assertEqual(self.executor.initializations, 0)
        self.assertEqual(self.clock.getDelayedCalls(), [])
        return str(caught.exception)

    async def test_code_that_is_cut_off_on_its_way_is_fetched_again(self) -> None:
        cut = self.s3.cut(GET, times=2)
        starting = await self.starting()
        await self.pass_time(starting)
        await starting
        self.assertEqual((len(cut.met), self.executor.initializations), (2, 1))

    async def test_code_that_is_always_cut_off(self) -> None:
        self.s3.cut(GET)
        self.assertIn("code.zip", await self.refused(await self.starting()))

    async def test_code_that_is_not_what_was_announced_is_not_fetched_again(self) -> None:
        changed = self.s3.change(GET, lambda body: body.replace(b"c", b"k"))
        text = await self.refused(await self.starting())
        self.assertIn("SHA-256", text)
        self.assertEqual(len(changed.met), 1)

    async def test_code_that_ends_too_early_in_the_store(self) -> None:
        self.assertIn("(2000 bytes), announced were", await self.refused(await self.starting(data=b"code" * 500)))

    async def test_a_start_that_is_given_up_while_its_code_hangs(self) -> None:
        getting = self.s3.hold(GET)
        starting = await self.starting()
        await self.met(getting)
        starting.cancel()
        await self.assertFailure(starting, CancelledError)
        getting.lift()
        await self.executors.initialize(self.spec, self.handle, lambda: False)
        self.assertEqual(self.executor.initializations, 1)


del ScriptedTestCase, S3TestCase
