"""One request and its answer: finds a connection to the container, joins it with the client, and tells how it ended.

It knows neither framing nor frames: the client's side is a ``Requester``, the container's an ``Upstream``, each of them
HTTP/1.1 or HTTP/2. Calls never return control to a side that has let go: after every call that can end the exchange,
the caller looks no further at it.

A container can close a pooled connection while a request is on its way to it. One that may be repeated without harm,
and of which no byte of a body was sent, is sent once more on a new connection; for others the socket is looked at right
before it is used, because a 502 makes clients repeat a command that may have run.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

from attrs import evolve
from twisted.internet.defer import CancelledError, Deferred

from ..drivers.base import PortRefused
from ..log_directives import DEBUG
from ..logs import Logger
from ..reactor import from_asyncio
from . import forward, replies
from .head import IDEMPOTENT, RequestHead
from .replies import Reply
from .response import ResponseHead
from .routes import DAEMON_PORT
from .routing import Route
from .shared import NEVER, Shared
from .sides import Requester, Upstream
from .telemetry import CLIENT_CLOSED, span
from .upstream import Http1Upstream

if TYPE_CHECKING:
    from .http2_upstream import Http2Upstreams

RESENT = frozenset({502, 503, 504})
"""Statuses on which SDKs send a request again, whatever its method."""

log = Logger(namespace="indexify_dataplane.http_proxy")


# Where an exchange is; numbers, because an enumeration's members cost a lookup each.
CONNECTING, RUNNING, PIPING, OVER = range(4)


class Exchange:
    _upstream: Upstream | None = None
    _opening: Deferred[None] | None = None
    _waiting: list[bytes] | tuple[()] = ()
    _waiting_trailers: list[bytes] | tuple[()] = ()
    _complete = False
    _body_sent = False
    _reused = False
    _retried = False
    _status = 0
    _stage = CONNECTING
    reset_code: int | None = None

    def __init__(self, shared: Shared, requester: Requester, head: RequestHead, route: Route, peer: bytes) -> None:
        self._shared = shared
        self._requester = requester
        self._peer = peer
        self.head = head
        self.route = route
        self._started = shared.telemetry.seconds()

    # -- from the client's side

    def start(self, body: bytes, complete: bool, trailers: list[bytes]) -> None:
        """Send the request with what is there of its body; ``complete`` when that is all of it."""
        shared, route, head = self._shared, self.route, self.head
        shared.telemetry.active_requests += 1
        self._complete = complete
        upstream = None if head.grpc else shared.pool.take((route.target.container_id, route.port))
        if isinstance(upstream, Http1Upstream):
            if head.method in IDEMPOTENT or not upstream.stale():
                self._reused = True
                self._use(upstream, body, trailers)
                return
            upstream.close()
        self._waiting = [body]
        self._waiting_trailers = trailers
        self._connect()

    def body(self, payload: bytes, complete: bool, trailers: list[bytes]) -> None:
        """More of the request's body."""
        self._complete = complete
        if self._upstream is None:
            self._waiting = [*self._waiting, payload]
            self._waiting_trailers = trailers
            return
        self._await_request()
        self._body_sent = True
        self._upstream.body(payload, complete, trailers)

    def pipe_to_container(self, data: bytes) -> None:
        if self._upstream is not None:
            self._touch()
            self._upstream.pipe(data)

    def client_full(self) -> None:
        if self._upstream is not None:
            self._upstream.pause_response()

    def client_drained(self) -> None:
        if self._upstream is not None:
            self._upstream.resume_response()

    def abandon(self) -> None:
        """The client is gone, or what it sends cannot be relied on: the container's side is dropped."""
        if self._stage is OVER:
            return
        piping = self._stage is PIPING
        upstream = self._let_go()
        if upstream is not None:
            if piping:
                upstream.end_pipe()
            else:
                upstream.drop()
        self._tell(self._status or CLIENT_CLOSED, upstream)

    def stop(self) -> None:
        """The proxy itself ends."""
        self._requester.cut()
        self.abandon()

    def expired(self) -> None:
        """The deadline that was set on the client's side has passed."""
        if self._stage is CONNECTING:
            self._fail(replies.CONNECTION_TIMEOUT, "no connection in time")
        elif self._stage is PIPING:
            self._requester.cut()
            self.abandon()
        elif self._upstream is not None and self._upstream.paused_writing:
            self._fail(replies.WRITE_TIMEOUT, "the container takes no more of the request")
        elif self.head.expects_continue and not self._body_sent:
            self._fail(replies.READ_TIMEOUT, "no answer to Expect: 100-continue")
        else:
            self._requester.cut()
            self.abandon()

    # -- from the container's side

    def request_lines(self, address: bytes) -> list[bytes]:
        """The fields of the request as they go to the container."""
        target = self.route.target
        token = target.token.encode() if target.token is not None and self.route.port == DAEMON_PORT else None
        return forward.request_lines(
            self.head,
            peer=self._peer,
            address=address,
            token=token,
            strip_credentials=self._shared.settings.strip_credentials,
        )

    def informed(self, head: ResponseHead) -> None:
        if self.head.minor:
            self._requester.inform(head)

    def answered(self, head: ResponseHead, length: int, data: bytes, ended: bool, trailers: list[bytes]) -> None:
        self._status = head.status
        self._requester.respond(head, length, data, ended, trailers)
        if ended:
            self._finish()

    def more(self, data: bytes, ended: bool, trailers: list[bytes]) -> None:
        self._requester.more(data, ended, trailers)
        if ended:
            self._finish()

    def switched(self, head: ResponseHead, data: bytes) -> None:
        self._status = head.status
        self._stage = PIPING
        self._shared.telemetry.active_upgrades += 1
        self._touch()
        self._requester.switch(head, data)

    def piped(self, data: bytes) -> None:
        self._touch()
        self._requester.pipe(data)

    def pipe_ended(self) -> None:
        """The container closed a raw pipe."""
        self._finish()

    def upstream_full(self) -> None:
        if not self._complete:
            self._requester.limit(self._shared.seconds() + self._shared.settings.upstream.write_timeout_secs)
        self._requester.hold_request()

    def upstream_drained(self) -> None:
        if not self._complete:
            self._requester.limit(self._shared.seconds() + self._shared.settings.upstream.read_timeout_secs)
        self._requester.go_on_with_request()

    def upstream_broken(self, upstream: Upstream, error: str) -> None:
        """What the container sends is not HTTP."""
        self._fail(replies.PROXY_ERROR, error)

    def upstream_lost(self, upstream: Upstream, error: Exception | None, silent: bool) -> None:
        """The container's connection ended within the exchange; ``silent`` when nothing had come of an answer."""
        self._upstream = None
        repeatable = self.head.method in IDEMPOTENT and not self.head.length and self.head.upgrade is None
        if silent and self._reused and not self._retried and repeatable:
            self._retried, self._reused = True, False
            self._stage = CONNECTING
            self._connect()
            return
        self._fail(replies.CONNECTION_CLOSED, str(error) if error else "closed by the container", upstream.address)

    # -- connecting

    def _connect(self) -> None:
        self._requester.limit(self._shared.seconds() + self._shared.settings.upstream.connection_timeout_secs)
        if not self._complete:
            self._requester.hold_request()
        self._opening = Deferred.fromCoroutine(self._open())

    async def _open(self) -> None:
        shared, route = self._shared, self.route
        upstream: Upstream | None = None
        where = ""
        try:
            daemon = route.target.daemon if route.port == DAEMON_PORT else None
            host, port = daemon or await shared.routes.connect_address(route.target, route.port)
            where = f"{host}:{port}"
            key = (route.target.container_id, route.port)
            if self.head.grpc:
                upstream = await self._http2().call(key, host, port)
            else:
                made: Any = Http1Upstream(shared, key, where)
                upstream = made
                await from_asyncio(shared.loop.create_connection(lambda: made, host, port))
        except CancelledError:
            # The exchange is over. The connection may have come up in the same turn of the loop.
            if upstream is not None:
                upstream.drop()
        except PortRefused:
            self._opening = None
            self._fail(replies.port_not_allowed(route.port), "the port is out of bounds")
        except ConnectionRefusedError as error:
            self._not_connected(replies.CONNECTION_REFUSED, error, where)
        except TimeoutError as error:
            self._not_connected(replies.CONNECTION_TIMEOUT, error, where)
        except Exception as error:
            self._not_connected(replies.PROXY_ERROR, error, where)
        else:
            assert upstream is not None
            self._opening = None
            body, self._waiting = b"".join(self._waiting), ()
            self._use(upstream, body, [*self._waiting_trailers])
            if not self._complete and not upstream.paused_writing:
                self._requester.go_on_with_request()

    def _http2(self) -> Http2Upstreams:
        from .http2_upstream import Http2Upstreams

        if self._shared.http2 is None:
            self._shared.http2 = Http2Upstreams(self._shared)
        return self._shared.http2

    def _not_connected(self, reply: Reply, error: Exception, address: str) -> None:
        self._opening = None
        with self._span():
            log.error(
                "Failed to connect to container", error=str(error), error_type=type(error).__name__, peer_addr=address
            )
        self._refuse(reply)

    def _use(self, upstream: Upstream, body: bytes, trailers: list[bytes]) -> None:
        self._upstream = upstream
        self._stage = RUNNING
        self._body_sent = body != b""
        if Logger.threshold >= DEBUG:
            with self._span():
                log.debug("Routing request to container", container_addr=upstream.address)
        if not self._complete or not self._reused:
            self._await_request()
        upstream.request(self, body, self._complete, trailers)
        if self._requester.writing_paused:
            upstream.pause_response()

    # -- ends

    def _finish(self) -> None:
        """The answer went out whole, or a pipe ended."""
        upstream = self._let_go()
        if upstream is not None:
            upstream.release(self._complete)
        self._tell(self._status, upstream)
        self._requester.exchange_ended()

    def _fail(self, reply: Reply, error: str, address: str = "") -> None:
        if self._stage is OVER:
            return
        if self._upstream is not None:
            address = self._upstream.address
        sent = self._complete and self._stage is not CONNECTING
        if sent and self.head.method not in IDEMPOTENT and reply.status in RESENT:
            # The container has the whole order and may have carried it out: no status that SDKs send it again on.
            reply = evolve(reply, status=500)
        with self._span():
            log.error(
                "Proxy error", error_type=reply.code, error=error, container_addr=address,
                response_status=self._status or reply.status,
            )  # fmt: skip
        self._refuse(reply)

    def _refuse(self, reply: Reply) -> None:
        begun = self._status != 0
        upstream = self._let_go()
        if upstream is not None:
            upstream.drop()
        self._shared.telemetry.failed(reply, self.route.port)
        if begun:
            self._requester.cut()
        else:
            self._requester.refuse(reply)
        self._requester.exchange_ended()

    def _let_go(self) -> Upstream | None:
        telemetry = self._shared.telemetry
        telemetry.active_requests -= 1
        if self._stage is PIPING:
            telemetry.active_upgrades -= 1
        self._stage = OVER
        upstream, self._upstream = self._upstream, None
        opening, self._opening = self._opening, None
        if opening is not None:
            opening.cancel()
        return upstream

    def _tell(self, status: int, upstream: Upstream | None) -> None:
        telemetry = self._shared.telemetry
        telemetry.answered(
            self.head, self.route.target.sandbox_id, self.route.port, status,
            telemetry.seconds() - self._started, upstream.address if upstream is not None else "",
        )  # fmt: skip

    def _await_request(self) -> None:
        """From the end of the request on there is no limit: a late answer is better than a command run twice."""
        waits = self._shared.settings.upstream.read_timeout_secs
        self._requester.limit(NEVER if self._complete else self._shared.seconds() + waits)

    def _touch(self) -> None:
        idle = self._shared.settings.upgrade_idle_timeout_secs
        self._requester.limit(self._shared.seconds() + idle if idle else NEVER)

    def _span(self) -> AbstractContextManager[None]:
        return span(self.head, self.route.target.sandbox_id, self.route.port)
