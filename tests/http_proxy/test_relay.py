"""Requests and answers of every framing, both ways, between real sockets."""

from __future__ import annotations

import asyncio

from .support import ID, EdgeCase, echo, fields, get, in_loop, read_body, read_head


class Relay(EdgeCase):
    async def answering(self, answer: bytes, close: bool = False) -> list[bytes]:
        """A server that answers every request with these bytes; gives the heads it saw."""
        seen: list[bytes] = []

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, number: int) -> None:
            while True:
                head = await read_head(reader)
                seen.append(head)
                await read_body(reader, head)
                writer.write(answer)
                if close:
                    return

        self.server = await self.start_server(serve)
        return seen

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
        answer = await client.ask(get("/", b"Content-Length: 3\r\n", "GET") + b"abc")
        self.assertTrue(answer.body.endswith(b"\r\n\r\nabc"), "a body of a GET is a body")

    @in_loop
    async def test_request_trailers(self) -> None:
        got = asyncio.get_running_loop().create_future()

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, number: int) -> None:
            await read_head(reader)
            got.set_result(await reader.readuntil(b"0\r\nX-Sum: 1\r\n\r\n"))
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")

        await self.start_server(serve)
        await self.start_edge()
        client = await self.connect()
        await client.ask(
            get("/", b"Transfer-Encoding: chunked\r\n", "POST")
            + b"2\r\nab\r\n0\r\nX-Sum: 1\r\nContent-Length: 9\r\nTensorlake-Sandbox-Id: x\r\n\r\n"
        )
        self.assertEqual(await got, b"2\r\nab\r\n0\r\nX-Sum: 1\r\n\r\n")

    @in_loop
    async def test_answers_without_a_body(self) -> None:
        seen = await self.answering(b"HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\n")
        await self.start_edge()
        client = await self.connect()
        for _ in range(2):
            answer = await client.ask(get(method="HEAD"))
            self.assertEqual((answer.status, answer.fields["content-length"]), (200, "500"))
        self.assertEqual(len(seen), 2)
        self.assertEqual(self.server.connections, 1)

    @in_loop
    async def test_no_content_and_not_modified(self) -> None:
        for status in (b"204 No Content", b"304 Not Modified"):
            await self.answering(b"HTTP/1.1 " + status + b"\r\nETag: x\r\n\r\n")
            if not hasattr(self, "address"):
                await self.start_edge()
            client = await self.connect()
            for _ in range(2):
                answer = await asyncio.wait_for(client.ask(get()), 5)
                self.assertEqual(answer.head.split(b"\r\n")[0], b"HTTP/1.1 " + status)
                self.assertNotIn("transfer-encoding", answer.fields)
            self.edge.forget("c-sb-1")

    @in_loop
    async def test_answer_in_chunks_with_trailers(self) -> None:
        await self.answering(
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum\r\n\r\n"
            b"3\r\nabc\r\n4;ext\r\ndefg\r\n0\r\nX-Sum: 7\r\n\r\n"
        )
        await self.start_edge()
        client = await self.connect()
        for _ in range(2):
            client.send(get())
            head = await read_head(client.reader)
            self.assertEqual(fields(head)["transfer-encoding"], "chunked")
            self.assertEqual(fields(head)["trailer"], "X-Sum")
            rest = await client.reader.readuntil(b"0\r\nX-Sum: 7\r\n\r\n")
            self.assertEqual(rest, b"7\r\nabcdefg\r\n0\r\nX-Sum: 7\r\n\r\n")
        self.assertEqual(self.server.connections, 1)

    @in_loop
    async def test_answer_that_ends_with_its_connection(self) -> None:
        await self.answering(b"HTTP/1.0 200 OK\r\n\r\nall of it", close=True)
        await self.start_edge()
        client = await self.connect()
        for number in range(2):
            answer = await client.ask(get())
            self.assertEqual((answer.fields["transfer-encoding"], answer.body), ("chunked", b"all of it"))
            self.assertEqual(self.server.connections, number + 1)
        self.assertTrue(answer.head.startswith(b"HTTP/1.1 200 OK\r\n"))

    @in_loop
    async def test_old_clients(self) -> None:
        """HTTP/1.0 gets no chunks; its connection stays only if it asks and the length is known."""
        seen = await self.answering(
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\nX: y\r\n\r\n"
        )
        await self.start_edge()
        client = await self.connect()
        client.send(b"GET / HTTP/1.0\r\n" + ID + b"Connection: keep-alive\r\n\r\n")
        answer = await client.answer()
        self.assertEqual(answer.body, b"abc")
        self.assertNotIn("transfer-encoding", answer.fields)
        self.assertEqual(answer.fields["connection"], "close")
        self.assertEqual(fields(seen[0])["host"], ":".join(map(str, self.server.address)))
        self.assertTrue(seen[0].startswith(b"GET / HTTP/1.1\r\n"))
        self.edge.forget("c-sb-1")
        await self.answering(b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n1")
        client = await self.connect()
        for _ in range(2):
            answer = await client.ask(b"GET / HTTP/1.0\r\n" + ID + b"Connection: keep-alive\r\n\r\n")
            self.assertEqual((answer.body, answer.fields["connection"]), (b"1", "keep-alive"))
        answer = await client.ask(b"GET / HTTP/1.0\r\n" + ID + b"\r\n")
        self.assertEqual((answer.body, answer.fields["connection"]), (b"1", "close"))
        self.assertEqual(await client.closed(), b"")

    @in_loop
    async def test_connection_close(self) -> None:
        await self.answering(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok")
        await self.start_edge()
        client = await self.connect()
        for _ in range(2):
            answer = await client.ask(get())
            self.assertNotIn("connection", answer.fields, "the container's wish is not the client's business")
        self.assertEqual(self.server.connections, 2)
        answer = await client.ask(get("/", b"Connection: close\r\n"))
        self.assertEqual((answer.body, answer.fields["connection"]), (b"ok", "close"))
        self.assertEqual(await client.closed(), b"")

    @in_loop
    async def test_interim_answers(self) -> None:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, number: int) -> None:
            while True:
                head = await read_head(reader)
                if "expect" in fields(head):
                    writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
                body = await read_body(reader, head)
                writer.write(b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n")
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))

        await self.start_server(serve)
        await self.start_edge()
        client = await self.connect()
        client.send(get("/", b"Content-Length: 2\r\nExpect: 100-continue\r\n", "POST"))
        self.assertEqual((await client.answer()).status, 100)
        client.send(b"ab")
        hints = await client.answer()
        self.assertEqual((hints.status, hints.fields["link"]), (103, "</x>"))
        self.assertEqual((await client.answer()).body, b"ab")
        old = await client.ask(b"GET / HTTP/1.0\r\n" + ID + b"\r\n")
        self.assertEqual(old.status, 200, "HTTP/1.0 knows no interim answers")

    @in_loop
    async def test_refused_expectation(self) -> None:
        """The body is never sent; the client's next bytes would be taken for it, so the connection ends."""

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, number: int) -> None:
            await read_head(reader)
            writer.write(b"HTTP/1.1 413 Too Large\r\nContent-Length: 0\r\n\r\n")
            await reader.read()

        await self.start_server(serve)
        await self.start_edge()
        client = await self.connect()
        answer = await client.ask(get("/", b"Content-Length: 2\r\nExpect: 100-continue\r\n", "POST"))
        self.assertEqual((answer.status, answer.fields["connection"]), (413, "close"))
        self.assertEqual(await client.closed(), b"")

    @in_loop
    async def test_pipelined_requests(self) -> None:
        order: list[bytes] = []

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, number: int) -> None:
            while True:
                head = await read_head(reader)
                body = await read_body(reader, head)
                order.append(head.split(b" ")[1])
                await asyncio.sleep(0)
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body) + 2, order[-1] + body))

        await self.start_server(serve)
        await self.start_edge()
        client = await self.connect()
        paths = [b"/%d" % number for number in range(9)]
        client.send(
            b"".join(
                get(path.decode(), b"Content-Length: 1\r\n", "POST") + b"x" if number % 2 else get(path.decode())
                for number, path in enumerate(paths)
            )
        )
        for number, path in enumerate(paths):
            self.assertEqual((await client.answer()).body, path + (b"x" if number % 2 else b""))
        self.assertEqual(order, paths)

    @in_loop
    async def test_pipelined_errors_keep_their_place(self) -> None:
        await self.start_server(echo)
        await self.start_edge()
        client = await self.connect()
        client.send(get("/1") + get("/2", sandbox=b"Tensorlake-Sandbox-Id: no\r\n") + get("/3") + b"nonsense\r\n\r\n")
        statuses = [(await client.answer()).status for _ in range(4)]
        self.assertEqual(statuses, [200, 404, 200, 400])
        self.assertEqual(await client.closed(), b"")

    @in_loop
    async def test_answer_before_the_request_has_ended(self) -> None:
        """Upload and answer run at the same time; the connection is not used for another request."""

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, number: int) -> None:
            await read_head(reader)
            writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
            for _ in range(3):
                await reader.readline()
                chunk = (await reader.readline()).strip()
                writer.write(b"%x\r\n%b\r\n" % (len(chunk), chunk))
            writer.write(b"0\r\n\r\n")
            await reader.read()

        await self.start_server(serve)
        await self.start_edge()
        client = await self.connect()
        client.send(get("/", b"Transfer-Encoding: chunked\r\n", "POST"))
        head = await read_head(client.reader)
        self.assertEqual(fields(head)["connection"], "close")
        for word in (b"one", b"four4", b"six666"):
            client.send(b"%x\r\n%b\r\n" % (len(word), word))
            await client.reader.readline()
            self.assertEqual((await client.reader.readline()).strip(), word)
        self.assertEqual(await client.closed(), b"0\r\n\r\n")

    @in_loop
    async def test_early_answer_and_close(self) -> None:
        """The container answers and closes while the client still sends: the client gets the answer, not a 502."""

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, number: int) -> None:
            await read_head(reader)
            writer.write(b"HTTP/1.1 413 Too Large\r\nContent-Length: 4\r\nConnection: close\r\n\r\nbig!")
            await writer.drain()

        await self.start_server(serve)
        await self.start_edge()
        for _ in range(5):
            client = await self.connect()
            client.send(get("/", b"Content-Length: 50000000\r\n", "POST"))
            client.send(b"x" * 5_000_000)
            answer = await asyncio.wait_for(client.answer(), 5)
            self.assertEqual((answer.status, answer.body), (413, b"big!"))
            client.close()

    @in_loop
    async def test_events_arrive_one_by_one(self) -> None:
        gate: asyncio.Queue[None] = asyncio.Queue()

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, number: int) -> None:
            await read_head(reader)
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
            for event in range(3):
                await gate.get()
                data = b"data: %d\n\n" % event
                writer.write(b"%x\r\n%b\r\n" % (len(data), data))
            await reader.read()

        await self.start_server(serve)
        await self.start_edge()
        client = await self.connect()
        client.send(get())
        await read_head(client.reader)
        for event in range(3):
            for _ in range(100):
                self.clock.advance(60)
            gate.put_nowait(None)
            self.assertEqual(await client.reader.readuntil(b"\n\n\r\n"), b"9\r\ndata: %d\n\n\r\n" % event)

    @in_loop
    async def test_hundreds_of_clients(self) -> None:
        server = await self.start_server(echo)
        await self.start_edge()
        clients = [await self.connect() for _ in range(300)]

        async def ask(number: int) -> None:
            for turn in range(4):
                path = f"/{number}/{turn}"
                answer = await clients[number].ask(get(path))
                self.assertTrue(answer.body.startswith(b"GET %b HTTP" % path.encode()))

        await asyncio.gather(*(ask(number) for number in range(300)))
        self.assertEqual(self.edge.connections, 300)
        self.assertLessEqual(server.connections, 300)
        self.assertEqual(self.edge.idle_upstreams, server.connections)
        self.assertEqual(self.edge.active_requests, 0)
