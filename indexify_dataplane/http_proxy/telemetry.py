"""What is told of requests: plain integers, and one line each in the request log. At most 5 microseconds a request."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager

from ..logs import Logger, bound
from ..metrics import Metrics
from .head import RequestHead
from .replies import Reply
from .routes import DAEMON_PORT, RequestLog
from .routing import Refusal

log = Logger(namespace="indexify_dataplane.http_proxy")

_UPSTREAMS = ("daemon", "user")

CLIENT_CLOSED = 499
"""Told of a request whose client left before it was answered; never sent."""


def span(head: RequestHead, sandbox_id: str, port: int) -> AbstractContextManager[None]:
    """Events inside of the ``with`` belong to this request."""
    return bound(sandbox_id=sandbox_id, port=port, method=head.method.decode("ascii"), path=head.path)


class Telemetry:
    """``active_requests`` counts those under way; ``active_upgrades`` those of them that became raw pipes."""

    def __init__(self, *, metrics: Metrics, request_log: RequestLog, seconds: Callable[[], float]) -> None:
        self._metrics = metrics
        self._log = request_log
        self.seconds = seconds
        self.active_requests = 0
        self.active_upgrades = 0
        # By class of status, 1 to 5, for the daemon and for ports of users.
        self._requests = [
            {
                hundred: metrics.counter("proxy.requests", code_class=f"{hundred}xx", upstream=upstream)
                for hundred in range(1, 6)
            }
            for upstream in _UPSTREAMS
        ]
        self._durations = metrics.histogram("proxy.duration_seconds")
        metrics.gauge("proxy.active_requests", lambda: self.active_requests)
        metrics.gauge("proxy.active_upgrades", lambda: self.active_upgrades)

    def answered(
        self, head: RequestHead, sandbox_id: str, port: int, status: int, duration: float, address: str
    ) -> None:
        """An answer of a container has ended; ``duration`` in seconds from the request's head."""
        user = port != DAEMON_PORT
        self._requests[user][status // 100].add()
        self._durations.observe(duration)
        if self._log.enabled:
            self._log.completed(
                sandbox_id, port, head.method.decode("ascii"), head.path, status, duration * 1000, address
            )

    def failed(self, reply: Reply, port: int) -> None:
        """The proxy answers in place of a container."""
        self._requests[port != DAEMON_PORT][reply.status // 100].add()
        self._metrics.counter("proxy.errors", code=reply.code).add()

    def refused(self, head: RequestHead, refusal: Refusal) -> None:
        """A request has no route."""
        self.failed(refusal.reply, refusal.port)
        with span(head, refusal.sandbox_id, refusal.port):
            match refusal.reply.code:
                case "MISSING_SANDBOX_ID":
                    log.warn("Missing Tensorlake-Sandbox-Id header")
                case "SANDBOX_NOT_FOUND":
                    log.warn("Sandbox not found")
                case "SANDBOX_NOT_RUNNING":
                    log.warn("Sandbox not running", state=refusal.state)
                case code:
                    log.warn("Request refused", code=code)

    def malformed(self, reply: Reply, peer: str) -> None:
        self.failed(reply, DAEMON_PORT)
        log.warn("Malformed request", code=reply.code, error=reply.error, peer_addr=peer)
