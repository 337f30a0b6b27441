"""HTTP/2 connections to containers, with prior knowledge: gRPC needs them. Many exchanges share one."""

from __future__ import annotations

import asyncio
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

import h2.events
from h2.errors import ErrorCodes
from twisted.internet.defer import Deferred

from ..reactor import from_asyncio
from .head import without
from .http2 import Http2Connection, Http2Stream, pairs, trailer_lines, well_formed
from .response import ResponseHead
from .shared import Shared
from .upstream import NO_TRAILERS, keep_alive

if TYPE_CHECKING:
    from .exchange import Exchange

BEFORE_SETTINGS = 100
"""Streams planned on a connection before the container has said how many it takes."""

_NOT_IN_HTTP2 = frozenset({b"host", b"connection", b"te", b"transfer-encoding", b"upgrade", b"keep-alive"})


class NotHttp2(Exception):
    """The container does not speak HTTP/2 with prior knowledge."""


class Http2Upstreams:
    """The open connections, by container and port."""

    def __init__(self, shared: Shared) -> None:
        self._shared = shared
        self._open: dict[tuple[str, int], list[Http2Upstream]] = {}

    async def call(self, key: tuple[str, int], host: str, port: int) -> Http2Call:
        """A place for one more exchange. Raises OSError, NotHttp2; cancelled, it gives the place back."""
        while True:
            found = next((each for each in self._open.get(key, ()) if each.has_room()), None)
            if found is None:
                found = Http2Upstream(self._shared, self, key, f"{host}:{port}")
                self._open.setdefault(key, []).append(found)
                found.connect(host, port)
            call = await found.place()
            if call is not None:
                return call

    def lost(self, connection: Http2Upstream) -> None:
        known = self._open.get(connection.key, [])
        if connection in known:
            known.remove(connection)
            if not known:
                del self._open[connection.key]

    def expire(self, now: float, idle_secs: float) -> None:
        for connection in [each for known in self._open.values() for each in known]:
            if connection.idle() and now - connection.idle_since >= idle_secs:
                connection.close()

    def forget(self, container_id: str) -> None:
        for connection in [each for key, known in self._open.items() if key[0] == container_id for each in known]:
            connection.close_when_idle()

    def close(self) -> None:
        for connection in [each for known in self._open.values() for each in known]:
            connection.close()

    @property
    def count(self) -> int:
        return sum(len(known) for known in self._open.values())


