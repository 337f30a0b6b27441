"""The same bytes give the same result however they are cut; and what is accepted is what other parsers read."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from typing import Any

import h2.connection
import h11
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet import task
from twisted.trial.unittest import SynchronousTestCase

from indexify_dataplane.http_proxy.body import BrokenChunks, ChunkedDecoder, frame, last_chunk
from indexify_dataplane.http_proxy.client import Http1Client
from indexify_dataplane.http_proxy.head import CHUNKED, parse_request
from indexify_dataplane.http_proxy.pool import IdleConnections
from indexify_dataplane.http_proxy.replies import HeadRefused
from indexify_dataplane.http_proxy.response import parse_response
from indexify_dataplane.http_proxy.routes import Target
from indexify_dataplane.http_proxy.shared import open_shared
from indexify_dataplane.http_proxy.telemetry import Telemetry
from indexify_dataplane.http_proxy.upstream import Http1Upstream
from indexify_dataplane.metrics import Metrics

from .support import ID, Lines, Table, config

TOKEN = st.text(
    "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789!#$%&'*+-.^_`|~", min_size=1, max_size=12
)
VALUE = st.text(st.characters(min_codepoint=0x21, max_codepoint=0xFF, blacklist_characters="\x7f"), max_size=20).map(
    lambda text: "".join(c for c in text if not 0x7F <= ord(c) < 0xA0)
)
FIELDS = st.lists(st.tuples(TOKEN.map(lambda name: "x-" + name), VALUE), max_size=6)
PATH = st.text("abcABC019-._~!$&'()*+,;=:@/%?[]{}|", max_size=30).map(lambda text: "/" + text)
METHOD = st.sampled_from(["GET", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "PROPFIND", "X-OWN"])
PAYLOADS = st.lists(st.binary(min_size=1, max_size=300), max_size=5)
CUTS = st.lists(st.integers(1, 60), min_size=1, max_size=60)


def cut(data: bytes, sizes: list[int]) -> list[bytes]:
    """The same bytes in pieces of these sizes, over and over."""
    pieces, at, turn = [], 0, 0
    while at < len(data):
        size = sizes[turn % len(sizes)]
        pieces.append(data[at : at + size])
        at, turn = at + size, turn + 1
    return pieces


def chunks(payloads: list[bytes], trailers: list[bytes]) -> bytes:
    return b"".join(frame(payload) for payload in payloads) + last_chunk(trailers)


class Wire(asyncio.Transport):
    """A transport in memory."""

    def __init__(self, sock: socket.socket) -> None:
        super().__init__({"peername": ("10.0.0.1", 4000), "socket": sock})
        self.written = bytearray()
        self.closing = False
        self.reading = True
        self.protocol: Any = None
        self.full: Callable[[], None] | None = None

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        self.protocol = protocol

    def write(self, data: Any) -> None:
        if not self.closing:
            self.written += data
            if self.full is not None:
                self.full, full = None, self.full
                full()

    def close(self) -> None:
        self.closing = True

    abort = write_eof = close

    def can_write_eof(self) -> bool:
        return True

    def is_closing(self) -> bool:
        return self.closing

    def is_reading(self) -> bool:
        return self.reading

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        self.limits = (high, low)


class Both:
    """A client's and a container's connection of the real edge, joined, on transports in memory."""

    def __init__(self, sock: socket.socket) -> None:
        clock = task.Clock()
        settings_ = config()
        self.pool = IdleConnections(capacity=10, idle_secs=55)
        self.shared = open_shared(
            config=settings_, routes=Table({"sb-1": Target(container_id="c", sandbox_id="sb-1")}), pool=self.pool,
            telemetry=Telemetry(metrics=Metrics(), request_log=Lines(), seconds=clock.seconds), clock=clock,
            own_names=(),
        )  # fmt: skip
        self.container, self.outside = Wire(sock), Wire(sock)
        self.upstream = Http1Upstream(self.shared, ("c", 9501), "10.0.0.2:9501")
        self.upstream.connection_made(self.container)
        self.pool.put(self.upstream, 0)
        self.client = Http1Client(self.shared)
        self.client.connection_made(self.outside)


def read_by_h11(role: type, data: bytes, after: Any = None) -> list[Any]:
    """Events of one message, body pieces joined."""
    reader = h11.Connection(role)
    if after is not None:
        reader.send(after)
        if isinstance(after, h11.Request):
            reader.send(h11.EndOfMessage())
    reader.receive_data(data)
    body, events = b"", []
    while True:
        event = reader.next_event()
        if isinstance(event, h11.Data):
            body += bytes(event.data)
        elif event in (h11.NEED_DATA, h11.PAUSED):
            raise AssertionError("not whole")
        else:
            events.append(event)
            if isinstance(event, h11.EndOfMessage):
                return [*events[:-1], body, event]


class Segments(SynchronousTestCase):
    def setUp(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as listening:
            self.sock = socket.create_connection(listening.getsockname())
            peer, _ = listening.accept()
        self.addCleanup(self.sock.close)
        self.addCleanup(peer.close)

    def test_chunked_bodies(self) -> None:
        @given(PAYLOADS, CUTS, st.binary(max_size=50), st.booleans())
        def check(payloads: list[bytes], sizes: list[int], rest: bytes, trailer: bool) -> None:
            trailers = [b"X-Sum: 1"] if trailer else []
            decoder = ChunkedDecoder()
            got, after = b"", b""
            for piece in cut(chunks(payloads, trailers) + rest, sizes):
                if decoder.done:
                    after += piece
                    continue
                payload, over = decoder.feed(piece)
                got, after = got + payload, after + over
            self.assertTrue(decoder.done)
            self.assertEqual((got, after, decoder.trailers), (b"".join(payloads), rest, trailers))

        check()

    def test_anything_for_a_chunked_body(self) -> None:
        """Any bytes are either refused or read, and read alike however they are cut."""
        alphabet = st.sampled_from(
            [b"0", b"3", b"a", b"F", b"\r\n", b"\r", b"\n", b";", b" ", b":", b"\0", b"abc", b"X: y"]
        )

        def outcome(pieces: list[bytes]) -> tuple[Any, ...]:
            decoder = ChunkedDecoder()
            got = b""
            try:
                for piece in pieces:
                    if decoder.done:
                        break
                    got += decoder.feed(piece)[0]
            except BrokenChunks:
                return ("broken",)
            return (got, decoder.done, decoder.trailers)

        @given(st.lists(alphabet, max_size=25).map(b"".join), CUTS)
        @settings(max_examples=300)
        def check(data: bytes, sizes: list[int]) -> None:
            self.assertEqual(outcome([data]), outcome(cut(data, sizes)))

        check()

    def test_requests_and_answers(self) -> None:
        """A request and its answer pass through the edge whole, whatever the cuts; an independent parser reads both."""

        @given(METHOD, PATH, FIELDS, PAYLOADS, st.sampled_from(["none", "length", "chunked"]), CUTS, CUTS)
        @settings(max_examples=150, deadline=None)
        def check(
            method: str, path: str, fields: list[tuple[str, str]], payloads: list[bytes], framing: str,
            sizes: list[int], answer_sizes: list[int],
        ) -> None:  # fmt: skip
            body = b"" if framing == "none" else b"".join(payloads)
            lines = "".join(f"{name}: {value}\r\n" for name, value in fields).encode("latin-1")
            if framing == "length":
                raw = b"Content-Length: %d\r\n\r\n%b" % (len(body), body)
            elif framing == "chunked":
                raw = b"Transfer-Encoding: chunked\r\n\r\n" + chunks(payloads, [])
            else:
                raw = b"\r\n"
            both = Both(self.sock)
            for piece in cut(f"{method} {path} HTTP/1.1\r\nHost: h\r\n".encode() + ID + lines + raw, sizes):
                both.client.data_received(piece)
            request, got, _ = read_by_h11(h11.SERVER, bytes(both.container.written))
            self.assertEqual((request.method, request.target, got), (method.encode(), path.encode(), body))
            own = [(name.lower().encode(), value.encode("latin-1").strip(b" \t")) for name, value in fields]
            sent = [(name, value) for name, value in request.headers if not name.startswith(b"x-forwarded-")]
            self.assertEqual([each for each in sent if each in own], own)

            if framing == "length":
                raw = b"Content-Length: %d\r\n\r\n%b" % (len(body), body)
            else:
                raw = b"Transfer-Encoding: chunked\r\n\r\n" + chunks(payloads, [b"X-Sum: 1"])
                body = b"".join(payloads)
            for piece in cut(b"HTTP/1.1 200 Fine\r\n" + lines + raw, answer_sizes):
                both.upstream.data_received(piece)
            asked = h11.Request(method=method, target="/", headers=[("Host", "h")])
            answer, got, end = read_by_h11(h11.CLIENT, bytes(both.outside.written), asked)
            self.assertEqual((answer.status_code, answer.reason, got), (200, b"Fine", body))
            self.assertEqual([each for each in answer.headers if each in own], own)
            self.assertEqual(list(end.headers), [] if framing == "length" else [(b"x-sum", b"1")])
            self.assertEqual(both.pool.count, 1)
            self.assertFalse(both.outside.closing or both.container.closing)
            self.assertEqual(both.shared.telemetry.active_requests, 0)

        check()

    def test_any_bytes_for_a_request(self) -> None:
        """Whatever comes is refused or passed on as one well-formed request, and never ends in an exception."""
        words = st.sampled_from(
            [b"GET", b"POST", b" ", b"/", b"/a", b"HTTP/1.1", b"HTTP/1.0", b"\r\n", b"\r\n\r\n", b"\n", b"\r", b"\0",
             b"Host: h", b"Host:", ID, b"Content-Length: 3", b"Content-Length: ", b"Transfer-Encoding: chunked", b"abc",
             b"Connection: close", b"Connection: upgrade", b"Upgrade: x", b"0", b"3", b":", b"\t", b"\xff", b"X: y",
             b"Expect: 100-continue", b"Tensorlake-Sandbox-Port: 80", b"PRI * HTTP/2.0"]
        )  # fmt: skip
        begun = st.just(b"POST / HTTP/1.1\r\nHost: h\r\n" + ID) | st.just(b"")

        def outcome(pieces: list[bytes]) -> tuple[bytes, bool]:
            both = Both(self.sock)
            for piece in pieces:
                if not both.outside.closing and both.outside.reading:
                    both.client.data_received(piece)
            return bytes(both.container.written), both.outside.closing

        @given(begun, st.lists(words, max_size=30).map(b"".join), CUTS)
        @settings(max_examples=300, deadline=None)
        def check(start: bytes, data: bytes, sizes: list[int]) -> None:
            if not start + data:
                return
            at_once = outcome([start + data])[0]
            in_pieces = outcome(cut(start + data, sizes))[0]
            if at_once:
                whole = at_once.partition(b"\r\n\r\n")
                self.assertEqual(whole[1], b"\r\n\r\n")
                reader = h11.Connection(h11.SERVER)
                reader.receive_data(at_once)
                self.assertIsInstance(reader.next_event(), h11.Request)
                # Cut, a request may be on its way before its body turns out to be broken; what is sent is the same.
                self.assertEqual(in_pieces.partition(b"\r\n\r\n")[0], whole[0])

        check()

    def test_paused_by_the_last_bytes(self) -> None:
        """The client's buffer fills up with the end of an answer: the connection to the container is idle by then,
        and must be read again; and no further request starts before the client has read."""
        both = Both(self.sock)
        request = b"GET / HTTP/1.1\r\nHost: h\r\n" + ID + b"\r\n"
        both.client.data_received(request)
        both.outside.full = both.client.pause_writing
        both.upstream.data_received(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
        self.assertTrue(both.container.reading)
        self.assertEqual(both.pool.count, 1)
        both.container.written.clear()
        both.client.data_received(request)
        self.assertEqual(bytes(both.container.written), b"")
        self.assertFalse(both.outside.reading)
        both.client.resume_writing()
        self.assertTrue(both.container.written.startswith(b"GET / HTTP/1.1\r\n"))
        self.assertTrue(both.outside.reading)

    def test_any_head(self) -> None:
        @given(st.binary(max_size=200))
        @settings(max_examples=300)
        def check(data: bytes) -> None:
            for parse, refusal, first in (
                (parse_request, HeadRefused, b"GET / HTTP/1.1\r\n"),
                (parse_response, ValueError, b"HTTP/1.1 200 OK\r\n"),
            ):
                for head in (data + b"\r\n\r\n", first + data + b"\r\n\r\n"):
                    head = head[: head.index(b"\r\n\r\n") + 4]
                    try:
                        found = parse(head)
                    except refusal:
                        continue
                    self.assertTrue(found.length >= CHUNKED - 1)

        check()


class Frames(SynchronousTestCase):
    def setUp(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as listening:
            self.sock = socket.create_connection(listening.getsockname())
            peer, _ = listening.accept()
        self.addCleanup(self.sock.close)
        self.addCleanup(peer.close)

    def session(self, bodies: list[bytes]) -> bytes:
        """What an HTTP/2 client sends for one request per body."""
        peer = h2.connection.H2Connection()
        peer.initiate_connection()
        for body in bodies:
            stream = peer.get_next_available_stream_id()
            head = [(":method", "POST"), (":scheme", "http"), (":path", "/p"), (":authority", "h")]
            peer.send_headers(stream, [*head, ("tensorlake-sandbox-id", "sb-1"), ("x", "y")])
            peer.send_data(stream, body)
            peer.send_headers(stream, [("x-sum", "1")], end_stream=True)
        data = peer.data_to_send()
        assert data is not None
        return data

    def outcome(self, pieces: list[bytes]) -> Both:
        both = Both(self.sock)
        protocol: Any = both.client
        for piece in pieces:
            if both.outside.closing:
                break
            protocol.data_received(piece)
            protocol = both.outside.protocol or protocol
        if protocol is not both.client:
            protocol._write()
        return both

    def test_segments(self) -> None:
        @given(st.binary(min_size=1, max_size=200), CUTS)
        @settings(max_examples=100, deadline=None)
        def check(body: bytes, sizes: list[int]) -> None:
            both = self.outcome(cut(self.session([body]), sizes))
            request, got, end = read_by_h11(h11.SERVER, bytes(both.container.written))
            self.assertEqual((request.target, got, list(end.headers)), (b"/p", body, [(b"x-sum", b"1")]))

        check()

    def test_any_damage(self) -> None:
        """Bytes changed, lost and doubled: the connection goes on or ends, with nothing half-done left behind."""
        change = st.tuples(st.integers(24, 400), st.integers(0, 6), st.binary(max_size=6))

        @given(st.lists(st.binary(min_size=1, max_size=50), min_size=1, max_size=3), st.lists(change, max_size=4), CUTS)
        @settings(max_examples=300, deadline=None)
        def check(bodies: list[bytes], changes: list[tuple[int, int, bytes]], sizes: list[int]) -> None:
            data = self.session(bodies)
            for at, lost, new in changes:
                data = data[:at] + new + data[at + lost :]
            both = self.outcome(cut(data, sizes))
            written = bytes(both.container.written)
            if written:
                reader = h11.Connection(h11.SERVER)
                reader.receive_data(written)
                self.assertIsInstance(reader.next_event(), h11.Request)
            for connection in list(both.shared.connections):
                connection.stop()
            self.assertEqual(both.shared.telemetry.active_requests, 0)

        check()
