"""Calls, results of children and request state of the state protocol."""

from __future__ import annotations

from typing import Any

import grpc
from twisted.internet.defer import Deferred

from indexify_dataplane.core.model import (
    Completed,
    FailureReason,
)
from indexify_dataplane.wireproto import function_executor_pb2 as fe
from indexify_dataplane.wireproto import function_executor_watchers_pb2 as later
from tests.contracts.blob_store import put_part
from tests.executor.scripted import Abort
from tests.executor.scripted_case import ScriptedTestCase

Code = grpc.StatusCode
Reason = FailureReason


class Calling(ScriptedTestCase):
    """Calls, results and request state of the state protocol."""

    async def test_a_repeated_announcement_is_one_call(self) -> None:
        running = await self.begin()
        call = fe.AllocationFunctionCall(id="1", updates=self.plan("f1"))
        self.executor.state(function_calls=[call])
        self.executor.state(function_calls=[call], progress=fe.AllocationProgress(current=1, total=2))
        again = fe.AllocationFunctionCall(id="2", updates=self.plan("f1", "f2"))
        self.executor.state(function_calls=[call, again])
        updates = await self.updated(2)
        self.assertEqual(
            [
                (each.function_call_creation_result.allocation_function_call_id,
                 each.function_call_creation_result.function_call_id,
                 each.function_call_creation_result.status.code)
                for each in updates
            ],
            [("1", "f1", 0), ("2", "f2", 0)],
        )  # fmt: skip
        sent = [update.function_call.id for request in self.called for update in request.updates.updates]
        self.assertEqual(sent, ["f1", "f2"])
        self.assertEqual(self.called[0].updates.updates[0].function_call.call_metadata, b"m")
        running.cancel()
        await self.finalized(running)

    async def test_calls_over_the_limits_are_refused_and_may_come_again(self) -> None:
        running = await self.begin()
        many = self.plan(*(f"f{number}" for number in range(1001)))
        self.executor.state(function_calls=[fe.AllocationFunctionCall(id="1", updates=many)])
        large = self.plan("large")
        large.updates[0].function_call.call_metadata = bytes(1024 * 1024)
        self.executor.state(function_calls=[fe.AllocationFunctionCall(id="2", updates=large)])
        invalid = self.plan("invalid")
        invalid.updates[0].function_call.ClearField("target")
        self.executor.state(function_calls=[fe.AllocationFunctionCall(id="3", updates=invalid)])
        updates = await self.updated(3)
        codes = [each.function_call_creation_result.status.code for each in updates]
        self.assertEqual(codes, [8, 8, 13])
        self.assertEqual(self.called, [])
        self.executor.state(function_calls=[fe.AllocationFunctionCall(id="4", updates=self.plan("f1"))])
        await self.updated(4)
        self.assertEqual(len(self.called), 1)
        running.cancel()
        await self.finalized(running)

    async def test_arguments_are_readable_before_the_server_hears_of_the_call(self) -> None:
        running = await self.begin()
        blob = await self.written(b"args", "args")
        plan = self.plan("f1")
        plan.updates[0].function_call.args.add().value.CopyFrom(self.value(b"args"))
        self.executor.state(function_calls=[fe.AllocationFunctionCall(id="1", updates=plan, args_blob=blob)])
        await self.updated(2)
        (request,) = self.called
        argument = request.updates.updates[0].function_call.args[0].inline_data
        self.assertEqual(argument.uri, f"{self.allocation.spec.request_data_prefix}.{self.allocation.id}.output_args")
        self.assertEqual(await self.blobs.size(argument.uri), 4)
        running.cancel()
        await self.finalized(running)
        self.assertEqual(await self.blobs.size(argument.uri), 4, "what a child was given must survive its caller")

    async def test_a_call_whose_arguments_cannot_be_stored_is_refused(self) -> None:
        running = await self.begin()
        blob = await self.written(b"args", "args")
        self.store.faults["complete"] = 100
        call = fe.AllocationFunctionCall(id="1", updates=self.plan("f1"), args_blob=blob)
        self.executor.state(function_calls=[call])
        answered = Deferred.fromCoroutine(self.updated(2))
        await self.pass_time(answered)
        self.assertEqual((await answered)[1].function_call_creation_result.status.code, 13)
        self.assertEqual(self.called, [])
        running.cancel()
        await self.finalized(running)
        self.assertEqual(self.left_over(), [])

    async def test_every_watcher_gets_the_result_whenever_it_came(self) -> None:
        running = await self.begin()
        self.executors.deliver(self.allocation.id, self.child_result("f1"))
        one, two, other = (
            fe.AllocationFunctionCallWatcher(id=name, root_function_call_id=call)
            for name, call in (("w1", "f1"), ("w2", "f1"), ("w3", "f2"))
        )
        self.executor.state(function_call_watchers=[one])
        await self.updated(1)
        self.executor.state(function_call_watchers=[one, two, other])
        await self.updated(2)
        self.executors.deliver(self.allocation.id, self.child_result("f1"))
        self.executors.deliver(self.allocation.id, self.child_result("f2"))
        updates = await self.updated(3)
        got = [(each.function_call_result.watcher_id, each.function_call_result.function_call_id) for each in updates]
        self.assertEqual(got, [("w1", "f1"), ("w2", "f1"), ("w3", "f2")])
        self.assertEqual(updates[0].function_call_result.value_blob.chunks[0].uri, f"{self.base}/child")
        self.assertEqual(updates[0].function_call_result.value_output.manifest.size, 5)
        running.cancel()
        await self.finalized(running)

    async def test_answers_are_sent_again_until_they_arrive(self) -> None:
        running = await self.begin()
        self.executor.update = [Abort(Code.RESOURCE_EXHAUSTED), Abort(Code.UNKNOWN)]
        watcher = fe.AllocationFunctionCallWatcher(id="w1", root_function_call_id="f1")
        self.executor.state(function_call_watchers=[watcher])
        self.executors.deliver(self.allocation.id, self.child_result("f1"))
        answered = Deferred.fromCoroutine(self.updated(1))
        await self.pass_time(answered)
        self.assertEqual(len(await answered), 1)
        running.cancel()
        await self.finalized(running)

    async def test_the_deadline_rests_only_while_a_child_is_awaited(self) -> None:
        running = await self.begin(timeout_ms=10_000)
        watcher = fe.AllocationFunctionCallWatcher(id="w1", root_function_call_id="f1")
        self.executor.state(function_call_watchers=[watcher])
        await self.until(lambda: self.run_of(self.allocation.id)._children.open())
        self.clock.advance(1000)
        progress = fe.AllocationProgress(current=1, total=2)
        blobs = [fe.AllocationOutputBLOBRequest(id="out", size=1)]
        self.executor.state(function_call_watchers=[watcher], progress=progress, output_blob_requests=blobs)
        await self.updated(1)
        self.clock.advance(1000)
        self.assertFalse(running.called)
        self.executors.deliver(self.allocation.id, self.child_result("f1"))
        await self.updated(2)
        self.assertFalse(running.called)
        self.clock.advance(9)
        self.assertFalse(running.called)
        self.clock.advance(2)
        outcome = await self.finalized(running)
        self.assertEqual(outcome.reason, Reason.FUNCTION_TIMEOUT)

    async def test_a_watcher_with_a_deadline_times_out(self) -> None:
        running = await self.begin()
        watcher = fe.AllocationFunctionCallWatcher(id="w1", root_function_call_id="f1")
        extra = later.WatcherDeadline()
        extra.deadline.FromSeconds(int(self.wall()) + 100)
        watcher.MergeFromString(extra.SerializeToString())
        self.executor.state(function_call_watchers=[watcher])
        await self.until(lambda: self.run_of(self.allocation.id)._children.open())
        self.clock.advance(50)
        self.assertEqual(self.executor.updates, [])
        self.clock.advance(51)
        (update,) = await self.updated(1)
        failure = later.CallFailure.FromString(update.function_call_result.SerializeToString())
        self.assertEqual(failure.failure_reason, later.CALL_FAILURE_REASON_WATCHER_TIMEOUT)
        self.executors.deliver(self.allocation.id, self.child_result("f1"))
        self.succeed(await self.written(number=2))
        self.assertIsInstance(await self.finalized(running), Completed)
        self.assertEqual(len(self.executor.updates), 2)

    async def test_request_state_is_answered_once_and_by_its_kind(self) -> None:
        def operation(operation_id: str, **kind: Any) -> fe.AllocationRequestStateOperation:
            return fe.AllocationRequestStateOperation(operation_id=operation_id, state_key="key", **kind)

        async def answer(number: int) -> fe.AllocationRequestStateOperationResult:
            return (await self.updated(number))[number - 1].request_state_operation_result

        running = await self.begin()
        read = fe.AllocationRequestStatePrepareReadOperation()
        self.executor.state(request_state_operations=[operation("1", prepare_read=read)])
        self.assertEqual(((await answer(1)).status.code, (await answer(1)).WhichOneof("result")), (5, "prepare_read"))
        write = fe.AllocationRequestStatePrepareWriteOperation(size=5)
        self.executor.state(request_state_operations=[operation("2", prepare_write=write)])
        blob = (await answer(2)).prepare_write.blob
        self.assertEqual(blob.id, "2")
        blob.chunks[0].etag = put_part(blob.chunks[0].uri, 0, b"value")
        commit = operation("3", commit_write=fe.AllocationRequestStateCommitWriteOperation(blob=blob))
        self.executor.state(request_state_operations=[commit])
        self.assertEqual((await answer(3)).status.code, 0)
        unknown = fe.AllocationRequestStateCommitWriteOperation(blob=fe.BLOB(id="?"))
        self.executor.state(request_state_operations=[commit, operation("4", commit_write=unknown)])
        self.assertEqual(((await answer(4)).operation_id, (await answer(4)).status.code), ("4", 5))
        self.store.faults["size"] = 100
        self.executor.state(request_state_operations=[operation("5", prepare_read=read)])
        waiting = Deferred.fromCoroutine(answer(5))
        await self.pass_time(waiting)
        self.assertEqual((await waiting).status.code, 13, "a store that is down is not a missing value")
        self.store.faults.clear()
        self.executor.state(request_state_operations=[operation("6", prepare_read=read)])
        self.assertEqual((await answer(6)).prepare_read.blob.chunks[0].size, 5)
        running.cancel()
        await self.finalized(running)
        self.assertEqual(self.left_over(), [])
