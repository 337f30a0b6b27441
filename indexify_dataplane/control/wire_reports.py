"""Reports to the server: encoded once, checked before they can do harm.

One item that the server cannot ingest fails the whole heartbeat with INTERNAL, again and again. So an item is checked
against the server's rules when it is encoded, and whatever slips through is replaced by ``replacement``.
"""

from __future__ import annotations

from attrs import evolve
from google.protobuf.message import DecodeError
from twisted.logger import Logger

from ..core.model import (
    AllocationEnded,
    AllocationScheduled,
    Completed,
    ContainerStarted,
    ContainerTerminated,
    Failed,
    FailureReason,
    FunctionCalled,
    ReportBody,
    SnapshotCompleted,
    SnapshotFailed,
)
from ..core.outbox import ReportKind
from ..wireproto import executor_api_pb2 as pb
from .wire_values import write_function, write_payload

log = Logger()

MAX_ITEM_BYTES = 20 * 1024 * 1024
"""The server takes messages of 32 MiB, and a heartbeat is more than its item."""
TEXT_LIMIT = 4000
_KNOWN_ENCODINGS = range(1, 6)  # DataPayloadEncoding; the server fails the heartbeat on any other number.


class InvalidReport(ValueError):
    """The server could not ingest this item; the text names the field by its path."""


def _require(condition: object, problem: str) -> None:
    if not condition:
        raise InvalidReport(problem)


def _check_payload(payload: pb.DataPayload, path: str) -> None:
    _require(payload.uri, f"{path}.uri is missing")
    _require(payload.HasField("size"), f"{path}.size is missing")
    _require(payload.HasField("encoding"), f"{path}.encoding is missing")
    _require(payload.encoding in _KNOWN_ENCODINGS, f"{path}.encoding is {payload.encoding}; 1 to 5 are known")
    _require(payload.sha256_hash, f"{path}.sha256_hash is missing")


def _check_function(function: pb.FunctionRef, path: str) -> None:
    _require(function.namespace, f"{path}.namespace is missing")
    _require(function.function_name, f"{path}.function_name is missing")


def _check_argument(argument: pb.FunctionArg, path: str) -> None:
    match argument.WhichOneof("source"):
        case "function_call_id":
            _require(argument.function_call_id, f"{path}.function_call_id is empty")
        case "inline_data":
            _check_payload(argument.inline_data, f"{path}.inline_data")
        case _:
            raise InvalidReport(f"{path} has no source")


def _check_updates(updates: pb.ExecutionPlanUpdates, path: str, *, of_tail_call: bool = False) -> None:
    # Since tensorlake 0.4.11 a tail call is made like any other call first; the result then only names its root.
    _require(updates.updates or of_tail_call, f"{path}.updates is empty")
    _require(updates.root_function_call_id, f"{path}.root_function_call_id is missing")
    for index, update in enumerate(updates.updates):
        here = f"{path}.updates[{index}]"
        match update.WhichOneof("op"):
            case "function_call":
                call = update.function_call
                _require(call.id, f"{here}.function_call.id is missing")
                _require(call.HasField("target"), f"{here}.function_call.target is missing")
                _check_function(call.target, f"{here}.function_call.target")
                for position, argument in enumerate(call.args):
                    _check_argument(argument, f"{here}.function_call.args[{position}]")
            case "reduce":
                reduce = update.reduce
                _require(reduce.id, f"{here}.reduce.id is missing")
                _require(reduce.HasField("reducer"), f"{here}.reduce.reducer is missing")
                _check_function(reduce.reducer, f"{here}.reduce.reducer")
                _require(reduce.HasField("call_metadata"), f"{here}.reduce.call_metadata is missing")
                _require(len(reduce.collection) >= 2, f"{here}.reduce.collection has fewer than two items")
                for position, argument in enumerate(reduce.collection):
                    _check_argument(argument, f"{here}.reduce.collection[{position}]")
            case _:
                raise InvalidReport(f"{here} has no operation")


