"""The proxy as a ``twisted.web`` resource: any Site can mount it. Routing, relay and pool are the edge's own.

twisted.web has collected a request's body before it renders, and owns the connection: there are no upgrades, interim
answers or trailers here. What needs them goes to the edge.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from twisted.internet.interfaces import IPushProducer
from twisted.web.http import Request
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET
from zope.interface import implementer  # type: ignore[import-untyped]

from ..metrics import Metrics
from . import forward
from .exchange import Exchange
from .head import RequestHead
from .pool import IdleConnections
from .replies import HeadRefused, Reply
from .response import ResponseHead
from .routes import DAEMON_PORT, RequestLog, Routes, Settings
from .routing import Preflight, Refusal, Route
from .shared import NEVER, Clock, Shared, open_shared
from .telemetry import Telemetry
from .upstream import NO_TRAILERS

PIECE = 64 * 1024
_FRAMING = (b"content-length", b"transfer-encoding", b"expect", b"upgrade")


class SandboxResource(Resource):
    """Answers every path below it for the sandbox that the request names. Needs the asyncio reactor, running."""

    isLeaf = True

    def __init__(
        self,
        *,
        config: Settings,
        routes: Routes,
        metrics: Metrics,
        request_log: RequestLog,
        reactor: Clock,
        own_names: Iterable[str] = (),
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        telemetry = Telemetry(metrics=metrics, request_log=request_log, seconds=reactor.seconds)
        pool = IdleConnections(capacity=config.max_idle_upstreams, idle_secs=config.upstream.idle_timeout_secs)
        self._clock = reactor
        self._shared = open_shared(
            config=config, routes=routes, telemetry=telemetry, pool=pool, clock=reactor, own_names=own_names
        )

    def render(self, request: Any) -> int:
        shared = self._shared
        shared.pool.expire(shared.seconds())
        rendered = _Rendered(shared, request, self._clock)
        try:
            head = _head(request)
        except HeadRefused as refused:
            shared.telemetry.malformed(refused.reply, _peer(request).decode())
            rendered.say(refused.reply, None)
            return NOT_DONE_YET
        match shared.router.route(head):
            case Route() as route:
                rendered.start(head, route)
            case Preflight(origin):
                rendered.allow(origin)
            case Refusal() as refusal:
                shared.telemetry.refused(head, refusal)
                rendered.say(refusal.reply, head.origin if refusal.port == DAEMON_PORT else None)
        return NOT_DONE_YET

    def forget(self, container_id: str) -> None:
        """The container has left Running: connections kept for it are closed."""
        self._shared.pool.forget(container_id)

    def close(self) -> None:
        """Cut what is under way and close the connections to containers."""
        for rendered in list(self._shared.connections):
            rendered.stop()
        self._shared.pool.close()


def _peer(request: Request) -> bytes:
    return str(getattr(request.getClientAddress(), "host", "unknown")).encode()


def _head(request: Request) -> RequestHead:
    """The head as the edge would have parsed it, for the body that twisted.web holds. Raises HeadRefused."""
    head = RequestHead(request.method, request.uri, 0 if request.clientproto == b"HTTP/1.0" else 1)
    for name, values in request.requestHeaders.getAllRawHeaders():
        if name.lower() not in _FRAMING:
            for value in values:
                head.on_header(name, value)
    assert request.content is not None
    size = request.content.seek(0, 2)
    request.content.seek(0)
    if size or request.requestHeaders.hasHeader(b"content-length"):
        head.on_header(b"Content-Length", b"%d" % size)
    head.check()
    return head


@implementer(IPushProducer)
class _Rendered:
    """One request of twisted.web as the client's side of an exchange, and the producer of its answer."""

    def __init__(self, shared: Shared, request: Request, clock: Clock) -> None:
        self._shared = shared
        self._request = request
        self._clock = clock
        self._exchange: Exchange | None = None
        self._alarm: Any = None
        self._held = False
        self._left = 0
        self._origin: bytes | None = None
        self._gone = False
        self.writing_paused = False
        request.notifyFinish().addBoth(self._finished)

    def start(self, head: RequestHead, route: Route) -> None:
        self._origin = head.origin if route.port == DAEMON_PORT else None
        self._shared.connections.add(self)
        exchange = self._exchange = Exchange(self._shared, self, head, route, _peer(self._request))
        self._left = head.length
        self._request.registerProducer(self, True)
        body = self._read()
        exchange.start(body, not self._left, NO_TRAILERS)
        self._pump()

    def _read(self) -> bytes:
        assert self._request.content is not None
        piece: bytes = self._request.content.read(min(PIECE, self._left)) if self._left else b""
        self._left -= len(piece)
        return piece

    def _pump(self) -> None:
        while self._left and not self._held and self._exchange is not None:
            piece = self._read()
            self._exchange.body(piece, not self._left, NO_TRAILERS)

    # -- answers of the proxy itself

    def say(self, reply: Reply, origin: bytes | None) -> None:
        self._fields(reply.status, reply.reason, [b"content-type: application/json"])
        self._lines(forward.cors(origin) if origin is not None else [])
        body = reply.body
        self._request.setHeader(b"content-length", b"%d" % len(body))
        if self._request.method != b"HEAD":
            self._request.write(body)
        self._end()

    def allow(self, origin: bytes) -> None:
        self._fields(200, b"OK", [b"content-length: 0", b"access-control-max-age: 86400"])
        self._lines(forward.cors(origin))
        self._end()

    def _fields(self, status: int, reason: bytes, lines: list[bytes]) -> None:
        self._request.setResponseCode(status, reason)
        for ours in (b"server", b"content-type", b"date"):
            self._request.responseHeaders.removeHeader(ours)
        self._lines(lines)

    def _lines(self, lines: list[bytes]) -> None:
        for line in lines:
            name, _, value = line.partition(b": ")
            self._request.responseHeaders.addRawHeader(name, value)

    def _end(self) -> None:
        if not self._gone:
            self._request.finish()

    # -- Requester

    def limit(self, deadline: float) -> None:
        if self._alarm is not None:
            self._alarm.cancel()
            self._alarm = None
        if deadline < NEVER:
            self._alarm = self._clock.callLater(max(0.0, deadline - self._clock.seconds()), self._expired)

    def _expired(self) -> None:
        self._alarm = None
        if self._exchange is not None:
            self._exchange.expired()

    def inform(self, head: ResponseHead) -> None:
        """Interim answers stay here: twisted.web cannot send them."""

    def respond(self, head: ResponseHead, length: int, data: bytes, ended: bool, trailers: list[bytes]) -> None:
        self._fields(head.status, head.reason, forward.response_lines(head, self._origin))
        if length == 0 and not self._request.responseHeaders.hasHeader(b"content-length") and head.status == 200:
            self._request.setHeader(b"content-length", b"0")
        self._request.write(data)

    def more(self, data: bytes, ended: bool, trailers: list[bytes]) -> None:
        if data:
            self._request.write(data)

    def switch(self, head: ResponseHead, data: bytes) -> None:
        raise AssertionError("an upgrade is never asked for here")

    def pipe(self, data: bytes) -> None:
        raise AssertionError("an upgrade is never asked for here")

    def refuse(self, reply: Reply) -> None:
        self._request.unregisterProducer()
        self.say(reply, self._origin)

    def cut(self) -> None:
        self._gone = True
        self._request.loseConnection()

    def hold_request(self) -> None:
        self._held = True

    def go_on_with_request(self) -> None:
        self._held = False
        self._pump()

    def exchange_ended(self) -> None:
        self._exchange = None
        self.limit(NEVER)
        if self._request.startedWriting and not self._gone and not self._request.finished:
            self._request.unregisterProducer()
            self._request.finish()

    # -- IPushProducer and the end of the request

    def pauseProducing(self) -> None:
        self.writing_paused = True
        if self._exchange is not None:
            self._exchange.client_full()

    def resumeProducing(self) -> None:
        self.writing_paused = False
        if self._exchange is not None:
            self._exchange.client_drained()

    def stopProducing(self) -> None:
        """The client has gone; ``_finished`` hears of it too."""

    def stop(self) -> None:
        """The proxy itself ends."""
        if self._exchange is not None:
            self._exchange.stop()

    def _finished(self, _: object) -> None:
        self._gone = True
        self._shared.connections.discard(self)
        exchange, self._exchange = self._exchange, None
        self.limit(NEVER)
        if exchange is not None:
            exchange.abandon()
