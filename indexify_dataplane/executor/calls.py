"""Calls of other functions: from the executor's plan to the server's request, each operation exactly once.

An executor may announce a call again (a repeated snapshot, a plan inside a result), and the same body run again makes
the same ids. So ids that went to the server are remembered for the run, and only those: a call that was refused may
come again.
"""

from __future__ import annotations

from collections.abc import Callable

from attrs import frozen
from twisted.internet.defer import Deferred, DeferredList
from twisted.logger import Logger

from ..blobs.base import BlobError
from ..control.wire_reports import InvalidReport, check_report
from ..core.model import AllocationSpec, FunctionCalled
from ..metrics import Metrics
from ..wireproto import executor_api_pb2 as pb
from ..wireproto import function_executor_pb2 as fe
from .blobs import AllocationBlobs
from .wire import MIB, MalformedResult, translate_updates, update_ids

log = Logger()

MAX_REQUEST_BYTES = MIB
MAX_UPDATES = 1000

OK, ABORTED, RESOURCE_EXHAUSTED, INTERNAL = 0, 10, 8, 13
"""Numbers of ``google.rpc.Code``."""


@frozen
class Answer:
    """What the executor is told about a call: a status number and a sentence for its log."""

    code: int = OK
    message: str = ""


class FunctionCalls:
    """The calls of one run. ``called`` takes an encoded ``FunctionCallRequest`` and never fails."""

    def __init__(
        self, *, allocation: AllocationSpec, blobs: AllocationBlobs, called: Callable[[bytes], None], metrics: Metrics
    ) -> None:
        self._allocation = allocation
        self._blobs = blobs
        self._called = called
        self._metrics = metrics
        self._sent: set[str] = set()
        self._closed = False

    def refuse(self) -> None:
        """From now on no call reaches the server: the run is being given up."""
        self._closed = True

    async def complete_arguments(self, blobs: list[fe.BLOB]) -> None:
        """Begin with all of ``blobs`` at once; ``create`` then finds them complete, or meets the failure again."""

        def ignore(_: object) -> None:
            """``create`` tries again and answers for it."""

        work = [Deferred.fromCoroutine(self._blobs.complete_arguments(blob)).addErrback(ignore) for blob in blobs]
        await DeferredList(work)

    async def create(self, updates: fe.ExecutionPlanUpdates, args_blob: fe.BLOB | None) -> Answer:
        """Hand the calls of one plan to the server; OK when it is certain that it will get them."""
        if self._closed:
            return Answer(ABORTED, "the allocation is being ended")
        try:
            args_uri = None if args_blob is None else await self._blobs.complete_arguments(args_blob)
            request = self._request(translate_updates(updates, args_uri))
        except (BlobError, MalformedResult) as error:
            return self._refused(Answer(INTERNAL, str(error)))
        if not request.updates.updates:
            return Answer()
        answer = self._check(request)
        if answer.code != OK:
            return self._refused(answer)
        encoded = request.SerializeToString()
        self._metrics.counter("call_function_rpcs").add()
        self._metrics.histogram("function_call_message_size_mb").observe(len(encoded) / MIB)
        self._called(encoded)
        self._sent.update(call_id for _, call_id in update_ids(request.updates) if call_id)
        return answer

    def without_sent(self, updates: pb.ExecutionPlanUpdates) -> pb.ExecutionPlanUpdates:
        """The same plan without operations that the server has already."""
        left = pb.ExecutionPlanUpdates()
        left.CopyFrom(updates)
        del left.updates[:]
        left.updates.extend(update for update, call_id in update_ids(updates) if call_id not in self._sent)
        return left

    def _request(self, updates: pb.ExecutionPlanUpdates) -> pb.FunctionCallRequest:
        allocation = self._allocation
        return pb.FunctionCallRequest(
            namespace=allocation.function.namespace or "",
            application=allocation.function.application or "",
            request_id=allocation.request_id,
            source_function_call_id=allocation.function_call_id,
            updates=self.without_sent(updates),
        )

    def _check(self, request: pb.FunctionCallRequest) -> Answer:
        size, count = request.ByteSize(), len(request.updates.updates)
        if size > MAX_REQUEST_BYTES:
            return Answer(RESOURCE_EXHAUSTED, f"the call has {size} bytes encoded; {MAX_REQUEST_BYTES} are allowed")
        if count > MAX_UPDATES:
            return Answer(RESOURCE_EXHAUSTED, f"the call makes {count} function calls; {MAX_UPDATES} are allowed")
        try:
            check_report(FunctionCalled(self._allocation.id, request.SerializeToString()))
        except InvalidReport as error:
            return Answer(INTERNAL, str(error))
        return Answer()

    def _refused(self, answer: Answer) -> Answer:
        self._metrics.counter("call_function_rpc_errors").add()
        log.warn(
            "function call refused",
            allocation_id=self._allocation.id,
            request_id=self._allocation.request_id,
            error=answer.message,
        )
        return answer
