"""Request state: values that the functions of one request share, read and written by the executor itself."""

from __future__ import annotations

from google.rpc import status_pb2
from twisted.logger import Logger

from ..blobs.base import BlobError, BlobNotFound
from ..wireproto import function_executor_pb2 as fe
from .blobs import AllocationBlobs
from .wire import MalformedResult

log = Logger()

OK, NOT_FOUND, INTERNAL = 0, 5, 13


class RequestState:
    """Answers operations, each id once: a repeat of an announcement is not a second operation."""

    def __init__(self, *, allocation_id: str, blobs: AllocationBlobs) -> None:
        self._allocation_id = allocation_id
        self._blobs = blobs
        self._seen: set[str] = set()

    def is_new(self, operation: fe.AllocationRequestStateOperation) -> bool:
        """Whether this operation was not taken yet; it is from now on."""
        if not operation.operation_id or operation.operation_id in self._seen:
            return False
        self._seen.add(operation.operation_id)
        return True

    async def perform(
        self, operation: fe.AllocationRequestStateOperation
    ) -> fe.AllocationRequestStateOperationResult | None:
        """Carry it out; the answer, or None for a kind of operation that this version does not know."""
        result = fe.AllocationRequestStateOperationResult(operation_id=operation.operation_id)
        kind = operation.WhichOneof("operation")
        if kind is None:
            log.warn("unknown kind of request state operation ignored", allocation_id=self._allocation_id)
            return None
        getattr(result, kind).SetInParent()
        code = OK
        try:
            match kind:
                case "prepare_read":
                    blob = await self._blobs.read_state(operation.operation_id, operation.state_key)
                    result.prepare_read.blob.CopyFrom(blob)
                case "prepare_write":
                    blob = await self._blobs.write_state(
                        operation.operation_id, operation.state_key, operation.prepare_write.size
                    )
                    result.prepare_write.blob.CopyFrom(blob)
                case "commit_write":
                    if not await self._blobs.commit_state(operation.commit_write.blob):
                        code = NOT_FOUND
        except BlobNotFound:
            code = NOT_FOUND if kind == "prepare_read" else INTERNAL
        except (BlobError, MalformedResult) as error:
            log.error("request state operation failed", allocation_id=self._allocation_id, kind=kind, error=str(error))
            code = INTERNAL
        result.status.CopyFrom(status_pb2.Status(code=code))
        return result
