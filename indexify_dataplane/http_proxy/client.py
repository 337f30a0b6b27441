"""A client's HTTP/1.x connection: reads requests one after the other and writes their answers in the same order.

Requests that come before the previous answer is out wait in the buffer with reading paused, so that a client that
sends without reading costs no more than one buffer.

A client that shuts its sending side down may still read (``nc``, old HTTP/1.0 programs), or be gone: both look alike.
A short answer is still given, within ``HALF_CLOSED_SECS``; a stream of unknown length ends at once, its upstream too.
"""

from __future__ import annotations

import asyncio
import socket
import struct

from . import forward
from .body import BrokenChunks, RequestBody, frame, last_chunk
from .exchange import Exchange
from .head import CHUNKED, MEMO, RequestHead, check_beginning, parse_request
from .replies import HeadRefused, Reply, bad_request
from .response import ResponseHead
from .routes import DAEMON_PORT
from .routing import Preflight, Route
from .shared import NEVER, Shared, expect, prepare
from .upstream import NO_TRAILERS

HEAD, BODY, WAIT, PIPE, LINGER = range(5)

HALF_CLOSED_SECS = 5.0
LINGER_SECS = 5.0
"""How long a refused client may go on sending before it is cut: closed at once, it would lose the answer to a reset."""

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_CHUNKED_LINE = b"Transfer-Encoding: chunked\r\n"
_CLOSE_LINE = b"Connection: close\r\n"
_KEEP_LINE = b"Connection: keep-alive\r\n"


