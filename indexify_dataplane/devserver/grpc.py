"""The engine's rpcs on a gRPC port. Long polls are Deferreds; a client that goes away cancels its own."""

from __future__ import annotations

from typing import Any

import grpc
import grpc.aio
from google.protobuf.message import Message

from indexify_dataplane.reactor import from_asyncio, to_asyncio
from indexify_dataplane.wireproto.executor_api_pb2_grpc import (
    ExecutorAPIServicer,
    add_ExecutorAPIServicer_to_server,
)

from .engine import Engine
from .errors import RpcError

MESSAGE_BYTES = 32 * 1024 * 1024
"""Limit of one message both ways (spec: server limits)."""


class ExecutorAPI(ExecutorAPIServicer):
    """Hands each rpc to the engine and its errors to the caller."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    async def heartbeat(self, request: Message, context: Any) -> Message:
        return await self._call("heartbeat", request, context)

    async def poll_commands(self, request: Message, context: Any) -> Message:
        return await self._call("poll_commands", request, context)

    async def poll_allocation_results(self, request: Message, context: Any) -> Message:
        return await self._call("poll_allocation_results", request, context)

    async def _call(self, rpc: str, request: Message, context: Any) -> Message:
        try:
            return await to_asyncio(self._engine.call(rpc, request))
        except RpcError as error:
            await context.abort(grpc.StatusCode[error.code], error.message)
            raise


class GrpcPort:
    """A listening gRPC server. ``credentials`` (``grpc.ServerCredentials``) make it TLS."""

    def __init__(self, engine: Engine, host: str, port: int, credentials: Any = None) -> None:
        self._engine = engine
        self._host = host
        self._wanted = port
        self._credentials = credentials
        self._server: Any = None

    async def start(self) -> int:
        """Listen; the port. OSError when that is not possible."""
        server = grpc.aio.server(
            options=[
                ("grpc.max_receive_message_length", MESSAGE_BYTES),
                ("grpc.max_send_message_length", MESSAGE_BYTES),
                ("grpc.so_reuseport", 0),
                # Executors keep idle long polls alive with pings; gRPC would take that for abuse.
                ("grpc.http2.min_ping_interval_without_data_ms", 1000),
                ("grpc.keepalive_permit_without_calls", 1),
                ("grpc.http2.max_ping_strikes", 0),
            ]
        )
        add_ExecutorAPIServicer_to_server(ExecutorAPI(self._engine), server)  # type: ignore[no-untyped-call]
        address = f"[{self._host}]:{self._wanted}" if ":" in self._host else f"{self._host}:{self._wanted}"
        try:
            if self._credentials is None:
                port = server.add_insecure_port(address)
            else:
                port = server.add_secure_port(address, self._credentials)
        except RuntimeError as error:
            raise OSError(f"cannot listen on {address} for gRPC: {error}") from error
        await from_asyncio(server.start())
        self._server = server
        return int(port)

    async def stop(self) -> None:
        """Stop listening and end every call."""
        if self._server is not None:
            server, self._server = self._server, None
            await from_asyncio(server.stop(0))
