"""A function executor that answers at once: what is left of an allocation's cost is the node's and the server's.

It speaks the state protocol over the real wire: it asks for a place, writes a result of two bytes into it and reports.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import os
from collections.abc import AsyncIterator
from typing import Any

import grpc

from indexify_dataplane.wireproto import function_executor_pb2 as fe
from indexify_dataplane.wireproto import function_executor_pb2_grpc as service

RESULT = b"42"
DIGEST = hashlib.sha256(RESULT).hexdigest()


class Instant(service.FunctionExecutorServicer):
    def __init__(self) -> None:
        self.written: dict[str, asyncio.Future[fe.BLOB]] = {}
        self.initialized = False

    async def get_info(self, request: Any, context: Any) -> fe.InfoResponse:
        return fe.InfoResponse(version="0.1.2", sdk_version="0.4.19", sdk_language="python")

    async def check_health(self, request: Any, context: Any) -> fe.HealthCheckResponse:
        if not self.initialized:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "not initialized")
        return fe.HealthCheckResponse(healthy=True)

    async def initialize(self, request: Any, context: Any) -> fe.InitializeResponse:
        self.initialized = True
        return fe.InitializeResponse(outcome_code=fe.INITIALIZATION_OUTCOME_CODE_SUCCESS)

    async def list_allocations(self, request: Any, context: Any) -> fe.ListAllocationsResponse:
        return fe.ListAllocationsResponse()

    async def create_allocation(self, request: fe.CreateAllocationRequest, context: Any) -> fe.Empty:
        self.written[request.allocation.allocation_id] = asyncio.get_running_loop().create_future()
        return fe.Empty()

    async def watch_allocation_state(
        self, request: fe.WatchAllocationStateRequest, context: Any
    ) -> AsyncIterator[fe.AllocationState]:
        wanted = fe.AllocationOutputBLOBRequest(id="out", size=len(RESULT))
        yield fe.AllocationState(output_blob_requests=[wanted])
        blob = await self.written[request.allocation_id]
        manifest = fe.SerializedObjectManifest(
            encoding=1, encoding_version=0, size=len(RESULT), metadata_size=0, sha256_hash=DIGEST
        )
        result = fe.AllocationResult(
            outcome_code=fe.ALLOCATION_OUTCOME_CODE_SUCCESS,
            value=fe.SerializedObjectInsideBLOB(manifest=manifest, offset=0),
            uploaded_function_outputs_blob=blob,
        )
        yield fe.AllocationState(result=result)

    async def send_allocation_update(self, request: fe.AllocationUpdate, context: Any) -> fe.Empty:
        blob = request.output_blob.blob
        with open(blob.chunks[0].uri.removeprefix("file://"), "wb") as file:
            file.write(RESULT)
        chunk = fe.BLOBChunk(uri=blob.chunks[0].uri, size=len(RESULT), etag="etag")
        self.written[request.allocation_id].set_result(fe.BLOB(id=blob.id, chunks=[chunk]))
        return fe.Empty()

    async def delete_allocation(self, request: fe.DeleteAllocationRequest, context: Any) -> fe.Empty:
        self.written.pop(request.allocation_id, None)
        return fe.Empty()


async def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--address")
    arguments, _ = parser.parse_known_args()
    server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
    service.add_FunctionExecutorServicer_to_server(Instant(), server)  # type: ignore[no-untyped-call]
    server.add_insecure_port(arguments.address or os.environ["ADDRESS"])
    await server.start()
    await server.wait_for_termination()


if __name__ == "__main__":
    asyncio.run(main())
