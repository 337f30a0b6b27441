"""The gRPC port: ``ContainerDaemon`` over prior-knowledge HTTP/2, and the go of a held start over HTTP/1.1.

The first bytes of a connection tell which of the two it speaks.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.errors import ErrorCodes
from h2.events import (
    ConnectionTerminated,
    DataReceived,
    RequestReceived,
    StreamEnded,
    StreamReset,
)
from h2.exceptions import ProtocolError
from h2.settings import SettingCodes

from .frame_lengths import FrameLengths
from .grpc_messages import MalformedMessage, decode_signal_request, encode_health_response, encode_signal_response
from .logs import Log
from .router import TOKEN_HEADER, token_matches

PREFACE = b"PRI * HTTP/2.0"
LARGEST_MESSAGE = 64 * 1024
MOST_STREAMS = 100
MOST_CONNECTIONS = 256
SERVICE = "/container_daemon_pb.ContainerDaemon/"

OK, UNIMPLEMENTED, INTERNAL, UNAUTHENTICATED, RESOURCE_EXHAUSTED = 0, 12, 13, 16, 8


class _Connection(H2Connection):
    """The node's lives as long as the sandbox, and h2 keeps a note of each stream that has ended: 65,536 if it is not
    told, which is megabytes."""

    MAX_CLOSED_STREAMS = 2 * MOST_STREAMS


class GrpcFailure(Exception):
    """A call that ends with this status instead of a message."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


class DaemonCalls:
    """The two methods. ``health`` gives (healthy, version, uptime), ``signal`` an error text or None."""

    def __init__(
        self,
        *,
        health: Callable[[], tuple[bool, str, int]],
        signal: Callable[[int], str | None],
        token: bytes | None,
    ) -> None:
        self._health = health
        self._signal = signal
        self._token = token

    def answer(self, path: str, token: bytes | None, message: bytes) -> bytes:
        """Raises GrpcFailure and MalformedMessage. Health needs no token."""
        if path == SERVICE + "Health":
            return encode_health_response(*self._health())
        if path != SERVICE + "SendSignal":
            raise GrpcFailure(UNIMPLEMENTED, f"unknown method {path}")
        if self._token is not None and not token_matches(token or b"", self._token):
            raise GrpcFailure(UNAUTHENTICATED, "the sandbox token is missing or wrong")
        error = self._signal(decode_signal_request(message))
        return encode_signal_response(error is None, error)


class GrpcPort:
    """All connections of the port."""

    def __init__(self, *, calls: DaemonCalls, http1: Callable[[], asyncio.Protocol], log: Log) -> None:
        self._calls = calls
        self._http1 = http1
        self._log = log
        self._connections: set[_Http2Connection] = set()

    def protocol(self) -> asyncio.Protocol:
        return _FirstBytes(http2=self._http2, http1=self._http1)

    def close(self) -> None:
        for connection in list(self._connections):
            connection.close()

    def _http2(self) -> asyncio.Protocol:
        return _Http2Connection(calls=self._calls, connections=self._connections, log=self._log)


class _FirstBytes(asyncio.Protocol):
    """Hands the connection to the protocol that its first bytes ask for."""

    def __init__(self, *, http2: Callable[[], asyncio.Protocol], http1: Callable[[], asyncio.Protocol]) -> None:
        self._http2 = http2
        self._http1 = http1
        self._transport: asyncio.Transport | None = None
        self._data = b""
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._timer = asyncio.get_running_loop().call_later(30.0, transport.abort)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def data_received(self, data: bytes) -> None:
        assert self._transport is not None and self._timer is not None
        self._data += data
        if len(self._data) < len(PREFACE) and PREFACE.startswith(self._data):
            return
        self._timer.cancel()
        protocol = self._http2() if self._data.startswith(PREFACE) else self._http1()
        self._transport.set_protocol(protocol)
        protocol.connection_made(self._transport)
        protocol.data_received(self._data)


class _Call:
    """A call whose message is on its way."""

    def __init__(self, path: str, token: bytes | None, is_grpc: bool) -> None:
        self.path = path
        self.token = token
        self.is_grpc = is_grpc
        self.body = bytearray()
        self.too_large = False


