"""The small sandbox-proxy: where requests go, what passes through it, and how it fails."""

from __future__ import annotations

from hashlib import sha256
from typing import Any

from twisted.internet import reactor as _reactor
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import HostnameEndpoint
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.task import deferLater
from twisted.trial.unittest import SynchronousTestCase, TestCase
from twisted.web.resource import Resource
from twisted.web.server import Site

from indexify_dataplane.devserver.sandbox_directory import NoRoute, wanted, with_one_host
from indexify_dataplane.devserver.sandbox_proxy import SandboxProxy

from .peer import Peer, make_engine, started

reactor: Any = _reactor


class WantedTests(SynchronousTestCase):
    def test_routing_forms(self) -> None:
        for headers, found in (
            ({"host": "abc.local"}, ("abc", 9501)),
            ({"host": "abc.local:9443"}, ("abc", 9501)),
            ({"host": "8080-abc.example.org"}, ("abc", 8080)),
            ({"host": "localhost", "x-tensorlake-sandbox-id": "abc"}, ("abc", 9501)),
            ({"host": "x.local", "tensorlake-sandbox-id": "abc", "tensorlake-sandbox-port": "80"}, ("abc", 80)),
            ({"x-tensorlake-sandbox-id": "abc", "tensorlake-sandbox-id": "abc"}, ("abc", 9501)),
        ):
            target = wanted([(n.encode(), v.encode()) for n, v in headers.items()])
            self.assertEqual((target.sandbox_id, target.port), found, headers)

    def test_refusals(self) -> None:
        for headers, code in (
            ({}, "SANDBOX_ID_MISSING"),
            ({"host": "localhost:9443"}, "SANDBOX_ID_MISSING"),
            ({"x-tensorlake-sandbox-id": "a", "tensorlake-sandbox-id": "b"}, "SANDBOX_ID_AMBIGUOUS"),
            ({"host": "70000-abc.local"}, "INVALID_PORT"),
            ({"tensorlake-sandbox-id": "a", "tensorlake-sandbox-port": "x"}, "INVALID_PORT"),
            ({"tensorlake-sandbox-id": "a", "tensorlake-sandbox-port": "0"}, "INVALID_PORT"),
        ):
            error = self.assertRaises(NoRoute, wanted, [(n.encode(), v.encode()) for n, v in headers.items()])
            self.assertEqual((error.status, error.code), (400, code), headers)


class SecondHost(SynchronousTestCase):
    """Terminals of released SDKs ask with our own name and then with the sandbox's."""

    def head(self, *hosts: str, upgrade: str = "websocket") -> bytes:
        lines = ["GET /ws HTTP/1.1", *(f"Host: {host}" for host in hosts), f"Upgrade: {upgrade}", "", ""]
        return "\r\n".join(lines).encode()

    def test_our_own_name_gives_way_in_a_websocket_request(self) -> None:
        for own in ("localhost:9443", "127.0.0.1:9443", "localhost"):
            self.assertEqual(with_one_host(self.head(own, "abc.local")), self.head("abc.local"))

    def test_any_other_request_stays_as_it_is(self) -> None:
        for head in (
            self.head("abc.local"),
            self.head("localhost"),
            self.head("abc.local", "localhost"),
            self.head("abc.local", "def.local"),
            self.head("localhost.example.org", "abc.local"),
            self.head("localhost", "abc.local", "def.local"),
            self.head("localhost", "abc.local", upgrade="h2c"),
            b"NONSENSE\r\n\r\n",
            b"",
        ):
            self.assertEqual(with_one_host(head), head)


