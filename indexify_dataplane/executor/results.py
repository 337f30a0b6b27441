"""What the executor says at the end of an allocation, as the outcome that the server can take."""

from __future__ import annotations

from collections.abc import Callable

from twisted.logger import Logger

from ..control.wire_reports import InvalidReport, check_report
from ..core.model import AllocationEnded, AllocationSpec, Completed, Failed, FailureReason, Outcome
from ..wireproto import executor_api_pb2 as pb
from ..wireproto import function_executor_pb2 as fe
from .blobs import AllocationBlobs
from .calls import FunctionCalls
from .wire import MalformedResult, failure_reason, read_object, translate_updates

log = Logger()


class Results:
    """Reads results of one run. ``milliseconds`` tells how long it has run."""

    def __init__(
        self,
        *,
        spec: AllocationSpec,
        blobs: AllocationBlobs,
        calls: FunctionCalls,
        milliseconds: Callable[[], int],
    ) -> None:
        self._spec = spec
        self._blobs = blobs
        self._calls = calls
        self._milliseconds = milliseconds

    def read(self, result: fe.AllocationResult | fe.AllocationExecutionEventFinishAllocation) -> Outcome:
        """The outcome to report. One that the server could not ingest is our failure, told in the log."""
        duration_ms = self._milliseconds()
        try:
            outcome = self._outcome(result, duration_ms)
            check_report(AllocationEnded(self._spec, outcome))
        except (MalformedResult, InvalidReport) as error:
            log.error("the executor's result cannot be used", allocation_id=self._spec.id, error=str(error))
            return Failed(FailureReason.INTERNAL_ERROR, duration_ms=duration_ms)
        return outcome

    def _outcome(
        self, result: fe.AllocationResult | fe.AllocationExecutionEventFinishAllocation, duration_ms: int
    ) -> Outcome:
        if result.outcome_code == fe.ALLOCATION_OUTCOME_CODE_SUCCESS:
            return self._completed(result, duration_ms)
        error = None
        if result.HasField("request_error_output"):
            uri = self._blobs.will_write_error(result.uploaded_request_error_blob)
            error = read_object(result.request_error_output, uri)
        return Failed(failure_reason(result.failure_reason), request_error=error, duration_ms=duration_ms)

    def _completed(
        self, result: fe.AllocationResult | fe.AllocationExecutionEventFinishAllocation, duration_ms: int
    ) -> Completed:
        uri = None
        if result.HasField("uploaded_function_outputs_blob"):
            uri = self._blobs.will_write(result.uploaded_function_outputs_blob)
        match result.WhichOneof("outputs"):
            case "value":
                if uri is None:
                    raise MalformedResult("there is a value, but no blob that holds it")
                return Completed(value=read_object(result.value, uri), duration_ms=duration_ms)
            case "updates" if isinstance(result, fe.AllocationResult):
                updates = self._calls.without_sent(translate_updates(result.updates, uri))
                return Completed(updates=updates.SerializeToString(), duration_ms=duration_ms)
            case "tail_call_durable_id" if isinstance(result, fe.AllocationExecutionEventFinishAllocation):
                tail = pb.ExecutionPlanUpdates(root_function_call_id=result.tail_call_durable_id)
                return Completed(updates=tail.SerializeToString(), duration_ms=duration_ms)
        return Completed(duration_ms=duration_ms)
