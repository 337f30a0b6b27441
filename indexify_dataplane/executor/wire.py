"""The executor's messages, the server's messages and the core's values, into one another.

The two protocols have enumerations of the same name with different numbers: reasons go by name, encodings by number,
which are equal. ``FunctionCall.call_metadata`` has another field number on each side; it is copied by name.
"""

from __future__ import annotations

from collections.abc import Iterator

from ..control.wire_values import write_payload
from ..core.model import FailureReason, FunctionRef, Payload
from ..wireproto import executor_api_pb2 as pb
from ..wireproto import function_executor_pb2 as fe

MIB = 1024 * 1024
SMALL_CHUNK = 100 * MIB
LARGE_CHUNK = 1024 * MIB
SMALL_CHUNKS = 100
"""Parts 1 to 100 of an upload have 100 MiB, later ones 1 GiB, so that 10,000 parts hold any result."""

_FAILURES: dict[int, FailureReason] = {
    fe.ALLOCATION_FAILURE_REASON_INTERNAL_ERROR: FailureReason.INTERNAL_ERROR,
    fe.ALLOCATION_FAILURE_REASON_FUNCTION_ERROR: FailureReason.FUNCTION_ERROR,
    fe.ALLOCATION_FAILURE_REASON_REQUEST_ERROR: FailureReason.REQUEST_ERROR,
}
_OUTCOMES: dict[int, fe.AllocationOutcomeCode] = {
    pb.ALLOCATION_OUTCOME_CODE_SUCCESS: fe.ALLOCATION_OUTCOME_CODE_SUCCESS,
    pb.ALLOCATION_OUTCOME_CODE_FAILURE: fe.ALLOCATION_OUTCOME_CODE_FAILURE,
}


class MalformedResult(ValueError):
    """The executor's result cannot be understood; the text names the field."""


def failure_reason(number: int) -> FailureReason:
    """Unset, unknown and a mismatch of replayed history (which this node never asks for) are our failure."""
    return _FAILURES.get(number, FailureReason.INTERNAL_ERROR)


def outcome_code(number: int) -> fe.AllocationOutcomeCode:
    """The server's outcome of a child call, as the executor's number."""
    return _OUTCOMES.get(number, fe.ALLOCATION_OUTCOME_CODE_UNKNOWN)


def write_function(message: fe.FunctionRef, function: FunctionRef) -> None:
    """All four parts: the executor refuses a reference that lacks one."""
    message.namespace = function.namespace or ""
    message.application_name = function.application or ""
    message.function_name = function.function or ""
    message.application_version = function.version or ""


def write_manifest(message: fe.SerializedObjectManifest, payload: Payload) -> None:
    """What the executor demands is always set, with 0 for what the server left out."""
    message.encoding = payload.encoding or 0  # type: ignore[assignment]
    message.encoding_version = payload.encoding_version or 0
    message.size = payload.size or 0
    message.metadata_size = payload.metadata_size or 0
    message.sha256_hash = payload.sha256 or ""
    if payload.content_type is not None:
        message.content_type = payload.content_type
    if payload.source_function_call_id is not None:
        message.source_function_call_id = payload.source_function_call_id


def write_object(message: fe.SerializedObjectInsideBLOB, payload: Payload) -> None:
    write_manifest(message.manifest, payload)
    message.offset = payload.offset or 0


def read_object(message: fe.SerializedObjectInsideBLOB, uri: str) -> Payload:
    """A value that the executor wrote into the blob at ``uri``."""
    manifest = message.manifest

    def optional(field: str) -> str | None:
        return getattr(manifest, field) if manifest.HasField(field) else None

    return Payload(
        uri=uri,
        encoding=int(manifest.encoding) if manifest.HasField("encoding") else None,
        encoding_version=manifest.encoding_version if manifest.HasField("encoding_version") else None,
        content_type=optional("content_type"),
        metadata_size=manifest.metadata_size if manifest.HasField("metadata_size") else None,
        offset=message.offset if message.HasField("offset") else None,
        size=manifest.size if manifest.HasField("size") else None,
        sha256=optional("sha256_hash"),
        source_function_call_id=optional("source_function_call_id"),
    )


