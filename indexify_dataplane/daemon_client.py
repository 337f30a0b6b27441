"""The node's side of the daemon inside a sandbox: asks how it is (gRPC Health on port 9500), and tells a held one to go
on (POST on the same port).

The token goes along as ``x-indexify-sandbox-token``, so that nobody but the node can drive the daemon.
"""

from __future__ import annotations

import asyncio
from typing import Any, Protocol

from .reactor import from_asyncio

HEALTH = "/container_daemon_pb.ContainerDaemon/Health"
GO = "/api/v1/go"
TOKEN_HEADER = "x-indexify-sandbox-token"

OPTIONS = (
    # A daemon that is not listening yet will be in a moment: the default back-off starts at a second.
    ("grpc.initial_reconnect_backoff_ms", 20),
    ("grpc.min_reconnect_backoff_ms", 20),
    ("grpc.max_reconnect_backoff_ms", 1000),
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.enable_http_proxy", 0),
)


class DaemonUnreachable(Exception):
    """It did not answer; the text has the address and the cause."""


class Daemons(Protocol):
    async def healthy(self, address: str, timeout: float, token: str | None = None) -> bool:
        """Ask the daemon at ``host:port`` once, for at most ``timeout`` seconds. Raises DaemonUnreachable."""

    async def go(self, address: str, timeout: float, token: str | None = None) -> None:
        """Tell a held daemon to go on: when this returns its API listens and the entrypoint was started. Repeating it
        changes nothing. Raises DaemonUnreachable."""

    async def forget(self, address: str) -> None:
        """Close what is held for this daemon."""

    async def close(self) -> None:
        """Close everything."""


class GrpcDaemons:
    """One channel per daemon, opened at the first question."""

    def __init__(self) -> None:
        self._channels: dict[str, tuple[Any, Any]] = {}

    async def healthy(self, address: str, timeout: float, token: str | None = None) -> bool:
        import grpc

        try:
            answer = await from_asyncio(self._ask(address, timeout, token))
        except grpc.RpcError as error:
            code = error.code().name if hasattr(error, "code") else "UNKNOWN"
            raise DaemonUnreachable(f"the daemon at {address} does not answer: {code}") from error
        return bool(answer.healthy)

    async def _ask(self, address: str, timeout: float, token: str | None) -> Any:
        _, call = self._channel(address)
        metadata = ((TOKEN_HEADER, token),) if token is not None else None
        return await call(_health_request(), timeout=timeout, metadata=metadata)

    async def go(self, address: str, timeout: float, token: str | None = None) -> None:
        try:
            status = await from_asyncio(_post_go(address, timeout, token))
        except (OSError, TimeoutError, ValueError) as error:
            text = str(error) or type(error).__name__
            raise DaemonUnreachable(f"the daemon at {address} does not answer: {text}") from error
        if status != 204:
            raise DaemonUnreachable(f"the daemon at {address} refuses to go on: it answers {status}")

    def _channel(self, address: str) -> tuple[Any, Any]:
        found = self._channels.get(address)
        if found is None:
            import grpc.aio

            from .wireproto import container_daemon_pb2 as pb

            channel = grpc.aio.insecure_channel(address, options=OPTIONS)
            call = channel.unary_unary(
                HEALTH,
                request_serializer=pb.HealthRequest.SerializeToString,
                response_deserializer=pb.HealthResponse.FromString,
            )
            found = self._channels[address] = (channel, call)
        return found

    async def forget(self, address: str) -> None:
        found = self._channels.pop(address, None)
        if found is not None:
            await from_asyncio(found[0].close(grace=None))

    async def close(self) -> None:
        for address in list(self._channels):
            await self.forget(address)


async def _post_go(address: str, timeout: float, token: str | None) -> int:
    """The status of the answer."""
    host, _, port = address.rpartition(":")
    head = f"POST {GO} HTTP/1.1\r\nHost: {address}\r\nContent-Length: 0\r\nConnection: close\r\n"
    if token is not None:
        head += f"{TOKEN_HEADER}: {token}\r\n"
    async with asyncio.timeout(timeout):
        reader, writer = await asyncio.open_connection(host.strip("[]"), int(port))
        try:
            writer.write(f"{head}\r\n".encode())
            line = await reader.readline()
        finally:
            writer.close()
    version, _, rest = line.decode("latin-1").partition(" ")
    if not version.startswith("HTTP/1.") or not rest[:3].isdigit():
        raise ValueError("it closed the connection" if not line else f"it speaks no HTTP: {line[:40]!r}")
    return int(rest[:3])


def _health_request() -> Any:
    from .wireproto import container_daemon_pb2 as pb

    return pb.HealthRequest()
