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


class Held:
    """Calls of one method that are carried out and not answered, until ``release``."""

    def __init__(self) -> None:
        self.met = 0
        self._released = asyncio.Event()

    def release(self) -> None:
        self._released.set()

    async def wait(self) -> None:
        self.met += 1
        await self._released.wait()


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
        self.initializations = 0
        self.held: dict[str, Held] = {}

    def hold(self, method: str) -> Held:
        """From now on answers of ``method`` are late."""
        self.held[method] = Held()
        return self.held[method]

    async def _late(self, method: str) -> None:
        held = self.held.get(method)
        if held is not None:
            await held.wait()

    async def serve(self) -> str:
        """Listen; the address."""
        self._server = grpc.aio.server()
        service.add_FunctionExecutorServicer_to_server(self, self._server)
        port = self._server.add_insecure_port("127.0.0.1:0")
        await from_asyncio(self._server.start())
        return f"127.0.0.1:{port}"

    async def stop(self) -> None:
        """As a process that dies: connections break."""
        for held in self.held.values():
            held.release()
        await from_asyncio(self._server.stop(None))

    def renew(self) -> None:
        """Forget what nobody took: another allocation has states and events of its own."""
        self.states, self.batches, self.reads = asyncio.Queue(), asyncio.Queue(), asyncio.Queue()

    def state(self, **parts: Any) -> fe.AllocationState:
        """Queue a snapshot."""
        state = fe.AllocationState(**parts)
        state.sha256_hash = hashlib.sha256(state.SerializeToString(deterministic=True)).hexdigest()
        self.states.put_nowait(state)
        return state

    async def get_info(self, request: Any, context: Any) -> fe.InfoResponse:
        await self._late("get_info")
        return self.info

    async def check_health(self, request: Any, context: Any) -> fe.HealthCheckResponse:
        if not self.initialized:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "not initialized")
        await self._late("check_health")
        return fe.HealthCheckResponse(healthy=True)

    async def list_allocations(self, request: Any, context: Any) -> fe.ListAllocationsResponse:
        await self._late("list_allocations")
        return fe.ListAllocationsResponse()

    async def initialize(self, request: Any, context: Any) -> fe.InitializeResponse:
        self.initialized = True
        self.initializations += 1
        await self._late("initialize")
        return self.loaded

    async def create_allocation(self, request: fe.CreateAllocationRequest, context: Any) -> fe.Empty:
        if self.create is not None:
            await context.abort(self.create.code, "scripted")
        self.created.append(request.allocation)
        await self._late("create_allocation")
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
        await self._late("delete_allocation")
        return fe.Empty()

    async def send_allocation_update(self, request: fe.AllocationUpdate, context: Any) -> fe.Empty:
        answer = self.update.pop(0) if self.update else None
        if answer is not None:
            await context.abort(answer.code, "scripted")
        self.updates.append(request)
        await self._late("send_allocation_update")
        return fe.Empty()

    async def get_allocation_execution_log_batch(self, request: Any, context: Any) -> Any:
        item = await self.batches.get()
        if isinstance(item, Abort):
            await context.abort(item.code, "scripted")
        return fe.GetAllocationExecutionLogBatchResponse(events=item)

    async def advance_allocation_execution_log_batch(self, request: Any, context: Any) -> fe.Empty:
        self.advanced += 1
        await self._late("advance_allocation_execution_log_batch")
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
        await self._late("send_allocation_event_log_read_response")
        return fe.Empty()