class _Http2Connection(asyncio.Protocol):
    """One HTTP/2 connection with unary calls."""

    def __init__(self, *, calls: DaemonCalls, connections: set[_Http2Connection], log: Log) -> None:
        self._calls = calls
        self._connections = connections
        self._log = log
        self._transport: asyncio.Transport | None = None
        self._h2 = _Connection(H2Configuration(client_side=False, header_encoding=None))
        self._lengths = FrameLengths()
        self._open: dict[int, _Call] = {}

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        if len(self._connections) >= MOST_CONNECTIONS:
            self._log.warn("too many gRPC connections, one is cut")
            transport.abort()
            return
        self._connections.add(self)
        self._h2.initiate_connection()
        self._h2.update_settings(
            {SettingCodes.MAX_CONCURRENT_STREAMS: MOST_STREAMS, SettingCodes.MAX_HEADER_LIST_SIZE: 16 * 1024}
        )
        self._flush()

    def connection_lost(self, exc: Exception | None) -> None:
        self._connections.discard(self)

    def pause_writing(self) -> None:
        # Answers are a few bytes each: who asks this much without reading is cut off.
        if self._transport is not None:
            self._transport.abort()

    def close(self) -> None:
        """Tell the client to go (GOAWAY), then close."""
        if self._transport is not None and not self._transport.is_closing():
            self._h2.close_connection()
            self._flush()
            self._transport.close()

    def data_received(self, data: bytes) -> None:
        assert self._transport is not None
        if self._transport.is_closing():
            return
        try:
            self._lengths.check(data)
            for event in self._h2.receive_data(data):
                self._take(event)
        except ProtocolError as error:
            self._log.debug("HTTP/2 connection cut", error=str(error))
            self._flush()
            self._transport.close()
            return
        self._flush()

    def _take(self, event: object) -> None:
        if isinstance(event, RequestReceived):
            headers = dict(event.headers)
            self._open[event.stream_id] = _Call(
                path=headers.get(b":path", b"").decode("latin-1"),
                token=headers.get(TOKEN_HEADER.encode()),
                is_grpc=headers.get(b"content-type", b"").startswith(b"application/grpc"),
            )
        elif isinstance(event, DataReceived):
            self._h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
            call = self._open.get(event.stream_id)
            if call is not None and not call.too_large:
                call.body += event.data
                if len(call.body) > LARGEST_MESSAGE:
                    call.too_large = True
                    call.body.clear()
        elif isinstance(event, StreamEnded):
            call = self._open.pop(event.stream_id, None)
            if call is not None:
                self._end(event.stream_id, call)
        elif isinstance(event, StreamReset):
            self._open.pop(event.stream_id, None)
        elif isinstance(event, ConnectionTerminated):
            assert self._transport is not None
            self._transport.close()

    def _end(self, stream: int, call: _Call) -> None:
        try:
            self._answer(stream, call)
        except ProtocolError as error:
            # h2 has read on: the caller's reset of this call is among the events to come. The others' calls go on.
            self._log.debug("gRPC call has no caller any more", path=call.path, error=str(error))

    def _answer(self, stream: int, call: _Call) -> None:
        if not call.is_grpc:
            self._h2.send_headers(stream, [(":status", "415")], end_stream=True)
            return
        try:
            message = self._calls.answer(call.path, call.token, _message(call))
        except GrpcFailure as failure:
            self._fail(stream, failure.status, str(failure))
        except MalformedMessage as error:
            self._fail(stream, INTERNAL, f"malformed message: {error}")
        except Exception as error:
            self._log.failure("a gRPC call failed", error, path=call.path)
            self._fail(stream, INTERNAL, f"{type(error).__name__}: {error}")
        else:
            self._h2.send_headers(stream, [(":status", "200"), ("content-type", "application/grpc")])
            data = b"\0" + len(message).to_bytes(4, "big") + message
            if self._h2.local_flow_control_window(stream) < len(data):
                self._h2.reset_stream(stream, ErrorCodes.FLOW_CONTROL_ERROR)
                return
            self._h2.send_data(stream, data)
            self._h2.send_headers(stream, [("grpc-status", "0")], end_stream=True)

    def _fail(self, stream: int, status: int, text: str) -> None:
        headers = [
            (":status", "200"),
            ("content-type", "application/grpc"),
            ("grpc-status", str(status)),
            ("grpc-message", _percent_encoded(text)),
        ]
        self._h2.send_headers(stream, headers, end_stream=True)

    def _flush(self) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(self._h2.data_to_send())


def _percent_encoded(text: str) -> str:
    """As grpc-message wants it: printable ASCII, everything else and '%' as %XX."""
    return "".join(chr(byte) if 0x20 <= byte <= 0x7E and byte != 0x25 else f"%{byte:02X}" for byte in text.encode())


def _message(call: _Call) -> bytes:
    """The one length-prefixed message of a unary call. Raises GrpcFailure."""
    if call.too_large:
        raise GrpcFailure(RESOURCE_EXHAUSTED, f"the message is larger than {LARGEST_MESSAGE} bytes")
    if len(call.body) < 5 or len(call.body) != 5 + int.from_bytes(call.body[1:5], "big"):
        raise GrpcFailure(INTERNAL, "the call does not hold exactly one message")
    if call.body[0] != 0:
        raise GrpcFailure(UNIMPLEMENTED, "compressed messages are not supported")
    return bytes(call.body[5:])
