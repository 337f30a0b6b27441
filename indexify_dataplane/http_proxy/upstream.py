"""An HTTP/1.1 connection to a container: one exchange at a time, then idle in the pool.

asyncio reports a failed write before it reads what came in, so a container that answers early and closes (413 while the
upload goes on) would be taken for one that died: client writes, container has answered and closed, send fails with
EPIPE, connection_lost comes with the answer unread in the socket. ``connection_lost`` therefore reads the rest itself.
"""

from __future__ import annotations

import asyncio
import os
import select
import socket
from typing import TYPE_CHECKING

from . import forward
from .body import BrokenChunks, ChunkedDecoder, frame, last_chunk
from .head import CHUNKED, MAX_HEAD, MEMO, UNTIL_CLOSE
from .response import ResponseHead, parse_response
from .routes import Timeouts
from .shared import Shared, expect, prepare

if TYPE_CHECKING:
    from .exchange import Exchange

IDLE, HEAD, LENGTH, CHUNKS, TO_CLOSE, PIPE = range(6)

NO_TRAILERS: list[bytes] = []


def keep_alive(transport: asyncio.BaseTransport, timeouts: Timeouts) -> None:
    """Let the kernel find out about containers that vanished; nothing else ends a request that takes long."""
    sock = transport.get_extra_info("socket")
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, timeouts.keepalive_idle_secs)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, timeouts.keepalive_interval_secs)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, timeouts.keepalive_count)


