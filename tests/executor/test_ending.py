"""Runs that end in any other way than by a result: the outcome that the tables name, and nothing left behind."""

from __future__ import annotations

from typing import Any

import grpc
from attrs import evolve
from twisted.internet.defer import Deferred

from indexify_dataplane.blobs.base import BlobError
from indexify_dataplane.core.model import (
    Completed,
    Failed,
    FailureReason,
)
from indexify_dataplane.wireproto import function_executor_pb2 as fe
from tests.contracts.blob_store import put_part
from tests.executor.scripted import END, Abort
from tests.executor.scripted_case import ScriptedTestCase

Code = grpc.StatusCode
Reason = FailureReason


class Ending(ScriptedTestCase):
    """Ends other than a result."""

    async def ends(self, *states: Any, delete: list[Abort | None] | None = None) -> Failed:
        running = await self.begin()
        self.executor.delete = delete or []
        for state in states:
            self.executor.states.put_nowait(state)
        outcome = await self.finalized(running)
        self.assertIsInstance(outcome, Failed)
        assert isinstance(outcome, Failed)
        self.assertEqual(self.left_over(), [])
        self.assertIsNone(outcome.duration_ms)
        return outcome

    async def test_a_stream_that_ends_without_a_result(self) -> None:
        outcome = await self.ends(END)
        self.assertEqual((outcome.reason, outcome.blame_container), (Reason.FUNCTION_ERROR, False))
        self.assertEqual(self.executor.deleted, 1)

    async def test_a_stream_that_breaks(self) -> None:
        for code in (Code.UNAVAILABLE, Code.INTERNAL, Code.NOT_FOUND, Code.OUT_OF_RANGE, Code.RESOURCE_EXHAUSTED):
            outcome = await self.ends(fe.AllocationState(sha256_hash="1"), Abort(code))
            self.assertEqual((outcome.reason, outcome.blame_container), (Reason.FUNCTION_ERROR, False), code)

    async def test_an_unknown_error_opens_the_stream_again_three_times(self) -> None:
        first = fe.AllocationState(sha256_hash="1")
        unknown = Abort(Code.UNKNOWN)
        outcome = await self.ends(first, unknown, first, unknown, first, unknown, first, unknown)
        self.assertEqual((outcome.reason, self.executor.watches), (Reason.FUNCTION_ERROR, 4))

    async def test_news_after_an_unknown_error_count_anew(self) -> None:
        running = await self.begin()
        for number in range(6):
            self.executor.states.put_nowait(fe.AllocationState(sha256_hash=str(number)))
            self.executor.states.put_nowait(Abort(Code.UNKNOWN))
        self.succeed(await self.written())
        self.assertIsInstance(await self.finalized(running), Completed)
        self.assertEqual(self.executor.watches, 7)

    async def test_an_allocation_that_cannot_be_created(self) -> None:
        for code in (Code.UNKNOWN, Code.INVALID_ARGUMENT, Code.ALREADY_EXISTS):
            await self.connect()
            self.executor.create = Abort(code)
            self.allocation = self.make_allocation("c1")
            await self.executors.prepare(self.allocation)
            running = Deferred.fromCoroutine(
                self.executors.run(self.allocation, self.handle, 1000, lambda request: None)
            )
            outcome = await self.finalized(running)
            self.assertEqual(outcome, Failed(Reason.INTERNAL_ERROR), code)
            self.assertEqual(self.left_over(), [])

    async def test_an_executor_that_comes_back_is_not_blamed(self) -> None:
        broken = Abort(Code.UNAVAILABLE)
        outcome = await self.ends(fe.AllocationState(sha256_hash="1"), broken, delete=[broken, broken])
        self.assertEqual((outcome.reason, outcome.blame_container), (Reason.FUNCTION_ERROR, False))
        self.assertEqual(self.executor.deleted, 1)

    async def test_a_dead_executor_is_blamed(self) -> None:
        running = await self.begin()
        await self.executor.stop()
        await self.pass_time(running)
        outcome = await self.finalized(running)
        self.assertEqual((outcome.reason, outcome.blame_container), (Reason.FUNCTION_ERROR, True))

    async def test_user_code_that_does_not_end_costs_the_container(self) -> None:
        running = await self.begin(timeout_ms=10_000)
        self.executor.delete = [Abort(Code.FAILED_PRECONDITION)] * 1000
        self.clock.advance(10)
        await self.until(lambda: len(self.executor.delete) < 1000)
        self.clock.advance(3)
        outcome = await self.finalized(running)
        self.assertEqual((outcome.reason, outcome.blame_container), (Reason.FUNCTION_TIMEOUT, True))

    async def test_a_result_beats_a_later_cancellation(self) -> None:
        running = await self.begin()
        self.succeed(await self.written())
        await self.until(lambda: running.called)
        running.cancel()
        self.assertIsInstance(await self.finalized(running), Completed)

    async def test_a_place_for_the_result_cannot_be_had(self) -> None:
        running = await self.begin()
        self.store.faults["create"] = 100
        self.executor.state(output_blob_requests=[fe.AllocationOutputBLOBRequest(id="out", size=1)])
        await self.pass_time(running)
        outcome = await self.finalized(running)
        self.assertEqual(outcome.reason, Reason.INTERNAL_ERROR)
        (update,) = self.executor.updates
        self.assertEqual((update.output_blob.blob.id, update.output_blob.status.code), ("out", 13))

    async def test_a_store_that_recovers_is_waited_for(self) -> None:
        running = await self.begin()
        self.store.faults["create"] = 2
        writing = Deferred.fromCoroutine(self.written())
        await self.pass_time(writing)
        self.store.faults["complete"] = 2
        self.succeed(await writing)
        finalizing = Deferred.fromCoroutine(self.finalized(running))
        await self.pass_time(finalizing)
        outcome = await finalizing
        self.assertEqual(await self.blobs.size(outcome.value.uri), 6)

    async def test_a_result_that_cannot_be_stored_is_no_success(self) -> None:
        running = await self.begin()
        self.succeed(await self.written())
        self.store.faults["complete"] = 100
        finalizing = Deferred.fromCoroutine(self.finalized(running))
        await self.pass_time(finalizing)
        outcome = await finalizing
        self.assertEqual(outcome.reason, Reason.INTERNAL_ERROR)
        self.assertIsNotNone(outcome.duration_ms)
        self.assertEqual(self.left_over(), [])

    async def test_results_that_make_no_sense(self) -> None:
        success = fe.ALLOCATION_OUTCOME_CODE_SUCCESS
        unwritten = fe.BLOB(id="out", chunks=[fe.BLOBChunk(uri="file:///x", size=1)])
        for result in (
            fe.AllocationResult(outcome_code=success, value=self.value()),
            fe.AllocationResult(outcome_code=success, value=self.value(), uploaded_function_outputs_blob=unwritten),
            fe.AllocationResult(outcome_code=success, updates=fe.ExecutionPlanUpdates(updates=[{}])),
            fe.AllocationResult(outcome_code=success, updates=fe.ExecutionPlanUpdates()),
            fe.AllocationResult(outcome_code=fe.ALLOCATION_OUTCOME_CODE_UNKNOWN),
            fe.AllocationResult(),
        ):
            running = await self.begin()
            self.executor.state(result=result)
            outcome = await self.finalized(running)
            self.assertEqual(outcome.reason, Reason.INTERNAL_ERROR, result)
            self.assertEqual(self.left_over(), [])
            await self.executors.close()

    async def test_finalizing_what_an_earlier_node_began_sweeps_its_uploads(self) -> None:
        await self.connect()
        allocation = self.make_allocation("c1")
        prefix = f"{allocation.spec.request_data_prefix}.{allocation.id}."
        upload_id = self.store.create_upload(f"{prefix}output_x")
        put_part(self.store.part_url(f"{prefix}output_x", upload_id, 1, 60), 0, b"lost")
        other = f"{allocation.spec.request_data_prefix}.{allocation.id}0.output_x"
        put_part(self.store.part_url(other, self.store.create_upload(other), 1, 60), 0, b"another's")
        failed = Failed(Reason.CONTAINER_TERMINATED)
        self.assertEqual(await self.executors.finalize(allocation, failed), failed)
        (left,) = self.left_over()
        self.assertIn(f"{allocation.id}0.output_x", left)

    async def test_state_that_an_earlier_node_was_writing_is_aborted_and_nobody_elses(self) -> None:
        await self.begin()
        begun: list[tuple[str, str]] = []
        self.executors._allocations[self.allocation.id].began = lambda *upload: begun.append(upload)
        write = fe.AllocationRequestStatePrepareWriteOperation(size=5)
        operation = fe.AllocationRequestStateOperation(operation_id="1", state_key="key", prepare_write=write)
        self.executor.state(request_state_operations=[operation])
        blob = (await self.updated(1))[0].request_state_operation_result.prepare_write.blob
        put_part(blob.chunks[0].uri, 0, b"value")
        other = self.store.create_upload(begun[0][0])
        put_part(self.store.part_url(begun[0][0], other, 1, 60), 0, b"another's")
        await self.executors.close()
        await self.connect()  # As after a crash: nothing is known but what was stored.
        row = evolve(self.allocation, uploads=tuple(begun))
        await self.executors.finalize(row, Failed(Reason.CONTAINER_TERMINATED))
        (left,) = self.left_over()
        self.assertIn(other, left)

    async def test_an_allocation_killed_while_it_is_prepared_leaves_nothing(self) -> None:
        await self.connect()
        allocation = self.make_allocation("c1")
        preparing = Deferred.fromCoroutine(self.executors.prepare(allocation))
        await self.executors.finalize(allocation, Failed(Reason.ALLOCATION_CANCELLED))
        await self.assertFailure(preparing, BlobError)
        self.assertEqual(self.left_over(), [])
