"""Connections that become something else: WebSockets with a real protocol library, and raw pipes."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable

from twisted.internet.defer import Deferred
from wsproto import ConnectionType, WSConnection
from wsproto.events import AcceptConnection, BytesMessage, CloseConnection, Ping, Pong, Request

from indexify_dataplane.reactor import to_asyncio

from .support import Client, EdgeCase, fields, get, in_loop, read_head

UPGRADE = b"Connection: keep-alive, Upgrade\r\nUpgrade: websocket\r\n"


async def websocket_echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, number: int) -> None:
    ws = WSConnection(ConnectionType.SERVER)
    while data := await reader.read(65536):
        ws.receive_data(data)
        for event in ws.events():
            match event:
                case Request():
                    writer.write(ws.send(AcceptConnection()))
                case BytesMessage():
                    writer.write(ws.send(BytesMessage(data=bytes(event.data), message_finished=event.message_finished)))
                case Ping():
                    writer.write(ws.send(event.response()))
                case CloseConnection():
                    writer.write(ws.send(event.response()))
                    return
        await writer.drain()


class Upgrades(EdgeCase):
    async def until(self, condition: Callable[[], object]) -> None:
        async with asyncio.timeout(5):
            while not condition():
                await asyncio.sleep(0)

    async def open(self) -> tuple[Client, WSConnection]:
        client = await self.connect()
        ws = WSConnection(ConnectionType.CLIENT)
        request = ws.send(Request(host="sb-1.local", target="/api/v1/pty/1/ws?token=t"))
        client.send(request)
        ws.receive_data(await read_head(client.reader))
        self.assertIsInstance(next(iter(ws.events())), AcceptConnection)
        return client, ws

    async def receive(self, client: Client, ws: WSConnection, size: int) -> bytes:
        got = bytearray()
        while len(got) < size:
            ws.receive_data(await client.reader.read(65536))
            for event in ws.events():
                self.assertIsInstance(event, BytesMessage)
                got += event.data
        return bytes(got)

    @in_loop
    async def test_websocket(self) -> None:
        await self.start_server(websocket_echo)
        await self.start_edge()
        client, ws = await self.open()
        for size in (0, 1, 125, 126, 65535, 65536, 3_000_000):
            data = os.urandom(size)
            client.send(ws.send(BytesMessage(data=data)))
            self.assertEqual(await asyncio.wait_for(self.receive(client, ws, size), 10), data)
            if not size:
                ws.receive_data(await client.reader.readexactly(2))
                list(ws.events())
        self.assertEqual(self.metrics.gauges[("proxy.active_upgrades", ())](), 1)
        client.send(ws.send(CloseConnection(code=1000, reason="done")))
        ws.receive_data(await client.closed())
        self.assertEqual([event.code for event in ws.events()], [1000])
        await self.until(lambda: not self.edge.active_requests)
        self.assertEqual(self.metrics.gauges[("proxy.active_upgrades", ())](), 0)
        self.assertEqual(self.log.lines[-1].status_code, 101)
        self.assertEqual(self.edge.idle_upstreams, 0)

    @in_loop
    async def test_a_client_that_names_the_proxy_before_the_sandbox(self) -> None:
        """As released SDKs open terminals; any other request with two hosts is refused."""
        seen = asyncio.get_running_loop().create_future()

        async def server(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, number: int) -> None:
            seen.set_result(await read_head(reader))
            writer.write(b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
            await writer.drain()

        await self.start_server(server)
        await self.start_edge()
        refused = {
            "two sandboxes": (b"sb-1.local", b"sb-2.local", UPGRADE),
            "the proxy last": (b"sb-1.local", b"localhost", UPGRADE),
            "three": (b"localhost", b"sb-1.local\r\nHost: sb-1.local", UPGRADE),
            "another machine": (b"localhost.example.org", b"sb-1.local", UPGRADE),
            "no upgrade": (b"localhost", b"sb-1.local", b""),
            "another upgrade": (b"localhost", b"sb-1.local", UPGRADE.replace(b"websocket", b"other")),
        }
        for name, (first, second, rest) in refused.items():
            client = await self.connect()
            client.send(b"GET /x HTTP/1.1\r\nHost: %b\r\nHost: %b\r\n%b\r\n" % (first, second, rest))
            self.assertTrue((await client.closed()).startswith(b"HTTP/1.1 400 "), name)
        client = await self.connect()
        client.send(b"GET /x HTTP/1.1\r\n%bHost: localhost:9443\r\nHost: sb-1.local\r\n\r\n" % UPGRADE)
        self.assertIn(b" 101 ", await read_head(client.reader))
        head = await seen
        hosts = [line for line in head.lower().split(b"\r\n") if line.startswith(b"host:")]
        self.assertEqual(hosts, [b"host: sb-1.local"])
        self.assertNotIn(b"9443", head)

    @in_loop
    async def test_no_idle_cut(self) -> None:
        await self.start_server(websocket_echo)
        await self.start_edge()
        client, ws = await self.open()
        for _ in range(50):
            self.clock.advance(3600)
        client.send(ws.send(Ping(payload=b"x")))
        ws.receive_data(await client.reader.read(100))
        self.assertEqual([type(event) for event in ws.events()], [Pong])

    @in_loop
    async def test_idle_cut_where_configured(self) -> None:
        await self.start_server(websocket_echo)
        await self.start_edge(upgrade_idle_timeout_secs=300.0)
        client, ws = await self.open()
        self.clock.pump([1] * 290)
        client.send(ws.send(Ping(payload=b"x")))
        ws.receive_data(await client.reader.read(100))
        self.clock.pump([1] * 290)
        self.assertEqual(self.edge.active_requests, 1)
        self.clock.pump([1] * 15)
        self.assertEqual(await client.closed(), b"")
        self.assertEqual(self.edge.active_requests, 0)

    @in_loop
    async def test_what_the_container_sees(self) -> None:
        seen = asyncio.get_running_loop().create_future()

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, number: int) -> None:
            seen.set_result(fields(await read_head(reader)))
            writer.write(
                b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: tcp\r\nX: y\r\n\r\nfirst words"
            )
            writer.write(b"|" + await reader.readexactly(9))
            await reader.read()

        await self.start_server(serve)
        await self.start_edge()
        client = await self.connect()
        # The client does not wait for the answer; what it sends early is not lost.
        client.send(get("/", b"Connection: upgrade, x-hop\r\nUpgrade: tcp\r\nX-Hop: 1\r\n", "POST") + b"too early")
        told = fields(await read_head(client.reader))
        self.assertEqual((told["connection"], told["upgrade"], told["x"]), ("upgrade", "tcp", "y"))
        self.assertEqual(await client.reader.readexactly(21), b"first words|too early")
        self.assertEqual(((await seen)["connection"], (await seen)["upgrade"]), ("upgrade", "tcp"))
        self.assertNotIn("x-hop", await seen)

    @in_loop
    async def test_declined(self) -> None:
        """Any other status is an ordinary answer; the connection goes on."""

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, number: int) -> None:
            while True:
                await read_head(reader)
                writer.write(b"HTTP/1.1 426 Upgrade Required\r\nUpgrade: websocket\r\nContent-Length: 2\r\n\r\nno")

        server = await self.start_server(serve)
        await self.start_edge()
        client = await self.connect()
        for _ in range(2):
            answer = await client.ask(get("/", UPGRADE))
            self.assertEqual((answer.status, answer.body), (426, b"no"))
        self.assertEqual(server.connections, 1)

    @in_loop
    async def test_upgrade_field_alone_is_not_a_wish(self) -> None:
        seen: list[dict[str, str]] = []

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, number: int) -> None:
            while True:
                seen.append(fields(await read_head(reader)))
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")

        await self.start_server(serve)
        await self.start_edge()
        client = await self.connect()
        await client.ask(get("/", b"Upgrade: websocket\r\n"))
        await client.ask(get("/", b"Connection: upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AA\r\n"))
        for told in seen:
            self.assertFalse({"upgrade", "connection", "http2-settings"} & set(told))

    @in_loop
    async def test_either_end_ends_both(self) -> None:
        ended = asyncio.get_running_loop().create_future()

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, number: int) -> None:
            await read_head(reader)
            writer.write(b"HTTP/1.1 101 S\r\nConnection: upgrade\r\nUpgrade: tcp\r\n\r\n")
            if number == 0:
                ended.set_result(await reader.read())
            else:
                writer.write(b"last words")

        await self.start_server(serve)
        await self.start_edge()
        client = await self.connect()
        client.send(get("/", UPGRADE))
        await read_head(client.reader)
        client.send(b"y" * 3_000_000)
        client.close()
        self.assertEqual(len(await asyncio.wait_for(ended, 5)), 3_000_000)
        client = await self.connect()
        client.send(get("/", UPGRADE))
        await read_head(client.reader)
        self.assertEqual(await client.closed(), b"last words")
        await self.until(lambda: not self.edge.active_requests)

    @in_loop
    async def test_drain_waits_for_pipes_as_for_requests(self) -> None:
        await self.start_server(websocket_echo)
        edge = await self.start_edge()
        client, ws = await self.open()
        stopped = Deferred.fromCoroutine(edge.stop(10))
        client.send(ws.send(BytesMessage(data=b"still here")))
        self.assertEqual(await self.receive(client, ws, 10), b"still here")
        self.clock.pump([1] * 11)
        await to_asyncio(stopped)
        self.assertEqual(await client.closed(), b"")
