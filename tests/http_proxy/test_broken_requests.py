"""Requests that must not reach a container, each with its exact status. The proxy goes on serving after every one."""

from __future__ import annotations

import asyncio

from .support import ID, Client, EdgeCase, echo, get, in_loop, read_head

P = b"POST / HTTP/1.1\r\n"
TE = b"Transfer-Encoding: "
H = b"Host: a\r\n" + ID
BIG = b"a" * 70_000

BROKEN: dict[str, tuple[int, bytes]] = {
    # Lengths: what one reader takes for the body, another takes for the next request.
    "both lengths": (400, P + H + b"Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
    "both lengths, other order": (400, P + H + TE + b"chunked\r\nContent-Length: 3\r\n\r\n"),
    "both lengths, zero": (400, P + H + b"Content-Length: 0\r\nTransfer-Encoding: chunked\r\n\r\n"),
    "two lengths": (400, P + H + b"Content-Length: 3\r\nContent-Length: 4\r\n\r\nabcd"),
    "the same length twice": (400, P + H + b"Content-Length: 3\r\nContent-Length: 3\r\n\r\nabc"),
    "list of lengths": (400, P + H + b"Content-Length: 3, 3\r\n\r\nabc"),
    "signed length": (400, P + H + b"Content-Length: +3\r\n\r\nabc"),
    "negative length": (400, P + H + b"Content-Length: -3\r\n\r\nabc"),
    "hexadecimal length": (400, P + H + b"Content-Length: 0x3\r\n\r\nabc"),
    "length with a space": (400, P + H + b"Content-Length: 1 2\r\n\r\nabc"),
    "length with an underscore": (400, P + H + b"Content-Length: 1_0\r\n\r\nabc"),
    "empty length": (400, P + H + b"Content-Length: \r\n\r\n"),
    "endless length": (400, P + H + b"Content-Length: 99999999999999999999\r\n\r\n"),
    # Transfer codings, hidden in every usual way.
    "unknown coding": (501, P + H + TE + b"xchunked\r\n\r\n0\r\n\r\n"),
    "identity": (501, P + H + TE + b"identity\r\n\r\n"),
    "gzip and chunked": (501, P + H + TE + b"gzip, chunked\r\n\r\n0\r\n\r\n"),
    "chunked is not last": (400, P + H + TE + b"chunked, gzip\r\n\r\n0\r\n\r\n"),
    "chunked twice": (400, P + H + TE + b"chunked, chunked\r\n\r\n0\r\n\r\n"),
    "two coding fields": (
        501, P + H + TE + b"x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
    ),
    "chunked in two fields": (
        400, P + H + TE + b"chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
    ),
    "quoted coding": (400, P + H + TE + b'"chunked"\r\n\r\n0\r\n\r\n'),
    "coding with a vertical tab": (400, P + H + TE + b"\x0bchunked\r\n\r\n0\r\n\r\n"),
    "coding with a parameter": (400, P + H + TE + b"chunked;q=1\r\n\r\n0\r\n\r\n"),
    "empty coding": (400, P + H + TE + b"\r\n\r\n"),
    "coding before a colon with a space": (400, P + H + b"Transfer-Encoding : chunked\r\n\r\n"),
    "coding on a folded line": (400, P + H + b"Transfer-Encoding:\r\n chunked\r\n\r\n0\r\n\r\n"),
    "coding in HTTP/1.0": (400, b"POST / HTTP/1.0\r\n" + H + TE + b"chunked\r\n\r\n0\r\n\r\n"),
    # Lines.
    "bare line feeds": (400, b"GET / HTTP/1.1\nHost: a\nTensorlake-Sandbox-Id: sb-1\n\n"),
    "one bare line feed": (400, b"GET / HTTP/1.1\r\nHost: a\nX: y\r\n" + ID + b"\r\n"),
    "bare carriage return": (400, b"GET / HTTP/1.1\r\nHost: a\rX: y\r\n" + ID + b"\r\n"),
    "folded line": (400, b"GET / HTTP/1.1\r\n" + H + b"X: a\r\n b\r\n\r\n"),
    "folded first field": (400, b"GET / HTTP/1.1\r\n Host: a\r\n" + ID + b"\r\n"),
    "space before a colon": (400, b"GET / HTTP/1.1\r\n" + H + b"X : a\r\n\r\n"),
    "space in a name": (400, b"GET / HTTP/1.1\r\n" + H + b"X Y: a\r\n\r\n"),
    "empty name": (400, b"GET / HTTP/1.1\r\n" + H + b": a\r\n\r\n"),
    "no colon": (400, b"GET / HTTP/1.1\r\n" + H + b"nothing\r\n\r\n"),
    "NUL in a value": (400, b"GET / HTTP/1.1\r\n" + H + b"X: a\0b\r\n\r\n"),
    "NUL in a name": (400, b"GET / HTTP/1.1\r\n" + H + b"X\0: a\r\n\r\n"),
    "control character in a value": (400, b"GET / HTTP/1.1\r\n" + H + b"X: a\x01b\r\n\r\n"),
    "DEL in a value": (400, b"GET / HTTP/1.1\r\n" + H + b"X: a\x7fb\r\n\r\n"),
    "name beyond ASCII": (400, b"GET / HTTP/1.1\r\n" + H + b"X\xe9: a\r\n\r\n"),
    "field after the first empty line's CR": (400, b"GET / HTTP/1.1\r\n" + H + b"\rX: y\r\n\r\n"),
    # The request line.
    "no version": (400, b"GET /\r\n" + H + b"\r\n"),
    "HTTP/0.9": (400, b"GET /\r\n\r\n"),
    "two spaces": (400, b"GET  / HTTP/1.1\r\n" + H + b"\r\n"),
    "space at the end": (400, b"GET / HTTP/1.1 \r\n" + H + b"\r\n"),
    "tab for a space": (400, b"GET\t/ HTTP/1.1\r\n" + H + b"\r\n"),
    "space in the target": (400, b"GET /a b HTTP/1.1\r\n" + H + b"\r\n"),
    "no target": (400, b"GET HTTP/1.1\r\n" + H + b"\r\n"),
    "lower-case protocol": (400, b"GET / http/1.1\r\n" + H + b"\r\n"),
    "version without a dot": (400, b"GET / HTTP/11\r\n" + H + b"\r\n"),
    "other protocol": (400, b"GET / RTSP/1.0\r\n" + H + b"\r\n"),
    "HTTP/1.2": (505, b"GET / HTTP/1.2\r\n" + H + b"\r\n"),
    "HTTP/2.0 in words": (505, b"GET / HTTP/2.0\r\n" + H + b"\r\n"),
    "HTTP/3.0": (505, b"GET / HTTP/3.0\r\n" + H + b"\r\n"),
    "lower-case method": (501, b"get / HTTP/1.1\r\n" + H + b"\r\n"),
    "method that is no token": (400, b"G@T / HTTP/1.1\r\n" + H + b"\r\n"),
    "mixed-case method": (501, b"Get / HTTP/1.1\r\n" + H + b"\r\n"),
    "endless method": (501, b"G" * 40 + b" / HTTP/1.1\r\n" + H + b"\r\n"),
    "CONNECT": (501, b"CONNECT a:443 HTTP/1.1\r\n" + H + b"\r\n"),
    "TRACE": (501, b"TRACE / HTTP/1.1\r\n" + H + b"\r\n"),
    "binary": (400, b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"),
    "empty lines only": (400, b"\r\n\r\n\r\n\r\n"),
    "NUL in the target": (400, b"GET /\0 HTTP/1.1\r\n" + H + b"\r\n"),
    "target beyond ASCII": (400, b"GET /\xff HTTP/1.1\r\n" + H + b"\r\n"),
    "fragment": (400, b"GET /a#b HTTP/1.1\r\n" + H + b"\r\n"),
    "no path": (400, b"GET a HTTP/1.1\r\n" + H + b"\r\n"),
    "authority": (400, b"GET a:80 HTTP/1.1\r\n" + H + b"\r\n"),
    "asterisk": (400, b"GET * HTTP/1.1\r\n" + H + b"\r\n"),
    "absolute target for another host": (400, b"GET http://b/ HTTP/1.1\r\n" + H + b"\r\n"),
    "absolute target of another scheme": (400, b"GET ftp://a/ HTTP/1.1\r\n" + H + b"\r\n"),
    "absolute target with user": (400, b"GET http://u@a/ HTTP/1.1\r\n" + H + b"\r\n"),
    # Host.
    "no Host": (400, b"GET / HTTP/1.1\r\n" + ID + b"\r\n"),
    "two Hosts": (400, b"GET / HTTP/1.1\r\nHost: b\r\n" + H + b"\r\n"),
    "the same Host twice": (400, b"GET / HTTP/1.1\r\nHost: a\r\n" + H + b"\r\n"),
    "two Hosts in HTTP/1.0": (400, b"GET / HTTP/1.0\r\nHost: b\r\n" + H + b"\r\n"),
    "Host with a path": (400, b"GET / HTTP/1.1\r\nHost: a/b\r\n" + ID + b"\r\n"),
    "Host with a user": (400, b"GET / HTTP/1.1\r\nHost: u@a\r\n" + ID + b"\r\n"),
    "Host with a space": (400, b"GET / HTTP/1.1\r\nHost: a b\r\n" + ID + b"\r\n"),
    # Hop-by-hop.
    "Connection names Host": (400, b"GET / HTTP/1.1\r\n" + H + b"Connection: host\r\n\r\n"),
    "Connection names Content-Length": (
        400, P + H + b"Connection: content-length\r\nContent-Length: 3\r\n\r\nabc"
    ),
    "upgrade with a body": (
        400, b"GET / HTTP/1.1\r\n" + H + b"Connection: upgrade\r\nUpgrade: websocket\r\nContent-Length: 3\r\n\r\nabc"
    ),
    "other expectation": (417, P + H + b"Expect: 200-ok\r\nContent-Length: 0\r\n\r\n"),
    # Sizes.
    "long target": (414, b"GET /" + b"a" * 20_000 + b" HTTP/1.1\r\n" + H + b"\r\n"),
    "endless target": (414, b"GET /" + BIG),
    "large field": (431, b"GET / HTTP/1.1\r\n" + H + b"X: " + BIG + b"\r\n\r\n"),
    "endless head": (431, b"GET / HTTP/1.1\r\n" + H + b"X: " + BIG),
    "many fields": (431, b"GET / HTTP/1.1\r\n" + H + b"X: y\r\n" * 300 + b"\r\n"),
    # Routing.
    "no sandbox": (400, b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"),
    "two sandboxes": (400, b"GET / HTTP/1.1\r\n" + H + b"Tensorlake-Sandbox-Id: sb-2\r\n\r\n"),
    "two sandboxes, two spellings": (400, b"GET / HTTP/1.1\r\n" + H + b"X-Tensorlake-Sandbox-Id: sb-2\r\n\r\n"),
    "port that is no number": (400, b"GET / HTTP/1.1\r\n" + H + b"Tensorlake-Sandbox-Port: http\r\n\r\n"),
    "port zero": (400, b"GET / HTTP/1.1\r\n" + H + b"Tensorlake-Sandbox-Port: 0\r\n\r\n"),
    "port too large": (400, b"GET / HTTP/1.1\r\n" + H + b"Tensorlake-Sandbox-Port: 65536\r\n\r\n"),
    "negative port": (400, b"GET / HTTP/1.1\r\n" + H + b"X-Tensorlake-Sandbox-Port: -1\r\n\r\n"),
    "empty port": (400, b"GET / HTTP/1.1\r\n" + H + b"Tensorlake-Sandbox-Port:\r\n\r\n"),
    "two ports": (
        400, b"GET / HTTP/1.1\r\n" + H + b"Tensorlake-Sandbox-Port: 80\r\nX-Tensorlake-Sandbox-Port: 81\r\n\r\n"
    ),
    "the node's own port": (403, b"GET / HTTP/1.1\r\n" + H + b"Tensorlake-Sandbox-Port: 9500\r\n\r\n"),
    "unknown sandbox": (404, b"GET / HTTP/1.1\r\nHost: a\r\nTensorlake-Sandbox-Id: nobody\r\n\r\n"),
}  # fmt: skip

KEPT_OPEN = {
    "no sandbox", "two sandboxes", "two sandboxes, two spellings", "port that is no number", "port zero",
    "port too large", "negative port", "empty port", "two ports", "the node's own port", "unknown sandbox",
}  # fmt: skip

BROKEN_BODIES = {
    "size that is no number": b"zz\r\nabc\r\n0\r\n\r\n",
    "signed size": b"+3\r\nabc\r\n0\r\n\r\n",
    "size with a prefix": b"0x3\r\nabc\r\n0\r\n\r\n",
    "size with a space": b"3 \r\nabc\r\n0\r\n\r\n",
    "space before the size": b" 3\r\nabc\r\n0\r\n\r\n",
    "empty size": b"\r\nabc\r\n0\r\n\r\n",
    "endless size": b"1" * 20 + b"\r\n",
    "size ends in a bare line feed": b"3\nabc\r\n0\r\n\r\n",
    "size ends in a bare carriage return": b"3\rabc\r\n0\r\n\r\n",
    "chunk longer than its size": b"3\r\nabcd\r\n0\r\n\r\n",
    "chunk ends in a bare line feed": b"3\r\nabc\n0\r\n\r\n",
    "extension with a bare line feed": b"3;a\nb\r\nabc\r\n0\r\n\r\n",
    "extension with NUL": b"3;a\0b\r\nabc\r\n0\r\n\r\n",
    "endless extension": b"3;" + b"a" * 5000 + b"\r\nabc\r\n0\r\n\r\n",
    "trailer without a colon": b"0\r\nnothing\r\n\r\n",
    "trailer with a space before the colon": b"0\r\nX : a\r\n\r\n",
    "folded trailer": b"0\r\nX: a\r\n b\r\n\r\n",
    "endless trailers": b"0\r\n" + b"X: aaaaaaaaaaaaaaaaaaaa\r\n" * 2000 + b"\r\n",
    "trailer with a bare line feed": b"0\r\nX: a\n\r\n",
}


class BrokenRequests(EdgeCase):
    async def _serves(self) -> None:
        client = await self.connect()
        answer = await asyncio.wait_for(client.ask(get("/fine")), 5)
        self.assertEqual(answer.status, 200)
        client.close()

    @in_loop
    async def test_heads(self) -> None:
        seen: list[bytes] = []

        async def note(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, number: int) -> None:
            while True:
                seen.append((await read_head(reader)).split(b"\r\n")[0])
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")

        await self.start_server(note)
        await self.start_edge()
        self.assertGreaterEqual(len(BROKEN), 60)
        for name, (status, request) in BROKEN.items():
            client = await self.connect()
            client.send(request)
            answer = await asyncio.wait_for(client.answer(), 5)
            self.assertEqual(answer.status, status, f"{name}: {answer}")
            self.assertEqual(answer.fields["content-type"], "application/json", name)
            self.assertIn(b'"code":', answer.body, name)
            if name in KEPT_OPEN:
                self.assertNotIn("connection", answer.fields, name)
                self.assertEqual((await asyncio.wait_for(client.ask(get("/fine")), 5)).status, 200, name)
            else:
                self.assertEqual(answer.fields["connection"], "close", name)
                self.assertEqual(await asyncio.wait_for(client.closed(), 5), b"", name)
            client.close()
            await self._serves()
        self.assertEqual(set(seen), {b"GET /fine HTTP/1.1"})

    @in_loop
    async def test_heads_byte_by_byte(self) -> None:
        """The verdict does not depend on how the bytes arrive."""
        await self.start_server(echo)
        await self.start_edge()
        for name, (status, request) in BROKEN.items():
            if len(request) > 300:
                continue
            client = await self.connect()
            for at in range(0, len(request), 7):
                client.send(request[at : at + 7])
                await asyncio.sleep(0)
            answer = await asyncio.wait_for(client.answer(), 5)
            self.assertEqual(answer.status, status, f"{name}: {answer}")
            client.close()

    @in_loop
    async def test_bodies_in_chunks(self) -> None:
        """The head may be on its way already; the container never sees the end of such a request."""
        ended: list[bool] = []

        async def note(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, number: int) -> None:
            head = await read_head(reader)
            rest = await reader.read()
            if head.startswith(b"POST"):
                ended.append(rest.endswith(b"0\r\n\r\n"))
            else:
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, number: int) -> None:
            await (note if number % 2 == 0 else echo)(reader, writer, number)

        await self.start_server(serve)
        await self.start_edge(max_idle_upstreams=0)
        head = get("/", b"Transfer-Encoding: chunked\r\n", "POST")
        for name, body in BROKEN_BODIES.items():
            client = await self.connect()
            client.send(head)
            while not self.edge.active_requests:
                await asyncio.sleep(0)
            client.send(body)
            answer = await asyncio.wait_for(client.answer(), 5)
            self.assertEqual(answer.status, 400, f"{name}: {answer}")
            self.assertEqual(await asyncio.wait_for(client.closed(), 5), b"", name)
            client.close()
            await self._serves()
        self.assertEqual(ended, [False] * len(ended))

    @in_loop
    async def test_broken_bodies_with_their_heads(self) -> None:
        """Known to be broken before anything was sent, the request does not start at all."""
        server = await self.start_server(echo)
        await self.start_edge()
        for name, body in BROKEN_BODIES.items():
            client: Client = await self.connect()
            answer = await asyncio.wait_for(client.ask(get("/", b"Transfer-Encoding: chunked\r\n", "POST") + body), 5)
            self.assertEqual(answer.status, 400, f"{name}: {answer}")
            client.close()
        self.assertEqual(server.connections, 0)