class Http1Upstream(asyncio.Protocol):
    """``key`` is container and port; ``address`` what is told of it in logs."""

    __slots__ = (
        "_abandoned", "_address", "_buffer", "_decoder", "_exchange", "_interim", "_keep", "_last", "_last_raw",
        "_left", "_shared", "_state", "address", "idle_since", "key", "paused_writing", "transport",
    )  # fmt: skip

    transport: asyncio.Transport

    def __init__(self, shared: Shared, key: tuple[str, int], address: str) -> None:
        self._shared = shared
        self._exchange: Exchange | None = None
        self._state = IDLE
        self._buffer = b""
        self._last_raw = b""
        self._last: ResponseHead | None = None
        self._left = 0
        self._decoder: ChunkedDecoder | None = None
        self._keep = True
        self._interim = False
        self._abandoned = False
        self.paused_writing = False
        self.idle_since = 0.0
        self.key = key
        self.address = address
        self._address = address.encode()

    # -- what the exchange asks for

    def request(self, exchange: Exchange, body: bytes, complete: bool, trailers: list[bytes]) -> None:
        """Send the head and what is there of the body, in one write."""
        self._exchange = exchange
        self._state = HEAD
        self._interim = False
        head = exchange.head
        data = forward.request_head(head, exchange.request_lines(self._address))
        if head.length:
            data += self._framed(body, complete, trailers)
        self.transport.write(data)

    def body(self, payload: bytes, complete: bool, trailers: list[bytes]) -> None:
        self.transport.write(self._framed(payload, complete, trailers))

    def _framed(self, payload: bytes, complete: bool, trailers: list[bytes]) -> bytes:
        assert self._exchange is not None
        if self._exchange.head.length != CHUNKED:
            return payload
        framed = frame(payload) if payload else b""
        return framed + last_chunk(trailers) if complete else framed

    def pipe(self, data: bytes) -> None:
        self.transport.write(data)

    def pause_response(self) -> None:
        self.transport.pause_reading()

    def resume_response(self) -> None:
        if not self.transport.is_closing():
            self.transport.resume_reading()

    def release(self, complete: bool) -> None:
        """The exchange is over; ``complete`` when its request was sent to the end."""
        self._exchange = None
        self._state = IDLE
        if complete and self._keep and not self.transport.is_closing():
            # Paused for a slow client, it would never hear the next answer.
            self.transport.resume_reading()
            self._shared.pool.put(self, self._shared.seconds())
        else:
            self.transport.close()

    def drop(self) -> None:
        """Give the exchange up: whatever comes is no longer wanted. Also before the connection is made."""
        self._exchange = None
        self._abandoned = True
        transport = getattr(self, "transport", None)
        if transport is not None:
            transport.abort()

    def end_pipe(self) -> None:
        """Close after what was written has gone out."""
        self._exchange = None
        self._state = IDLE
        self.transport.close()

    # -- what the pool asks for

    def closed(self) -> bool:
        return self.transport.is_closing()

    def close(self) -> None:
        self._exchange = None
        self.transport.close()

    def stale(self) -> bool:
        """Whether the container closed the connection a moment ago and the loop has not yet told: idle, it has
        nothing to say, so that anything to read is its end."""
        poll = select.poll()
        poll.register(self.transport.get_extra_info("socket").fileno(), select.POLLIN)
        return bool(poll.poll(0))

    # -- asyncio

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        if self._abandoned:
            transport.abort()
            return
        prepare(transport)
        keep_alive(transport, self._shared.settings.upstream)

    def data_received(self, data: bytes) -> None:
        exchange = self._exchange
        if exchange is None:
            # Nothing was asked: a container that speaks first cannot be trusted with a request.
            self.transport.abort()
            return
        state = self._state
        if state == HEAD:
            self._head(exchange, data)
        elif state == PIPE:
            exchange.piped(data)
        else:
            self._body(exchange, data)

    def _head(self, exchange: Exchange, data: bytes) -> None:
        if self._buffer:
            data, self._buffer = self._buffer + data, b""
        while True:
            end = data.find(b"\r\n\r\n")
            if end < 0:
                if len(data) > MAX_HEAD:
                    exchange.upstream_broken(self, f"a head of more than {MAX_HEAD} bytes")
                    return
                self._buffer = data
                return
            end += 4
            raw = data if end == len(data) else data[:end]
            if raw == self._last_raw and self._last is not None:
                head = self._last
            else:
                try:
                    head = parse_response(raw)
                except ValueError as error:
                    exchange.upstream_broken(self, str(error))
                    return
                if end <= MEMO:
                    self._last_raw, self._last = raw, head
            data = data[end:]
            if head.status >= 200:
                break
            self._interim = True
            if head.status == 101:
                self._switch(exchange, head, data)
                return
            exchange.informed(head)
            if self._exchange is not exchange:
                return
            if not data:
                return
        self._answer(exchange, head, data)

    def _switch(self, exchange: Exchange, head: ResponseHead, data: bytes) -> None:
        if exchange.head.upgrade is None:
            exchange.upstream_broken(self, "an upgrade that was not asked for")
            return
        self._state = PIPE
        exchange.switched(head, data)

    def _answer(self, exchange: Exchange, head: ResponseHead, data: bytes) -> None:
        length = head.body_length(exchange.head.method)
        self._keep = head.keep_alive
        if length >= 0:
            left = length - len(data)
            if left > 0:
                self._state, self._left = LENGTH, left
                expect(self.transport, left)
                exchange.answered(head, length, data, False, NO_TRAILERS)
                return
            if left < 0:
                data, self._keep = data[:length], False
            self._state = IDLE
            exchange.answered(head, length, data, True, NO_TRAILERS)
        elif length == CHUNKED:
            self._state, self._decoder = CHUNKS, ChunkedDecoder()
            payload = self._decoded(exchange, data)
            if payload is not None:
                exchange.answered(head, length, payload, self._decoder.done, self._decoder.trailers)
        else:
            self._state, self._keep = TO_CLOSE, False
            exchange.answered(head, UNTIL_CLOSE, data, False, NO_TRAILERS)

    def _body(self, exchange: Exchange, data: bytes) -> None:
        if self._state == LENGTH:
            left = self._left = self._left - len(data)
            if left > 0:
                exchange.more(data, False, NO_TRAILERS)
                return
            if left < 0:
                data, self._keep = data[:left], False
            self._state = IDLE
            expect(self.transport, 0)
            exchange.more(data, True, NO_TRAILERS)
        elif self._state == CHUNKS:
            payload = self._decoded(exchange, data)
            decoder = self._decoder
            if payload is not None and decoder is not None:
                exchange.more(payload, decoder.done, decoder.trailers)
        elif self._state == TO_CLOSE:
            exchange.more(data, False, NO_TRAILERS)
        else:
            self._keep = False

    def _decoded(self, exchange: Exchange, data: bytes) -> bytes | None:
        assert self._decoder is not None
        try:
            payload, rest = self._decoder.feed(data)
        except BrokenChunks as error:
            exchange.upstream_broken(self, str(error))
            return None
        if rest:
            self._keep = False
        return payload

    def pause_writing(self) -> None:
        self.paused_writing = True
        if self._exchange is not None:
            self._exchange.upstream_full()

    def resume_writing(self) -> None:
        self.paused_writing = False
        if self._exchange is not None:
            self._exchange.upstream_drained()

    def connection_lost(self, exc: Exception | None) -> None:
        exchange = self._exchange
        if exchange is None:
            self._shared.pool.lost(self)
            return
        if exc is not None and self._state == HEAD:
            unread = self._unread()
            if unread:
                self._keep = False
                self._head(exchange, unread)
                if self._exchange is not exchange:
                    return
        self._exchange = None
        if self._state == PIPE:
            exchange.pipe_ended()
        elif self._state == TO_CLOSE and exc is None:
            self._state = IDLE
            exchange.more(b"", True, NO_TRAILERS)
        else:
            silent = self._state == HEAD and not self._buffer and not self._interim
            exchange.upstream_lost(self, exc, silent)

    def _unread(self) -> bytes:
        try:
            return os.read(self.transport.get_extra_info("socket").fileno(), MAX_HEAD)
        except OSError:
            return b""
