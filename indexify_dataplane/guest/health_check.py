"""Asks a managed process over TCP or HTTP whether it is well."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass


@dataclass(frozen=True)
class HealthCheckOrder:
    """``type`` is http or tcp, always on 127.0.0.1; times in milliseconds."""

    type: str
    port: int
    path: str | None = None
    initial_delay_ms: int = 5000
    interval_ms: int = 1000
    timeout_ms: int = 500
    failure_threshold: int = 3


class HealthCheck:
    """``status`` is starting, healthy or unhealthy."""

    def __init__(self, *, order: HealthCheckOrder) -> None:
        self.order = order
        self.status = "starting"
        self.consecutive_failures = 0

    async def watch(self) -> None:
        """Check a new child until it is unhealthy, then return."""
        self.status = "starting"
        self.consecutive_failures = 0
        await asyncio.sleep(self.order.initial_delay_ms / 1000)
        while True:
            if await self._ask():
                self.status = "healthy"
                self.consecutive_failures = 0
            else:
                self.consecutive_failures += 1
                if self.consecutive_failures >= self.order.failure_threshold:
                    self.status = "unhealthy"
                    return
            await asyncio.sleep(self.order.interval_ms / 1000)

    async def _ask(self) -> bool:
        writer: asyncio.StreamWriter | None = None
        try:
            async with asyncio.timeout(self.order.timeout_ms / 1000):
                reader, writer = await asyncio.open_connection("127.0.0.1", self.order.port, limit=4096)
                if self.order.type == "tcp":
                    return True
                path = self.order.path or "/"
                lines = f"GET {path} HTTP/1.1\r\nhost: 127.0.0.1:{self.order.port}\r\nconnection: close\r\n\r\n"
                writer.write(lines.encode("utf-8"))
                status = (await reader.readline()).split(b" ")
                return len(status) >= 2 and status[0].startswith(b"HTTP/") and status[1][:1] in (b"2", b"3")
        except (OSError, TimeoutError, ValueError):
            return False
        finally:
            if writer is not None:
                writer.transport.abort()
