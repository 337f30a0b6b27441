"""A client's HTTP/2 connection, begun with prior knowledge: every stream is routed by itself."""

from __future__ import annotations

import asyncio
import re
from typing import Any
from urllib.parse import quote

import h2.events
from h2.errors import ErrorCodes

from . import forward
from .exchange import Exchange
from .head import CHUNKED, MAX_FIELDS, MAX_TARGET, RequestHead, too_large
from .http2 import Http2Connection, Http2Stream, pairs, trailer_lines, well_formed
from .replies import HeadRefused, Reply, bad_request
from .response import ResponseHead
from .routes import DAEMON_PORT
from .routing import Preflight, Route
from .shared import NEVER, Shared
from .upstream import NO_TRAILERS

RESETS = 2000
"""Streams a client may have reset when most of its requests end that way; more is an attack on the containers."""

_METHOD = re.compile(rb"[A-Z][A-Z0-9_-]{0,31}")
_TARGET = re.compile(rb"[\x21-\x7e]+")


class Http2Client(Http2Connection):
    """Has the same calls for the edge as ``client.Http1Client``."""

    def __init__(self, shared: Shared, peer: bytes) -> None:
        super().__init__(shared, client_side=False)
        self._peer = peer
        self._draining = False
        self._resets = 0
        self._requests = 0
        self.deadline = NEVER

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._shared.connections.add(self)
        self._idle()

    def lost(self, error: Exception | None) -> None:
        self._shared.connections.discard(self)
        streams, self._streams = self._streams, {}
        for stream in streams.values():
            stream.gone()

    def handle(self, event: h2.events.Event) -> None:
        match event:
            case h2.events.RequestReceived():
                self._request(event)
            case h2.events.ConnectionTerminated():
                self._draining = True
                if not self._streams:
                    self.transport.close()
            case (
                h2.events.DataReceived()
                | h2.events.TrailersReceived()
                | h2.events.StreamEnded()
                | h2.events.StreamReset()
            ):
                self._of_stream(event)

    def _request(self, event: h2.events.RequestReceived) -> None:
        self._requests += 1
        stream = Http2Request(self, self._shared, event.stream_id or 0, self._peer)
        if self._draining or self._shared.draining:
            stream.reset(ErrorCodes.REFUSED_STREAM)
            return
        self._streams[stream.stream_id] = stream
        self.deadline = NEVER
        stream.begin(event.headers or [], ended=event.stream_ended is not None)

    def _of_stream(self, event: Any) -> None:
        stream = self._streams.get(event.stream_id)
        match event:
            case h2.events.DataReceived():
                if stream is None:
                    self.acknowledge(event.stream_id, event.flow_controlled_length)
                else:
                    stream.data(event.data, event.flow_controlled_length)
            case h2.events.TrailersReceived() if stream is not None:
                stream.trailers = trailer_lines(event.headers)
            case h2.events.StreamEnded() if stream is not None:
                stream.request_ended()
            case h2.events.StreamReset():
                if event.remote_reset:
                    self._resets += 1
                if stream is not None:
                    stream.gone()
                    self.closed(stream)
                if self._resets > RESETS and self._resets * 2 > self._requests:
                    self.go_away(ErrorCodes.ENHANCE_YOUR_CALM)
                    self.transport.close()

    def closed(self, stream: Http2Request) -> None:
        """Both ways of a stream have ended."""
        self._waiting.pop(stream.stream_id, None)
        if self._streams.pop(stream.stream_id, None) is not None and not self._streams:
            if self._draining or self._shared.draining:
                self._write()
                self.transport.close()
            else:
                self._idle()

    def _idle(self) -> None:
        idle = self._shared.settings.client_idle_timeout_secs
        self.deadline = self._shared.seconds() + idle if idle else NEVER

    # -- the edge

    def expired(self) -> None:
        if not self._streams:
            self.go_away()
            self.transport.close()
            return
        now = self._shared.seconds()
        for stream in list(self._streams.values()):
            if stream.deadline <= now:
                stream.expired()
        self.deadline = min((stream.deadline for stream in self._streams.values()), default=self.deadline)

    def drain(self) -> None:
        self._draining = True
        self.go_away()
        if not self._streams:
            self.transport.close()

    def stop(self) -> None:
        self.go_away()
        self.transport.close()
        self._end(None)


