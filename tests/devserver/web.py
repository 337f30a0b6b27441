"""A REST server over an engine on a clock, and a client of it."""

from __future__ import annotations

import json
from io import BytesIO
from typing import Any

from attrs import frozen
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.protocol import Protocol
from twisted.trial.unittest import TestCase
from twisted.web.client import Agent, FileBodyProducer, HTTPConnectionPool
from twisted.web.http_headers import Headers

from indexify_dataplane.devserver.rest import RestConnections, RestSite
from indexify_dataplane.devserver.service import rest_routes

from .peer import Peer, make_engine


@frozen
class Response:
    status: int
    body: bytes
    headers: dict[str, str]

    def json(self) -> Any:
        return json.loads(self.body)


class Body(Protocol):
    """Collects a body or a stream; ``ended`` fires when it is over."""

    def __init__(self) -> None:
        self.data = b""
        self.ended: Deferred[None] = Deferred()

    def dataReceived(self, data: bytes) -> None:
        self.data += data

    def connectionLost(self, reason: Any = None) -> None:
        self.ended.callback(None)

    def events(self) -> list[Any]:
        return [json.loads(line[6:]) for line in self.data.decode().splitlines() if line.startswith("data: ")]


class RestCase(TestCase):
    """Subclasses call ``self.ask``; engine time is ``self.clock``."""

    timeout = 20

    def setUp(self) -> None:
        self.engine, self.clock = make_engine()
        self.peer = Peer(self.engine)
        routes = rest_routes(self.engine, self.clock, ["dev.example"])
        self.connections = RestConnections(RestSite(routes, reactor))
        self.port: Any = reactor.listenTCP(0, self.connections, interface="127.0.0.1")  # type: ignore[attr-defined]
        self.base = f"http://127.0.0.1:{self.port.getHost().port}"
        self.pool = HTTPConnectionPool(reactor, persistent=True)
        self.agent = Agent(reactor, pool=self.pool)

    async def tear_down(self) -> None:
        self.engine.close()
        await self.pool.closeCachedConnections()
        self.connections.close()
        await self.port.stopListening()

    def tearDown(self) -> Deferred[None]:
        return Deferred.fromCoroutine(self.tear_down())

    async def send(self, method: str, path: str, body: Any = None, **headers: str) -> Any:
        """The response without its body read. Dictionaries go as JSON."""
        sent = {name.replace("_", "-"): [value] for name, value in headers.items()}
        if isinstance(body, dict):
            body = json.dumps(body).encode()
            sent.setdefault("content-type", ["application/json"])
        producer = None if body is None else FileBodyProducer(BytesIO(body))
        return await self.agent.request(method.encode(), (self.base + path).encode(), Headers(sent), producer)

    async def ask(self, method: str, path: str, body: Any = None, **headers: str) -> Response:
        response = await self.send(method, path, body, **headers)
        content = Body()
        response.deliverBody(content)
        await content.ended
        told = {name.decode().lower(): values[0].decode() for name, values in response.headers.getAllRawHeaders()}
        return Response(response.code, content.data, told)

    async def table(self, *rows: tuple[Any, ...]) -> None:
        """Rows of (method, path, body, status, answer); a bytes answer is the body, anything else its JSON."""
        for method, path, body, status, answer in rows:
            response = await self.ask(method, path, body)
            where = f"{method} {path} {body!r}: {response.status} {response.body!r}"
            self.assertEqual(response.status, status, where)
            if isinstance(answer, bytes):
                self.assertEqual(response.body, answer, where)
            elif answer is not None:
                self.assertEqual(response.json(), answer, where)


def multipart(**parts: bytes) -> tuple[bytes, str]:
    """A form body and its content type."""
    boundary = "------------------------d74496d66958873e"
    chunks = [
        f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n'.encode() + value + b"\r\n"
        for name, value in parts.items()
    ]
    return b"".join(chunks) + f"--{boundary}--\r\n".encode(), f"multipart/form-data; boundary={boundary}"
