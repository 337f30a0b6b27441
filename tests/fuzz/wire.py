"""What all targets share: transports in memory, a loop that makes them, ways to cut bytes, and independent readers."""

from __future__ import annotations

import asyncio
import itertools
import random
import socket
import zlib
from collections.abc import Awaitable, Callable
from typing import Any

import h11
import httptools

MOST_STEPS = 20_000
"""Calls of a transport that one input may cause; more is taken for a loop without end."""

MOST_TURNS = 400
"""Turns of the event loop that one input may need until nothing is left to do."""


class Found(AssertionError):
    """What a target found: a rule that does not hold for this input."""


def expect(holds: object, rule: str, *seen: object) -> None:
    if not holds:
        raise Found(f"{rule}: {seen!r}"[:4000])


def _connected() -> socket.socket:
    """Of a connection that nobody uses: options are set on it, and it is asked whether there is anything to read."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        made = socket.create_connection(listening.getsockname())
        peer, _ = listening.accept()
    made.setblocking(False)
    _PEERS.append(peer)
    return made


_PEERS: list[socket.socket] = []
_SOCKET: socket.socket | None = None


def shared_socket() -> socket.socket:
    global _SOCKET
    if _SOCKET is None:
        _SOCKET = _connected()
    return _SOCKET


class Wire(asyncio.Transport):
    """A transport in memory, with the order of calls that asyncio's own has: ``connection_lost`` in a later turn."""

    def __init__(self, protocol: Any = None) -> None:
        super().__init__({"peername": ("10.0.0.1", 4000), "socket": shared_socket()})
        self.written = bytearray()
        self.protocol = protocol
        self.closing = False
        self.aborted = False
        self.ended = False
        self.reading = True
        self.lost = False
        self.unread: list[bytes] = []
        self._steps = 0

    def begin(self) -> Wire:
        self.protocol.connection_made(self)
        return self

    def _step(self) -> None:
        self._steps += 1
        expect(self._steps < MOST_STEPS, "an input causes a bounded number of steps")

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        self.protocol = protocol

    def get_protocol(self) -> asyncio.BaseProtocol:
        return self.protocol  # type: ignore[no-any-return]

    def write(self, data: Any) -> None:
        self._step()
        if not self.closing:
            expect(not self.ended, "nothing is written after the end was", data)
            self.written += data

    def write_eof(self) -> None:
        self.ended = True

    def can_write_eof(self) -> bool:
        return True

    def close(self) -> None:
        self._step()
        if not self.closing:
            self.closing = True
            asyncio.get_running_loop().call_soon(self.lose, None)

    def abort(self) -> None:
        self.aborted = True
        self.close()

    def lose(self, error: Exception | None) -> None:
        if not self.lost:
            self.lost = self.closing = True
            self.protocol.connection_lost(error)

    def is_closing(self) -> bool:
        return self.closing

    def is_reading(self) -> bool:
        return self.reading

    def pause_reading(self) -> None:
        self._step()
        self.reading = False

    def resume_reading(self) -> None:
        self._step()
        self.reading = True

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        self.limits = (high, low)

    def get_write_buffer_size(self) -> int:
        return 0

    # -- the other side

    def feed(self, data: bytes) -> None:
        """Bytes arrive; while reading is paused they wait, as they would in the kernel."""
        self.unread.append(data)
        self.deliver()

    def deliver(self) -> bool:
        """Hand over what waits; whether there was anything that could be."""
        did = False
        while self.unread and self.reading and not self.closing:
            self._step()
            self.protocol.data_received(self.unread.pop(0))
            did = True
        return did

    def end(self) -> None:
        """The other side has closed its direction."""
        if not self.closing and not self.protocol.eof_received():
            self.close()


class Loop(asyncio.SelectorEventLoop):
    """Connections are made in memory: ``made`` has the transports, ``refused`` says that nobody listens."""

    def __init__(self) -> None:
        super().__init__()
        self.made: list[Wire] = []
        self.refused = False
        self.errors: list[Any] = []
        self.set_exception_handler(lambda _, context: self.errors.append(context))

    async def create_connection(self, protocol_factory: Any, *args: Any, **kwargs: Any) -> Any:
        if self.refused:
            raise ConnectionRefusedError("nobody listens")
        wire = Wire(protocol_factory())
        self.made.append(wire)
        wire.begin()
        return wire, wire.protocol


_LOOP: Loop | None = None


def in_loop(work: Callable[[Loop], Awaitable[None]]) -> None:
    """Run ``work`` in a loop without a network; errors that the loop was told of are findings."""
    global _LOOP
    if _LOOP is None:
        _LOOP = Loop()
    loop = _LOOP
    loop.made.clear()
    loop.errors.clear()
    loop.refused = False
    try:
        loop.run_until_complete(work(loop))
    finally:
        for task in asyncio.all_tasks(loop):
            task.cancel()
        loop.run_until_complete(asyncio.sleep(0))
    expect(not loop.errors, "no error reaches the loop", [repr(each.get("exception")) for each in loop.errors])


