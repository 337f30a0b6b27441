"""Fields that are added, taken away and left alone, in both directions."""

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile

from .support import ID, EdgeCase, Logged, echo, fields, get, in_loop, read_head


class Fields(EdgeCase):
    async def sent(self, request: bytes) -> dict[str, str]:
        client = await self.connect()
        answer = await client.ask(request)
        self.assertEqual(answer.status, 200, answer)
        client.close()
        return fields(answer.body)

    @in_loop
    async def test_request(self) -> None:
        await self.start_server(echo)
        await self.start_edge()
        told = await self.sent(
            get(
                "/",
                b"X-Tensorlake-Sandbox-Id: sb-1\r\nTensorlake-Sandbox-Port: 9501\r\nX-Tensorlake-Route-Hint: h\r\n"
                b"X-Indexify-Sandbox-Token: forged\r\nx-tensorlake-proxy-secret: s\r\n"
                b"Connection: keep-alive, X-Mine, te\r\nX-Mine: 1\r\nKeep-Alive: timeout=5\r\nTE: trailers, gzip\r\n"
                b"Proxy-Connection: keep-alive\r\nProxy-Authorization: Basic eDp5\r\nUpgrade: h2c\r\n"
                b"HTTP2-Settings: AAMAAABkAAQAAP__\r\nAuthorization: Bearer t\r\nCookie: a=b\r\nX-Odd:   spaced \t \r\n"
                b"X-Empty:\r\nX-Latin: \xe9\r\nTensorlake-Other: stays\r\n",
            )
        )
        self.assertEqual(
            told,
            {
                "host": "proxy", "authorization": "Bearer t", "cookie": "a=b", "x-odd": "spaced", "x-empty": "",
                "x-latin": "\xe9", "tensorlake-other": "stays", "connection": "TE", "te": "trailers",
                "x-forwarded-for": "127.0.0.1", "x-forwarded-proto": "http", "x-forwarded-host": "proxy",
            },
        )  # fmt: skip

    @in_loop
    async def test_forwarded_fields_of_an_outer_proxy_stay(self) -> None:
        await self.start_server(echo)
        await self.start_edge()
        told = await self.sent(
            get("/", b"X-Forwarded-For: 9.9.9.9\r\nX-Forwarded-Proto: https\r\nX-Forwarded-Host: public\r\n")
        )
        self.assertEqual(told["x-forwarded-for"], "9.9.9.9")
        self.assertEqual(told["x-forwarded-proto"], "https")
        self.assertEqual(told["x-forwarded-host"], "public")

    @in_loop
    async def test_token_goes_to_the_daemon_alone(self) -> None:
        await self.start_server(echo, port=8080, token="t0ken")
        await self.start_server(echo, token="t0ken")
        await self.start_edge()
        told = await self.sent(get("/", b"X-Indexify-Sandbox-Token: forged\r\n"))
        self.assertEqual(told["x-indexify-sandbox-token"], "t0ken")
        told = await self.sent(get("/", b"Tensorlake-Sandbox-Port: 8080\r\nX-Indexify-Sandbox-Token: forged\r\n"))
        self.assertNotIn("x-indexify-sandbox-token", told)

    @in_loop
    async def test_credentials_can_be_stripped(self) -> None:
        await self.start_server(echo)
        await self.start_edge(strip_credentials=True)
        told = await self.sent(
            get(
                "/",
                b"Authorization: Bearer t\r\nX-Forwarded-Organization-Id: o\r\nX-Forwarded-Project-Id: p\r\nX: y\r\n",
            )
        )
        self.assertEqual(set(told) & {"authorization", "x-forwarded-organization-id", "x-forwarded-project-id"}, set())
        self.assertEqual(told["x"], "y")

    @in_loop
    async def test_shared_secret(self) -> None:
        await self.start_server(echo)
        directory = tempfile.mkdtemp()
        self.addCleanup(shutil.rmtree, directory)
        path = os.path.join(directory, "secret")
        with open(path, "wb") as file:
            file.write(b"s3cret\n")
        await self.start_edge(shared_secret_file=path)
        client = await self.connect()
        self.assertEqual((await client.ask(get())).status, 401)
        told = await self.sent(get("/", b"X-Tensorlake-Proxy-Secret: s3cret\r\n"))
        self.assertNotIn("x-tensorlake-proxy-secret", told)

    @in_loop
    async def test_absolute_target(self) -> None:
        await self.start_server(echo)
        await self.start_edge()
        client = await self.connect()
        for target, path in ((b"http://proxy/a?b", b"/a?b"), (b"HTTP://PROXY", b"/"), (b"http://proxy?q", b"/?q")):
            answer = await client.ask(b"GET " + target + b" HTTP/1.1\r\nHost: proxy\r\n" + ID + b"\r\n")
            self.assertTrue(answer.body.startswith(b"GET " + path + b" HTTP/1.1\r\nHost: proxy\r\n"), answer.body)
        answer = await client.ask(b"OPTIONS * HTTP/1.1\r\nHost: proxy\r\n" + ID + b"\r\n")
        self.assertTrue(answer.body.startswith(b"OPTIONS * HTTP/1.1\r\n"))
        answer = await client.ask(b"PROPFIND /%c3 HTTP/1.1\r\nHost: proxy\r\n" + ID + b"Content-Length: 2\r\n\r\nab")
        self.assertTrue(answer.body.startswith(b"PROPFIND /%c3 HTTP/1.1\r\n"))
        self.assertTrue(answer.body.endswith(b"ab"))

    async def answering(self, head: bytes, port: int = 9501) -> None:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, number: int) -> None:
            while True:
                await read_head(reader)
                writer.write(head)

        await self.start_server(serve, port=port)

    @in_loop
    async def test_answer(self) -> None:
        await self.answering(
            b"HTTP/1.1 207 Multi \xe9 Status\r\nServer: app\r\nSet-Cookie: a=1\r\nSet-Cookie: b=2\r\n"
            b"Connection: keep-alive, X-Hop\r\nX-Hop: 1\r\nKeep-Alive: timeout=5\r\nProxy-Authenticate: Basic\r\n"
            b"Upgrade: h2c\r\nContent-Length: 0\r\n\r\n"
        )
        await self.start_edge()
        client = await self.connect()
        answer = await client.ask(get())
        self.assertEqual(answer.head.split(b"\r\n")[0], b"HTTP/1.1 207 Multi \xe9 Status")
        self.assertEqual(answer.fields, {"server": "app", "set-cookie": "a=1|b=2", "content-length": "0"})

    CORS = (
        b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nAccess-Control-Allow-Origin: https://app\r\n"
        b"Access-Control-Allow-Credentials: true\r\nAccess-Control-Expose-Headers: x\r\n\r\n"
    )

    @in_loop
    async def test_cors_of_the_daemon(self) -> None:
        await self.answering(self.CORS)
        await self.start_edge()
        client = await self.connect()
        told = (await client.ask(get("/", b"Origin: https://page\r\n"))).fields
        self.assertEqual(told["access-control-allow-origin"], "https://page")
        self.assertNotIn("access-control-allow-credentials", told)
        self.assertEqual(told["access-control-allow-methods"], "GET, POST, PUT, DELETE, OPTIONS")
        for name in ("x-pty-token", "authorization", "tensorlake-sandbox-id", "x-tensorlake-sandbox-port"):
            self.assertIn(name, told["access-control-allow-headers"])
        self.assertEqual(told["access-control-expose-headers"], "x")
        self.assertEqual((await client.ask(get())).fields["access-control-allow-origin"], "https://app")
        refused = await client.ask(get("/", b"Origin: https://page\r\n", sandbox=b"Tensorlake-Sandbox-Id: no\r\n"))
        self.assertEqual((refused.status, refused.fields["access-control-allow-origin"]), (404, "https://page"))

    @in_loop
    async def test_cors_of_users_is_theirs(self) -> None:
        await self.answering(self.CORS, port=3000)
        await self.start_edge()
        client = await self.connect()
        port = b"Tensorlake-Sandbox-Port: 3000\r\nOrigin: https://page\r\n"
        for method in ("GET", "OPTIONS"):
            told = (await client.ask(get("/", port + b"Access-Control-Request-Method: GET\r\n", method))).fields
            self.assertEqual(told["access-control-allow-origin"], "https://app")
            self.assertEqual(told["access-control-allow-credentials"], "true")
            self.assertNotIn("access-control-max-age", told)

    @in_loop
    async def test_preflight(self) -> None:
        await self.start_edge()
        client = await self.connect()
        for _ in range(2):
            answer = await client.ask(
                get("/x", b"Origin: https://page\r\nAccess-Control-Request-Method: PUT\r\n", "OPTIONS", sandbox=b"")
            )
            self.assertEqual((answer.status, answer.fields["content-length"]), (200, "0"))
            self.assertEqual(answer.fields["access-control-max-age"], "86400")
            self.assertEqual(answer.fields["access-control-allow-origin"], "https://page")

    @in_loop
    async def test_what_is_told(self) -> None:
        await self.answering(b"HTTP/1.1 404 No\r\nContent-Length: 0\r\n\r\n")
        await self.answering(b"HTTP/1.1 500 No\r\nContent-Length: 0\r\n\r\n", port=3000)
        await self.start_edge()
        client = await self.connect()
        await client.ask(get("/a?token=secret"))
        await client.ask(get("/b", b"Tensorlake-Sandbox-Port: 3000\r\nContent-Length: 0\r\n", "POST"))
        await client.ask(get("/c", sandbox=b""))
        first, second = self.log.lines
        self.assertEqual(
            (first.sandbox_id, first.port, first.method, first.path, first.status_code),
            ("sb-1", 9501, "GET", "/a", 404),
        )
        self.assertEqual((second.port, second.method, second.path, second.status_code), (3000, "POST", "/b", 500))
        self.assertIsInstance(first, Logged)

        def count(code_class: str, upstream: str) -> int:
            return self.metrics.counter("proxy.requests", code_class=code_class, upstream=upstream).value

        self.assertEqual((count("4xx", "daemon"), count("5xx", "user"), count("2xx", "daemon")), (2, 1, 0))
        self.assertEqual(self.metrics.counter("proxy.errors", code="MISSING_SANDBOX_ID").value, 1)
        self.assertEqual(self.metrics.histogram("proxy.duration_seconds").count, 2)