def read_chunks(size: int) -> Iterator[int]:
    """Sizes of the chunks in which a blob of ``size`` bytes is read; one of 0 for an empty blob."""
    return _chunks(size, None)


def write_chunks(size: int) -> Iterator[int]:
    """Sizes of the parts in which a blob of ``size`` bytes is written."""
    return _chunks(size, SMALL_CHUNKS)


def _chunks(size: int, small: int | None) -> Iterator[int]:
    if size == 0:
        yield 0
    number = 0
    while size > 0:
        number += 1
        chunk = min(size, SMALL_CHUNK if small is None or number <= small else LARGE_CHUNK)
        yield chunk
        size -= chunk


def readable_blob(blob_id: str, url: str, size: int) -> fe.BLOB:
    """All chunks carry the same URL; the executor asks for ranges that are absolute in the object."""
    return fe.BLOB(id=blob_id, chunks=[fe.BLOBChunk(uri=url, size=chunk) for chunk in read_chunks(size)])


def etags(blob: fe.BLOB) -> list[str] | None:
    """Of the parts that were written, in order; None when a chunk has none, so that nobody knows what was written."""
    found = [chunk.etag for chunk in blob.chunks]
    return found if found and all(found) else None


def translate_updates(updates: fe.ExecutionPlanUpdates, args_uri: str | None) -> pb.ExecutionPlanUpdates:
    """The plan for the server; values inside it lie in the blob at ``args_uri``. Raises MalformedResult."""
    translated = pb.ExecutionPlanUpdates()
    if updates.HasField("root_function_call_id"):
        translated.root_function_call_id = updates.root_function_call_id
    if updates.HasField("start_at"):
        translated.start_at.CopyFrom(updates.start_at)
    for update in updates.updates:
        into = translated.updates.add()
        match update.WhichOneof("op"):
            case "function_call":
                call = update.function_call
                into.function_call.SetInParent()
                if call.HasField("id"):
                    into.function_call.id = call.id
                if call.HasField("target"):
                    _translate_function(into.function_call.target, call.target)
                for arg in call.args:
                    _translate_arg(into.function_call.args.add(), arg, args_uri)
                if call.HasField("call_metadata"):
                    into.function_call.call_metadata = call.call_metadata
            case "reduce":
                reduce = update.reduce
                into.reduce.SetInParent()
                if reduce.HasField("id"):
                    into.reduce.id = reduce.id
                if reduce.HasField("reducer"):
                    _translate_function(into.reduce.reducer, reduce.reducer)
                for arg in reduce.collection:
                    _translate_arg(into.reduce.collection.add(), arg, args_uri)
                if reduce.HasField("call_metadata"):
                    into.reduce.call_metadata = reduce.call_metadata
            case _:
                raise MalformedResult("an update of the execution plan has no operation")
    return translated


def _translate_function(into: pb.FunctionRef, function: fe.FunctionRef) -> None:
    into.SetInParent()
    for field in ("namespace", "application_name", "function_name", "application_version"):
        if function.HasField(field):
            setattr(into, field, getattr(function, field))


def _translate_arg(into: pb.FunctionArg, arg: fe.FunctionArg, args_uri: str | None) -> None:
    match arg.WhichOneof("source"):
        case "function_call_id":
            into.function_call_id = arg.function_call_id
        case "value":
            if args_uri is None:
                raise MalformedResult("an argument has a value, but no blob with values came with it")
            write_payload(into.inline_data, read_object(arg.value, args_uri))
        case _:
            raise MalformedResult("an argument of a function call has no source")


def update_ids(updates: pb.ExecutionPlanUpdates) -> Iterator[tuple[pb.ExecutionPlanUpdate, str]]:
    """Every operation with its id, which may be empty."""
    for update in updates.updates:
        yield update, update.function_call.id or update.reduce.id
