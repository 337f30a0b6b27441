"""One port's HTTP/1.1 connections: how many, how long idle, and how they end with the daemon."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from .http1 import HttpConnection
from .logs import Log
from .messages import Answer, Request


class HttpServer:
    """All connections of one port; ``answer`` turns a request into an answer or raises Refusal."""

    def __init__(
        self,
        *,
        answer: Callable[[Request], Awaitable[Answer]],
        loop: asyncio.AbstractEventLoop,
        log: Log,
        most_connections: int = 1024,
    ) -> None:
        self.answer = answer
        self.loop = loop
        self.log = log
        self._most = most_connections
        self._connections: dict[HttpConnection, None] = {}
        self._sweeper: asyncio.TimerHandle | None = None
        self.closing = False

    def protocol(self) -> asyncio.Protocol:
        return HttpConnection(server=self)

    def joined(self, connection: HttpConnection) -> bool:
        """Whether there is room for one more. At the limit an idle connection has to go, the oldest first."""
        self._connections[connection] = None
        if self._sweeper is None:
            self._sweeper = self.loop.call_later(5.0, self._sweep)
        if len(self._connections) <= self._most:
            return True
        return any(other.close_if_idle() for other in self._connections if other is not connection)

    def left(self, connection: HttpConnection) -> None:
        self._connections.pop(connection, None)

    async def close(self, grace: float) -> None:
        """Let answers in progress end for ``grace`` seconds, then cut them."""
        self.closing = True
        if self._sweeper is not None:
            self._sweeper.cancel()
        for connection in list(self._connections):
            connection.close_if_idle()
        tasks = [connection.task for connection in self._connections if connection.task is not None]
        if tasks:
            await asyncio.wait(tasks, timeout=grace)
        for connection in list(self._connections):
            connection.abort()
        if tasks:
            await asyncio.wait(tasks, timeout=1.0)

    def _sweep(self) -> None:
        now = self.loop.time()
        for connection in list(self._connections):
            connection.expire(now)
        self._sweeper = self.loop.call_later(5.0, self._sweep) if self._connections else None
