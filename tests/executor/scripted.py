"""An executor that does what a test tells it, over the real wire: for what real ones do only when they are broken."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator
from typing import Any

import grpc
from attrs import frozen

from indexify_dataplane.reactor import from_asyncio
from indexify_dataplane.wireproto import function_executor_pb2 as fe
from indexify_dataplane.wireproto import function_executor_pb2_grpc as service


@frozen
class Abort:
    """End the call or the stream with this status."""

    code: grpc.StatusCode


END = object()
"""End the stream in order."""


class Scripted(service.FunctionExecutorServicer):
    """``states``, ``batches`` and ``reads`` are taken one by one by whoever watches; what comes in is kept."""

    def __init__(self) -> None:
        self.info = fe.InfoResponse(version="0.1.2", sdk_version="0.4.19", sdk_language="python")
        self.initialized = True
        self.loaded = fe.InitializeResponse(outcome_code=fe.INITIALIZATION_OUTCOME_CODE_SUCCESS)
        self.create: Abort | None = None
        self.delete: list[Abort | None] = []
        self.update: list[Abort | None] = []
        self.states: asyncio.Queue[Any] = asyncio.Queue()
        self.batches: asyncio.Queue[Any] = asyncio.Queue()
        self.reads: asyncio.Queue[Any] = asyncio.Queue()
        self.created: list[fe.Allocation] = []
        self.updates: list[fe.AllocationUpdate] = []
        self.answers: list[fe.ReadAllocationEventLogResponse] = []
        self.deleted = 0
        self.advanced = 0
        self.watches = 0

    async def serve(self) -> str:
        """Listen; the address."""
        self._server = grpc.aio.server()
        service.add_FunctionExecutorServicer_to_server(self, self._server)
        port = self._server.add_insecure_port("127.0.0.1:0")
        await from_asyncio(self._server.start())
        return f"127.0.0.1:{port}"

    async def stop(self) -> None:
        """As a process that dies: connections break."""
        await from_asyncio(self._server.stop(None))

    def state(self, **parts: Any) -> fe.AllocationState:
        """Queue a snapshot."""
        state = fe.AllocationState(**parts)
        state.sha256_hash = hashlib.sha256(state.SerializeToString(deterministic=True)).hexdigest()
        self.states.put_nowait(state)
        return state

    async def get_info(self, request: Any, context: Any) -> fe.InfoResponse:
        return self.info

    async def check_health(self, request: Any, context: Any) -> fe.HealthCheckResponse:
        if not self.initialized:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "not initialized")
        return fe.HealthCheckResponse(healthy=True)

    async def list_allocations(self, request: Any, context: Any) -> fe.ListAllocationsResponse:
        return fe.ListAllocationsResponse()

    async def initialize(self, request: Any, context: Any) -> fe.InitializeResponse:
        self.initialized = True
        return self.loaded

    async def create_allocation(self, request: fe.CreateAllocationRequest, context: Any) -> fe.Empty:
        if self.create is not None:
            await context.abort(self.create.code, "scripted")
        self.created.append(request.allocation)
        return fe.Empty()

    async def watch_allocation_state(self, request: Any, context: Any) -> AsyncIterator[fe.AllocationState]:
        self.watches += 1
        while (item := await self.states.get()) is not END:
            if isinstance(item, Abort):
                await context.abort(item.code, "scripted")
            yield item

    async def delete_allocation(self, request: Any, context: Any) -> fe.Empty:
        answer = self.delete.pop(0) if self.delete else None
        if answer is not None:
            await context.abort(answer.code, "scripted")
        self.deleted += 1
        return fe.Empty()

    async def send_allocation_update(self, request: fe.AllocationUpdate, context: Any) -> fe.Empty:
        answer = self.update.pop(0) if self.update else None
        if answer is not None:
            await context.abort(answer.code, "scripted")
        self.updates.append(request)
        return fe.Empty()

    async def get_allocation_execution_log_batch(self, request: Any, context: Any) -> Any:
        item = await self.batches.get()
        if isinstance(item, Abort):
            await context.abort(item.code, "scripted")
        return fe.GetAllocationExecutionLogBatchResponse(events=item)

    async def advance_allocation_execution_log_batch(self, request: Any, context: Any) -> fe.Empty:
        self.advanced += 1
        return fe.Empty()

    async def watch_allocation_event_log_reads(
        self, request: Any, context: Any
    ) -> AsyncIterator[fe.ReadAllocationEventLogRequest]:
        while (item := await self.reads.get()) is not END:
            if isinstance(item, Abort):
                await context.abort(item.code, "scripted")
            yield item

    async def send_allocation_event_log_read_response(self, request: Any, context: Any) -> fe.Empty:
        self.answers.append(request)
        return fe.Empty()
