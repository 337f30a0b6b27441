"""The proxy's edge as a service with a name and an owner."""

from __future__ import annotations

from twisted.application.service import Service
from twisted.internet.defer import Deferred
from twisted.logger import Logger

from .http_proxy.edge import Edge

log = Logger(namespace="indexify_dataplane.http_proxy")


class ProxyService(Service):
    """Listens from ``start`` to ``stop``; ``drain_secs`` is how long running requests may take at the end."""

    name = "proxy"

    def __init__(self, *, edge: Edge, drain_secs: float) -> None:
        self._edge = edge
        self._drain_secs = drain_secs
        self.listening = False

    async def start(self) -> tuple[str, int]:
        """Bind; the bound address. Raises OSError."""
        address = await self._edge.start()
        self.listening = True
        return address

    async def stop(self) -> None:
        if self.listening:
            self.listening = False
            log.info("HTTP proxy server shutting down")
            await self._edge.stop(self._drain_secs)

    def stopService(self) -> Deferred[None]:
        self.running = 0
        return Deferred.fromCoroutine(self.stop())
