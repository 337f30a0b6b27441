"""A child call's result, as far as both protocols carry it in the same fields."""

from __future__ import annotations

from ..control.wire_values import read_payload
from ..wireproto import executor_api_pb2 as pb
from ..wireproto import function_executor_pb2 as fe
from .blobs import AllocationBlobs
from .wire import outcome_code, write_object

BLOB_ID = "fc-result"


async def fill(
    message: fe.AllocationFunctionCallResult | fe.AllocationEventFunctionCallWatcherResult,
    result: pb.FunctionCallResult,
    blobs: AllocationBlobs,
) -> None:
    """Set id, outcome, and value or request error with their blobs. Raises BlobError."""
    message.function_call_id = result.function_call_id
    message.outcome_code = outcome_code(result.outcome_code)
    if result.HasField("return_value"):
        value = read_payload(result.return_value)
        write_object(message.value_output, value)
        message.value_blob.CopyFrom(await blobs.readable(value, BLOB_ID))
    if result.HasField("request_error"):
        error = read_payload(result.request_error)
        write_object(message.request_error_output, error)
        message.request_error_blob.CopyFrom(await blobs.readable(error, BLOB_ID))
