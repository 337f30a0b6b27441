"""Asks the daemon inside a sandbox how it is (gRPC Health on port 9500)."""

from __future__ import annotations

from typing import Any, Protocol

from .reactor import from_asyncio

HEALTH = "/container_daemon_pb.ContainerDaemon/Health"

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
    async def healthy(self, address: str, timeout: float) -> bool:
        """Ask the daemon at ``host:port`` once, for at most ``timeout`` seconds. Raises DaemonUnreachable."""

    async def forget(self, address: str) -> None:
        """Close what is held for this daemon."""

    async def close(self) -> None:
        """Close everything."""


class GrpcDaemons:
    """One channel per daemon, opened at the first question."""

    def __init__(self) -> None:
        self._channels: dict[str, tuple[Any, Any]] = {}

    async def healthy(self, address: str, timeout: float) -> bool:
        import grpc

        try:
            answer = await from_asyncio(self._ask(address, timeout))
        except grpc.RpcError as error:
            code = error.code().name if hasattr(error, "code") else "UNKNOWN"
            raise DaemonUnreachable(f"the daemon at {address} does not answer: {code}") from error
        return bool(answer.healthy)

    async def _ask(self, address: str, timeout: float) -> Any:
        _, call = self._channel(address)
        return await call(_health_request(), timeout=timeout)

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


def _health_request() -> Any:
    from .wireproto import container_daemon_pb2 as pb

    return pb.HealthRequest()
