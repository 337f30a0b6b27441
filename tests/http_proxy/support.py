"""The edge between real sockets: routes that a test fills in, upstream servers, and clients that speak bytes."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

from attrs import define, evolve, field, frozen
from twisted.internet import task
from twisted.internet.defer import Deferred
from twisted.trial.unittest import TestCase

from indexify_dataplane.config_model import HttpProxy, Upstream
from indexify_dataplane.drivers.base import PortRefused
from indexify_dataplane.http_proxy.edge import Edge
from indexify_dataplane.http_proxy.routes import NotRunning, Target
from indexify_dataplane.metrics import Metrics
from indexify_dataplane.reactor import from_asyncio, to_asyncio

T = TypeVar("T")

SANDBOX = "sb-1"
ID = b"Tensorlake-Sandbox-Id: sb-1\r\n"

CONFIG = HttpProxy(port=0, listen_addr="127.0.0.1", upstream=Upstream())


def config(**changes: Any) -> HttpProxy:
    upstream = {key[9:]: changes.pop(key) for key in list(changes) if key.startswith("upstream_")}
    return evolve(CONFIG, upstream=evolve(CONFIG.upstream, **upstream), **changes)


@frozen
class Logged:
    sandbox_id: str
    port: int
    method: str
    path: str
    status_code: int
    duration_ms: float
    container_addr: str


@define
class Lines:
    """A request log that keeps what it is told."""

    enabled: bool = True
    lines: list[Logged] = field(factory=list)

    def completed(self, *values: Any) -> None:
        self.lines.append(Logged(*values))


@define
class Table:
    """Routes by hand: sandboxes by id, the addresses of their ports, and what each port is refused with."""

    sandboxes: dict[str, Target | NotRunning] = field(factory=dict)
    ports: dict[tuple[str, int], tuple[str, int]] = field(factory=dict)
    asked: list[tuple[str, int]] = field(factory=list)
    never: set[int] = field(factory=set)

    def find(self, sandbox_id: str) -> Target | NotRunning | None:
        return self.sandboxes.get(sandbox_id)

    async def connect_address(self, target: Target, port: int) -> tuple[str, int]:
        self.asked.append((target.container_id, port))
        if port in self.never:
            await Deferred()
        found = self.ports.get((target.container_id, port))
        if found is None:
            raise PortRefused(f"port {port}")
        return found


@define(eq=False)
class Server:
    """An upstream server; ``serve(reader, writer, number)`` is called for each connection."""

    serve: Callable[[asyncio.StreamReader, asyncio.StreamWriter, int], Awaitable[None]]
    connections: int = 0
    received: bytearray = field(factory=bytearray)
    address: tuple[str, int] = ("", 0)
    _server: asyncio.Server | None = None
    _tasks: set[asyncio.Task[None]] = field(factory=set)
    errors: list[BaseException] = field(factory=list)

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0, limit=1 << 20)
        self.address = self._server.sockets[0].getsockname()[:2]

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        me = asyncio.current_task()
        assert me is not None
        self._tasks.add(me)
        number, self.connections = self.connections, self.connections + 1
        try:
            await self.serve(reader, writer, number)
        except (ConnectionError, asyncio.IncompleteReadError):
            return
        except asyncio.CancelledError:
            return
        finally:
            writer.close()
            self._tasks.discard(me)

    async def stop(self) -> None:
        assert self._server is not None
        self._server.close()
        tasks = list(self._tasks)
        for each in tasks:
            each.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def read_head(reader: asyncio.StreamReader) -> bytes:
    return await reader.readuntil(b"\r\n\r\n")


def fields(head: bytes) -> dict[str, str]:
    """Lower-case names; repeated ones joined by ``|``."""
    found: dict[str, str] = {}
    for line in head.decode("latin-1").split("\r\n")[1:]:
        if line:
            name, _, value = line.partition(":")
            name = name.lower()
            found[name] = f"{found[name]}|{value.strip()}" if name in found else value.strip()
    return found


async def read_body(reader: asyncio.StreamReader, head: bytes) -> bytes:
    """A body framed by length or in chunks, of a request or a response with a length."""
    told = fields(head)
    if told.get("transfer-encoding") == "chunked":
        body = bytearray()
        while True:
            size = int((await reader.readline()).split(b";")[0], 16)
            if not size:
                while (await reader.readline()) != b"\r\n":
                    pass
                return bytes(body)
            body += await reader.readexactly(size)
            assert await reader.readexactly(2) == b"\r\n"
    return await reader.readexactly(int(told.get("content-length", "0")))


@define
class Answer:
    status: int
    head: bytes
    body: bytes

    @property
    def fields(self) -> dict[str, str]:
        return fields(self.head)


@define(eq=False)
class Client:
    """A connection to the proxy."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    def send(self, data: bytes) -> None:
        self.writer.write(data)

    async def answer(self, method: str = "GET") -> Answer:
        head = await read_head(self.reader)
        status = int(head.split(b" ")[1])
        empty = method == "HEAD" or status in (204, 304) or status < 200
        told = fields(head)
        if empty:
            return Answer(status, head, b"")
        if "content-length" in told or "transfer-encoding" in told:
            return Answer(status, head, await read_body(self.reader, head))
        return Answer(status, head, await self.reader.read())

    async def ask(self, data: bytes) -> Answer:
        self.send(data)
        return await self.answer(data.split(b" ")[0].decode("latin-1"))

    async def closed(self) -> bytes:
        """What comes until the proxy closes."""
        try:
            return await self.reader.read()
        except ConnectionError:
            return b""

    def close(self) -> None:
        self.writer.close()


