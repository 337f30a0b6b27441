"""Containers and clients that fail in the middle: who learns what, and what is never done twice."""

from __future__ import annotations

import asyncio
import json
import socket

from indexify_dataplane.http_proxy.routes import NotRunning

from .support import ID, Client, EdgeCase, Server, echo, get, in_loop, read_head

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


class Failures(EdgeCase):
    def refused(self, answer: object, status: int, code: str, error: str) -> None:
        self.assertEqual(answer.status, status)  # type: ignore[attr-defined]
        self.assertEqual(answer.fields["content-type"], "application/json")  # type: ignore[attr-defined]
        self.assertEqual(answer.body, json.dumps({"error": error, "code": code}, separators=(",", ":")).encode())  # type: ignore[attr-defined]

    async def until(self, condition: object) -> None:
        async with asyncio.timeout(5):
            while not condition():  # type: ignore[operator]
                await asyncio.sleep(0)

    @in_loop
    async def test_documented_texts(self) -> None:
        await self.start_server(echo)
        await self.start_edge()
        self.table.sandboxes["early"] = NotRunning("pending")
        self.table.sandboxes["late"] = NotRunning("stopping")
        client = await self.connect()
        self.refused(
            await client.ask(get(sandbox=b"")), 400, "MISSING_SANDBOX_ID", "Missing Tensorlake-Sandbox-Id header"
        )
        self.refused(
            await client.ask(get(sandbox=b"Tensorlake-Sandbox-Id: no\r\n")), 404, "SANDBOX_NOT_FOUND",
            "Sandbox not found",
        )  # fmt: skip
        for sandbox, state in ((b"early", "pending"), (b"late", "stopping")):
            self.refused(
                await client.ask(get(sandbox=b"X-Tensorlake-Sandbox-Id: %b\r\n" % sandbox)), 503,
                "SANDBOX_NOT_RUNNING", f"Sandbox not running (state: {state})",
            )  # fmt: skip
        self.refused(
            await client.ask(get("/", b"Tensorlake-Sandbox-Port: 8080\r\n")), 403, "PORT_NOT_ALLOWED",
            "Port 8080 of this sandbox cannot be reached through the proxy",
        )  # fmt: skip
        self.assertEqual((await client.ask(get())).status, 200)
        head = await client.ask(get(sandbox=b"", method="HEAD"))
        self.assertEqual((head.status, head.body), (400, b""))

    @in_loop
    async def test_refused(self) -> None:
        server = await self.start_server(echo)
        await server.stop()
        await self.start_edge()
        client = await self.connect()
        answer = await client.ask(get())
        self.refused(
            answer, 502, "CONNECTION_REFUSED", "Connection to sandbox refused. The sandbox may not be running."
        )
        self.assertEqual(answer.fields["connection"], "close")
        self.assertEqual(await client.closed(), b"")

    @in_loop
    async def test_no_connection_in_time(self) -> None:
        await self.start_server(echo)
        self.table.never.add(9501)
        await self.start_edge()
        client = await self.connect()
        client.send(get("/", b"Content-Length: 3\r\n", "POST") + b"abc")
        await self.until(lambda: self.table.asked)
        self.clock.advance(9)
        self.assertEqual(self.edge.active_requests, 1)
        self.clock.advance(2)
        self.refused(
            await client.answer(), 504, "CONNECTION_TIMEOUT",
            "Connection to sandbox timed out. The sandbox may be overloaded or unresponsive.",
        )  # fmt: skip
        self.assertEqual(self.edge.active_requests, 0)

    async def failing(self, *answers: bytes) -> Server:
        """Each connection reads one head, sends its bytes and closes."""

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, number: int) -> None:
            await read_head(reader)
            writer.write(answers[min(number, len(answers) - 1)])
            await writer.drain()

        return await self.start_server(serve)

    @in_loop
    async def test_closed_before_the_answer(self) -> None:
        for begun in (b"", b"HTTP/1.1 200 OK\r\nX: y\r\n", b"HTTP/1.1 100 Continue\r\n\r\n"):
            server = await self.failing(begun)
            if not hasattr(self, "address"):
                await self.start_edge()
            client = await self.connect()
            client.send(get("/", b"Content-Length: 0\r\n", "POST"))
            answer = await client.answer()
            if answer.status == 100:
                answer = await client.answer()
            # The whole POST was delivered: SDKs would send it again on 502.
            self.refused(
                answer, 500, "CONNECTION_CLOSED",
                "Connection to sandbox closed unexpectedly. The sandbox may have terminated.",
            )  # fmt: skip
            self.assertEqual(server.connections, 1)

    @in_loop
    async def test_answers_that_are_not_http(self) -> None:
        broken = (
            b"SSH-2.0-OpenSSH_9\r\n\r\n",
            b"HTTP/1.1 200 OK\nContent-Length: 0\r\n\r\n",
            b"HTTP/2 200 OK\r\n\r\n",
            b"HTTP/1.1 099 No\r\n\r\n",
            b"HTTP/1.1 999 No\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nabc",
            b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\n",
            b"HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
            b"HTTP/1.1 200 OK\r\nX : y\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nX: y\r\n z\r\n\r\n",
            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nX: " + b"y" * 100_000,
        )
        await self.start_edge()
        for answer in broken:
            await self.failing(answer)
            client = await self.connect()
            self.refused(await client.ask(get()), 502, "PROXY_ERROR", "Failed to proxy request to sandbox.")
            self.assertEqual(await client.closed(), b"", answer)
            self.assertEqual(self.edge.idle_upstreams, 0)

    @in_loop
    async def test_cut_within_the_answer(self) -> None:
        """The client can tell that what it has is not whole."""
        for begun, framed in (
            (b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc", b"abc"),
            (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n", b"3\r\nabc\r\n"),
            (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\nzz\r\n", None),
        ):
            await self.failing(begun)
            if not hasattr(self, "address"):
                await self.start_edge()
            client = await self.connect()
            client.send(get())
            rest = await client.closed()
            if framed is None:
                self.assertTrue(rest.startswith(b"HTTP/1.1 502 "))
            else:
                self.assertTrue(rest.startswith(b"HTTP/1.1 200 OK\r\n"))
                self.assertTrue(rest.endswith(b"\r\n\r\n" + framed), rest)

    @in_loop
    async def test_reset_where_only_a_reset_tells(self) -> None:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, number: int) -> None:
            await read_head(reader)
            writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n")
            await reader.read(1)

        await self.start_server(serve)
        await self.start_edge()
        client = await self.connect()
        client.send(b"GET / HTTP/1.0\r\n" + ID + b"\r\n")
        await client.reader.readuntil(b"abc")
        for connection in list(self.edge._shared.connections):
            connection._exchange.upstream_broken(connection._exchange._upstream, "test")
        with self.assertRaises(ConnectionResetError):
            await client.reader.read()

    @in_loop
    async def test_stale_connection_is_tried_once_more(self) -> None:
        heads: list[bytes] = []

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, number: int) -> None:
            heads.append(await read_head(reader))
            writer.write(OK)
            heads.append(await read_head(reader))

        server = await self.start_server(serve)
        await self.start_edge()
        client = await self.connect()
        self.assertEqual((await client.ask(get("/1"))).status, 200)
        self.assertEqual((await client.ask(get("/2"))).status, 200)
        self.assertEqual(server.connections, 2)
        self.assertEqual([head.split(b" ")[1] for head in heads], [b"/1", b"/2", b"/2"])

    @in_loop
    async def test_what_may_have_run_is_not_sent_again(self) -> None:
        for request in (
            get("/2", b"Content-Length: 3\r\n", "POST") + b"abc",
            get("/2", b"", "POST"),
            get("/2", b"", "PATCH"),
            get("/2", b"Content-Length: 3\r\n", "PUT") + b"abc",
        ):
            count = 0

            async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, number: int) -> None:
                nonlocal count
                await read_head(reader)
                writer.write(OK)
                await read_head(reader)
                count += 1

            server = await self.start_server(serve)
            if not hasattr(self, "address"):
                await self.start_edge()
            self.edge.forget("c-sb-1")
            client = await self.connect()
            await client.ask(get("/1"))
            answer = await client.ask(request)
            status = 502 if request.startswith(b"PUT") else 500
            self.assertEqual((answer.status, b"CONNECTION_CLOSED" in answer.body), (status, True))
            self.assertEqual((server.connections, count), (1, 1))

    @in_loop
    async def test_second_failure_is_told(self) -> None:
        server = await self.failing(OK, b"")
        await self.start_edge()
        client = await self.connect()
        await client.ask(get())
        await self.until(lambda: not self.edge.idle_upstreams)
        self.assertEqual((await client.ask(get())).status, 502)
        self.assertEqual(server.connections, 2)

    @in_loop
    async def test_closed_idle_connection_is_seen_before_a_post(self) -> None:
        """The container closed it, the loop has not told yet, and a POST must not be risked on it."""
        posts: list[int] = []
        writers: list[asyncio.StreamWriter] = []

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, number: int) -> None:
            writers.append(writer)
            while True:
                if (await read_head(reader)).startswith(b"POST"):
                    posts.append(number)
                writer.write(OK)

        await self.start_server(serve)
        await self.start_edge()
        client = await self.connect()
        await client.ask(get())
        # In one turn of the loop, the request readable before the close is: both wait when the loop next looks.
        client.writer.transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        client.send(get("/", b"Content-Length: 0\r\n", "POST"))
        writers[0].transport.abort()
        self.assertEqual((await client.answer()).status, 200)
        self.assertEqual(posts, [1])

    @in_loop
    async def test_client_leaves_while_the_answer_streams(self) -> None:
        gone = asyncio.get_running_loop().create_future()

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, number: int) -> None:
            await read_head(reader)
            writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n")
            try:
                gone.set_result(await reader.read())
            except ConnectionError:
                gone.set_result(b"")

        await self.start_server(serve)
        await self.start_edge()
        client = await self.connect()
        client.send(get())
        await client.reader.readuntil(b"abc\r\n")
        client.close()
        self.assertEqual(await asyncio.wait_for(gone, 5), b"")
        await self.until(lambda: not self.edge.active_requests)
        self.assertEqual(self.log.lines[-1].status_code, 200)

    @in_loop
    async def test_client_leaves_before_the_answer(self) -> None:
        gone = asyncio.get_running_loop().create_future()

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, number: int) -> None:
            await read_head(reader)
            try:
                gone.set_result(await reader.read())
            except ConnectionError:
                gone.set_result(b"")

        await self.start_server(serve)
        await self.start_edge()
        client = await self.connect()
        client.send(get())
        await self.until(lambda: self.edge.active_requests)
        client.writer.transport.abort()
        while not gone.done():
            await asyncio.sleep(0)
            self.clock.advance(1)
        await self.until(lambda: not self.edge.active_requests)
        self.assertEqual(self.log.lines[-1].status_code, 499)

    @in_loop
    async def test_half_closed_client_gets_a_short_answer(self) -> None:
        await self.start_server(echo)
        await self.start_edge()
        client = await self.connect()
        client.send(get("/half"))
        client.writer.write_eof()
        answer = await client.answer()
        self.assertEqual((answer.status, answer.fields["connection"]), (200, "close"))
        self.assertEqual(await client.closed(), b"")

    @in_loop
    async def test_half_closed_client_that_waits_too_long(self) -> None:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, number: int) -> None:
            await read_head(reader)
            await reader.read()

        await self.start_server(serve)
        await self.start_edge()
        client = await self.connect()
        client.send(get())
        await self.until(lambda: self.edge.active_requests)
        client.writer.write_eof()
        while self.edge.active_requests:
            await asyncio.sleep(0)
            self.clock.advance(1)
        self.assertEqual(await client.closed(), b"")

    @in_loop
    async def test_client_leaves_within_its_body(self) -> None:
        got = asyncio.get_running_loop().create_future()

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, number: int) -> None:
            await read_head(reader)
            try:
                got.set_result(await reader.read())
            except ConnectionError:
                got.set_result(b"reset")

        await self.start_server(serve)
        await self.start_edge()
        client = await self.connect()
        client.send(get("/", b"Transfer-Encoding: chunked\r\n", "POST") + b"3\r\nabc\r\n")
        await self.until(lambda: self.edge.active_requests)
        client.close()
        self.assertNotIn(b"0\r\n\r\n", await asyncio.wait_for(got, 5))

    @in_loop
    async def test_container_that_speaks_unasked(self) -> None:
        """Bytes on an idle connection never become part of the next answer."""

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, number: int) -> None:
            await read_head(reader)
            writer.write(OK + (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nevil!" if number == 0 else b""))
            await reader.read()

        server = await self.start_server(serve)
        await self.start_edge()
        client = await self.connect()
        self.assertEqual((await client.ask(get())).body, b"ok")
        self.assertEqual((await client.ask(get())).body, b"ok")
        self.assertEqual(server.connections, 2)

    @in_loop
    async def test_both_lengths_in_an_answer(self) -> None:
        """The coding counts, the length is not passed on, and the connection is not used again."""

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, number: int) -> None:
            await read_head(reader)
            writer.write(
                b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n"
            )
            await reader.read()

        server = await self.start_server(serve)
        await self.start_edge()
        client: Client = await self.connect()
        for number in range(2):
            answer = await client.ask(get())
            self.assertEqual(answer.body, b"hello")
            self.assertNotIn("content-length", answer.fields)
            self.assertEqual(server.connections, number + 1)