class Raw(Protocol):
    """A TCP peer that keeps what comes and lets a test wait for it."""

    def __init__(self) -> None:
        self.data = b""
        self.lost: Deferred[None] = Deferred()
        self._waiting: tuple[Any, Deferred[None]] | None = None

    def dataReceived(self, data: bytes) -> None:
        self.data += data
        self._check()

    def connectionLost(self, reason: Any = None) -> None:
        self.lost.callback(None)

    def _check(self) -> None:
        if self._waiting is not None and self._waiting[0](self.data):
            waiting, self._waiting = self._waiting, None
            waiting[1].callback(None)

    async def until(self, text: bytes, count: int = 1) -> bytes:
        """Everything received, once ``text`` is in it ``count`` times."""
        done: Deferred[None] = Deferred()
        self._waiting = (lambda data: data.count(text) >= count, done)
        self._check()
        await done
        return self.data


class RawServer(Factory):
    """Accepts connections and hands them to the test in order."""

    noisy = False

    def __init__(self) -> None:
        self._ready: list[Raw] = []
        self._wanted: list[Deferred[Raw]] = []

    def buildProtocol(self, addr: Any) -> Raw:
        protocol = Raw()
        if self._wanted:
            reactor.callLater(0, self._wanted.pop(0).callback, protocol)
        else:
            self._ready.append(protocol)
        return protocol

    async def accepted(self) -> Raw:
        if self._ready:
            return self._ready.pop(0)
        wanted: Deferred[Raw] = Deferred()
        self._wanted.append(wanted)
        return await wanted


class Echo(Resource):
    """Answers with what it was asked, or with as many bytes as asked for."""

    isLeaf = True

    def __init__(self, name: str) -> None:
        super().__init__()
        self._name = name

    def render(self, request: Any) -> bytes:
        if request.args.get(b"bytes"):
            return b"x" * int(request.args[b"bytes"][0])
        told = [self._name, request.method.decode(), request.uri.decode()]
        told += [
            request.getHeader("x-tensorlake-sandbox-id") or "-",
            request.getHeader("x-tensorlake-sandbox-port") or "-",
        ]
        told += [request.getHeader("authorization") or "-", sha256(request.content.read()).hexdigest()[:8]]
        return " ".join(told).encode()


EMPTY = sha256(b"").hexdigest()[:8]


