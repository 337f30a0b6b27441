"""The state protocol (tensorlake 0.2.98 to 0.4.31): every snapshot of an allocation lists what is open in it.

Items are told apart by their ids and each is answered once; an item stays in the snapshots until the executor has
taken the answer.
"""

from __future__ import annotations

from typing import Any

from google.rpc import status_pb2
from twisted.internet.defer import DeferredLock
from twisted.logger import Logger

from ..blobs.base import BlobError
from ..core.model import FailureReason
from ..wireproto import executor_api_pb2 as pb
from ..wireproto import function_executor_pb2 as fe
from ..wireproto import function_executor_watchers_pb2 as later
from .child_values import fill
from .children import Children
from .run import AllocationRun, Finished, Stopped
from .watcher_timers import WatcherTimers

log = Logger()

_REASONS = {
    pb.ALLOCATION_FAILURE_REASON_FUNCTION_ERROR: later.CALL_FAILURE_REASON_FUNCTION_ERROR,
    pb.ALLOCATION_FAILURE_REASON_REQUEST_ERROR: later.CALL_FAILURE_REASON_REQUEST_ERROR,
    pb.ALLOCATION_FAILURE_REASON_INTERNAL_ERROR: later.CALL_FAILURE_REASON_INTERNAL_ERROR,
}


class StateProtocolRun(AllocationRun):
    """An allocation of an executor that speaks the state protocol."""

    def __init__(self, **common: Any) -> None:
        super().__init__(**common)
        self._children = Children()
        self._timers = WatcherTimers(clock=self.clock, wall=self.wall, passed=self._wait_timed_out)
        self._announced: set[str] = set()
        self._in_order = DeferredLock()

    def begin(self) -> None:
        """The states carry everything."""

    def observe(self, state: fe.AllocationState) -> None:
        for call in state.function_calls:
            call_id = call.id or call.updates.root_function_call_id
            if call_id and call_id not in self._announced:
                self._announced.add(call_id)
                self.spawn(self._create(call))
        self._observe_watchers(state)
        if state.HasField("result"):
            self.end(Finished(self.results.read(state.result)))

    def states_ended(self) -> None:
        text = "the stream of states ended without a result"
        self.end(Stopped(FailureReason.FUNCTION_ERROR, text, crash_suspected=True))

    def deliver(self, result: pb.FunctionCallResult) -> None:
        self.deadline.restart()
        for watcher_id in self._children.keep(result):
            self._answer(watcher_id, result)

    def release_user_code(self) -> None:
        for watcher_id in self._children.open():
            self._fail(watcher_id, later.CALL_FAILURE_REASON_INTERNAL_ERROR)

    def _close(self) -> None:
        self._timers.cancel_all()
        super()._close()

    async def _create(self, call: fe.AllocationFunctionCall) -> None:
        async with self._in_order:  # The server learns of calls in the order in which they were announced.
            args = call.args_blob if call.HasField("args_blob") and call.args_blob.id else None
            answer = await self.calls.create(call.updates, args)
        created = fe.AllocationFunctionCallCreationResult(
            function_call_id=call.updates.root_function_call_id,
            status=status_pb2.Status(code=answer.code, message=answer.message),
        )
        if call.id:
            created.allocation_function_call_id = call.id
        await self.update(fe.AllocationUpdate(function_call_creation_result=created))

    def _observe_watchers(self, state: fe.AllocationState) -> None:
        present: set[str] = set()
        for watcher in state.function_call_watchers:
            watcher_id = watcher.id or watcher.watcher_id
            call_id = watcher.root_function_call_id or watcher.function_call_id
            if not watcher_id or not call_id:
                continue
            present.add(watcher_id)
            if self._children.watch(watcher_id, call_id):
                self._watched(watcher_id, watcher)
        for watcher_id in self._children.forget_others(present):
            self._timers.cancel(watcher_id)
        self._hold_deadline()

    def _watched(self, watcher_id: str, watcher: fe.AllocationFunctionCallWatcher) -> None:
        result = self._children.result_for(watcher_id)
        if result is not None:
            self._answer(watcher_id, result)
        elif self.leaving:
            self._fail(watcher_id, later.CALL_FAILURE_REASON_INTERNAL_ERROR)
        else:
            more = later.WatcherDeadline.FromString(watcher.SerializeToString())
            if more.HasField("deadline"):
                self._timers.set(watcher_id, more.deadline)

    def _wait_timed_out(self, watcher_id: str) -> None:
        self.deadline.restart()
        self._fail(watcher_id, later.CALL_FAILURE_REASON_WATCHER_TIMEOUT)

    def _hold_deadline(self) -> None:
        self.deadline.hold(bool(self._children.open()))

    def _answer(self, watcher_id: str, result: pb.FunctionCallResult) -> None:
        if self._children.answer(watcher_id):
            self._timers.cancel(watcher_id)
            self._hold_deadline()
            self.spawn(self._send_result(watcher_id, result))

    def _fail(self, watcher_id: str, reason: later.CallFailureReason) -> None:
        call_id = self._children.call_of(watcher_id)
        if self._children.answer(watcher_id):
            self._timers.cancel(watcher_id)
            self._hold_deadline()
            failed = fe.AllocationFunctionCallResult(
                function_call_id=call_id,
                watcher_id=watcher_id,
                outcome_code=fe.ALLOCATION_OUTCOME_CODE_FAILURE,
            )
            self.spawn(self._send(failed, reason))

    async def _send_result(self, watcher_id: str, result: pb.FunctionCallResult) -> None:
        message = fe.AllocationFunctionCallResult(watcher_id=watcher_id)
        try:
            await fill(message, result, self.blobs)
        except BlobError as error:
            # Without its blob user code would take it for a failure of the child.
            self.end(Stopped(FailureReason.INTERNAL_ERROR, f"the result of a call cannot be passed on: {error}"))
            return
        reason = None
        if message.outcome_code != fe.ALLOCATION_OUTCOME_CODE_SUCCESS:
            reason = _REASONS.get(result.failure_reason, later.CALL_FAILURE_REASON_FUNCTION_ERROR)
        await self._send(message, reason)

    async def _send(self, message: fe.AllocationFunctionCallResult, reason: later.CallFailureReason | None) -> None:
        if reason is not None:
            message.MergeFromString(later.CallFailure(failure_reason=reason).SerializeToString())
        await self.update(fe.AllocationUpdate(function_call_result=message))