class Http2Request(Http2Stream):
    """One stream: the client's side of an exchange."""

    _connection: Http2Client

    def __init__(self, connection: Http2Client, shared: Shared, stream_id: int, peer: bytes) -> None:
        super().__init__(connection, stream_id)
        self._shared = shared
        self._peer = peer
        self._exchange: Exchange | None = None
        self._head: RequestHead | None = None
        self._responded = False
        self.trailers: list[bytes] = []
        self.deadline = NEVER

    @property
    def writing_paused(self) -> bool:
        return self.filled

    def begin(self, fields: list[Any], ended: bool) -> None:
        try:
            head = self._head = request_head(fields, ended)
        except HeadRefused as refused:
            self._shared.telemetry.malformed(refused.reply, self._peer.decode())
            self._answer(refused.reply, None)
            return
        route = self._shared.router.route(head)
        if isinstance(route, Route):
            exchange = self._exchange = Exchange(self._shared, self, head, route, self._peer)
            # The end of the stream is an event of its own, right after this one.
            exchange.start(b"", head.length == 0, NO_TRAILERS)
        elif isinstance(route, Preflight):
            cors = [b"content-length: 0", b"access-control-max-age: 86400", *forward.cors(route.origin)]
            self._connection.send_head(self, [(b":status", b"200"), *pairs(cors)], ended=True)
            self._ended()
        else:
            self._shared.telemetry.refused(head, route)
            self._answer(route.reply, head.origin if route.port == DAEMON_PORT else None)

    def data(self, data: bytes, size: int) -> None:
        if self._exchange is not None and data:
            self._exchange.body(data, False, NO_TRAILERS)
        self.received(size)

    def request_ended(self) -> None:
        self.ended_in = True
        if self._exchange is not None and self._head is not None and self._head.length:
            self._exchange.body(b"", True, self.trailers)
        self._ended()

    def gone(self) -> None:
        """The client has reset the stream or left."""
        self.ended_in = self.ended_out = True
        self.out.clear()
        self.forfeit()
        exchange, self._exchange = self._exchange, None
        if exchange is not None:
            exchange.abandon()

    def expired(self) -> None:
        self.deadline = NEVER
        if self._exchange is not None:
            self._exchange.expired()

    def full(self) -> None:
        if self._exchange is not None:
            self._exchange.client_full()

    def drained(self) -> None:
        if self._exchange is not None:
            self._exchange.client_drained()

    def flushed(self) -> None:
        self._ended()

    def _ended(self) -> None:
        if self.ended_out and self._exchange is None:
            if not self.ended_in:
                # The answer is whole; the rest of the request is not wanted.
                self.ended_in = True
                self.reset(ErrorCodes.NO_ERROR)
            self.forfeit()
            self._connection.closed(self)

    def _answer(self, reply: Reply, origin: bytes | None) -> None:
        head = self._head
        if head is not None and head.grpc:
            message = quote(reply.error, safe=" !#$&'()*+,-./:;<=>?@[]^_`{|}~").encode()
            fields = [(b":status", b"200"), (b"content-type", b"application/grpc")]
            fields += [(b"grpc-status", b"%d" % reply.grpc_status), (b"grpc-message", message)]
            self._connection.send_head(self, fields, ended=True)
            self._ended()
            return
        body = reply.body
        fields = [(b":status", b"%d" % reply.status), (b"content-type", b"application/json")]
        fields += [(b"content-length", b"%d" % len(body)), (b"cache-control", b"private, no-store")]
        if origin is not None:
            fields += pairs(forward.cors(origin))
        without_body = head is not None and head.method == b"HEAD"
        if self._connection.send_head(self, fields, ended=without_body) and not without_body:
            self.send(body, True, NO_TRAILERS)
        self._ended()

    # -- Requester

    def limit(self, deadline: float) -> None:
        self.deadline = deadline
        self._connection.deadline = min(self._connection.deadline, deadline)

    def inform(self, head: ResponseHead) -> None:
        fields = [(b":status", b"%d" % head.status), *pairs(head.lines)]
        self._connection.send_head(self, fields, ended=False)

    def respond(self, head: ResponseHead, length: int, data: bytes, ended: bool, trailers: list[bytes]) -> None:
        request, exchange = self._head, self._exchange
        assert request is not None and exchange is not None
        self._responded = True
        origin = request.origin if exchange.route.port == DAEMON_PORT else None
        fields = [(b":status", b"%d" % head.status), *pairs(forward.response_lines(head, origin))]
        alone = ended and not data and not trailers
        if self._connection.send_head(self, fields, ended=alone) and not alone:
            self.send(data, ended, trailers)

    def more(self, data: bytes, ended: bool, trailers: list[bytes]) -> None:
        self.send(data, ended, trailers)

    def switch(self, head: ResponseHead, data: bytes) -> None:
        raise AssertionError("HTTP/2 has no upgrades")

    def pipe(self, data: bytes) -> None:
        raise AssertionError("HTTP/2 has no upgrades")

    def refuse(self, reply: Reply) -> None:
        exchange, self._exchange = self._exchange, None
        origin = None
        if exchange is not None and self._head is not None and exchange.route.port == DAEMON_PORT:
            origin = self._head.origin
        self._answer(reply, origin)

    def cut(self) -> None:
        exchange, self._exchange = self._exchange, None
        code = exchange.reset_code if exchange is not None else None
        self.ended_in = self.ended_out = True
        self.out.clear()
        self.reset(ErrorCodes.INTERNAL_ERROR if code is None else code)
        self._ended()

    def hold_request(self) -> None:
        self.hold()

    def go_on_with_request(self) -> None:
        self.go_on()

    def exchange_ended(self) -> None:
        self._exchange = None
        self.deadline = NEVER
        self._ended()


