"""What ends by itself, and what never does. The clock is the edge's; the sockets are real."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from twisted.internet.defer import Deferred

from indexify_dataplane.reactor import to_asyncio

from .support import EdgeCase, echo, get, in_loop, read_head

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


class Deadlines(EdgeCase):
    async def until(self, condition: Callable[[], object]) -> None:
        async with asyncio.timeout(5):
            while not condition():
                await asyncio.sleep(0)

    def advance(self, seconds: int) -> None:
        self.clock.pump([1] * seconds)

    async def silent(self, port: int = 9501) -> list[asyncio.StreamWriter]:
        """A container that reads heads and says nothing; gives its connections."""
        writers: list[asyncio.StreamWriter] = []

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, number: int) -> None:
            await read_head(reader)
            writers.append(writer)
            await reader.read()

        await self.start_server(serve, port)
        return writers

    @in_loop
    async def test_no_head(self) -> None:
        await self.start_edge()
        client = await self.connect()
        await self.until(lambda: self.edge.connections)
        self.advance(58)
        self.assertEqual(self.edge.connections, 1)
        self.advance(3)
        self.assertEqual(await client.closed(), b"")

    @in_loop
    async def test_half_a_head(self) -> None:
        await self.start_server(echo)
        await self.start_edge()
        client = await self.connect()
        await client.ask(get())
        self.advance(60)
        client.send(b"GET / HT")
        while not next(iter(self.edge._shared.connections))._buffer:
            await asyncio.sleep(0)
        self.advance(62)
        self.assertEqual(await client.closed(), b"")

    @in_loop
    async def test_idle_client(self) -> None:
        await self.start_server(echo)
        await self.start_edge()
        client = await self.connect()
        await client.ask(get())
        self.advance(70)
        await client.ask(get())
        self.advance(70)
        self.assertEqual(self.edge.connections, 1)
        self.advance(7)
        self.assertEqual(await client.closed(), b"")

    @in_loop
    async def test_idle_upstream(self) -> None:
        server = await self.start_server(echo)
        await self.start_edge()
        client = await self.connect()
        await client.ask(get())
        self.advance(54)
        self.assertEqual(self.edge.idle_upstreams, 1)
        self.advance(3)
        self.assertEqual(self.edge.idle_upstreams, 0)
        await client.ask(get())
        self.assertEqual(server.connections, 2)

    @in_loop
    async def test_forgotten_container(self) -> None:
        server = await self.start_server(echo)
        await self.start_edge()
        client = await self.connect()
        await client.ask(get())
        self.edge.forget("c-other")
        self.assertEqual(self.edge.idle_upstreams, 1)
        self.edge.forget("c-sb-1")
        self.assertEqual(self.edge.idle_upstreams, 0)
        await client.ask(get())
        self.assertEqual(server.connections, 2)

    @in_loop
    async def test_at_most_so_many_idle_upstreams(self) -> None:
        await self.start_server(echo)
        await self.start_edge(max_idle_upstreams=3)
        clients = [await self.connect() for _ in range(8)]
        await asyncio.gather(*(client.ask(get()) for client in clients))
        self.assertEqual(self.edge.idle_upstreams, 3)

    @in_loop
    async def test_no_limit_once_the_request_is_with_the_container(self) -> None:
        """A 504 would make clients send a command again that is still running."""
        writers = await self.silent()
        await self.start_edge()
        client = await self.connect()
        client.send(get("/run", b"Content-Length: 3\r\n", "POST") + b"abc")
        await self.until(lambda: writers)
        self.advance(100)
        for _ in range(20):
            self.clock.advance(3600)
        self.assertEqual(self.edge.active_requests, 1)
        writers[0].write(OK)
        self.assertEqual((await client.answer()).body, b"ok")

    @in_loop
    async def test_client_that_stops_within_its_body(self) -> None:
        writers = await self.silent()
        await self.start_edge()
        client = await self.connect()
        client.send(get("/", b"Content-Length: 30\r\n", "POST") + b"abc")
        await self.until(lambda: writers)
        self.advance(58)
        self.assertEqual(self.edge.active_requests, 1)
        self.advance(5)
        self.assertEqual(await client.closed(), b"")
        self.assertEqual(self.edge.active_requests, 0)

    @in_loop
    async def test_body_that_keeps_coming(self) -> None:
        """The limit counts from the last byte, not from the sweep before it: a second is a second."""
        arrived = 0

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, number: int) -> None:
            nonlocal arrived
            await read_head(reader)
            while data := await reader.read(65536):
                arrived += len(data)
                if arrived == 30:
                    writer.write(OK)

        await self.start_server(serve)
        await self.start_edge(upstream_read_timeout_secs=1)
        client = await self.connect()
        self.clock.advance(0.9)
        client.send(get("/", b"Content-Length: 30\r\n", "POST"))
        for sent in range(1, 31):
            client.send(b"x")
            await self.until(lambda sent=sent: arrived == sent)
            self.clock.advance(0.45)
        self.assertEqual((await client.answer()).body, b"ok")

    @in_loop
    async def test_no_answer_to_an_expectation(self) -> None:
        writers = await self.silent()
        await self.start_edge()
        client = await self.connect()
        client.send(get("/", b"Content-Length: 30\r\nExpect: 100-continue\r\n", "POST"))
        await self.until(lambda: writers)
        self.advance(63)
        answer = await client.answer()
        self.assertEqual((answer.status, b"READ_TIMEOUT" in answer.body), (504, True))
        self.assertEqual(await client.closed(), b"")

    @in_loop
    async def test_container_that_takes_no_more(self) -> None:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, number: int) -> None:
            reader._transport.pause_reading()  # type: ignore[attr-defined]
            await asyncio.get_running_loop().create_future()

        await self.start_server(serve)
        await self.start_edge()
        client = await self.connect()
        client.send(get("/", b"Content-Length: 90000000\r\n", "POST"))
        client.send(b"x" * 30_000_000)
        await self.until(lambda: any(each._held and each._exchange._upstream for each in self.edge._shared.connections))
        self.advance(63)
        answer = await client.answer()
        self.assertEqual((answer.status, b"WRITE_TIMEOUT" in answer.body), (504, True))

    # -- the end of the node

    @in_loop
    async def test_drain(self) -> None:
        """Idle connections close at once, running requests end, nothing new begins."""
        writers = await self.silent()
        edge = await self.start_edge()
        idle, busy = await self.connect(), await self.connect()
        await idle.ask(get(sandbox=b""))
        busy.send(get())
        await self.until(lambda: writers)
        stopped = Deferred.fromCoroutine(edge.stop(10))
        self.assertEqual(await idle.closed(), b"")
        with self.assertRaises(ConnectionError):
            await self.connect()
        self.advance(5)
        self.assertFalse(stopped.called)
        writers[0].write(OK)
        answer = await busy.answer()
        self.assertEqual((answer.body, answer.fields["connection"]), (b"ok", "close"))
        self.assertEqual(await busy.closed(), b"")
        self.advance(1)
        await to_asyncio(stopped)
        self.assertEqual((edge.connections, edge.idle_upstreams), (0, 0))

    @in_loop
    async def test_drain_that_takes_too_long(self) -> None:
        writers = await self.silent()
        edge = await self.start_edge()
        client = await self.connect()
        client.send(get())
        await self.until(lambda: writers)
        stopped = Deferred.fromCoroutine(edge.stop(10))
        self.advance(9)
        self.assertFalse(stopped.called)
        self.advance(2)
        await to_asyncio(stopped)
        self.assertEqual(await client.closed(), b"")
        self.assertEqual(edge.active_requests, 0)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    @in_loop
    async def test_drain_within_an_answer(self) -> None:
        """The head is out already and promised a connection that stays; it closes after the body all the same."""

        go = asyncio.Event()

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, number: int) -> None:
            await read_head(reader)
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\no")
            await go.wait()
            writer.write(b"k")

        await self.start_server(serve)
        edge = await self.start_edge()
        client = await self.connect()
        client.send(get())
        self.assertNotIn(b"connection", (await read_head(client.reader)).lower())
        self.assertEqual(await client.reader.readexactly(1), b"o")
        stopped = Deferred.fromCoroutine(edge.stop(10))
        go.set()
        self.assertEqual(await client.closed(), b"k")
        await self.until(lambda: not edge.connections)
        self.advance(1)
        await to_asyncio(stopped)

    @in_loop
    async def test_bind_that_fails(self) -> None:
        await self.start_edge()
        _, port = self.address
        with self.assertRaises(OSError):
            await self.start_edge(port=port)
