"""Executors that answer late, never, or again and again: one outcome, and the next allocation has the place."""

from __future__ import annotations

import asyncio
import os
from typing import Any

import grpc
from twisted.internet.defer import Deferred

from indexify_dataplane.core.model import Completed, Failed, FailureReason, TerminationReason
from indexify_dataplane.executor import client
from indexify_dataplane.perform.executors import StartupFailed
from indexify_dataplane.wireproto import function_executor_pb2 as fe
from tests.executor.scripted import END, Abort
from tests.executor.scripted_case import ScriptedTestCase

Code = grpc.StatusCode
Reason = FailureReason
FUNCTION_CALL = "f1"


class LateCase(ScriptedTestCase):
    """Both protocols; a subclass knows how its executor tells a result and a call."""

    def run_allocation(self, timeout_ms: int = 60_000) -> Deferred[Any]:
        return Deferred.fromCoroutine(
            self.executors.run(self.allocation, self.handle, timeout_ms, lambda request: None)
        )

    async def begin_late(self, timeout_ms: int = 60_000) -> Deferred[Any]:
        """An allocation whose creation is not answered yet."""
        await self.connect()
        self.late = self.executor.hold("create_allocation")
        self.allocation = self.make_allocation("c1")
        await self.executors.prepare(self.allocation)
        running = self.run_allocation(timeout_ms)
        await self.until(lambda: self.late.met)
        return running

    def finish(self, blob: fe.BLOB) -> None:
        raise NotImplementedError

    async def nothing_is_left(self) -> None:
        self.assertEqual(self.left_over(), [])
        self.assertEqual((self.executors._allocations, self.executors._runs), ({}, {}))
        await self.until(lambda: not self.clock.getDelayedCalls())

    async def next_one_runs(self) -> None:
        self.executor.held.clear()
        self.executor.renew()
        self.allocation = self.make_allocation("c1")
        await self.executors.prepare(self.allocation)
        running = self.run_allocation()
        self.finish(await self.written(number=len(self.executor.updates) + 1))
        self.assertIsInstance(await self.finalized(running), Completed)
        await self.nothing_is_left()


class Late:
    """Mixed into a case of each protocol."""

    async def test_a_creation_that_is_answered_late_but_in_time(self: Any) -> None:
        running = await self.begin_late()
        self.assertFalse(running.called)
        self.late.release()
        self.finish(await self.written())
        self.assertIsInstance(await self.finalized(running), Completed)
        await self.next_one_runs()

    async def test_a_creation_that_is_answered_too_late(self: Any) -> None:
        self.patch(client, "CREATE_SECONDS", 0.2)
        running = await self.begin_late()
        self.assertEqual(await self.finalized(running), Failed(Reason.INTERNAL_ERROR))
        self.assertEqual(self.executor.deleted, 1, "what was created all the same is given up there")
        await self.next_one_runs()

    async def test_a_creation_that_is_cancelled(self: Any) -> None:
        running = await self.begin_late()
        running.cancel()
        self.assertEqual(await self.finalized(running), Failed(Reason.ALLOCATION_CANCELLED))
        self.assertEqual(self.executor.deleted, 1)
        await self.next_one_runs()

    async def test_a_result_after_the_deadline(self: Any) -> None:
        running = await self.begin(timeout_ms=5000)
        blob = await self.written()
        deleting = self.executor.hold("delete_allocation")
        self.clock.advance(6)
        await self.until(lambda: deleting.met)
        self.finish(blob)
        deleting.release()
        self.assertEqual(await self.finalized(running), Failed(Reason.FUNCTION_TIMEOUT))
        await self.next_one_runs()

    async def test_a_result_after_the_cancellation(self: Any) -> None:
        running = await self.begin()
        blob = await self.written()
        deleting = self.executor.hold("delete_allocation")
        running.cancel()
        await self.until(lambda: deleting.met)
        self.finish(blob)
        deleting.release()
        self.assertEqual(await self.finalized(running), Failed(Reason.ALLOCATION_CANCELLED))
        await self.next_one_runs()

    async def test_an_executor_that_does_not_say_that_it_let_go_costs_the_container(self: Any) -> None:
        self.patch(client, "DELETE_SECONDS", 0.2)
        running = await self.begin(timeout_ms=5000)
        self.executor.hold("delete_allocation")
        self.clock.advance(6)
        self.assertEqual(await self.finalized(running), Failed(Reason.FUNCTION_TIMEOUT, blame_container=True))
        await self.nothing_is_left()

    async def test_nobody_waits_until_a_finished_allocation_is_forgotten(self: Any) -> None:
        running = await self.begin()
        forgetting = self.executor.hold("delete_allocation")
        self.finish(await self.written())
        self.assertIsInstance(await self.finalized(running), Completed)
        await self.until(lambda: forgetting.met)
        await self.executors.release("c1")
        await self.nothing_is_left()

    async def test_an_executor_that_takes_no_answers(self: Any) -> None:
        self.patch(client, "UPDATE_SECONDS", 0.1)
        running = await self.begin()
        answering = self.executor.hold("send_allocation_update")
        self.executor.state(output_blob_requests=[fe.AllocationOutputBLOBRequest(id="out", size=6)])
        await self.pass_time(running)
        self.assertEqual(answering.met, 4, "an answer is sent again")
        self.assertEqual(await self.finalized(running), Failed(Reason.FUNCTION_ERROR))
        await self.next_one_runs()

    async def test_states_that_are_repeated_without_end(self: Any) -> None:
        running = await self.begin(timeout_ms=5000)
        state = fe.AllocationState(
            progress=fe.AllocationProgress(current=1, total=2),
            output_blob_requests=[fe.AllocationOutputBLOBRequest(id="out", size=6)],
            sha256_hash="1",
        )
        for _ in range(500):
            self.executor.states.put_nowait(state)
        await self.updated(1)
        await self.until(self.executor.states.empty)
        self.clock.advance(4)
        self.executor.states.put_nowait(state)
        await self.until(self.executor.states.empty)
        self.clock.advance(2)
        self.assertEqual(await self.finalized(running), Failed(Reason.FUNCTION_TIMEOUT), "a repetition is no progress")
        self.assertEqual(len(self.executor.updates), 1)
        await self.next_one_runs()

    async def test_a_stream_that_is_closed_in_the_middle_of_an_answer(self: Any) -> None:
        running = await self.begin()
        self.executor.hold("send_allocation_update")
        self.executor.state(output_blob_requests=[fe.AllocationOutputBLOBRequest(id="out", size=6)])
        await self.until(lambda: self.executor.updates)
        self.executor.states.put_nowait(Abort(Code.INTERNAL))
        self.assertEqual(await self.finalized(running), Failed(Reason.FUNCTION_ERROR))
        await self.next_one_runs()

    async def test_many_bad_ends_leave_no_descriptor_and_no_task(self: Any) -> None:
        await self.connect()
        seen: list[tuple[int, int]] = []
        for number in range(24):
            self.executor.renew()
            self.allocation = self.make_allocation("c1")
            await self.executors.prepare(self.allocation)
            watches = self.executor.watches
            running = self.run_allocation(timeout_ms=5000)
            await self.until(lambda watches=watches: self.executor.watches > watches)
            match number % 3:
                case 0:
                    self.executor.states.put_nowait(Abort(Code.INTERNAL))
                case 1:
                    self.clock.advance(6)
                case 2:
                    running.cancel()
            outcome = await self.finalized(running)
            self.assertIsInstance(outcome, Failed)
            await self.nothing_is_left()
            if number >= 12:
                seen.append((len(os.listdir("/proc/self/fd")), len(asyncio.all_tasks())))
        descriptors, tasks = zip(*seen, strict=True)
        self.assertLessEqual(max(descriptors) - min(descriptors), 1)
        self.assertLessEqual(max(tasks[6:]) - max(tasks[:6]), 4, "the scripted server ends some of its own later")

    async def test_a_start_whose_first_question_is_answered_late(self: Any) -> None:
        self.patch(client, "INFO_SECONDS", 0.2)
        await self.connect()
        await self.executors.release("c1")
        asking = self.executor.hold("get_info")
        starting = Deferred.fromCoroutine(self.executors.initialize(self.spec, self.handle, lambda: False))
        await self.until(lambda: asking.met == 2)
        asking.release()
        await starting
        await self.next_one_runs()

    async def test_an_earlier_executor_that_does_not_tell_what_it_runs(self: Any) -> None:
        self.patch(client, "INFO_SECONDS", 0.5)
        await self.connect()
        await self.executors.release("c1")
        self.executor.hold("list_allocations")
        with self.assertRaises(StartupFailed) as caught:
            await self.executors.initialize(self.spec, self.handle, lambda: False)
        self.assertEqual(caught.exception.reason, TerminationReason.STARTUP_FAILED_INTERNAL_ERROR)
        self.assertIn("does not tell its allocations", str(caught.exception))
        await self.nothing_is_left()


