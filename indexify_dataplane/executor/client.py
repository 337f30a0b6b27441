"""One executor's gRPC service, on Deferreds. The only module here that knows grpc.aio."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from google.protobuf.message import Message
from twisted.internet.defer import Deferred

from ..reactor import from_asyncio
from ..wireproto import function_executor_pb2 as fe

if TYPE_CHECKING:
    import grpc.aio

M = TypeVar("M", bound=Message)

MIB = 1024 * 1024
INFO_SECONDS = 5.0
CREATE_SECONDS = 30.0
UPDATE_SECONDS = 10.0
DELETE_SECONDS = 2.0

_SERVICE = "/function_executor_service.FunctionExecutor/"
_OPTIONS: tuple[tuple[str, int], ...] = (
    # A snapshot may hold many calls of up to 1 MiB each; code and arguments' metadata go out in one piece.
    ("grpc.max_receive_message_length", 64 * MIB),
    ("grpc.max_send_message_length", -1),
    # Half-open connections (a container that was frozen, a network that is gone) are noticed while a function runs.
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.min_reconnect_backoff_ms", 5_000),  # How long one attempt to connect may take.
    ("grpc.initial_reconnect_backoff_ms", 20),
    ("grpc.max_reconnect_backoff_ms", 100),
    ("grpc.enable_retries", 0),
    ("grpc.enable_http_proxy", 0),
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.service_config_disable_resolution", 1),
)

_UNARY: dict[str, Any] = {
    "initialize": fe.InitializeResponse,
    "list_allocations": fe.ListAllocationsResponse,
    "create_allocation": fe.Empty,
    "delete_allocation": fe.Empty,
    "send_allocation_update": fe.Empty,
    "get_allocation_execution_log_batch": fe.GetAllocationExecutionLogBatchResponse,
    "advance_allocation_execution_log_batch": fe.Empty,
    "send_allocation_event_log_read_response": fe.Empty,
    "check_health": fe.HealthCheckResponse,
    "get_info": fe.InfoResponse,
}
_STREAMS: dict[str, Any] = {
    "watch_allocation_state": fe.AllocationState,
    "watch_allocation_event_log_reads": fe.ReadAllocationEventLogRequest,
}


class RpcError(Exception):
    """A call failed. ``code`` is the name of the gRPC status."""

    def __init__(self, method: str, code: str, details: str) -> None:
        super().__init__(f"{method}: {code}: {details}")
        self.method = method
        self.code = code

    @property
    def unreachable(self) -> bool:
        """Whether nothing says that the executor is still there."""
        return self.code in ("UNAVAILABLE", "DEADLINE_EXCEEDED")


class Messages(Generic[M]):
    """A stream of messages. ``next`` gives None at its orderly end and errbacks with RpcError at any other."""

    def __init__(self, method: str, open_call: Any) -> None:
        self._method = method
        self._open_call = open_call
        self._call: Any = None

    def next(self) -> Deferred[M | None]:
        return from_asyncio(self._next())

    def close(self) -> None:
        """End the stream; harmless when it has ended."""
        if self._call is not None:
            self._call.cancel()
        self._open_call = None

    async def _next(self) -> M | None:
        import grpc

        if self._call is None:
            if self._open_call is None:
                raise RpcError(self._method, "CANCELLED", "the stream was closed")
            self._call = self._open_call()
        try:
            message = await self._call.read()
        except grpc.aio.AioRpcError as error:
            raise _translated(self._method, error) from error
        except asyncio.CancelledError:
            if _cancelled_by_caller():
                raise
            raise RpcError(self._method, "CANCELLED", "the stream was closed") from None
        return None if message is grpc.aio.EOF else message


class ExecutorClient:
    """Calls of one executor at ``address`` (``host:port``). Every failure is an RpcError; cancelling a Deferred ends
    its call. The connection is made by the first call and made again by each call after it broke."""

    def __init__(self, address: str) -> None:
        self.address = address
        self._channel: grpc.aio.Channel | None = None
        self._calls: dict[str, Any] = {}
        self._closed = False

    def info(self, timeout: float = INFO_SECONDS) -> Deferred[fe.InfoResponse]:
        return self._unary("get_info", fe.InfoRequest(), timeout)

    def initialize(self, request: fe.InitializeRequest, timeout: float | None) -> Deferred[fe.InitializeResponse]:
        return self._unary("initialize", request, timeout)

    def health(self, timeout: float) -> Deferred[fe.HealthCheckResponse]:
        return self._unary("check_health", fe.HealthCheckRequest(), timeout)

    def allocations(self) -> Deferred[fe.ListAllocationsResponse]:
        return self._unary("list_allocations", fe.ListAllocationsRequest(), INFO_SECONDS)

    def create(self, allocation: fe.Allocation) -> Deferred[fe.Empty]:
        return self._unary("create_allocation", fe.CreateAllocationRequest(allocation=allocation), CREATE_SECONDS)

    def delete(self, allocation_id: str) -> Deferred[fe.Empty]:
        return self._unary("delete_allocation", fe.DeleteAllocationRequest(allocation_id=allocation_id), DELETE_SECONDS)

    def update(self, update: fe.AllocationUpdate) -> Deferred[fe.Empty]:
        return self._unary("send_allocation_update", update, UPDATE_SECONDS)

    def states(self, allocation_id: str) -> Messages[fe.AllocationState]:
        return self._stream("watch_allocation_state", fe.WatchAllocationStateRequest(allocation_id=allocation_id))

    def next_batch(self, allocation_id: str) -> Deferred[fe.GetAllocationExecutionLogBatchResponse]:
        """Waits, without a deadline, until the executor has a batch; the same one until ``advance_batch``."""
        request = fe.GetAllocationExecutionLogBatchRequest(allocation_id=allocation_id)
        return self._unary("get_allocation_execution_log_batch", request, None)

    def advance_batch(self, allocation_id: str) -> Deferred[fe.Empty]:
        request = fe.AdvanceAllocationExecutionLogBatchRequest(allocation_id=allocation_id)
        return self._unary("advance_allocation_execution_log_batch", request, UPDATE_SECONDS)

    def reads(self, allocation_id: str) -> Messages[fe.ReadAllocationEventLogRequest]:
        request = fe.WatchAllocationEventLogReads(allocation_id=allocation_id)
        return self._stream("watch_allocation_event_log_reads", request)

    def answer_read(self, response: fe.ReadAllocationEventLogResponse) -> Deferred[fe.Empty]:
        return self._unary("send_allocation_event_log_read_response", response, UPDATE_SECONDS)

    async def close(self) -> None:
        """End all calls and the connection."""
        self._closed = True
        channel, self._channel = self._channel, None
        if channel is not None:
            await from_asyncio(channel.close())

    def _unary(self, method: str, request: Message, timeout: float | None) -> Deferred[Any]:
        return from_asyncio(self._call(method, request, timeout))

    async def _call(self, method: str, request: Message, timeout: float | None) -> Any:
        import grpc

        call = self._method(method)
        try:
            return await call(request, timeout=timeout)
        except grpc.aio.AioRpcError as error:
            raise _translated(method, error) from error
        except asyncio.CancelledError:
            if _cancelled_by_caller():
                raise
            raise RpcError(method, "CANCELLED", "the connection was closed") from None

    def _stream(self, method: str, request: Message) -> Messages[Any]:
        return Messages(method, lambda: self._method(method)(request))

    def _method(self, method: str) -> Any:
        """The callable of ``method``; must be asked for inside the event loop."""
        import grpc

        if self._closed:
            raise RpcError(method, "CANCELLED", "the connection was closed")
        if self._channel is None:
            self._channel = channel = grpc.aio.insecure_channel(self.address, options=_OPTIONS)
            for name, reply in _UNARY.items():
                self._calls[name] = channel.unary_unary(
                    _SERVICE + name, request_serializer=_encode, response_deserializer=reply.FromString
                )
            for name, reply in _STREAMS.items():
                self._calls[name] = channel.unary_stream(
                    _SERVICE + name, request_serializer=_encode, response_deserializer=reply.FromString
                )
        return self._calls[method]


def _encode(message: Message) -> bytes:
    return message.SerializeToString()


def _translated(method: str, error: Any) -> RpcError:
    return RpcError(method, error.code().name, error.details() or "no details")


def _cancelled_by_caller() -> bool:
    """Inside ``except CancelledError``: whether it is our own; gRPC also raises it for a call that it ended itself."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
