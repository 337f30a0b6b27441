"""The gRPC channel to the server.

One channel carries the three calls that are open at a time. Keepalive pings notice a connection that died without a
word; every call has a deadline. Certificates are looked at before each call: when a file has changed, calls go over a
new channel, and the old one is closed once the calls on it are over.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from google.protobuf.message import Message
from twisted.internet.defer import Deferred
from twisted.logger import Logger

from ..reactor import from_asyncio
from ..wireproto import executor_api_pb2 as pb
from . import tls
from .transport import ControlError, Method, Transport

if TYPE_CHECKING:
    import grpc.aio

__all__ = ["ControlError", "GrpcTransport", "Transport"]

log = Logger()

MIB = 1024 * 1024
CONNECT_TIMEOUT_MS = 10_000
KEEPALIVE_SECONDS = 10.0
PING_SECONDS = 8.0
"""How long a keepalive ping may go unanswered; the server gives an executor up after 30 s of silence."""
DRAIN_SECONDS = 30.0
"""How long calls on a channel with old certificates may go on; a poll that is cut off is repeated at once."""

_OPTIONS: tuple[tuple[str, int | str], ...] = (
    ("grpc.max_receive_message_length", 32 * MIB),
    ("grpc.max_send_message_length", 64 * MIB),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    # One attempt to connect may take this long (gRPC's name for it is odd); the pauses between attempts are below
    # the loops' own, so that a server that is back is found at the next heartbeat.
    ("grpc.min_reconnect_backoff_ms", CONNECT_TIMEOUT_MS),
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.max_reconnect_backoff_ms", 1_000),
    # The loops repeat calls themselves; a proxy of the environment is not meant for the control plane; a channel made
    # for new certificates must not share a connection made with old ones.
    ("grpc.enable_retries", 0),
    ("grpc.enable_http_proxy", 0),
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.service_config_disable_resolution", 1),
)

_REPLIES: dict[Method, Any] = {
    "heartbeat": pb.HeartbeatResponse,
    "poll_commands": pb.PollCommandsResponse,
    "poll_allocation_results": pb.PollAllocationResultsResponse,
}


class _Channel:
    """A channel with its calls; made inside the event loop."""

    def __init__(self, channel: grpc.aio.Channel, stamp: tuple[tuple[int, int, int], ...]) -> None:
        self.stamp = stamp
        self._channel = channel
        self._calls: dict[Method, Any] = {
            method: channel.unary_unary(
                f"/executor_api_pb.ExecutorAPI/{method}",
                request_serializer=lambda message: message.SerializeToString(),
                response_deserializer=reply.FromString,
            )
            for method, reply in _REPLIES.items()
        }

    async def call(self, method: Method, request: Message, timeout: float) -> Any:
        return await self._calls[method](request, timeout=timeout)

    async def close(self, grace: float | None = None) -> None:
        await self._channel.close(grace)


class GrpcTransport:
    """The real ``Transport``. ``start`` checks address and certificates; the connection is made by the first call."""

    def __init__(
        self,
        *,
        server_addr: str,
        tls_settings: tls.TlsSettings,
        keepalive: float = KEEPALIVE_SECONDS,
        ping_timeout: float = PING_SECONDS,
    ) -> None:
        self._server_addr = server_addr
        self._settings = tls_settings
        # The keepalive's own timeout does not close a connection whose ping is never answered; the ping's does, and
        # its default is a minute (seen with grpcio 1.85).
        self._options = (
            *_OPTIONS,
            ("grpc.keepalive_time_ms", round(keepalive * 1000)),
            ("grpc.keepalive_timeout_ms", round(ping_timeout * 1000)),
            ("grpc.http2.ping_timeout_ms", round(ping_timeout * 1000)),
        )
        self._endpoint: tls.Endpoint | None = None
        self._credentials: tls.Credentials | None = None
        self._channel: _Channel | None = None
        self._draining: set[Deferred[None]] = set()
        self._reload_refused: str | None = None

    def start(self) -> None:
        """Read the settings; TlsError, with a sentence, where they cannot work."""
        self._endpoint = tls.endpoint_of(self._server_addr, tls_enabled=self._settings.enabled)
        if self._endpoint.tls:
            self._credentials = tls.load(self._settings)
        elif not self._endpoint.loopback:
            log.warn(
                "the control plane is reached in plain text: anyone on the way can read and give orders; "
                "use https:// and a client certificate in production",
                server_addr=self._server_addr,
            )
        log.info("channel created", server_addr=self._server_addr, tls_enabled=self._endpoint.tls)

    def call(self, method: Method, request: Message, timeout: float) -> Deferred[Any]:
        return from_asyncio(self._call(method, request, timeout))

    async def close(self) -> None:
        """End all calls and connections."""
        channel, self._channel = self._channel, None
        draining = tuple(self._draining)
        for deferred in draining:
            deferred.cancel()
        if channel is not None:
            await from_asyncio(channel.close())

    async def _call(self, method: Method, request: Message, timeout: float) -> Any:
        import grpc

        channel = self._current()
        try:
            return await channel.call(method, request, timeout)
        except grpc.aio.AioRpcError as error:
            assert self._endpoint is not None
            code = error.code().name
            details = error.details() or "no details"
            if code == "UNAVAILABLE":
                details = tls.explain(details, self._endpoint, self._settings)
            raise ControlError(code, details) from error
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            # The channel was closed under the call.
            raise ControlError("CANCELLED", "the channel was replaced") from None

    def _current(self) -> _Channel:
        if self._endpoint is None:
            raise ControlError("FAILED_PRECONDITION", "the transport has not been started", retryable=False)
        if self._channel is not None and not self._changed(self._channel):
            return self._channel
        old, self._channel = self._channel, self._open(self._endpoint)
        if old is not None:
            log.info("certificates have changed; calls go over a new channel", server_addr=self._server_addr)
            draining = from_asyncio(old.close(DRAIN_SECONDS))
            self._draining.add(draining)
            draining.addErrback(lambda failure: log.debug("old channel closed at once", reason=str(failure.value)))
            draining.addBoth(lambda _: self._draining.discard(draining))
        return self._channel

    def _changed(self, channel: _Channel) -> bool:
        """Whether there are new certificates and they are good; bad ones leave everything as it is."""
        assert self._endpoint is not None
        if not self._endpoint.tls:
            return False
        try:
            if tls.stamp_of(self._settings) == channel.stamp:
                return False
            self._credentials = tls.load(self._settings)
        except tls.TlsError as error:
            if str(error) != self._reload_refused:
                self._reload_refused = str(error)
                log.error("changed certificates cannot be used; the old ones stay", error=str(error))
            return False
        self._reload_refused = None
        return True

    def _open(self, endpoint: tls.Endpoint) -> _Channel:
        import grpc.aio

        if not endpoint.tls:
            return _Channel(grpc.aio.insecure_channel(endpoint.target, options=self._options), ())
        credentials = self._credentials
        assert credentials is not None
        options: tuple[tuple[str, int | str], ...] = self._options
        if self._settings.domain_name:
            options += (("grpc.ssl_target_name_override", self._settings.domain_name),)
        channel = grpc.aio.secure_channel(
            endpoint.target,
            grpc.ssl_channel_credentials(credentials.roots, credentials.key, credentials.certificate),
            options=options,
        )
        return _Channel(channel, credentials.stamp)