class Http2Upstream(Http2Connection):
    """Ready when the container's settings have come, which also shows that it speaks HTTP/2."""

    def __init__(self, shared: Shared, owner: Http2Upstreams, key: tuple[str, int], address: str) -> None:
        super().__init__(shared, client_side=True)
        self._owner = owner
        self._ready = False
        self._closing = False
        self._limit = BEFORE_SETTINGS
        self._reserved = 0
        self._places: list[Deferred[None]] = []
        self._opening: Deferred[Any] | None = None
        self.key = key
        self.address = address
        self.idle_since = shared.seconds()

    def connect(self, host: str, port: int) -> None:
        made: Any = self
        self._opening = from_asyncio(self._shared.loop.create_connection(lambda: made, host, port))
        self._opening.addCallbacks(lambda _: None, lambda failure: self._end(failure.value))

    def has_room(self) -> bool:
        return not self._closing and not self._over and self._reserved < self._limit

    async def place(self) -> Http2Call | None:
        """Reserve a stream; None when the container turned out to take fewer."""
        self._reserved += 1
        try:
            if not self._ready:
                waiting: Deferred[None] = Deferred()
                self._places.append(waiting)
                try:
                    await waiting
                finally:
                    if waiting in self._places:
                        self._places.remove(waiting)
            if self._over or self._closing or len(self._streams) >= self._limit:
                self.released()
                return None
        except BaseException:
            self.released()
            raise
        return Http2Call(self)

    def begin(self, call: Http2Call) -> None:
        """h2 takes a number for used only with its first frame, so it is given out right before that."""
        call.stream_id = self._h2.get_next_available_stream_id()
        self._streams[call.stream_id] = call

    def released(self) -> None:
        self._reserved -= 1
        if not self._reserved:
            self.idle_since = self._shared.seconds()
            if self._closing:
                self.close()

    def idle(self) -> bool:
        return not self._reserved

    def close_when_idle(self) -> None:
        self._closing = True
        if not self._reserved:
            self.close()

    def close(self) -> None:
        self._closing = True
        if self._opening is not None and not hasattr(self, "transport"):
            self._opening.cancel()
        elif not self._over:
            self.go_away()
            self.transport.close()

    # -- Http2Connection

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        keep_alive(transport, self._shared.settings.upstream)
        if self._closing:
            transport.close()

    def lost(self, error: Exception | None) -> None:
        self._owner.lost(self)
        reason = error or NotHttp2("the container closed the connection")
        if hasattr(self, "transport") and not self._ready:
            reason = NotHttp2(f"no HTTP/2 on this port: {reason}")
        places, self._places = self._places, []
        for waiting in places:
            waiting.errback(reason)
        streams, self._streams = self._streams, {}
        for call in streams.values():
            call.connection_lost(error)

    def handle(self, event: h2.events.Event) -> None:
        match event:
            case h2.events.RemoteSettingsChanged():
                limit = self._h2.remote_settings.max_concurrent_streams
                self._limit = min(limit, 1 << 20)
                self._ready = True
                places, self._places = self._places, []
                for waiting in places:
                    waiting.callback(None)
            case h2.events.ConnectionTerminated():
                self._going_away(event)
            case (
                h2.events.ResponseReceived()
                | h2.events.InformationalResponseReceived()
                | h2.events.DataReceived()
                | h2.events.TrailersReceived()
                | h2.events.StreamEnded()
                | h2.events.StreamReset()
            ):
                self._of_stream(event)

    def _going_away(self, event: h2.events.ConnectionTerminated) -> None:
        self._closing = True
        last = event.last_stream_id
        for call in list(self._streams.values()):
            if last is not None and call.stream_id > last:
                call.reset_by_container(ErrorCodes.REFUSED_STREAM)
        if not self._reserved:
            self.close()

    def _of_stream(self, event: Any) -> None:
        call = self._streams.get(event.stream_id)
        if call is None:
            if isinstance(event, h2.events.DataReceived):
                self.acknowledge(event.stream_id, event.flow_controlled_length)
            return
        match event:
            case h2.events.InformationalResponseReceived():
                call.informed(event.headers)
            case h2.events.ResponseReceived():
                call.responded(event.headers, event.stream_ended is not None)
            case h2.events.DataReceived():
                call.data(event.data, event.flow_controlled_length)
            case h2.events.TrailersReceived():
                call.trailers = trailer_lines(event.headers)
            case h2.events.StreamEnded():
                call.ended()
            case h2.events.StreamReset():
                call.reset_by_container(event.error_code)

    def forget_call(self, call: Http2Call) -> None:
        self._waiting.pop(call.stream_id, None)
        if self._streams.pop(call.stream_id, None) is not None:
            self.released()


def response_head(fields: Any) -> ResponseHead:
    """Raises ValueError with what is wrong."""
    if not well_formed(fields):
        raise ValueError("a field cannot be read")
    status = next((value for name, value in fields if name == b":status"), b"")
    if len(status) != 3 or not status.isdigit() or status[:1] not in b"12345":
        raise ValueError("the status cannot be read")
    number = int(status)
    reason = HTTPStatus(number).phrase.encode() if number in HTTPStatus.__members__.values() else b""
    head = ResponseHead(number, reason, 1)
    for name, value in fields:
        if name[:1] == b":":
            continue
        if name == b"content-length" and not value.isdigit():
            raise ValueError("the length cannot be read")
        head.on_header(name, value)
    return head


