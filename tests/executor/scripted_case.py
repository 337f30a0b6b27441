"""A scripted executor, a blob store that can fail, and one allocation."""

from __future__ import annotations

import hashlib
from typing import Any

import grpc
from twisted.internet.defer import Deferred

from indexify_dataplane.blobs.base import BlobError
from indexify_dataplane.blobs.local import LocalStore
from indexify_dataplane.blobs.stores import Blobs
from indexify_dataplane.code_cache import CodeCache
from indexify_dataplane.core.model import (
    ContainerSpec,
    FailureReason,
    FunctionRef,
    Handle,
    Kind,
    Outcome,
)
from indexify_dataplane.executor.executors import RealExecutors
from indexify_dataplane.wireproto import executor_api_pb2 as pb
from indexify_dataplane.wireproto import function_executor_pb2 as fe
from tests.contracts.blob_store import put_part
from tests.executor.scripted import Scripted
from tests.executor.support import FolderTestCase

Code = grpc.StatusCode
Reason = FailureReason


class Faulty(LocalStore):
    """Fails the operations that a test names: so many times."""

    def __init__(self) -> None:
        self.faults: dict[str, int] = {}
        self.calls: list[str] = []

    def _maybe_fail(self, operation: str) -> None:
        self.calls.append(operation)
        if self.faults.get(operation, 0) > 0:
            self.faults[operation] -= 1
            raise BlobError(f"{operation}: the store is down", retryable=True)

    def create_upload(self, uri: str) -> str:
        self._maybe_fail("create")
        return super().create_upload(uri)

    def complete_upload(self, uri: str, upload_id: str, etags: Any) -> None:
        self._maybe_fail("complete")
        super().complete_upload(uri, upload_id, etags)

    def size(self, uri: str) -> int:
        self._maybe_fail("size")
        return super().size(uri)

    def read_url(self, uri: str, lifetime: int) -> str:
        self._maybe_fail("read_url")
        return super().read_url(uri, lifetime)


class ScriptedTestCase(FolderTestCase):
    """A scripted executor, a store that can fail, one allocation."""

    version = "0.1.2"

    def make_blobs(self) -> Blobs:
        return Blobs(clock=self.clock, calls=self.pool, metrics=self.metrics, stores={"file": self.store})

    async def connect(self) -> None:
        self.store = Faulty()
        self.blobs = self.make_blobs()
        cache = CodeCache(
            clock=self.clock, calls=self.pool, blobs=self.blobs, metrics=self.metrics, root=f"{self.folder}/code"
        )
        self.executors = RealExecutors(
            clock=self.clock,
            fe_binary_path="function-executor",
            executor_id=lambda: "node-1",
            code_cache=cache,
            blobs=self.blobs,
            metrics=self.metrics,
        )
        self.addCleanup(lambda: Deferred.fromCoroutine(self.executors.close()))
        self.executor = Scripted()
        self.executor.info.version = self.version
        address = await self.executor.serve()
        self.addCleanup(lambda: Deferred.fromCoroutine(self.executor.stop()))
        self.spec = ContainerSpec(
            id="c1", kind=Kind.FUNCTION, function=FunctionRef("ns", "app", "fn", "v1"), max_concurrency=1
        )
        self.handle = Handle(driver="test", id="c1/1", daemon_address=address)
        await self.executors.initialize(self.spec, self.handle, lambda: False)
        self.called: list[pb.FunctionCallRequest] = []

    async def begin(self, timeout_ms: int = 60_000) -> Deferred[Outcome]:
        """Connect and let an allocation run; it is created when this returns, if the executor takes it."""
        await self.connect()
        self.allocation = self.make_allocation("c1")
        await self.executors.prepare(self.allocation)

        def called(request: bytes) -> None:
            self.called.append(pb.FunctionCallRequest.FromString(request))

        running = Deferred.fromCoroutine(self.executors.run(self.allocation, self.handle, timeout_ms, called))
        await self.until(lambda: self.executor.watches or running.called)
        return running

    async def finalized(self, running: Deferred[Outcome]) -> Outcome:
        return await self.executors.finalize(self.allocation, await running)

    async def updated(self, count: int) -> list[fe.AllocationUpdate]:
        """The first ``count`` answers."""
        await self.until(lambda: len(self.executor.updates) >= count)
        return self.executor.updates

    async def written(self, data: bytes = b"result", blob_id: str = "out", number: int = 1) -> fe.BLOB:
        """Ask for a place and write ``data`` into it; what an executor reports of it."""
        self.executor.state(output_blob_requests=[fe.AllocationOutputBLOBRequest(id=blob_id, size=len(data))])
        blob = (await self.updated(number))[number - 1].output_blob.blob
        etag = put_part(blob.chunks[0].uri, 0, data)
        return fe.BLOB(id=blob_id, chunks=[fe.BLOBChunk(uri=blob.chunks[0].uri, size=len(data), etag=etag)])

    def value(self, data: bytes = b"result") -> fe.SerializedObjectInsideBLOB:
        manifest = fe.SerializedObjectManifest(
            encoding=1,
            encoding_version=0,
            size=len(data),
            metadata_size=0,
            sha256_hash=hashlib.sha256(data).hexdigest(),
        )
        return fe.SerializedObjectInsideBLOB(manifest=manifest, offset=0)

    def succeed(self, blob: fe.BLOB | None = None) -> None:
        result = fe.AllocationResult(outcome_code=fe.ALLOCATION_OUTCOME_CODE_SUCCESS)
        if blob is not None:
            result.value.CopyFrom(self.value())
            result.uploaded_function_outputs_blob.CopyFrom(blob)
        self.executor.state(result=result)

    def plan(self, *call_ids: str) -> fe.ExecutionPlanUpdates:
        target = fe.FunctionRef(namespace="ns", application_name="app", function_name="child")
        return fe.ExecutionPlanUpdates(
            updates=[
                fe.ExecutionPlanUpdate(function_call=fe.FunctionCall(id=call_id, target=target, call_metadata=b"m"))
                for call_id in call_ids
            ],
            root_function_call_id=call_ids[-1],
        )

    def child_result(self, call_id: str, data: bytes = b"child") -> bytes:
        payload = pb.DataPayload(
            uri=f"{self.base}/child", encoding=1, encoding_version=0, size=len(data), metadata_size=0, offset=0,
            sha256_hash=hashlib.sha256(data).hexdigest(),
        )  # fmt: skip
        return pb.FunctionCallResult(
            function_call_id=call_id, outcome_code=pb.ALLOCATION_OUTCOME_CODE_SUCCESS, return_value=payload
        ).SerializeToString()
