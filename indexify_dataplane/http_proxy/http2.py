"""What both ends of HTTP/2 have in common: one h2 connection, streams that wait for windows, one write a loop turn.

Flow control joins the two sides: bytes of a stream are acknowledged to their sender only while the other side takes
them, so a stream that nobody reads stops its sender at one window, and no other stream.
"""

from __future__ import annotations

import asyncio
import re
from abc import ABC, abstractmethod
from typing import Any

import h2.config
import h2.connection
import h2.errors
import h2.events
import h2.exceptions
import h2.settings
from hyperframe.frame import Frame, GoAwayFrame

from .head import MAX_HEAD, parse_trailer
from .shared import HIGH_WATER, LOW_WATER, Shared, prepare

MAX_STREAMS = 2048
"""Streams that one client may have open at a time."""

STREAM_WINDOW = 64 * 1024
CONNECTION_WINDOW = 4 * 1024 * 1024
"""Bytes on the way to one side that it has not taken: per stream, and of all streams of a connection together."""

MAX_FRAME = 16384
SETTINGS = 4

_NAME = re.compile(rb"[!#$%&'*+\-.^_`|~0-9a-z]+")
_VALUE = re.compile(rb"[\t\x20-\x7e\x80-\xff]*")

Pairs = list[tuple[bytes, bytes]]


def well_formed(fields: Any) -> bool:
    """Whether names and values can be written into an HTTP/1.1 head without becoming something else."""
    return all(_NAME.fullmatch(name) and _VALUE.fullmatch(value) for name, value in fields if name[:1] != b":")


def pairs(lines: list[bytes]) -> Pairs:
    """Fields for HTTP/2 out of ``Name: value`` lines."""
    fields = []
    for line in lines:
        name, _, value = line.partition(b":")
        fields.append((name.lower(), value.strip(b" \t")))
    return fields


def trailer_lines(fields: Any) -> list[bytes]:
    """``name: value`` lines of those trailers that may be passed on; none when they cannot be read."""
    if not well_formed(fields):
        return []
    found = (parse_trailer(name + b": " + value) for name, value in fields if name[:1] != b":")
    return [line for line in found if line is not None]


class LenientConnection(h2.connection.H2Connection):
    """One that goes on after a GOAWAY: streams up to its last number may end (RFC 9113 section 6.8), and servers that
    shut down in order rely on it. h2 takes it for the end, and throws away what was to be sent.

    h2 also keeps a note of each stream that has ended, so that frames which were on their way to a reset one are told
    from a fault. 65,536 of them are 8 MB for each connection; twice the streams that may be open will do.
    """

    MAX_CLOSED_STREAMS = 2 * MAX_STREAMS

    def _receive_goaway_frame(self, frame: GoAwayFrame) -> tuple[list[Frame], list[h2.events.Event]]:
        event = h2.events.ConnectionTerminated()
        event.error_code = frame.error_code
        event.last_stream_id = frame.last_stream_id
        event.additional_data = frame.additional_data or None
        return [], [event]


class FrameLengths:
    """Refuses frames longer than announced from their first bytes. h2 sees that only when a frame is there as a whole,
    up to 16 MiB later, and takes anything that is not HTTP/2 for the beginning of one."""

    def __init__(self, preface: int) -> None:
        self._left = preface
        self._header = b""
        self._first = True

    def check(self, data: bytes) -> None:
        """Raises h2's ProtocolError."""
        at = 0
        while at < len(data):
            if self._left:
                step = min(self._left, len(data) - at)
                self._left -= step
                at += step
                continue
            piece = data[at : at + 9 - len(self._header)]
            at += len(piece)
            self._header += piece
            if len(self._header) < 9:
                return
            length, kind = int.from_bytes(self._header[:3], "big"), self._header[3]
            if length > MAX_FRAME or (self._first and kind != SETTINGS):
                raise h2.exceptions.ProtocolError(f"a frame of {length} bytes, kind {kind}")
            self._left, self._header, self._first = length, b"", False


class Http2Stream:
    """One stream's way out: bytes that wait for a window, and how it ends. Subclasses are told when it fills up."""

    def __init__(self, connection: Http2Connection, stream_id: int) -> None:
        self._connection = connection
        self.stream_id = stream_id
        self.out = bytearray()
        self.ending: list[bytes] | None = None
        self.ended_out = False
        self.ended_in = False
        self.filled = False
        self.held = False
        self._unacknowledged = 0

    def send(self, data: bytes, ended: bool, trailers: list[bytes]) -> None:
        self.out += data
        if ended:
            self.ending = trailers
        self._connection.pump(self)
        if len(self.out) > HIGH_WATER and not self.filled:
            self.filled = True
            self.full()

    def full(self) -> None:
        """More waits than should."""

    def drained(self) -> None:
        """There is room again."""

    def flushed(self) -> None:
        """The last of it has been handed over."""

    def received(self, size: int) -> None:
        """``size`` bytes, padding included, have come in and were passed on."""
        if self.held:
            self._unacknowledged += size
        else:
            self._connection.acknowledge(self.stream_id, size)

    def hold(self) -> None:
        self.held = True

    def go_on(self) -> None:
        self.held = False
        size, self._unacknowledged = self._unacknowledged, 0
        if size:
            self._connection.acknowledge(self.stream_id, size)

    def forfeit(self) -> None:
        """Nobody will take what came in: give the connection its window back."""
        self.go_on()

    def reset(self, code: int) -> None:
        self._connection.reset(self.stream_id, code)


