"""The event log (tensorlake 0.4.32 to 0.5): the executor tells events in batches and reads the answers from a log.

The log is kept here, in memory, for as long as the run: clock 1, 2, 3 … in the order in which things came about. The
executor asks for entries after a clock; a read that finds none is held until there is one. Progress, places for
results and request state go over the states, as in the older protocol.

Interleaving: the stream of states ends when the executor has produced its finish event, which may be read only after
that; so its end is not the end of the run, but starts a short wait for it.
"""

from __future__ import annotations

from typing import Any

from attrs import define
from google.rpc import status_pb2
from twisted.logger import Logger

from ..blobs.base import BlobError
from ..core.model import FailureReason
from ..reactor import sleep
from ..wireproto import executor_api_pb2 as pb
from ..wireproto import function_executor_pb2 as fe
from .calls import ABORTED, INTERNAL, OK
from .child_values import fill
from .children import Children
from .client import RpcError
from .run import REOPENINGS, AllocationRun, Finished, Stopped
from .watcher_timers import WatcherTimers

log = Logger()

FINISH_SECONDS = 5.0
"""How long after the end of the states the finish event may come."""
MAX_ENTRIES = 100


@define
class _Read:
    """What the executor waits for."""

    after_clock: int
    max_entries: int


class EventLogRun(AllocationRun):
    """An allocation of an executor that speaks the event log."""

    def __init__(self, **common: Any) -> None:
        super().__init__(**common)
        self._log: list[fe.AllocationEvent] = []
        self._read: _Read | None = None
        self._children = Children()
        self._watchers = 0
        self._timers = WatcherTimers(clock=self.clock, wall=self.wall, passed=self._wait_timed_out)

    def begin(self) -> None:
        self.spawn(self._take_batches())
        self.spawn(self._serve_reads())

    def observe(self, state: fe.AllocationState) -> None:
        """Calls, watchers and results are events."""

    def states_ended(self) -> None:
        self.spawn(self._await_finish())

    def deliver(self, result: pb.FunctionCallResult) -> None:
        self.deadline.restart()
        for watcher_id in self._children.keep(result):
            self._answer(watcher_id, result)

    def release_user_code(self) -> None:
        for watcher_id in self._children.open():
            self._fail(watcher_id, fe.FUNCTION_CALL_WATCHER_STATUS_COMPLETED)

    def _close(self) -> None:
        self._timers.cancel_all()
        super()._close()

    async def _await_finish(self) -> None:
        await sleep(self.clock, FINISH_SECONDS)
        text = "the stream of states ended and no result came"
        self.end(Stopped(FailureReason.FUNCTION_ERROR, text, crash_suspected=True))

    async def _take_batches(self) -> None:
        repeated = 0
        while True:
            try:
                batch = await self.client.next_batch(self.spec.id)
            except RpcError as error:
                if error.code != "UNKNOWN" or repeated >= REOPENINGS:
                    raise
                repeated += 1
                continue
            repeated = 0
            if not batch.events:
                text = "the executor's events ended without a result"
                self.end(Stopped(FailureReason.FUNCTION_ERROR, text, crash_suspected=True))
                return
            await self.calls.complete_arguments(
                [
                    event.create_function_call.args_blob
                    for event in batch.events
                    if event.create_function_call.HasField("args_blob")
                ]
            )
            for event in batch.events:
                if await self._take(event):
                    return
            await self.client.advance_batch(self.spec.id)

    async def _take(self, event: fe.AllocationExecutionEvent) -> bool:
        """Act on one event; whether it was the last."""
        match event.WhichOneof("event"):
            case "create_function_call":
                await self._create(event.create_function_call)
            case "function_call_creation_failed":
                failed = event.function_call_creation_failed
                status = status_pb2.Status(code=INTERNAL, message="the call could not be made by its executor")
                created = fe.AllocationEventFunctionCallCreated(function_call_id=failed.function_call_id, status=status)
                if failed.HasField("metadata"):
                    created.metadata = failed.metadata
                self._append(fe.AllocationEvent(function_call_created=created))
            case "create_function_call_watcher":
                self._watch(event.create_function_call_watcher)
            case "finish_allocation":
                self.end(Finished(self.results.read(event.finish_allocation)))
                return True
            case _:
                text = "the executor told an event of a kind that this node does not know"
                self.end(Stopped(FailureReason.INTERNAL_ERROR, text))
                return True
        return False

    async def _create(self, event: fe.AllocationExecutionEventCreateFunctionCall) -> None:
        args = event.args_blob if event.HasField("args_blob") and event.args_blob.id else None
        answer = await self.calls.create(event.updates, args)
        created = fe.AllocationEventFunctionCallCreated(
            function_call_id=event.updates.root_function_call_id,
            status=status_pb2.Status(code=answer.code, message=answer.message),
        )
        self._append(fe.AllocationEvent(function_call_created=created))

    def _watch(self, event: fe.AllocationExecutionEventCreateFunctionCallWatcher) -> None:
        status = status_pb2.Status(code=OK)
        if self.leaving:
            status = status_pb2.Status(code=ABORTED, message="the allocation is being ended")
        created = fe.AllocationEventFunctionCallWatcherCreated(function_call_id=event.function_call_id, status=status)
        self._append(fe.AllocationEvent(function_call_watcher_created=created))
        if self.leaving:
            return
        self._watchers += 1
        watcher_id = str(self._watchers)  # A call may be watched again after a wait timed out.
        self._children.watch(watcher_id, event.function_call_id)
        result = self._children.result_for(watcher_id)
        if result is not None:
            self._answer(watcher_id, result)
        elif event.HasField("deadline"):
            self._timers.set(watcher_id, event.deadline)
        self._hold_deadline()

    def _wait_timed_out(self, watcher_id: str) -> None:
        self.deadline.restart()
        self._fail(watcher_id, fe.FUNCTION_CALL_WATCHER_STATUS_TIMEDOUT)

    def _hold_deadline(self) -> None:
        self.deadline.hold(bool(self._children.open()))

    def _answer(self, watcher_id: str, result: pb.FunctionCallResult) -> None:
        if self._children.answer(watcher_id):
            self._timers.cancel(watcher_id)
            self._hold_deadline()
            self.spawn(self._append_result(result))

    def _fail(self, watcher_id: str, status: fe.FunctionCallWatcherStatus) -> None:
        if self._children.answer(watcher_id):
            self._timers.cancel(watcher_id)
            self._hold_deadline()
            failed = fe.AllocationEventFunctionCallWatcherResult(
                function_call_id=self._children.call_of(watcher_id),
                outcome_code=fe.ALLOCATION_OUTCOME_CODE_FAILURE,
                watcher_status=status,
            )
            self._append(fe.AllocationEvent(function_call_watcher_result=failed))

    async def _append_result(self, result: pb.FunctionCallResult) -> None:
        message = fe.AllocationEventFunctionCallWatcherResult(watcher_status=fe.FUNCTION_CALL_WATCHER_STATUS_COMPLETED)
        try:
            await fill(message, result, self.blobs)
        except BlobError as error:
            # Without its blob user code would take it for a failure of the child.
            self.end(Stopped(FailureReason.INTERNAL_ERROR, f"the result of a call cannot be passed on: {error}"))
            return
        self._append(fe.AllocationEvent(function_call_watcher_result=message))

    def _append(self, event: fe.AllocationEvent) -> None:
        event.clock = len(self._log) + 1
        self._log.append(event)
        self._answer_read()

    async def _serve_reads(self) -> None:
        opened = 0
        while True:
            reads = self.stream(self.client.reads(self.spec.id))
            try:
                while (request := await reads.next()) is not None:
                    opened = 0
                    self._read = _Read(request.after_clock, request.max_entries or MAX_ENTRIES)
                    self._answer_read()
                return  # User code has ended: the finish event comes by itself.
            except RpcError as error:
                if error.code != "UNKNOWN" or opened >= REOPENINGS:
                    raise
                opened += 1
            finally:
                reads.close()

    def _answer_read(self) -> None:
        """Answer the read that waits, if the log has something for it."""
        read = self._read
        if read is None or read.after_clock >= len(self._log):
            return
        self._read = None
        entries = self._log[read.after_clock : read.after_clock + read.max_entries]
        response = fe.ReadAllocationEventLogResponse(
            allocation_id=self.spec.id,
            entries=entries,
            last_clock=entries[-1].clock,
            has_more=entries[-1].clock < len(self._log),
        )
        self.spawn(self.insist(lambda: self.client.answer_read(response)))
