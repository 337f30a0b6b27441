"""Requests and answers of every framing, both ways, between real sockets."""

from __future__ import annotations

from .support import EdgeCase, echo, fields, get, in_loop


class Relay(EdgeCase):
    @in_loop
    async def test_get_and_reuse(self) -> None:
        server = await self.start_server(echo)
        await self.start_edge()
        client = await self.connect()
        for number in range(5):
            answer = await client.ask(get(f"/a/%7Eb?q={number}"))
            self.assertEqual(answer.status, 200)
            self.assertTrue(answer.body.startswith(b"GET /a/%%7Eb?q=%d HTTP/1.1\r\n" % number))
        self.assertEqual(server.connections, 1)
        self.assertEqual([line.path for line in self.log.lines], ["/a/%7Eb"] * 5)
        self.assertEqual(self.log.lines[0].container_addr, ":".join(map(str, server.address)))

    @in_loop
    async def test_bodies_by_length_and_in_chunks(self) -> None:
        await self.start_server(echo)
        await self.start_edge()
        client = await self.connect()
        answer = await client.ask(get("/", b"Content-Length: 5\r\n", "POST") + b"hello")
        self.assertTrue(answer.body.endswith(b"\r\n\r\nhello"))
        answer = await client.ask(
            get("/", b"Transfer-Encoding: chunked\r\n", "POST") + b"3;x=y\r\nabc\r\n2\r\nde\r\n0\r\nT: v\r\n\r\n"
        )
        self.assertTrue(answer.body.endswith(b"\r\n\r\nabcde"))
        self.assertEqual(fields(answer.body)["transfer-encoding"], "chunked")