class Http2Connection(asyncio.Protocol, ABC):
    """``handle`` is called with each of h2's events; ``lost`` once, when the connection is gone."""

    transport: asyncio.Transport

    def __init__(self, shared: Shared, client_side: bool) -> None:
        self._shared = shared
        self._h2 = LenientConnection(h2.config.H2Configuration(client_side=client_side, header_encoding=None))
        self._streams: dict[int, Any] = {}
        self._waiting: dict[int, Http2Stream] = {}
        self._paused = False
        self._scheduled = False
        self._over = False
        self._lengths = FrameLengths(0 if client_side else 24)

    @abstractmethod
    def handle(self, event: h2.events.Event) -> None:
        """Act on one event of h2's."""

    @abstractmethod
    def lost(self, error: Exception | None) -> None:
        """The connection is gone; whatever runs on it ends."""

    # -- asyncio

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        prepare(transport)
        codes, client = h2.settings.SettingCodes, bool(self._h2.config.client_side)
        ours: dict[Any, int] = {codes.INITIAL_WINDOW_SIZE: STREAM_WINDOW, codes.MAX_HEADER_LIST_SIZE: MAX_HEAD}
        ours |= {codes.ENABLE_PUSH: 0} if client else {codes.MAX_CONCURRENT_STREAMS: MAX_STREAMS}
        self._h2.local_settings = h2.settings.Settings(client=client, initial_values=ours)
        self._h2.initiate_connection()
        self._h2.increment_flow_control_window(CONNECTION_WINDOW - 65535)
        self._write()

    def data_received(self, data: bytes) -> None:
        if self._over:
            return
        try:
            self._lengths.check(data)
            events = self._h2.receive_data(data)
        except h2.exceptions.ProtocolError as error:
            self.fail(error)
            return
        for event in events:
            match event:
                case h2.events.WindowUpdated() | h2.events.RemoteSettingsChanged():
                    self.handle(event)
                    self._pump_all()
                case _:
                    self.handle(event)
            if self._over:
                return
        self._soon()

    def fail(self, error: Exception) -> None:
        """The other side broke the protocol; it is told why, and everything ends."""
        if not self._over:
            self._write()
            self.transport.close()
            self._end(error)

    def connection_lost(self, exc: Exception | None) -> None:
        self._end(exc)

    def _end(self, error: Exception | None) -> None:
        if not self._over:
            self._over = True
            self.lost(error)

    def pause_writing(self) -> None:
        self._paused = True

    def resume_writing(self) -> None:
        self._paused = False
        self._pump_all()

    # -- the way out

    def pump(self, stream: Http2Stream) -> None:
        """Send what the windows allow; the rest waits."""
        if self._over or stream.ended_out:
            return
        connection, at = self._h2, stream.stream_id
        try:
            while stream.out and not self._paused:
                size = min(
                    connection.local_flow_control_window(at), connection.max_outbound_frame_size, len(stream.out)
                )
                if size <= 0:
                    break
                last = stream.ending == [] and size == len(stream.out)
                connection.send_data(at, bytes(stream.out[:size]), end_stream=last)
                stream.ended_out = last
                del stream.out[:size]
            if not stream.out and stream.ending is not None and not stream.ended_out:
                stream.ended_out = True
                if stream.ending:
                    connection.send_headers(at, pairs(stream.ending), end_stream=True)
                else:
                    connection.end_stream(at)
        except h2.exceptions.ProtocolError:
            # The other side has reset the stream, and its event is on the way to us.
            stream.out.clear()
        if stream.out:
            self._waiting[at] = stream
        else:
            self._waiting.pop(at, None)
        if stream.ended_out:
            stream.flushed()
        if stream.filled and len(stream.out) < LOW_WATER:
            stream.filled = False
            stream.drained()
        self._soon()

    def _pump_all(self) -> None:
        for stream in list(self._waiting.values()):
            self.pump(stream)

    def send_head(self, stream: Http2Stream, fields: Pairs, ended: bool) -> bool:
        """False when the stream is gone already."""
        try:
            self._h2.send_headers(stream.stream_id, fields, end_stream=ended)
        except h2.exceptions.ProtocolError:
            return False
        stream.ended_out = ended
        self._soon()
        return True

    def acknowledge(self, stream_id: int, size: int) -> None:
        if not self._over:
            self._h2.acknowledge_received_data(size, stream_id)
            self._soon()

    def reset(self, stream_id: int, code: int) -> None:
        self._waiting.pop(stream_id, None)
        if self._over:
            return
        try:
            self._h2.reset_stream(stream_id, code)
        except h2.exceptions.ProtocolError:
            return  # it is closed on both sides, which is what a reset asks for
        self._soon()

    def go_away(self, code: int = 0) -> None:
        """Say that no new stream is taken. h2 would refuse to go on with the running ones, so the frame is ours."""
        if not self._over:
            self._write()
            last = self._h2.highest_inbound_stream_id
            self.transport.write(GoAwayFrame(0, last_stream_id=last, error_code=code).serialize())

    def _soon(self) -> None:
        if not self._scheduled:
            self._scheduled = True
            self._shared.loop.call_soon(self._write)

    def _write(self) -> None:
        self._scheduled = False
        data = self._h2.data_to_send()
        if data and not self.transport.is_closing():
            self.transport.write(data)