def _response(body: ReportBody) -> pb.CommandResponse | None:
    message = pb.CommandResponse()
    match body:
        case ContainerStarted(container_id=container_id):
            message.container_started.container_id = container_id
        case ContainerTerminated(container_id=container_id, reason=reason):
            message.container_terminated.container_id = container_id
            message.container_terminated.reason = int(reason)  # type: ignore[assignment]
        case AllocationScheduled(allocation_id=allocation_id, seq=seq):
            message.allocation_scheduled.allocation_id = allocation_id
            message.command_seq = seq
        case SnapshotCompleted():
            _require(body.snapshot_id, "snapshot_completed.snapshot_id is missing")
            _require(body.snapshot_uri, "snapshot_completed.snapshot_uri is missing")
            completed = message.snapshot_completed
            completed.container_id, completed.snapshot_id = body.container_id, body.snapshot_id
            completed.snapshot_uri, completed.size_bytes = body.snapshot_uri, body.size_bytes
        case SnapshotFailed():
            _require(body.snapshot_id, "snapshot_failed.snapshot_id is missing")
            failed = message.snapshot_failed
            failed.container_id, failed.snapshot_id = body.container_id, body.snapshot_id
            # Text from a tool may be long, and may hold what is not UTF-8.
            failed.error_message = body.message[:TEXT_LIMIT].encode("utf-8", "replace").decode("utf-8")
        case _:
            return None
    return message


def _write_identity(message: pb.AllocationCompleted | pb.AllocationFailed, body: AllocationEnded) -> None:
    message.allocation_id = body.spec.id
    write_function(message.function, body.spec.function)
    if body.spec.function_call_id:
        message.function_call_id = body.spec.function_call_id
    if body.spec.request_id:
        message.request_id = body.spec.request_id


def _outcome(body: AllocationEnded) -> pb.AllocationOutcome:
    message = pb.AllocationOutcome()
    _require(body.spec.id, "allocation_id is missing")
    match body.outcome:
        case Completed(value=value, updates=updates, duration_ms=duration):
            completed = message.completed
            _write_identity(completed, body)
            if value is not None:
                write_payload(completed.value, value)
                _check_payload(completed.value, "completed.value")
            elif updates is not None:
                try:
                    completed.updates.ParseFromString(updates)
                except DecodeError as error:
                    raise InvalidReport(f"completed.updates cannot be decoded: {error}") from error
                _check_updates(completed.updates, "completed.updates", of_tail_call=True)
            if duration is not None:
                completed.execution_duration_ms = duration
        case Failed(reason=reason, request_error=request_error, duration_ms=duration):
            failed = message.failed
            _write_identity(failed, body)
            failed.reason = int(reason)  # type: ignore[assignment]
            if request_error is not None:
                write_payload(failed.request_error, request_error)
                _check_payload(failed.request_error, "failed.request_error")
            if duration is not None:
                failed.execution_duration_ms = duration
            if body.container_id:
                failed.container_id = body.container_id
    return message


def _log_entry(body: FunctionCalled) -> pb.AllocationLogEntry:
    message = pb.AllocationLogEntry(allocation_id=body.allocation_id)
    _require(body.allocation_id, "allocation_id is missing")
    call = message.call_function
    try:
        call.ParseFromString(body.request)
    except DecodeError as error:
        raise InvalidReport(f"call_function cannot be decoded: {error}") from error
    call.SetInParent()
    for field in ("namespace", "application", "request_id", "source_function_call_id"):
        _require(getattr(call, field), f"call_function.{field} is missing")
    _require(call.HasField("updates"), "call_function.updates is missing")
    _check_updates(call.updates, "call_function.updates")
    return message


def _encode(message: pb.CommandResponse | pb.AllocationOutcome | pb.AllocationLogEntry) -> bytes:
    encoded = message.SerializeToString()
    _require(len(encoded) <= MAX_ITEM_BYTES, f"the item has {len(encoded)} bytes; {MAX_ITEM_BYTES} are allowed")
    return encoded