class Http1Client(asyncio.Protocol):
    """``deadline`` is looked at by the edge's sweep, which then calls ``expired``."""

    transport: asyncio.Transport

    def __init__(self, shared: Shared) -> None:
        self._shared = shared
        self._state = HEAD
        self._buffer = b""
        self._exchange: Exchange | None = None
        self._head: RequestHead | None = None
        self._body: RequestBody | None = None
        self._complete = True
        self._close = False
        self._fresh = True
        self._held = False
        self._half_closed = False
        self._responding = self._rechunked = self._raw_body = False
        self._peer = b""
        self._last_raw = b""
        self._last: RequestHead | None = None
        self.deadline = NEVER
        self.writing_paused = False

    # -- asyncio

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        prepare(transport)
        transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        peer = transport.get_extra_info("peername")
        self._peer = str(peer[0]).encode() if peer else b"unknown"
        self.deadline = self._shared.seconds() + self._shared.settings.head_timeout_secs
        self._shared.connections.add(self)
        if self._shared.draining:
            transport.close()

    def data_received(self, data: bytes) -> None:
        state = self._state
        if state == HEAD and not self.writing_paused:
            self._receive_head(data)
        elif state == PIPE:
            if self._exchange is not None:
                self._exchange.pipe_to_container(data)
        elif state == BODY:
            self._receive_body(data)
        elif state != LINGER:
            self._buffer += data
            self.transport.pause_reading()

    def eof_received(self) -> bool:
        exchange = self._exchange
        if self._half_closed:
            return True
        if exchange is None:
            return False
        if self._state == PIPE or not self._complete or self._rechunked or self._raw_body:
            self._abandon()
            return False
        self._close = self._half_closed = True
        self.deadline = self._shared.seconds() + HALF_CLOSED_SECS
        return True

    def pause_writing(self) -> None:
        self.writing_paused = True
        if self._exchange is not None:
            self._exchange.client_full()

    def resume_writing(self) -> None:
        self.writing_paused = False
        if self._exchange is not None:
            self._exchange.client_drained()
        elif self._state == HEAD and self._buffer:
            self._next()

    def connection_lost(self, exc: Exception | None) -> None:
        self._shared.connections.discard(self)
        self._abandon()

    def _abandon(self) -> None:
        exchange, self._exchange = self._exchange, None
        if exchange is not None:
            exchange.abandon()

    # -- requests

    def _receive_head(self, data: bytes) -> None:
        if self._buffer:
            data, self._buffer = self._buffer + data, b""
        if data[:1] == b"\r":
            # One empty line before a request is let pass; some old clients end their bodies with it.
            data = data[2:] if data[:2] == b"\r\n" else data
            if data in (b"", b"\r"):
                self._buffer = data
                return
        end = data.find(b"\r\n\r\n")
        try:
            if end < 0:
                check_beginning(data)
                if not self._buffer:
                    waits = self._shared.settings.head_timeout_secs
                    self.deadline = min(self.deadline, self._shared.seconds() + waits)
                self._buffer = data
                return
            end += 4
            whole = end == len(data)
            raw = data if whole else data[:end]
            if raw == self._last_raw and self._last is not None:
                head = self._last
            else:
                head = parse_request(raw)
                if end <= MEMO:
                    self._last_raw, self._last = raw, head
        except HeadRefused as refused:
            if self._fresh and data.startswith(PREFACE[:18]):
                self._preface(data)
            else:
                self._malformed(refused.reply)
            return
        self._fresh = False
        self._begin(head, b"" if whole else data[end:])

    def _preface(self, data: bytes) -> None:
        if len(data) < len(PREFACE):
            self._buffer = data
            return
        from .http2_client import Http2Client

        self._shared.connections.discard(self)
        successor = Http2Client(self._shared, self._peer)
        self.transport.set_protocol(successor)
        successor.connection_made(self.transport)
        successor.data_received(data)

    def _begin(self, head: RequestHead, rest: bytes) -> None:
        self._head = head
        self._close = not head.keep_alive or self._shared.draining
        self._responding = self._rechunked = self._raw_body = False
        payload = b""
        self._body = None
        if head.length == 0:
            self._complete = True
            self._state = WAIT
            if rest:
                self._buffer = rest
                self.transport.pause_reading()
        else:
            self._complete = False
            self._state = BODY
            self._body = RequestBody(head.length)
            expect(self.transport, head.length)
            try:
                payload = self._take(rest)
            except BrokenChunks as error:
                self._malformed(bad_request(f"The body cannot be read: {error}").reply)
                return
        route = self._shared.router.route(head)
        if isinstance(route, Route):
            self.deadline = NEVER
            exchange = self._exchange = Exchange(self._shared, self, head, route, self._peer)
            exchange.start(payload, self._complete, self._body.trailers if self._body else NO_TRAILERS)
        elif isinstance(route, Preflight):
            self._answer_self(forward.preflight(route.origin, self._close or not self._complete))
        else:
            self._shared.telemetry.refused(head, route)
            origin = head.origin if route.port == DAEMON_PORT else None
            self._close = self._close or route.reply.closes or not self._complete
            self._answer_self(
                forward.reply(route.reply, origin=origin, closes=self._close, without_body=head.method == b"HEAD")
            )

    def _take(self, data: bytes) -> bytes:
        """The payload in ``data``; what follows the body waits in the buffer. Raises BrokenChunks."""
        assert self._body is not None
        payload, rest = self._body.feed(data)
        self._complete = self._body.complete
        if self._complete:
            self._state = WAIT
            expect(self.transport, 0)
            if rest:
                self._buffer = rest
                self.transport.pause_reading()
        return payload

    def _receive_body(self, data: bytes) -> None:
        exchange = self._exchange
        try:
            payload = self._take(data)
        except BrokenChunks as error:
            self._abandon()
            if self._responding:
                self.cut()
            else:
                self._malformed(bad_request(f"The body cannot be read: {error}").reply)
            return
        if exchange is not None and (payload or self._complete):
            exchange.body(payload, self._complete, self._body.trailers if self._body else NO_TRAILERS)

    def _malformed(self, reply: Reply) -> None:
        self._shared.telemetry.malformed(reply, self._peer.decode())
        self._complete = False
        self._close = True
        self._answer_self(forward.reply(reply, origin=None, closes=True, without_body=False))

    def _answer_self(self, answer: bytes) -> None:
        self._close = self._close or not self._complete
        self.transport.write(answer)
        self.exchange_ended()

    # -- Requester

    def limit(self, deadline: float) -> None:
        if not self._half_closed:
            self.deadline = deadline

    def inform(self, head: ResponseHead) -> None:
        self.transport.write(forward.response_head(head, head.lines, b""))

    def respond(self, head: ResponseHead, length: int, data: bytes, ended: bool, trailers: list[bytes]) -> None:
        request = self._head
        exchange = self._exchange
        assert request is not None and exchange is not None
        self._responding = True
        if not self._complete or self._shared.draining:
            self._close = True
        hop = b""
        if length < 0:
            if request.minor:
                self._rechunked = True
                hop = _CHUNKED_LINE
                data = frame(data) if data else data
                if ended:
                    data += last_chunk(trailers)
            else:
                self._raw_body = self._close = True
        elif head.length == CHUNKED and request.minor and head.status not in (204, 304):
            hop = _CHUNKED_LINE
        if self._close:
            hop += _CLOSE_LINE
        elif not request.minor:
            hop += _KEEP_LINE
        origin = request.origin if exchange.route.port == DAEMON_PORT else None
        self.transport.write(forward.response_head(head, forward.response_lines(head, origin), hop) + data)

    def more(self, data: bytes, ended: bool, trailers: list[bytes]) -> None:
        if self._rechunked:
            data = frame(data) if data else data
            if ended:
                data += last_chunk(trailers)
        if data:
            self.transport.write(data)

    def switch(self, head: ResponseHead, data: bytes) -> None:
        lines = [*head.lines, b"Connection: upgrade"]
        if head.upgrade is not None:
            lines.append(b"Upgrade: " + head.upgrade)
        self._state = PIPE
        self._close = True
        self.transport.write(forward.response_head(head, lines, b"") + data)
        early, self._buffer = self._buffer, b""
        if early and self._exchange is not None:
            self._exchange.pipe_to_container(early)
        self._head = self._body = self._last = None
        self._resume()

    def pipe(self, data: bytes) -> None:
        self.transport.write(data)

    def refuse(self, reply: Reply) -> None:
        request, exchange = self._head, self._exchange
        assert request is not None
        origin = request.origin if exchange is not None and exchange.route.port == DAEMON_PORT else None
        self._close = self._close or reply.closes or not self._complete or self._shared.draining
        self.transport.write(
            forward.reply(reply, origin=origin, closes=self._close, without_body=request.method == b"HEAD")
        )

    def cut(self) -> None:
        self._exchange = None
        if self._raw_body:
            # Its end is the connection's: only a reset tells that this is not it.
            reset = struct.pack("ii", 1, 0)
            self.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, reset)
            self.transport.abort()
        else:
            self.transport.close()

    def hold_request(self) -> None:
        self._held = True
        self.transport.pause_reading()

    def go_on_with_request(self) -> None:
        self._held = False
        self._resume()

    def _resume(self) -> None:
        waits = self._buffer and self._state != HEAD  # a head that has begun is there for its rest to come
        if not self._held and not waits and not self._half_closed and not self.transport.is_closing():
            self.transport.resume_reading()

    def exchange_ended(self) -> None:
        self._exchange = None
        self._held = False
        if self.transport.is_closing():
            return
        if not (self._close or self._shared.draining):
            self._state = HEAD
            idle = self._shared.settings.client_idle_timeout_secs
            self.deadline = self._shared.seconds() + idle if idle else NEVER
            if self._buffer:
                # By the loop, because answers that are there at once would otherwise nest without end.
                self._shared.loop.call_soon(self._next)
            elif not self.transport.is_reading():
                self._resume()
        elif self._complete and not self._buffer:
            self.transport.close()
        else:
            self._linger()

    def _next(self) -> None:
        if self._state == HEAD and not self.writing_paused and not self.transport.is_closing():
            data, self._buffer = self._buffer, b""
            if data:
                self._receive_head(data)
            if self._state != WAIT or not self._buffer:
                self._resume()

    def _linger(self) -> None:
        self._state = LINGER
        self._buffer = b""
        self._body = None
        self.deadline = self._shared.seconds() + LINGER_SECS
        if self.transport.can_write_eof() and not self._half_closed:
            self.transport.write_eof()
        if self._half_closed:
            self.transport.close()
        else:
            self.transport.resume_reading()

    # -- the edge

    def expired(self) -> None:
        """The deadline has passed."""
        self.deadline = NEVER
        if self._exchange is not None and not self._half_closed:
            self._exchange.expired()
        else:
            self._abandon()
            self.transport.abort()

    def drain(self) -> None:
        """No further request is taken after the one under way."""
        if self._exchange is None and self._state == HEAD:
            self.transport.close()
        else:
            self._close = self._close or not self._responding

    def stop(self) -> None:
        """End now, whatever is under way."""
        self._abandon()
        self.transport.abort()
