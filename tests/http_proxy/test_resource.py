"""The resource, mounted in an ordinary Site, with the routing and the answers of the edge."""

from __future__ import annotations

import asyncio

from twisted.internet import reactor
from twisted.web.resource import Resource
from twisted.web.server import Site

from indexify_dataplane.http_proxy.resource import SandboxResource
from indexify_dataplane.http_proxy.routes import NotRunning

from .support import ID, EdgeCase, config, echo, fields, get, in_loop, read_head


class Mounted(EdgeCase):
    async def mount(self, **changes: object) -> None:
        self.resource = SandboxResource(
            config=config(**changes), routes=self.table, metrics=self.metrics, request_log=self.log,
            reactor=self.clock,
        )  # fmt: skip
        root = Resource()
        root.putChild(b"sandboxes", self.resource)
        listening = reactor.listenTCP(0, Site(root), interface="127.0.0.1")  # type: ignore[attr-defined]
        self.addCleanup(listening.stopListening)
        self.addCleanup(self.resource.close)
        self.addCleanup(lambda: [client.close() for client in self._clients])
        self.address = ("127.0.0.1", listening.getHost().port)

    @in_loop
    async def test_requests(self) -> None:
        server = await self.start_server(echo, token="t")
        await self.mount()
        client = await self.connect()
        for number in range(3):
            answer = await client.ask(get(f"/sandboxes/a?q={number}", b"X-Y: z\r\n"))
            self.assertTrue(answer.body.startswith(b"GET /sandboxes/a?q=%d HTTP/1.1\r\n" % number))
            told = fields(answer.body)
            self.assertEqual((told["x-y"], told["x-indexify-sandbox-token"]), ("z", "t"))
            self.assertEqual(told["x-forwarded-for"], "127.0.0.1")
        big = bytes(range(256)) * 10_000
        answer = await client.ask(get("/sandboxes/", b"Content-Length: %d\r\n" % len(big), "POST") + big)
        self.assertTrue(answer.body.endswith(big))
        answer = await client.ask(
            get("/sandboxes/", b"Transfer-Encoding: chunked\r\n", "POST") + b"3\r\nabc\r\n0\r\n\r\n"
        )
        self.assertTrue(answer.body.endswith(b"\r\n\r\nabc"))
        self.assertEqual((await client.ask(get("/sandboxes/", method="HEAD"))).status, 200)
        self.assertEqual(server.connections, 1)
        self.assertEqual([line.status_code for line in self.log.lines], [200] * 6)

    @in_loop
    async def test_answers_of_its_own(self) -> None:
        await self.start_server(echo)
        await self.mount()
        self.table.sandboxes["early"] = NotRunning("pending")
        client = await self.connect()
        for request, status in (
            (get("/sandboxes/", sandbox=b""), 400),
            (get("/sandboxes/", sandbox=b"Tensorlake-Sandbox-Id: no\r\n"), 404),
            (get("/sandboxes/", sandbox=b"Tensorlake-Sandbox-Id: early\r\n"), 503),
            (get("/sandboxes/", b"Tensorlake-Sandbox-Port: 0\r\n"), 400),
            (get("/sandboxes/", b"Tensorlake-Sandbox-Port: 9500\r\n"), 403),
            (get("/sandboxes/", b"Tensorlake-Sandbox-Port: 80\r\n"), 403),
            (get("/sandboxes/", b"Origin: https://a\r\nAccess-Control-Request-Method: GET\r\n", "OPTIONS"), 200),
            (get("/sandboxes/", b"Host: other\r\n"), 400),
            (get("/sandboxes/"), 200),
        ):
            answer = await client.ask(request)
            self.assertEqual(answer.status, status, answer)

    @in_loop
    async def test_failures(self) -> None:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, number: int) -> None:
            await read_head(reader)
            if number == 1:
                writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n")
                await writer.drain()

        await self.start_server(serve)
        await self.mount()
        client = await self.connect()
        self.assertEqual((await client.ask(get("/sandboxes/"))).status, 502)
        client = await self.connect()
        client.send(get("/sandboxes/"))
        rest = await client.closed()
        self.assertIn(b"abc", rest)
        self.assertNotIn(b"0\r\n\r\n", rest)

    @in_loop
    async def test_deadlines_and_clients_that_leave(self) -> None:
        await self.start_server(echo)
        self.table.never.add(9501)
        await self.mount()
        client = await self.connect()
        client.send(get("/sandboxes/"))
        while not self.table.asked:
            await asyncio.sleep(0)
        self.clock.advance(11)
        self.assertEqual((await client.answer()).status, 504)
        client = await self.connect()
        client.send(b"GET /sandboxes/ HTTP/1.1\r\nHost: x\r\n" + ID + b"\r\n")
        while len(self.table.asked) < 2:
            await asyncio.sleep(0)
        client.close()
        while self.metrics.gauges[("proxy.active_requests", ())]():
            await asyncio.sleep(0)
        self.assertEqual(self.clock.getDelayedCalls(), [])