def check_report(body: ReportBody) -> None:
    """Raise InvalidReport, with the path of the field, for what the server could not ingest. To be asked before the
    node commits itself to the report: then the fault still has an owner who can be told."""
    if isinstance(body, AllocationEnded):
        _encode(_outcome(body))
    else:
        encode_report(body)


def encode_report(body: ReportBody) -> tuple[ReportKind, bytes]:
    """The encoded ``CommandResponse``, ``AllocationOutcome`` or ``AllocationLogEntry`` and which of them it is.

    An outcome that the server could not ingest is encoded as the failure that stands for it (see ``replacement``),
    with an error log: the server must get exactly one outcome. Any other invalid body raises InvalidReport.
    """
    if isinstance(body, FunctionCalled):
        return ReportKind.LOG, _encode(_log_entry(body))
    if not isinstance(body, AllocationEnded):
        response = _response(body)
        assert response is not None, type(body)
        return ReportKind.RESPONSE, _encode(response)
    try:
        return ReportKind.OUTCOME, _encode(_outcome(body))
    except InvalidReport as error:
        log.error(
            "outcome cannot be reported as it is; a failure takes its place",
            allocation_id=body.spec.id,
            request_id=body.spec.request_id,
            error=str(error),
        )
        ended = body.outcome
        reason = ended.reason if isinstance(ended, Failed) else FailureReason.INTERNAL_ERROR
        plain = evolve(body, outcome=Failed(reason, duration_ms=ended.duration_ms))
        return ReportKind.OUTCOME, _encode(_outcome(plain))


def replacement(kind: ReportKind, encoded: bytes) -> bytes | None:
    """What to send in place of an item that the server refuses for ever; None when there is nothing simpler to say.

    A success becomes AllocationFailed(INTERNAL_ERROR) with the ids of the original. A failure loses its user error
    payload, the only part of it that can be refused, and keeps its reason: turning a REQUEST_ERROR, which is not
    retried, into an INTERNAL_ERROR, which is, would run the user's function again.
    """
    if kind is not ReportKind.OUTCOME:
        return None
    original = pb.AllocationOutcome.FromString(encoded)
    message = pb.AllocationOutcome()
    if original.WhichOneof("outcome") == "completed":
        completed, failed = original.completed, message.failed
        failed.allocation_id = completed.allocation_id
        failed.reason = pb.ALLOCATION_FAILURE_REASON_INTERNAL_ERROR
        failed.function.CopyFrom(completed.function)
        failed.function_call_id = completed.function_call_id
        failed.request_id = completed.request_id
        if completed.HasField("execution_duration_ms"):
            failed.execution_duration_ms = completed.execution_duration_ms
        return message.SerializeToString()
    if original.failed.HasField("request_error"):
        message.CopyFrom(original)
        message.failed.ClearField("request_error")
        return message.SerializeToString()
    return None


def summarize(kind: ReportKind, encoded: bytes) -> dict[str, str]:
    """The ids of an encoded item, for a log line about it."""
    match kind:
        case ReportKind.OUTCOME:
            outcome = pb.AllocationOutcome.FromString(encoded)
            which = outcome.WhichOneof("outcome") or "unset"
            ended = outcome.completed if which == "completed" else outcome.failed
            return {"item": which, "allocation_id": ended.allocation_id, "request_id": ended.request_id}
        case ReportKind.LOG:
            entry = pb.AllocationLogEntry.FromString(encoded)
            return {
                "item": entry.WhichOneof("entry") or "unset",
                "allocation_id": entry.allocation_id,
                "request_id": entry.call_function.request_id,
            }
        case ReportKind.RESPONSE:
            response = pb.CommandResponse.FromString(encoded)
            which = response.WhichOneof("response") or "unset"
            said = {"item": which}
            for name in ("container_id", "allocation_id", "snapshot_id"):
                value = getattr(getattr(response, which, None), name, "")
                if value:
                    said[name] = value
            return said
