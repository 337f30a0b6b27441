"""What happens to a request, as the objects of its event stream."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

from indexify_dataplane.wireproto import executor_api_pb2 as pb

from .state import Allocation, FunctionRun, Request, World

INLINE_OUTPUT_BYTES = 1024 * 1024
"""JSON values up to this size are part of RequestFinished."""

CONTENT_TYPES = {
    pb.DATA_PAYLOAD_ENCODING_UTF8_JSON: "application/json",
    pb.DATA_PAYLOAD_ENCODING_UTF8_TEXT: "text/plain",
    pb.DATA_PAYLOAD_ENCODING_BINARY_PICKLE: "application/python-pickle",
    pb.DATA_PAYLOAD_ENCODING_BINARY_ZIP: "application/zip",
}
ENCODINGS = {content_type: encoding for encoding, content_type in CONTENT_TYPES.items()}

F = pb.AllocationFailureReason
FAILURE_TEXTS = {
    F.ALLOCATION_FAILURE_REASON_INTERNAL_ERROR: "internal_error",
    F.ALLOCATION_FAILURE_REASON_FUNCTION_ERROR: "function_error",
    F.ALLOCATION_FAILURE_REASON_FUNCTION_TIMEOUT: "function_timeout",
    F.ALLOCATION_FAILURE_REASON_REQUEST_ERROR: "request_error",
    F.ALLOCATION_FAILURE_REASON_ALLOCATION_CANCELLED: "cancelled",
    F.ALLOCATION_FAILURE_REASON_CONTAINER_TERMINATED: "internal_error",
    F.ALLOCATION_FAILURE_REASON_OOM: "out_of_memory",
    F.ALLOCATION_FAILURE_REASON_CONSTRAINT_UNSATISFIABLE: "constraint_unsatisfiable",
    F.ALLOCATION_FAILURE_REASON_EXECUTOR_REMOVED: "internal_error",
    F.ALLOCATION_FAILURE_REASON_STARTUP_FAILED_INTERNAL_ERROR: "internal_error",
    F.ALLOCATION_FAILURE_REASON_STARTUP_FAILED_FUNCTION_ERROR: "function_error",
    F.ALLOCATION_FAILURE_REASON_STARTUP_FAILED_FUNCTION_TIMEOUT: "function_timeout",
    F.ALLOCATION_FAILURE_REASON_STARTUP_FAILED_BAD_IMAGE: "function_error",
}


def failure_text(reason: int) -> str:
    """A failure reason as REST clients read it."""
    return FAILURE_TEXTS.get(reason, "unknown")  # type: ignore[call-overload, no-any-return]


def outcome_json(outcome: str | None, reason: int) -> Any:
    """An outcome as REST clients read it: null, a word, or ``{"failure": reason}``."""
    return {"failure": failure_text(reason)} if outcome == "failure" else outcome


def content_type(payload: pb.DataPayload) -> str:
    """The MIME type of a payload; what its sender named wins over its encoding."""
    return payload.content_type or CONTENT_TYPES.get(payload.encoding, "application/octet-stream")


class Story:
    """Writes the events of requests and tells those who listen."""

    def __init__(self, world: World) -> None:
        self._world = world

    def tell(self, request: Request, tag: str, **values: Any) -> None:
        event = {
            tag: {
                "namespace": request.namespace,
                "application_name": request.application,
                "application_version": request.version,
                "request_id": request.id,
                "created_at": datetime.fromtimestamp(self._world.wall(), UTC).isoformat(),
                **values,
            }
        }
        request.events.append(event)
        for listener in list(request.listeners):
            listener(event)

    def run(self, tag: str, run: FunctionRun, **values: Any) -> None:
        self.tell(run.request, tag, function_name=run.function, function_run_id=run.id, **values)

    def allocation(self, tag: str, allocation: Allocation, **values: Any) -> None:
        self.run(
            tag,
            allocation.run,
            allocation_id=allocation.id,
            executor_id=allocation.executor_id,
            container_id=allocation.container_id,
            **values,
        )

    def finished(self, request: Request) -> None:
        self.tell(
            request,
            "RequestFinished",
            outcome=outcome_json(request.outcome, request.failure_reason) or "unknown",
            output=self._output(request),
        )

    def _output(self, request: Request) -> dict[str, Any] | None:
        value = request.runs[request.id].value
        if request.outcome != "success" or value is None or not value.uri:
            return None
        mime = content_type(value)
        path = f"/v1/namespaces/{request.namespace}/applications/{request.application}/requests/{request.id}/output"
        output: dict[str, Any] = {"path": path, "content_encoding": mime}
        if mime == "application/json" and value.size - value.metadata_size <= INLINE_OUTPUT_BYTES:
            try:
                output["body"] = json.loads(self.read(value))
            except (OSError, ValueError) as error:
                # The value stays readable, or fails with its reason, at ``path``.
                output["error"] = str(error)
        return output

    def read(self, payload: pb.DataPayload) -> bytes:
        """The bytes of a payload without its metadata. OSError when its blob cannot be read."""
        with self._world.blobs.open(payload.uri) as blob:
            blob.seek(payload.offset + payload.metadata_size)
            return blob.read(payload.size - payload.metadata_size)