def get(path: str = "/", extra: bytes = b"", method: str = "GET", sandbox: bytes = ID) -> bytes:
    return f"{method} {path} HTTP/1.1\r\nHost: proxy\r\n".encode() + sandbox + extra + b"\r\n"


class EdgeCase(TestCase):
    """A test with one edge and any number of upstream servers; ``clock`` is the edge's, so deadlines pass on demand."""

    timeout = 20

    def setUp(self) -> None:
        self.clock = task.Clock()
        self.table = Table()
        self.log = Lines()
        self.metrics = Metrics()
        self._clients: list[Client] = []

    def run_async(self, work: Coroutine[Any, Any, T]) -> Deferred[T]:
        return from_asyncio(work)

    async def start_edge(self, **changes: Any) -> Edge:
        own_names = changes.pop("own_names", ("node.local",))
        edge = Edge(
            config=config(**changes), routes=self.table, metrics=self.metrics, request_log=self.log,
            reactor=changes.pop("reactor", self.clock), own_names=own_names,
        )  # fmt: skip
        self.address = await to_asyncio(Deferred.fromCoroutine(edge.start()))
        self.edge = edge
        self.addCleanup(self._stop, edge)
        return edge

    def _stop(self, edge: Edge) -> Deferred[None]:
        for client in self._clients:
            client.close()
        return Deferred.fromCoroutine(edge.stop(0))

    async def start_server(
        self, serve: Callable[..., Awaitable[None]], port: int = 9501, sandbox: str = SANDBOX, token: str | None = None
    ) -> Server:
        server = Server(serve)
        await server.start()
        self.addCleanup(lambda: from_asyncio(server.stop()))
        self.table.sandboxes[sandbox] = Target(container_id=f"c-{sandbox}", sandbox_id=sandbox, token=token)
        self.table.ports[(f"c-{sandbox}", port)] = server.address
        return server

    async def connect(self, limit: int = 1 << 20) -> Client:
        client = Client(*await asyncio.open_connection(*self.address, limit=limit))
        self._clients.append(client)
        return client


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, number: int) -> None:
    """Answers every request with its head and body, on a connection that stays open."""
    while True:
        head = await read_head(reader)
        body = await read_body(reader, head)
        seen = head + body
        if head.startswith(b"HEAD"):
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(seen))
        else:
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(seen), seen))
        await writer.drain()


def in_loop(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., Deferred[None]]:
    """Run an asyncio test method under trial."""

    def run(self: EdgeCase) -> Deferred[None]:
        return self.run_async(test(self))

    run.__name__ = test.__name__
    run.__doc__ = test.__doc__
    return run