class StateProtocol(Late, LateCase):
    def finish(self, blob: fe.BLOB) -> None:
        self.succeed(blob)


class EventLog(Late, LateCase):
    version = "0.1.3"

    def finish(self, blob: fe.BLOB) -> None:
        finish = fe.AllocationExecutionEventFinishAllocation(
            outcome_code=fe.ALLOCATION_OUTCOME_CODE_SUCCESS, value=self.value(), uploaded_function_outputs_blob=blob
        )
        self.executor.batches.put_nowait([fe.AllocationExecutionEvent(finish_allocation=finish)])

    async def test_a_batch_that_is_told_again_because_its_receipt_was_lost(self) -> None:
        self.patch(client, "UPDATE_SECONDS", 0.2)
        running = await self.begin()
        advancing = self.executor.hold("advance_allocation_execution_log_batch")
        call = fe.AllocationExecutionEventCreateFunctionCall(updates=self.plan(FUNCTION_CALL))
        self.executor.batches.put_nowait([fe.AllocationExecutionEvent(create_function_call=call)])
        await self.until(lambda: advancing.met)
        self.assertEqual(await self.finalized(running), Failed(Reason.FUNCTION_ERROR))
        self.assertEqual(len(self.called), 1)
        await self.next_one_runs()

    async def test_reads_whose_answers_are_not_taken(self) -> None:
        self.patch(client, "UPDATE_SECONDS", 0.1)
        running = await self.begin()
        answering = self.executor.hold("send_allocation_event_log_read_response")
        self.executor.reads.put_nowait(fe.ReadAllocationEventLogRequest(after_clock=0))
        call = fe.AllocationExecutionEventCreateFunctionCall(updates=self.plan(FUNCTION_CALL))
        self.executor.batches.put_nowait([fe.AllocationExecutionEvent(create_function_call=call)])
        await self.pass_time(running)
        self.assertEqual(answering.met, 4)
        self.assertEqual(await self.finalized(running), Failed(Reason.FUNCTION_ERROR))
        await self.next_one_runs()

    async def test_an_executor_that_ends_its_states_and_tells_the_rest_too_late(self) -> None:
        running = await self.begin()
        self.executor.states.put_nowait(fe.AllocationState(sha256_hash="1"))
        self.executor.states.put_nowait(END)
        await self.pass_time(running)
        self.executor.batches.put_nowait(())
        self.assertEqual(await self.finalized(running), Failed(Reason.FUNCTION_ERROR))
        await self.next_one_runs()


del LateCase, ScriptedTestCase
