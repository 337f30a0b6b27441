"""The proxy's listener, on the event loop's own transports: Twisted's cost half of the throughput."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any

from twisted.internet.defer import Deferred

from ..metrics import Metrics
from ..reactor import from_asyncio
from .client import Http1Client
from .pool import IdleConnections
from .routes import RequestLog, Routes, Settings
from .shared import Clock, Shared, open_shared
from .telemetry import Telemetry

SWEEP_SECS = 1.0
"""How often deadlines are looked at: each is kept up to so much late, never early, and no request pays for a timer."""

BACKLOG = 1024


class Edge:
    """Takes requests and passes them to sandboxes.

    ``config`` is the ``http_proxy`` part of the configuration; ``own_names`` are the host names of the node itself,
    which never name a sandbox. Runs on the asyncio loop under ``reactor``, whose clock gives all deadlines.
    """

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
        self._config = config
        self._routes = routes
        self._own_names = tuple(own_names)
        self._reactor = reactor
        self._telemetry = Telemetry(metrics=metrics, request_log=request_log, seconds=reactor.seconds)
        self._pool = IdleConnections(capacity=config.max_idle_upstreams, idle_secs=config.upstream.idle_timeout_secs)
        self._shared: Shared | None = None
        self._server: asyncio.Server | None = None
        self._sweep: Any = None
        self._emptied: Deferred[None] | None = None

    async def start(self) -> tuple[str, int]:
        """Listen; returns the bound address. Raises OSError when that fails, or when the secret cannot be read."""
        config = self._config
        shared = self._shared = open_shared(
            config=config, routes=self._routes, telemetry=self._telemetry, pool=self._pool, clock=self._reactor,
            own_names=self._own_names,
        )  # fmt: skip
        self._server = await from_asyncio(
            shared.loop.create_server(
                lambda: Http1Client(shared), config.listen_addr.strip("[]"), config.port, backlog=BACKLOG
            )
        )
        self._sweep = self._reactor.callLater(SWEEP_SECS, self._swept)
        host, port = self._server.sockets[0].getsockname()[:2]
        return host, port

    async def stop(self, drain_secs: float) -> None:
        """Take no more connections, let requests under way end for at most ``drain_secs``, then cut them."""
        shared = self._shared
        if shared is None or self._server is None:
            return
        self._server.close()
        shared.draining = True
        for connection in list(shared.connections):
            connection.drain()
        if shared.connections and drain_secs > 0:
            self._emptied = Deferred()
            late = self._reactor.callLater(drain_secs, self._emptied.callback, None)
            await self._emptied
            self._emptied = None
            if late.active():
                late.cancel()
        for connection in list(shared.connections):
            connection.stop()
        self._pool.close()
        if shared.http2 is not None:
            shared.http2.close()
        self._sweep.cancel()
        self._server = None

    def forget(self, container_id: str) -> None:
        """The container has left Running: connections kept for it are closed."""
        self._pool.forget(container_id)
        if self._shared is not None and self._shared.http2 is not None:
            self._shared.http2.forget(container_id)

    @property
    def idle_upstreams(self) -> int:
        return self._pool.count

    @property
    def active_requests(self) -> int:
        return self._telemetry.active_requests

    @property
    def connections(self) -> int:
        """Clients' connections that are open."""
        return len(self._shared.connections) if self._shared is not None else 0

    def _swept(self) -> None:
        shared = self._shared
        assert shared is not None
        self._sweep = self._reactor.callLater(SWEEP_SECS, self._swept)
        now = shared.seconds()
        for connection in [each for each in shared.connections if each.deadline <= now]:
            connection.expired()
        self._pool.expire(now)
        if shared.http2 is not None:
            shared.http2.expire(now, self._config.upstream.idle_timeout_secs)
        if self._emptied is not None and not shared.connections and not self._emptied.called:
            self._emptied.callback(None)
