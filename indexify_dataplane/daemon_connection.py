"""One HTTP/2 connection to the daemon of a sandbox, for unary gRPC calls.

A channel of grpc.aio does the same with threads of its own, which wake up for every answer, and with several times the
memory; a node with a hundred sandboxes at rest does little else than to ask them how they are.
"""

from __future__ import annotations

import asyncio
import os
from typing import Any

import h2.config
import h2.connection
import h2.events
import h2.exceptions
import h2.settings
from attrs import define, field
from twisted.internet.defer import Deferred

from .http_proxy.http2 import FrameLengths

LARGEST_ANSWER = 64 * 1024
"""Bytes of a message that are taken from a daemon, which is as much the sandbox's as the node's."""

_CONFIG = h2.config.H2Configuration(client_side=True, header_encoding=None)
_SETTINGS = {h2.settings.SettingCodes.ENABLE_PUSH: 0, h2.settings.SettingCodes.MAX_HEADER_LIST_SIZE: 16 * 1024}

Fields = list[tuple[bytes, bytes]]


class CallFailed(Exception):
    """A call without an answer; the text says why."""


class _Connection(h2.connection.H2Connection):
    """It lives as long as its sandbox, and h2 keeps a note of each stream that has ended: 65,536 if it is not told."""

    MAX_CLOSED_STREAMS = 64


@define(eq=False)
class _Call:
    """One call. ``answer`` is its length-prefixed message as far as it has come."""

    path: bytes
    message: bytes
    fields: Fields
    done: Deferred[bytes]
    answer: bytearray = field(factory=bytearray)
    status: bytes = b""
    text: bytes = b""


class DaemonConnection(asyncio.Protocol):
    """Opens with its first call, and ends with its first trouble: ``over`` tells its owner to make another one. A call
    that is cancelled or late ends it too, because nothing else shows whether anybody is there."""

    def __init__(self, address: str) -> None:
        self.over = False
        self._address = address
        self._loop = asyncio.get_event_loop()
        self._transport: asyncio.Transport | None = None
        self._opening: asyncio.Task[None] | None = None
        self._h2 = _Connection(_CONFIG)
        self._lengths = FrameLengths(0)
        self._early: list[_Call] = []
        self._calls: dict[int, _Call] = {}

    async def call(self, path: bytes, message: bytes, fields: Fields, timeout: float) -> bytes:
        """The message of the answer. ``timeout`` is in seconds, with the connecting. Raises CallFailed."""
        call = _Call(path, message, fields, Deferred(lambda _: self._give_up(call)))
        timer = self._loop.call_later(timeout, self._end, f"no answer within {timeout:g} s")
        try:
            if self._transport is None:
                self._early.append(call)
                if self._opening is None:
                    self._opening = self._loop.create_task(self._open())
            else:
                self._begin(call)
                self._write()
            return await call.done
        finally:
            timer.cancel()

    def close(self) -> None:
        """End what is under way, and the connection."""
        self._end("the connection was closed")

    async def _open(self) -> None:
        host, _, port = self._address.rpartition(":")
        try:
            await self._loop.create_connection(lambda: self, host.strip("[]"), int(port))
        except (OSError, ValueError) as error:
            number = getattr(error, "errno", None)
            self._end(os.strerror(number) if number else str(error))

    def _begin(self, call: _Call) -> None:
        stream = self._h2.get_next_available_stream_id()
        self._calls[stream] = call
        self._h2.send_headers(
            stream,
            [
                (b":method", b"POST"),
                (b":scheme", b"http"),
                (b":path", call.path),
                (b":authority", self._address.encode()),
                (b"te", b"trailers"),
                (b"content-type", b"application/grpc"),
                *call.fields,
            ],
        )
        self._h2.send_data(stream, b"\0" + len(call.message).to_bytes(4, "big") + call.message, end_stream=True)

    def _write(self) -> None:
        data = self._h2.data_to_send()
        if data and self._transport is not None:
            self._transport.write(data)

    def _give_up(self, call: _Call) -> None:
        if call in self._early:
            self._early.remove(call)
        self._calls = {stream: each for stream, each in self._calls.items() if each is not call}
        self._end("another call was cancelled")

    def _end(self, why: str) -> None:
        if self.over:
            return
        self.over = True
        if self._transport is not None:
            self._transport.abort()
        elif self._opening is not None:
            self._opening.cancel()
        calls = [*self._early, *self._calls.values()]
        self._early, self._calls = [], {}
        for call in calls:
            if not call.done.called:
                call.done.errback(CallFailed(why))

    # asyncio

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        if self.over:
            transport.abort()
            return
        self._transport = transport
        self._h2.local_settings = h2.settings.Settings(client=True, initial_values=_SETTINGS)
        self._h2.initiate_connection()
        early, self._early = self._early, []
        for call in early:
            self._begin(call)
        self._write()

    def data_received(self, data: bytes) -> None:
        try:
            self._lengths.check(data)
            for event in self._h2.receive_data(data):
                self._take(event)
        except h2.exceptions.ProtocolError as error:
            self._end(f"it speaks no HTTP/2: {error}")
            return
        self._write()

    def connection_lost(self, exc: Exception | None) -> None:
        self._end(str(exc) if exc else "it closed the connection")

    def pause_writing(self) -> None:
        self._end("it does not read")

    # HTTP/2

    def _take(self, event: Any) -> None:
        if isinstance(event, h2.events.ConnectionTerminated):
            self._end("it is shutting down")
            return
        call = self._calls.get(getattr(event, "stream_id", None) or 0)
        match event:
            case h2.events.DataReceived():
                self._h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
                if call is not None:
                    call.answer += event.data
                    if len(call.answer) > LARGEST_ANSWER:
                        self._end(f"its answer is larger than {LARGEST_ANSWER} bytes")
            case h2.events.ResponseReceived() | h2.events.TrailersReceived() if call is not None:
                headers = dict(event.headers)
                call.status = headers.get(b"grpc-status", call.status)
                call.text = headers.get(b"grpc-message", call.text)
                if headers.get(b":status", b"200") != b"200":
                    self._end(f"it answers with HTTP status {headers[b':status'].decode('latin-1')}")
            case h2.events.StreamReset() if call is not None:
                self._end("it reset the call")
            case h2.events.StreamEnded() if call is not None:
                del self._calls[event.stream_id]
                _finish(call)


def _finish(call: _Call) -> None:
    if call.done.called:
        return
    answer = call.answer
    if call.status != b"0":
        text = f"gRPC status {call.status.decode('latin-1') or 'missing'} {call.text.decode('latin-1')}".rstrip()
        call.done.errback(CallFailed(text))
    elif answer[:1] != b"\0" or int.from_bytes(answer[1:5], "big") != len(answer) - 5:
        call.done.errback(CallFailed("its answer is not one message"))
    else:
        call.done.callback(bytes(answer[5:]))