def request_head(fields: list[Any], ended: bool) -> RequestHead:
    """The head of an HTTP/2 request, in the terms of an HTTP/1.1 one. Raises HeadRefused."""
    pseudo = {name: value for name, value in fields if name[:1] == b":"}
    method, target = pseudo.get(b":method", b""), pseudo.get(b":path", b"")
    if not well_formed(fields):
        raise bad_request("A field cannot be read")
    if len(fields) > MAX_FIELDS:
        raise too_large()
    if len(target) > MAX_TARGET:
        raise HeadRefused(414, "URI_TOO_LONG", f"A request target may have {MAX_TARGET} bytes")
    if not _METHOD.fullmatch(method) or method in (b"CONNECT", b"TRACE"):
        raise HeadRefused(501, "NOT_IMPLEMENTED", "The method is not supported")
    if not _TARGET.fullmatch(target):
        raise bad_request("The request target must be a path")
    head = RequestHead(method, target, 1)
    authority = pseudo.get(b":authority")
    hosts = {value for name, value in fields if name == b"host"}
    if authority is not None:
        if hosts - {authority}:
            raise bad_request("The authority and the Host field name different hosts")
        head.on_header(b"Host", authority)
    cookies = []
    lengths = 0
    for name, value in fields:
        if name[:1] == b":" or (name == b"host" and authority is not None):
            continue
        if name == b"cookie":
            cookies.append(value)
        elif name == b"content-length":
            lengths += 1
            if not value.isdigit() or lengths > 1:
                raise bad_request("The Content-Length field cannot be read")
            head.on_header(name, value)
        else:
            head.on_header(name, value)
    if cookies:
        # Split into crumbs by HTTP/2; HTTP/1.1 knows one field.
        head.lines.append(b"cookie: " + b"; ".join(cookies))
    head.check()
    if not ended and not lengths:
        head.length = CHUNKED
    if ended and head.length > 0:
        raise bad_request("The body is shorter than its Content-Length")
    return head
