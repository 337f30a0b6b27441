"""What only the event log has."""

from __future__ import annotations

import grpc

from indexify_dataplane.core.model import (
    Completed,
    FailureReason,
)
from indexify_dataplane.wireproto import executor_api_pb2 as pb
from indexify_dataplane.wireproto import function_executor_pb2 as fe
from tests.executor.scripted import END
from tests.executor.scripted_case import ScriptedTestCase

Code = grpc.StatusCode
Reason = FailureReason


class EventLog(ScriptedTestCase):
    """What only the event log has."""

    version = "0.1.3"

    def events(self, *events: fe.AllocationExecutionEvent) -> None:
        self.executor.batches.put_nowait(events)

    def finish(self) -> fe.AllocationExecutionEvent:
        return fe.AllocationExecutionEvent(
            finish_allocation=fe.AllocationExecutionEventFinishAllocation(
                outcome_code=fe.ALLOCATION_OUTCOME_CODE_SUCCESS, tail_call_durable_id="f9"
            )
        )

    async def answered(self, count: int) -> list[fe.ReadAllocationEventLogResponse]:
        await self.until(lambda: len(self.executor.answers) >= count)
        return self.executor.answers

    async def test_a_read_waits_for_an_entry_and_clocks_grow(self) -> None:
        running = await self.begin()
        self.executor.reads.put_nowait(fe.ReadAllocationEventLogRequest(after_clock=0, max_entries=2))
        await self.until(lambda: self.run_of(self.allocation.id)._read)
        self.assertEqual(self.executor.answers, [])
        self.events(
            *(
                fe.AllocationExecutionEvent(
                    create_function_call=fe.AllocationExecutionEventCreateFunctionCall(updates=self.plan(call_id))
                )
                for call_id in ("f1", "f2", "f3")
            )
        )
        (first,) = await self.answered(1)
        self.executor.reads.put_nowait(fe.ReadAllocationEventLogRequest(after_clock=first.last_clock, max_entries=2))
        second = (await self.answered(2))[1]
        entries = [*first.entries, *second.entries]
        self.executor.reads.put_nowait(fe.ReadAllocationEventLogRequest(after_clock=second.last_clock, max_entries=2))
        if len(entries) < 3:
            entries.extend((await self.answered(3))[2].entries)
        self.assertEqual([entry.clock for entry in entries], [1, 2, 3])
        self.assertEqual([entry.function_call_created.function_call_id for entry in entries], ["f1", "f2", "f3"])
        self.assertEqual(len(self.called), 3)
        self.events(self.finish())
        outcome = await self.finalized(running)
        updates = pb.ExecutionPlanUpdates.FromString(outcome.updates)
        self.assertEqual((updates.root_function_call_id, list(updates.updates)), ("f9", []))

    async def test_a_call_that_could_not_be_made_comes_back_with_its_error(self) -> None:
        running = await self.begin()
        failed = fe.AllocationExecutionEventFunctionCallCreationFailed(function_call_id="f1", metadata=b"pickled")
        self.events(fe.AllocationExecutionEvent(function_call_creation_failed=failed))
        self.executor.reads.put_nowait(fe.ReadAllocationEventLogRequest(after_clock=0))
        (answer,) = await self.answered(1)
        created = answer.entries[0].function_call_created
        self.assertEqual((created.function_call_id, created.metadata), ("f1", b"pickled"))
        self.assertNotEqual(created.status.code, 0)
        self.events(self.finish())
        await self.finalized(running)

    async def test_states_may_end_before_the_finish_is_read(self) -> None:
        running = await self.begin()
        self.executor.states.put_nowait(fe.AllocationState(sha256_hash="1"))
        self.executor.states.put_nowait(END)
        self.executor.reads.put_nowait(END)
        await self.until(lambda: len(self.clock.getDelayedCalls()) == 2)  # The deadline and this wait.
        self.clock.advance(4)
        self.assertFalse(running.called)
        self.events(self.finish())
        self.assertIsInstance(await self.finalized(running), Completed)

    async def test_states_that_end_without_a_finish(self) -> None:
        running = await self.begin()
        self.executor.states.put_nowait(fe.AllocationState(sha256_hash="1"))
        self.executor.states.put_nowait(END)
        await self.pass_time(running)
        outcome = await self.finalized(running)
        self.assertEqual((outcome.reason, outcome.blame_container), (Reason.FUNCTION_ERROR, False))

    async def test_events_that_end_or_are_not_known(self) -> None:
        for events, reason in (((), Reason.FUNCTION_ERROR), ((fe.AllocationExecutionEvent(),), Reason.INTERNAL_ERROR)):
            running = await self.begin()
            self.events(*events)
            outcome = await self.finalized(running)
            self.assertEqual((outcome.reason, outcome.blame_container), (reason, False))
            self.assertEqual(self.left_over(), [])
            await self.executors.close()

    async def test_a_call_may_be_watched_again_after_a_wait_timed_out(self) -> None:
        running = await self.begin()
        watcher = fe.AllocationExecutionEventCreateFunctionCallWatcher(function_call_id="f1")
        watcher.deadline.FromSeconds(int(self.wall()) + 100)
        self.events(fe.AllocationExecutionEvent(create_function_call_watcher=watcher))
        self.executor.reads.put_nowait(fe.ReadAllocationEventLogRequest(after_clock=0))
        await self.answered(1)
        self.clock.advance(101)
        self.executor.reads.put_nowait(fe.ReadAllocationEventLogRequest(after_clock=1))
        result = (await self.answered(2))[1].entries[0].function_call_watcher_result
        self.assertEqual(result.watcher_status, fe.FUNCTION_CALL_WATCHER_STATUS_TIMEDOUT)
        watcher.ClearField("deadline")
        self.events(fe.AllocationExecutionEvent(create_function_call_watcher=watcher))
        self.executors.deliver(self.allocation.id, self.child_result("f1"))
        self.executor.reads.put_nowait(fe.ReadAllocationEventLogRequest(after_clock=2))
        await self.answered(3)
        self.executor.reads.put_nowait(fe.ReadAllocationEventLogRequest(after_clock=3))
        entries = [entry for answer in (await self.answered(4))[2:] for entry in answer.entries]
        self.assertEqual(entries[-1].function_call_watcher_result.outcome_code, fe.ALLOCATION_OUTCOME_CODE_SUCCESS)
        self.events(self.finish())
        await self.finalized(running)