class Http2Call(Http2Stream):
    """The container's side of an exchange, on one stream. It gets its number with its first frame."""

    _connection: Http2Upstream

    def __init__(self, connection: Http2Upstream) -> None:
        super().__init__(connection, 0)
        self._exchange: Exchange | None = None
        self.address = connection.address
        self.trailers: list[bytes] = []

    @property
    def paused_writing(self) -> bool:
        return self.filled

    # -- what the exchange asks for

    def request(self, exchange: Exchange, body: bytes, complete: bool, trailers: list[bytes]) -> None:
        self._exchange = exchange
        self._connection.begin(self)
        head = exchange.head
        fields = [(b":method", head.method), (b":scheme", b"http"), (b":path", head.target)]
        fields.append((b":authority", head.host or self.address.encode()))
        fields += pairs(without(exchange.request_lines(self.address.encode()), _NOT_IN_HTTP2))
        if head.grpc or head.te_trailers:
            fields.append((b"te", b"trailers"))
        alone = complete and not body and not trailers
        if not self._connection.send_head(self, fields, ended=alone):
            # Without a frame there is no stream whose end would be told.
            self.reset_by_container(ErrorCodes.REFUSED_STREAM)
        elif not alone:
            self.send(body, complete, trailers)

    def body(self, payload: bytes, complete: bool, trailers: list[bytes]) -> None:
        self.send(payload, complete, trailers)

    def pipe(self, data: bytes) -> None:
        raise AssertionError("HTTP/2 has no upgrades")

    def end_pipe(self) -> None:
        raise AssertionError("HTTP/2 has no upgrades")

    def pause_response(self) -> None:
        self.hold()

    def resume_response(self) -> None:
        self.go_on()

    def release(self, complete: bool) -> None:
        self._leave(ErrorCodes.NO_ERROR)

    def drop(self) -> None:
        self._leave(ErrorCodes.CANCEL)

    def _leave(self, code: int) -> None:
        self._exchange = None
        self.forfeit()
        if not (self.ended_in and self.ended_out):
            self.out.clear()
            self.ended_out = True
            self.reset(code)
        self._connection.forget_call(self)

    # -- what the container sends

    def informed(self, fields: Any) -> None:
        exchange = self._exchange
        try:
            if exchange is not None:
                exchange.informed(response_head(fields))
        except ValueError as error:
            self._broken(str(error))

    def responded(self, fields: Any, ended: bool) -> None:
        exchange = self._exchange
        if exchange is None:
            return
        try:
            head = response_head(fields)
        except ValueError as error:
            self._broken(str(error))
            return
        # An answer that is a head alone stays one: that is how gRPC tells an error at once.
        self.ended_in = ended
        exchange.answered(head, head.body_length(exchange.head.method), b"", ended, NO_TRAILERS)

    def data(self, data: bytes, size: int) -> None:
        exchange = self._exchange
        if exchange is not None and data:
            exchange.more(data, False, NO_TRAILERS)
        self.received(size)

    def ended(self) -> None:
        self.ended_in = True
        if self._exchange is not None:
            self._exchange.more(b"", True, self.trailers)

    def reset_by_container(self, code: int | None) -> None:
        self.ended_in = self.ended_out = True
        self.out.clear()
        exchange, self._exchange = self._exchange, None
        self._connection.forget_call(self)
        if exchange is not None:
            exchange.reset_code = code
            exchange.upstream_lost(self, ConnectionResetError(f"stream reset with {code!s}"), silent=False)

    def connection_lost(self, error: Exception | None) -> None:
        exchange, self._exchange = self._exchange, None
        if exchange is not None:
            exchange.upstream_lost(self, error, silent=False)

    def _broken(self, error: str) -> None:
        if self._exchange is not None:
            self._exchange.upstream_broken(self, error)

    # -- Http2Stream

    def full(self) -> None:
        if self._exchange is not None:
            self._exchange.upstream_full()

    def drained(self) -> None:
        if self._exchange is not None:
            self._exchange.upstream_drained()
