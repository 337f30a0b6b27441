"""HTTP/1.1 on the event loop: heads and chunked bodies through h11, bodies of known length past it.

One request is answered at a time; what a client sends ahead waits. A body that was not read to its end is swallowed
if little of it is left, else the connection is closed after the answer. It is closed in two steps: our side first,
then what still arrives is thrown away for a moment. Closed at once, the kernel would answer the unread bytes with a
reset, and the reset overtakes the answer on its way to the client.

A client that closes while its answer is being streamed has that answer cancelled at once; while a whole answer is
computed it is taken for one that half-closed and still gets it.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable
from typing import Protocol

import h11

from .framing import framing_of
from .heads import head
from .http_outlets import BodyOut, UpgradedWire
from .logs import Log
from .messages import Answer, Inflow, Reply, Request, Stream, Upgrade, refusal_reply
from .refusal import ClientGone, Refusal

LARGEST_HEAD = 64 * 1024
SWALLOWED_BODY = 64 * 1024
LINGER_SECONDS = 2.0
HEAD_SECONDS = 30.0
IDLE_SECONDS = 900.0
WRITE_HIGH_WATER = 512 * 1024


class Connections(Protocol):
    """What a connection needs of the server it belongs to."""

    loop: asyncio.AbstractEventLoop
    log: Log
    closing: bool

    @property
    def answer(self) -> Callable[[Request], Awaitable[Answer]]:
        """Turns a request into an answer or raises Refusal."""

    def joined(self, connection: HttpConnection) -> bool:
        """Whether there is room for one more."""

    def left(self, connection: HttpConnection) -> None:
        """The connection is no more."""


class HttpConnection(asyncio.Protocol):
    """One client. See the module's text for how a connection ends."""

    def __init__(self, *, server: Connections) -> None:
        self._server = server
        self._transport: asyncio.Transport = None  # type: ignore[assignment]  # set before anything else happens
        self._parser: h11.Connection | None = None
        self._body: Inflow | None = None
        self._remaining: int | None = 0  # of a body of known length; None: chunked, the parser knows
        self._ahead = bytearray()
        self._reading = True
        self._wire = False
        self._lingering = False
        self._streaming = False
        self._eof = False
        self._room: asyncio.Future[None] | None = None
        self._full = False
        self._lost = False
        self._deadline: float | None = None
        self._lingerer: asyncio.TimerHandle | None = None
        self.task: asyncio.Task[None] | None = None

    # The transport's side.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        transport.set_write_buffer_limits(high=WRITE_HIGH_WATER)
        peer: socket.socket | None = transport.get_extra_info("socket")
        if peer is not None:
            peer.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        self._deadline = self._server.loop.time() + HEAD_SECONDS
        if not self._server.joined(self):
            self._refuse(Refusal(503, "Too many connections", "TOO_MANY_CONNECTIONS"))

    def connection_lost(self, exc: Exception | None) -> None:
        self._lost = True
        self._server.left(self)
        if self._lingerer is not None:
            self._lingerer.cancel()
        if self._body is not None:
            self._body.fail(ClientGone("the connection was closed"))
        if self._room is not None and not self._room.done():
            self._room.set_result(None)
        if self.task is not None and not self._wire:
            self.task.cancel()

    def data_received(self, data: bytes) -> None:
        if self._lingering:
            return
        if self._body is not None and not self._body.ended:
            self._feed_body(data)
        elif self.task is not None:
            self._ahead += data
            if len(self._ahead) > LARGEST_HEAD:
                self._set_reading(False)
        else:
            self._feed_head(data)

    def eof_received(self) -> bool:
        self._eof = True
        if self._body is not None and not self._body.ended:
            if self._wire:
                self._body.end()
                return True
            self._body.fail(ClientGone("the client closed in the middle of the body"))
        return self.task is not None and not self._streaming

    def pause_writing(self) -> None:
        self._full = True

    def resume_writing(self) -> None:
        self._full = False
        if self._room is not None and not self._room.done():
            self._room.set_result(None)

    # The server's side.

    def close_if_idle(self) -> bool:
        """Close unless a request is in progress; whether that freed a place."""
        if self.task is not None or self._transport.is_closing():
            return False
        self._transport.close()
        return True

    def abort(self) -> None:
        if self.task is not None:
            self.task.cancel()
        self._transport.abort()

    def expire(self, now: float) -> None:
        if self._deadline is not None and now >= self._deadline:
            self._transport.abort()

    # Reading.

    def _set_reading(self, on: bool) -> None:
        if on == self._reading or self._transport.is_closing():
            return
        self._reading = on
        if on:
            self._transport.resume_reading()
        else:
            self._transport.pause_reading()

    def _feed_head(self, data: bytes) -> None:
        if self._parser is None:
            self._parser = h11.Connection(h11.SERVER, max_incomplete_event_size=LARGEST_HEAD)
            self._deadline = self._server.loop.time() + HEAD_SECONDS
        try:
            self._parser.receive_data(data)
            event = self._parser.next_event()
        except h11.RemoteProtocolError as error:
            code = "HEADERS_TOO_LARGE" if error.error_status_hint == 431 else "BAD_REQUEST"
            self._refuse(Refusal(error.error_status_hint, f"Bad request: {error}", code))
            return
        if event is h11.NEED_DATA:
            return
        if not isinstance(event, h11.Request):
            self._transport.close()
            return
        try:
            request, keep = self._begin(self._parser, event)
        except Refusal as refusal:
            self._refuse(refusal)
            return
        self._deadline = None
        self.task = self._server.loop.create_task(self._serve(request, keep))

    def _begin(self, parser: h11.Connection, event: h11.Request) -> tuple[Request, bool]:
        framing = framing_of(event)
        body = Inflow(set_flowing=self._set_reading)
        request = Request(
            method=event.method.decode("ascii"),
            target=event.target.decode("latin-1"),
            headers=list(event.headers),
            body=body,
            length=framing.length,
            modern=framing.modern,
            on_read=self._continue if framing.expects else None,
        )
        self._body = body
        self._remaining = framing.length
        if framing.length is None:
            self._feed_chunks(parser)
        else:
            rest = bytes(parser.trailing_data[0])
            self._parser = None
            if not framing.length:
                body.end()
                self._ahead += rest
            elif rest:
                self._feed_body(rest)
        return request, framing.keep

    def _feed_body(self, data: bytes) -> None:
        assert self._body is not None
        if self._wire:
            self._body.put(data)
        elif self._remaining is None:
            assert self._parser is not None
            self._parser.receive_data(data)
            self._feed_chunks(self._parser)
        elif len(data) < self._remaining:
            self._remaining -= len(data)
            self._body.put(data)
        else:
            rest = data[self._remaining :]
            self._body.put(data[: self._remaining] if rest else data)
            self._remaining = 0
            self._body.end()
            self._ahead += rest

    def _feed_chunks(self, parser: h11.Connection) -> None:
        assert self._body is not None
        try:
            while True:
                event = parser.next_event()
                if isinstance(event, h11.Data):
                    self._body.put(bytes(event.data))
                elif isinstance(event, h11.EndOfMessage):
                    self._ahead += parser.trailing_data[0]
                    self._parser = None
                    self._remaining = 0
                    self._body.end()
                    return
                else:
                    return
        except h11.RemoteProtocolError as error:
            self._lingering = True
            self._body.fail(Refusal(400, f"Bad chunked body: {error}", "BAD_REQUEST"))

    # Answering.

    async def _serve(self, request: Request, keep: bool) -> None:
        try:
            try:
                answer = await self._server.answer(request)
            except Refusal as refusal:
                answer = refusal_reply(refusal)
                keep = keep and refusal.status != 401
            except ClientGone:
                self._transport.abort()
                return
            except Exception as error:
                self._server.log.failure("a request failed", error, method=request.method, path=request.path)
                answer = refusal_reply(
                    Refusal(500, f"Internal error: {type(error).__name__}: {error}", "INTERNAL_ERROR")
                )
            keep = keep and not self._eof and not self._server.closing
            if not request.body.ended and (
                request.unasked or self._remaining is None or self._remaining > SWALLOWED_BODY
            ):
                keep = False
            if isinstance(answer, Upgrade):
                await self._upgrade(answer)
                return
            await self._send(request, answer, keep)
            request.body.discard()
            if keep:
                while await request.body.read():
                    pass
        except ClientGone:
            keep = False
        finally:
            self.task = None
            self._streaming = False
        if self._lost:
            return
        if not keep:
            self._linger()
            return
        self._body = None
        self._deadline = self._server.loop.time() + IDLE_SECONDS
        self._set_reading(True)
        if self._ahead:
            data = bytes(self._ahead)
            self._ahead.clear()
            self.data_received(data)

    async def _send(self, request: Request, answer: Reply | Stream, keep: bool) -> None:
        headers = list(answer.headers)
        if not keep:
            headers.append(("connection", "close"))
        if isinstance(answer, Reply):
            if answer.status not in (204, 304):
                headers.append(("content-length", str(len(answer.body))))
            body = b"" if request.method == "HEAD" else answer.body
            self._transport.write(head(answer.status, headers) + body)
            await self.drain()
            return
        chunked = answer.length is None and request.modern
        if answer.length is not None:
            headers.append(("content-length", str(answer.length)))
        elif chunked:
            headers.append(("transfer-encoding", "chunked"))
        try:
            self._transport.write(head(answer.status, headers))
            if request.method == "HEAD":
                return
            if self._eof:
                raise ClientGone("the client closed before its answer began")
            self._streaming = True
            out = BodyOut(self, chunked, answer.length)
            try:
                await answer.produce(out)
            except ClientGone:
                raise
            except Exception as error:
                self._server.log.failure("a streamed answer broke off", error, path=request.path)
                out.broken = True
            if out.broken or not out.complete:
                self._transport.abort()
                raise ClientGone("the answer was cut")
            if chunked:
                self._transport.write(b"0\r\n\r\n")
        finally:
            answer.release()

    async def _upgrade(self, answer: Upgrade) -> None:
        try:
            self._parser = None
            body = Inflow(set_flowing=self._set_reading)
            self._body, self._wire = body, True
            self._transport.write(head(101, [*answer.headers], "Switching Protocols"))
            if self._ahead:
                body.put(bytes(self._ahead))
                self._ahead.clear()
            if self._eof:
                body.end()
            if self._lost:
                body.fail(ClientGone("the connection was closed"))
            self._set_reading(True)
            await answer.attend(UpgradedWire(self, body))
        except ClientGone:
            self._server.log.debug("an upgraded connection was cut by its client")
        finally:
            answer.release()
            if not self._lost:
                self._linger()

    async def drain(self) -> None:
        """Wait for room in the socket. Raises ClientGone."""
        while self._full and not self._lost:
            self._room = self._server.loop.create_future()
            try:
                await self._room
            finally:
                self._room = None
        if self._lost or self._transport.is_closing():
            raise ClientGone("the connection was closed")

    def put(self, data: bytes) -> None:
        self._transport.write(data)

    def _continue(self) -> None:
        self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def _refuse(self, refusal: Refusal) -> None:
        reply = refusal_reply(refusal)
        fields = [*reply.headers, ("content-length", str(len(reply.body))), ("connection", "close")]
        self._transport.write(head(reply.status, fields) + reply.body)
        self._linger()

    def _linger(self) -> None:
        if self._transport.is_closing():
            return
        self._lingering = True
        if self._eof or not self._transport.can_write_eof():
            self._transport.close()
            return
        self._transport.write_eof()
        self._set_reading(True)
        self._lingerer = self._server.loop.call_later(LINGER_SECONDS, self._transport.abort)
