"""HTTP/2 clients of ordinary HTTP/1.1 containers, and clients that break the protocol."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import h2.config
import h2.connection
import h2.events
from attrs import define, field

from indexify_dataplane.http_proxy.http2 import MAX_STREAMS, STREAM_WINDOW
from indexify_dataplane.http_proxy.http2_client import request_head
from indexify_dataplane.http_proxy.replies import HeadRefused

from .support import Client, EdgeCase, echo, fields, get, in_loop, read_body, read_head

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
ROUTE = [("tensorlake-sandbox-id", "sb-1")]


@define
class Got:
    """What came back on one stream."""

    head: dict[str, str] = field(factory=dict)
    interim: list[dict[str, str]] = field(factory=list)
    body: bytes = b""
    trailers: dict[str, str] = field(factory=dict)
    ended: bool = False
    reset: int | None = None


class Peer:
    """A client that speaks h2 and keeps what it gets by stream."""

    def __init__(self, client: Client, acknowledges: bool = True, send: Callable[[bytes], Any] | None = None) -> None:
        self.client = client
        self.write = send or client.send
        self.h2 = h2.connection.H2Connection(
            h2.config.H2Configuration(
                header_encoding="latin-1", validate_outbound_headers=False, normalize_outbound_headers=False
            )
        )
        self.h2.initiate_connection()
        self.got: dict[int, Got] = {}
        self.acknowledges = acknowledges
        self.goaway: int | None = None
        self.flush()

    def flush(self) -> None:
        self.write(self.h2.data_to_send())

    def ask(self, method: str = "GET", path: str = "/", extra: Any = ROUTE, end: bool = True) -> int:
        stream = self.h2.get_next_available_stream_id()
        head = [(":method", method), (":scheme", "http"), (":path", path), (":authority", "proxy"), *extra]
        self.h2.send_headers(stream, head, end_stream=end)
        self.got[stream] = Got()
        self.flush()
        return stream

    def send(self, stream: int, data: bytes, end: bool = False) -> None:
        self.h2.send_data(stream, data, end_stream=end)
        self.flush()

    async def until(self, condition: Callable[[], object]) -> None:
        async with asyncio.timeout(5):
            while not condition():
                data = await self.client.reader.read(65536)
                if not data:
                    raise ConnectionError("closed")
                self.take(data)

    def take(self, data: bytes) -> None:
        for event in self.h2.receive_data(data):
            match event:
                case h2.events.ResponseReceived():
                    self.got[event.stream_id].head = dict(event.headers)
                case h2.events.InformationalResponseReceived():
                    self.got[event.stream_id].interim.append(dict(event.headers))
                case h2.events.DataReceived():
                    self.got[event.stream_id].body += event.data
                    if self.acknowledges:
                        self.h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
                case h2.events.TrailersReceived():
                    self.got[event.stream_id].trailers = dict(event.headers)
                case h2.events.StreamEnded():
                    self.got[event.stream_id].ended = True
                case h2.events.StreamReset():
                    self.got[event.stream_id].reset = event.error_code
                case h2.events.ConnectionTerminated():
                    self.goaway = event.error_code
        self.flush()

    async def answer(self, stream: int) -> Got:
        got = self.got[stream]
        await self.until(lambda: got.ended or got.reset is not None)
        return got


class Http2(EdgeCase):
    async def peer(self, **options: Any) -> Peer:
        return Peer(await self.connect(), **options)

    @in_loop
    async def test_requests_to_http1(self) -> None:
        server = await self.start_server(echo)
        await self.start_edge()
        peer = await self.peer()
        got = await peer.answer(
            peer.ask(path="/a?b", extra=[*ROUTE, ("cookie", "a=1"), ("cookie", "b=2"), ("x-y", "z")])
        )
        self.assertEqual(got.head[":status"], "200")
        self.assertTrue(got.body.startswith(b"GET /a?b HTTP/1.1\r\n"))
        told = fields(got.body)
        self.assertEqual((told["host"], told["cookie"], told["x-y"]), ("proxy", "a=1; b=2", "z"))
        self.assertEqual(told["x-forwarded-host"], "proxy")
        self.assertNotIn("tensorlake-sandbox-id", told)
        stream = peer.ask("POST", extra=[*ROUTE, ("content-length", "5")], end=False)
        peer.send(stream, b"hello", end=True)
        got = await peer.answer(stream)
        self.assertTrue(got.body.endswith(b"hello"))
        self.assertEqual(fields(got.body)["content-length"], "5")
        stream = peer.ask("POST", end=False)
        peer.send(stream, b"hel")
        peer.send(stream, b"lo")
        peer.send(stream, b"", end=True)
        got = await peer.answer(stream)
        self.assertTrue(got.body.endswith(b"hello"))
        self.assertEqual(fields(got.body)["transfer-encoding"], "chunked")
        got = await peer.answer(peer.ask("HEAD"))
        self.assertEqual((got.head[":status"], got.body), ("200", b""))
        self.assertEqual(server.connections, 1)

    @in_loop
    async def test_interim_answers_and_trailers(self) -> None:
        seen: list[bytes] = []

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, number: int) -> None:
            await read_head(reader)
            seen.append(await reader.readuntil(b"0\r\nx-sum: 1\r\n\r\n"))
            writer.write(
                b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\nHTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n"
            )
            writer.write(
                b"X-Hop: 1\r\nConnection: x-hop\r\n\r\n3\r\nabc\r\n0\r\nX-Done: y\r\nContent-Length: 9\r\n\r\n"
            )
            await reader.read()

        await self.start_server(serve)
        await self.start_edge()
        peer = await self.peer()
        stream = peer.ask("POST", end=False)
        peer.h2.send_data(stream, b"ab")
        peer.h2.send_headers(stream, [("x-sum", "1"), ("content-length", "3")], end_stream=True)
        peer.flush()
        got = await peer.answer(stream)
        self.assertEqual(seen, [b"2\r\nab\r\n0\r\nx-sum: 1\r\n\r\n"])
        self.assertEqual([each[":status"] for each in got.interim], ["103"])
        self.assertEqual((got.body, got.trailers), (b"abc", {"x-done": "y"}))
        self.assertFalse({"x-hop", "connection", "transfer-encoding"} & set(got.head))

    @in_loop
    async def test_answers_of_the_proxy(self) -> None:
        await self.start_server(echo)
        await self.start_edge()
        peer = await self.peer()
        for extra, status in (
            ([], "400"),
            ([("tensorlake-sandbox-id", "no")], "404"),
            ([*ROUTE, ("x-tensorlake-sandbox-id", "sb-2")], "400"),
            ([*ROUTE, ("tensorlake-sandbox-port", "0")], "400"),
            ([*ROUTE, ("tensorlake-sandbox-port", "9500")], "403"),
            ([*ROUTE, ("tensorlake-sandbox-port", "80")], "403"),
            ([*ROUTE, ("expect", "a miracle")], "417"),
            (ROUTE, "200"),
        ):
            got = await peer.answer(peer.ask(extra=extra))
            self.assertEqual(got.head[":status"], status)
        for method, path, status in (("TRACE", "/", "501"), ("GET", "/" + "a" * 20_000, "414"), ("get", "/", "501")):
            got = await peer.answer(peer.ask(method, path))
            self.assertEqual(got.head[":status"], status)
        got = await peer.answer(
            peer.ask("OPTIONS", extra=[*ROUTE, ("origin", "https://a"), ("access-control-request-method", "PUT")])
        )
        self.assertEqual((got.head[":status"], got.head["access-control-allow-origin"]), ("200", "https://a"))
        self.assertEqual(self.edge.connections, 1)

    @in_loop
    async def test_what_would_split_an_http1_head(self) -> None:
        """Bytes that HTTP/2 carries and HTTP/1.1 would read as something else never get through."""
        server = await self.start_server(echo)
        await self.start_edge()
        for extra in (
            [*ROUTE, ("x", "a\r\nTransfer-Encoding: chunked")],
            [*ROUTE, ("x", "a\nb")],
            [*ROUTE, ("x", "a\0b")],
            [*ROUTE, ("x\r\ny", "a")],
            [*ROUTE, ("x y", "a")],
            [*ROUTE, ("X-Upper", "a")],
            [*ROUTE, ("transfer-encoding", "chunked")],
            [*ROUTE, ("connection", "close")],
            [*ROUTE, ("upgrade", "websocket")],
            [*ROUTE, ("te", "gzip")],
            [*ROUTE, ("content-length", "3"), ("content-length", "4")],
            [*ROUTE, ("content-length", "-1")],
            [*ROUTE, ("host", "other")],
            [*ROUTE, (":path", "/again")],
        ):
            peer = await self.peer()
            stream = peer.ask(extra=extra)
            try:
                got = await peer.answer(stream)
            except ConnectionError:
                self.assertIsNotNone(peer.goaway, extra)
            else:
                self.assertTrue(got.reset is not None or got.head[":status"] == "400", (extra, got))
        for path in ("/a b", "/a\r\nX: y", "a", "/\xe9", "*", "http://other/"):
            peer = await self.peer()
            try:
                got = await peer.answer(peer.ask(path=path))
            except ConnectionError:
                self.assertIsNotNone(peer.goaway, path)
            else:
                self.assertEqual(got.head[":status"], "400", path)
        self.assertEqual(server.connections, 0)
        peer = await self.peer()
        self.assertEqual((await peer.answer(peer.ask())).head[":status"], "200")

    def test_heads_whoever_checked_them_before(self) -> None:
        """Releases of h2 differ in what they let through; nothing depends on it."""
        usual = [(b":method", b"GET"), (b":scheme", b"http"), (b":path", b"/"), (b":authority", b"h")]
        self.assertEqual(request_head([*usual, (b"x", b"y")], True).lines, [b"Host: h", b"x: y"])
        for bad in (
            (b"x", b"a\r\nb: c"), (b"x", b"a\nb"), (b"x", b"a\0"), (b"x\r\ny", b"a"), (b"X", b"a"), (b"x:", b"a"),
            (b"", b"a"), (b"host", b"other"), (b"content-length", b"+1"), (b"content-length", b"3"),
        ):  # fmt: skip
            with self.assertRaises(HeadRefused):
                request_head([*usual, bad], True)
        for name, value in ((b":path", b"/a b"), (b":path", b""), (b":method", b"G T"), (b":authority", b"a/b")):
            with self.assertRaises(HeadRefused):
                request_head([*(pair for pair in usual if pair[0] != name), (name, value)], True)

    @in_loop
    async def test_bytes_that_are_not_http2(self) -> None:
        await self.start_server(echo)
        await self.start_edge()
        for data in (
            PREFACE + b"GET / HTTP/1.1\r\n\r\n",
            PREFACE + b"\xff\xff\xff\x04\x00\x00\x00\x00\x00",
            PREFACE + b"\x00\x00\x00\x01\x04\x00\x00\x00\x01",
            PREFACE + b"\x00\x00\x00\x04\x00\x00\x00\x00\x00" + b"\x00\x50\x00\x00\x00\x00\x00\x00\x01",
            PREFACE[:-2] + b"\r\r" + b"\x00\x00\x00\x04\x00\x00\x00\x00\x00",
        ):
            client = await self.connect()
            client.send(data)
            await asyncio.wait_for(client.closed(), 5)
        self.assertEqual(self.edge.connections, 0)
        client = await self.connect()
        self.assertEqual((await client.ask(get())).status, 200)

    @in_loop
    async def test_preface_byte_by_byte(self) -> None:
        await self.start_server(echo)
        await self.start_edge()
        client = await self.connect()
        sent: list[bytes] = []
        peer = Peer(client, send=sent.append)
        stream = peer.ask()
        peer.write = client.send
        for byte in b"".join(sent):
            client.send(bytes([byte]))
            await asyncio.sleep(0)
        self.assertEqual((await peer.answer(stream)).head[":status"], "200")

    @in_loop
    async def test_client_that_does_not_read(self) -> None:
        """Its window is the limit of what waits for it; other streams of the connection go on."""
        sent = [0]

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, number: int) -> None:
            head = await read_head(reader)
            if head.startswith(b"GET /small"):
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
                return
            writer.transport.set_write_buffer_limits(1 << 16)
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100000000\r\n\r\n")
            while True:
                writer.write(bytes(65536))
                await writer.drain()
                sent[0] += 65536

        await self.start_server(serve)
        await self.start_edge()
        peer = await self.peer(acknowledges=False)
        peer.h2.increment_flow_control_window(1 << 20)
        stream = peer.ask()
        before, still = -1, 0
        while still < 10:
            small = await peer.answer(peer.ask(path="/small"))
            self.assertEqual(small.body, b"ok")
            still, before = (still + 1 if sent[0] == before else 0), sent[0]
        self.assertLess(sent[0], 16 << 20)
        self.assertEqual(len(peer.got[stream].body), 65535)
        peer.h2.reset_stream(stream)
        peer.flush()
        async with asyncio.timeout(5):
            while self.edge.active_requests:
                await asyncio.sleep(0)

    @in_loop
    async def test_container_that_does_not_read(self) -> None:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, number: int) -> None:
            head = await read_head(reader)
            if b" /small " in head:
                await read_body(reader, head)
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
                return
            reader._transport.pause_reading()  # type: ignore[attr-defined]
            await asyncio.get_running_loop().create_future()

        await self.start_server(serve)
        await self.start_edge()
        peer = await self.peer()
        stream = peer.ask("POST", end=False)
        sent, idle = 0, 0
        while idle < 10:
            window = min(peer.h2.local_flow_control_window(stream), 16384)
            if window:
                peer.send(stream, bytes(window))
                sent, idle = sent + window, 0
            else:
                idle += 1
            self.assertEqual((await peer.answer(peer.ask(path="/small"))).body, b"ok")
        self.assertLess(sent, 16 << 20)
        self.clock.pump([1] * 65)
        got = await peer.answer(stream)
        self.assertEqual(got.head[":status"], "504")
        self.assertIn(b"WRITE_TIMEOUT", got.body)

    @in_loop
    async def test_cut_answers_are_resets(self) -> None:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, number: int) -> None:
            await read_head(reader)
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc")
            await writer.drain()

        await self.start_server(serve)
        await self.start_edge()
        peer = await self.peer()
        got = await peer.answer(peer.ask())
        self.assertEqual((got.head[":status"], got.body, got.ended, got.reset), ("200", b"abc", False, 2))

    @in_loop
    async def test_early_answer_ends_the_request(self) -> None:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, number: int) -> None:
            await read_head(reader)
            writer.write(b"HTTP/1.1 413 Too Large\r\nContent-Length: 0\r\n\r\n")
            await reader.read()

        await self.start_server(serve)
        await self.start_edge()
        peer = await self.peer()
        stream = peer.ask("POST", end=False)
        got = await peer.answer(stream)
        await peer.until(lambda: got.reset is not None)
        self.assertEqual((got.head[":status"], got.ended, got.reset), ("413", True, 0))
        got = await peer.answer(peer.ask("POST", end=False))
        self.assertEqual(got.head[":status"], "413")

    @in_loop
    async def test_rapid_resets(self) -> None:
        """Thousands of streams that are reset at once end the connection, not the node."""

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, number: int) -> None:
            await reader.read()

        await self.start_server(serve)
        await self.start_edge()
        peer = await self.peer()
        asked = 0
        while (self.edge.connections or not asked) and asked < 50_000:
            for _ in range(100):
                peer.h2.reset_stream(peer.ask())
            peer.flush()
            asked += 100
            await asyncio.sleep(0)
        self.assertLess(asked, 50_000)
        async with asyncio.timeout(5):
            while self.edge.active_requests or self.edge.connections:
                await asyncio.sleep(0)

    @in_loop
    async def test_settings(self) -> None:
        await self.start_edge()
        peer = await self.peer()
        await peer.until(lambda: peer.h2.remote_settings.max_concurrent_streams == MAX_STREAMS)
        self.assertEqual(peer.h2.remote_settings.initial_window_size, STREAM_WINDOW)