async def settle(*wires: Wire, most: int = MOST_TURNS) -> None:
    """Let the loop run until it has nothing more to do and no wire has bytes to deliver."""
    loop: Any = asyncio.get_running_loop()
    for _ in range(most):
        await asyncio.sleep(0)
        moved = [wire.deliver() for wire in wires]
        # This coroutine is the only thing that is ready.
        if not loop._ready and not any(moved):
            return
    raise Found("an input needs a bounded number of turns of the loop")


def cuts(data: bytes) -> list[bytes]:
    """The same bytes in pieces, whose sizes depend on the bytes alone: a finding repeats."""
    chance = random.Random(zlib.crc32(data))
    if len(data) < 400 and chance.random() < 0.3:
        return [data[at : at + 1] for at in range(len(data))]
    places = sorted({0, len(data), *(chance.randrange(len(data) + 1) for _ in range(chance.randrange(1, 9)))})
    return [data[start:end] for start, end in itertools.pairwise(places)]


class Body:
    """Callbacks of httptools for one message."""

    def __init__(self) -> None:
        self.body = b""
        self.fields: list[tuple[bytes, bytes]] = []
        self.url = b""
        self.complete = False
        self.head_complete = False
        self.messages = 0

    def on_message_begin(self) -> None:
        self.messages += 1

    def on_url(self, url: bytes) -> None:
        self.url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self.fields.append((name, value))

    def on_headers_complete(self) -> None:
        self.head_complete = True

    def on_body(self, body: bytes) -> None:
        self.body += body

    def on_message_complete(self) -> None:
        self.complete = True


def by_httptools(data: bytes) -> Body | None:
    """One request as llhttp reads it; None when it refuses."""
    seen = Body()
    parser = httptools.HttpRequestParser(seen)
    try:
        parser.feed_data(data)
    except httptools.HttpParserUpgrade:
        return seen
    except httptools.HttpParserError:
        return None
    return seen


class Message:
    """One message as h11 reads it; ``whole`` when its end was there, ``broken`` when its body cannot be read."""

    def __init__(self, head: Any) -> None:
        self.head = head
        self.body = b""
        self.trailers: list[tuple[bytes, bytes]] = []
        self.whole = False
        self.broken = False

    @property
    def framing(self) -> tuple[str, int]:
        if self.values(b"transfer-encoding"):
            return "chunked", 0
        lengths = self.values(b"content-length")
        if lengths:
            return "length", int(lengths[0])
        return "none", 0

    def values(self, name: bytes) -> list[bytes]:
        return [value for field, value in self.head.headers if field == name]


def requests_by_h11(data: bytes, most: int = 64) -> tuple[list[Message], bytes]:
    """The requests in ``data``, and what is left after the last whole one. Raises h11.RemoteProtocolError."""
    found: list[Message] = []
    while data and len(found) < most:
        reader = h11.Connection(h11.SERVER, max_incomplete_event_size=1 << 20)
        reader.receive_data(data)
        head = reader.next_event()
        if head is h11.NEED_DATA:
            break
        if not isinstance(head, h11.Request):
            raise h11.RemoteProtocolError(f"no request: {head!r}")
        message = Message(head)
        found.append(message)
        if not _read_body(reader, message):
            return found, b""
        data = bytes(reader.trailing_data[0])
        if message.values(b"upgrade"):
            return found, data
    return found, data


def _read_body(reader: h11.Connection, message: Message) -> bool:
    while True:
        event = reader.next_event()
        if isinstance(event, h11.Data):
            message.body += bytes(event.data)
        elif isinstance(event, h11.EndOfMessage):
            message.trailers = list(event.headers)
            message.whole = True
            return True
        else:
            return False


def responses_by_h11(data: bytes, methods: list[bytes], closed: bool) -> list[Message]:
    """The answers in ``data`` to requests of these methods. Raises h11.RemoteProtocolError."""
    found: list[Message] = []
    for method in methods:
        if not data:
            break
        reader = h11.Connection(h11.CLIENT, max_incomplete_event_size=1 << 20)
        fields = [("Host", "h"), ("Connection", "upgrade"), ("Upgrade", "x")]
        reader.send(h11.Request(method=method if method != b"CONNECT" else b"GET", target="/", headers=fields))
        reader.send(h11.EndOfMessage())
        reader.receive_data(data)
        if closed:
            reader.receive_data(b"")
        head = reader.next_event()
        while isinstance(head, h11.InformationalResponse):
            if head.status_code == 101:
                return found
            head = reader.next_event()
        if not isinstance(head, h11.Response):
            break
        message = Message(head)
        found.append(message)
        try:
            if not _read_body(reader, message):
                break
        except h11.RemoteProtocolError:
            # Cut off in the middle: that is how a broken answer has to look.
            message.broken = True
            break
        data = bytes(reader.trailing_data[0])
    return found