class ProxyTests(TestCase):
    timeout = 20

    def setUp(self) -> None:
        self.engine, self.clock = make_engine()
        self.addCleanup(self.engine.close)
        self.ports: list[Any] = []
        self.proxy = SandboxProxy(self.engine, reactor)
        self.port = self.listen(self.proxy)
        self.clients: list[Raw] = []

    def listen(self, factory: Any) -> int:
        port = reactor.listenTCP(0, factory, interface="127.0.0.1")
        self.ports.append(port)
        return int(port.getHost().port)

    async def tear_down(self) -> None:
        self.proxy.close()
        for port in self.ports:
            await port.stopListening()
        for client in self.clients:
            client.transport.abortConnection()  # type: ignore[union-attr]
            await client.lost

    def tearDown(self) -> Deferred[None]:
        return Deferred.fromCoroutine(self.tear_down())

    def sandbox(self, port: int, executor_id: str = "executor-1", run: bool = True) -> str:
        """A sandbox on an executor whose proxy listens on ``port``."""
        for known in self.engine.world.executors.values():
            known.identity.total_container_resources.cpu_count = 0
        peer = Peer(self.engine, executor_id)
        peer.register(proxy_address=f"127.0.0.1:{port}")
        sandbox = self.engine.sandboxes.create("default", {})
        if run:
            peer.beat(started(sandbox.id))
        return sandbox.id

    async def connect(self) -> Raw:
        client = await HostnameEndpoint(reactor, "127.0.0.1", self.port).connect(Factory.forProtocol(Raw))
        self.clients.append(client)
        return client

    async def ask(self, request: str, body: bytes = b"") -> tuple[int, str]:
        """Send one request on a connection of its own that the server closes; status and body."""
        client = await self.connect()
        head, _, rest = request.partition("\r\n")
        client.transport.write(f"{head}\r\nConnection: close\r\n{rest}\r\n\r\n".encode() + body)
        await client.lost
        head_bytes, _, content = client.data.partition(b"\r\n\r\n")
        return int(head_bytes.split()[1]), content.decode()

    def test_each_routing_form_reaches_the_executor_with_the_headers_it_wants(self) -> Deferred[None]:
        async def body() -> None:
            sandbox = self.sandbox(self.listen(Site(Echo("one"), reactor=reactor)))
            for headers, port in (
                (f"Host: {sandbox}.local", 9501),
                (f"Host: 8080-{sandbox}.example.org", 8080),
                (f"Host: localhost\r\nX-Tensorlake-Sandbox-Id: {sandbox}", 9501),
                (f"Host: localhost\r\nTensorlake-Sandbox-Id: {sandbox}\r\nTensorlake-Sandbox-Port: 81", 81),
            ):
                found = await self.ask(f"GET /a/b?c=d HTTP/1.1\r\n{headers}\r\nAuthorization: Bearer t")
                self.assertEqual(found, (200, f"one GET /a/b?c=d {sandbox} {port} Bearer t {EMPTY}"))

        return Deferred.fromCoroutine(body())

    def test_one_connection_serves_several_sandboxes(self) -> Deferred[None]:
        async def body() -> None:
            first = self.sandbox(self.listen(Site(Echo("one"), reactor=reactor)), "e1")
            second = self.sandbox(self.listen(Site(Echo("two"), reactor=reactor)), "e2")
            client = await self.connect()
            # The first two one after the other, the others pipelined.
            for turn, sandbox in enumerate((first, second)):
                client.transport.write(f"GET /{turn} HTTP/1.1\r\nHost: {sandbox}.local\r\n\r\n".encode())
                await client.until(EMPTY.encode(), turn + 1)
            for turn, sandbox in enumerate((first, second, first), start=2):
                client.transport.write(
                    f"POST /{turn} HTTP/1.1\r\nHost: {sandbox}.local\r\nContent-Length: 0\r\n\r\n".encode()
                )
            data = await client.until(EMPTY.encode(), 5)
            names = [line.split()[0] for line in data.replace(b"\r\n", b"\n").split(b"\n") if EMPTY.encode() in line]
            self.assertEqual(names, [b"one", b"two", b"one", b"two", b"one"])

        return Deferred.fromCoroutine(body())

    def test_bodies_both_ways(self) -> Deferred[None]:
        async def body() -> None:
            sandbox = self.sandbox(self.listen(Site(Echo("one"), reactor=reactor)))
            data = bytes(range(256)) * 40_000
            told = sha256(data).hexdigest()[:8]
            status, content = await self.ask(
                f"POST / HTTP/1.1\r\nHost: {sandbox}.local\r\nContent-Length: {len(data)}", data
            )
            self.assertEqual((status, content.split()[-1]), (200, told))
            chunks = b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in (data[:5], data[5:])) + b"0\r\n\r\n"
            status, content = await self.ask(
                f"POST / HTTP/1.1\r\nHost: {sandbox}.local\r\nTransfer-Encoding: chunked", chunks
            )
            self.assertIn(told, content)
            status, content = await self.ask(f"GET /?bytes=20000000 HTTP/1.1\r\nHost: {sandbox}.local")
            self.assertEqual((status, len(content)), (200, 20_000_000))
            self.assertEqual(await self.ask(f"HEAD /?bytes=9 HTTP/1.1\r\nHost: {sandbox}.local"), (200, ""))

        return Deferred.fromCoroutine(body())

    def test_an_answer_is_passed_on_while_it_comes(self) -> Deferred[None]:
        async def body() -> None:
            server = RawServer()
            sandbox = self.sandbox(self.listen(server))
            client = await self.connect()
            client.transport.write(f"GET /follow HTTP/1.1\r\nHost: {sandbox}.local\r\n\r\n".encode())
            upstream = await server.accepted()
            await upstream.until(b"\r\n\r\n")
            upstream.transport.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\none\r\n")
            await client.until(b"one")
            upstream.transport.write(b"3\r\ntwo\r\n0\r\nX-Sum: 6\r\n\r\n")
            data = await client.until(b"X-Sum: 6\r\n\r\n")
            self.assertIn(b"two", data)

        return Deferred.fromCoroutine(body())

    def test_expect_100_continue(self) -> Deferred[None]:
        async def body() -> None:
            server = RawServer()
            sandbox = self.sandbox(self.listen(server))
            client = await self.connect()
            client.transport.write(
                f"PUT / HTTP/1.1\r\nHost: {sandbox}.local\r\nContent-Length: 4\r\nExpect: 100-continue\r\n\r\n".encode()
            )
            upstream = await server.accepted()
            await upstream.until(b"\r\n\r\n")
            upstream.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            await client.until(b"HTTP/1.1 100")
            client.transport.write(b"body")
            await upstream.until(b"body")
            upstream.transport.write(b"HTTP/1.1 204 No Content\r\n\r\n")
            await client.until(b"HTTP/1.1 204")

        return Deferred.fromCoroutine(body())

    def test_an_upgraded_connection_carries_bytes_both_ways(self) -> Deferred[None]:
        async def body() -> None:
            server = RawServer()
            sandbox = self.sandbox(self.listen(server))
            client = await self.connect()
            client.transport.write(
                f"GET /ws HTTP/1.1\r\nHost: {sandbox}.local\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
                "Sec-WebSocket-Key: k\r\n\r\nearly".encode()
            )
            upstream = await server.accepted()
            request = await upstream.until(b"\r\n\r\n")
            self.assertIn(b"upgrade: websocket", request.lower())
            self.assertIn(b"connection: upgrade", request.lower())
            upstream.transport.write(
                b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n\x00hello"
            )
            answer = await client.until(b"\x00hello")
            self.assertIn(b"upgrade: websocket", answer.lower())
            await upstream.until(b"early")
            for number in range(50):
                client.transport.write(b"<%d>" % number)
                await upstream.until(b"<%d>" % number)
                upstream.transport.write(b"[%d]" % number)
                await client.until(b"[%d]" % number)
            upstream.transport.loseConnection()
            await client.lost

        return Deferred.fromCoroutine(body())

    def test_a_websocket_request_with_our_name_as_well_comes_in_any_pieces(self) -> Deferred[None]:
        async def body() -> None:
            server = RawServer()
            sandbox = self.sandbox(self.listen(server))
            client = await self.connect()
            head = (
                f"GET /ws HTTP/1.1\r\nHost: localhost:{self.port}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
                f"Host: {sandbox}.local\r\n\r\n"
            ).encode()
            served = await self.served(client)
            for cut in range(0, len(head), 7):
                served.dataReceived(head[cut : cut + 7])
            request = await (await server.accepted()).until(b"\r\n\r\n")
            self.assertEqual(request.lower().count(b"\r\nhost:"), 1)
            self.assertIn(f"{sandbox}.local".encode(), request)
            found, content = await self.ask(f"GET / HTTP/1.1\r\nHost: localhost\r\nHost: {sandbox}.local")
            self.assertEqual((found, "BAD_REQUEST" in content), (400, True))
            endless = await self.connect()
            endless.transport.write(b"GET / HTTP/1.1\r\nX: " + b"x" * 70_000)
            await endless.lost
            self.assertTrue(endless.data.startswith(b"HTTP/1.1 431"), endless.data[:100])

        return Deferred.fromCoroutine(body())

    async def served(self, client: Raw) -> Any:
        """The proxy's side of this connection, once it has accepted it."""
        peer = client.transport.getHost().port  # type: ignore[union-attr]
        while True:
            for each in self.proxy._connections:
                if each.transport.getPeer().port == peer:  # type: ignore[union-attr]
                    return each
            await deferLater(reactor, 0)

    def test_refusals(self) -> Deferred[None]:
        async def body() -> None:
            closed = self.listen(RawServer())
            await self.ports.pop().stopListening()
            unreachable = self.sandbox(closed, "e1")
            pending = self.sandbox(closed, "e2", run=False)
            over = self.sandbox(closed, "e3")
            self.engine.sandboxes.delete("default", over)
            for host, status, code in (
                ("localhost", 400, "SANDBOX_ID_MISSING"),
                ("nobody.local", 404, "SANDBOX_NOT_FOUND"),
                (f"{over}.local", 410, "SANDBOX_TERMINATED"),
                (f"{pending}.local", 503, "SANDBOX_NOT_READY"),
                (f"{unreachable}.local", 502, "SANDBOX_UNREACHABLE"),
                (f"99999-{pending}.local", 400, "INVALID_PORT"),
            ):
                found, content = await self.ask(f"GET / HTTP/1.1\r\nHost: {host}")
                self.assertEqual((found, f'"code": "{code}"' in content), (status, True), (host, content))
            client = await self.connect()
            client.transport.write(b"NONSENSE\r\n\r\n")
            await client.lost
            self.assertTrue(client.data.startswith(b"HTTP/1.1 400"), client.data)

        return Deferred.fromCoroutine(body())

    def test_an_upstream_that_dies_gives_no_answer_that_would_repeat_a_command(self) -> Deferred[None]:
        async def body() -> None:
            server = RawServer()
            sandbox = self.sandbox(self.listen(server))
            for answer in (b"", b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf", b"no http\r\n\r\n"):
                client = await self.connect()
                client.transport.write(
                    f"POST /run HTTP/1.1\r\nHost: {sandbox}.local\r\nContent-Length: 2\r\n\r\n{{}}".encode()
                )
                upstream = await server.accepted()
                await upstream.until(b"{}")
                upstream.transport.write(answer)
                upstream.transport.loseConnection()
                await client.lost
                self.assertNotIn(b" 502 ", client.data)
                self.assertNotIn(b" 503 ", client.data)

        return Deferred.fromCoroutine(body())

    def test_a_client_that_leaves_ends_its_upstream(self) -> Deferred[None]:
        async def body() -> None:
            server = RawServer()
            sandbox = self.sandbox(self.listen(server))
            client = await self.connect()
            client.transport.write(f"GET / HTTP/1.1\r\nHost: {sandbox}.local\r\n\r\n".encode())
            upstream = await server.accepted()
            await upstream.until(b"\r\n\r\n")
            client.transport.abortConnection()
            await upstream.lost

        return Deferred.fromCoroutine(body())

    def test_a_slow_client_holds_its_upstream_back(self) -> Deferred[None]:
        async def body() -> None:
            server = RawServer()
            sandbox = self.sandbox(self.listen(server))
            client = await self.connect()
            client.transport.pauseProducing()
            client.transport.write(f"GET / HTTP/1.1\r\nHost: {sandbox}.local\r\n\r\n".encode())
            upstream = await server.accepted()
            await upstream.until(b"\r\n\r\n")
            size = 64 << 20
            held: Deferred[None] = Deferred()

            class Source:
                """Stops for good when the proxy takes no more."""

                left = size

                def resumeProducing(self) -> None:
                    chunk = min(self.left, 1 << 18)
                    self.left -= chunk
                    upstream.transport.write(b"x" * chunk)
                    reactor.callLater(0.3, self.look, self.left)

                def look(self, left: int) -> None:
                    if self.left == left and not held.called:
                        held.callback(None)

                def stopProducing(self) -> None:
                    """The connection is gone."""

            source = Source()
            upstream.transport.write(f"HTTP/1.1 200 OK\r\nContent-Length: {size}\r\n\r\n".encode())
            upstream.transport.registerProducer(source, False)
            await held
            self.assertGreater(source.left, size // 2)
            upstream.transport.unregisterProducer()
            upstream.transport.abortConnection()
            client.transport.resumeProducing()
            await client.lost

        return Deferred.fromCoroutine(body())
