"""Health, info and the go of a held start."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable

from .messages import Answer, Reply, Request, json_reply
from .processes import Processes
from .router import Route


class DaemonApi:
    """Answers without waiting for anything: health must be told at once, whatever else goes on."""

    def __init__(
        self,
        *,
        processes: Processes,
        version: str,
        stopping: Callable[[], bool],
        go: Callable[[], Awaitable[None]],
        token: bool,
    ) -> None:
        self._processes = processes
        self._version = version
        self._stopping = stopping
        self._go = go
        self._token = token
        self._started = time.monotonic()

    def routes(self) -> list[Route]:
        return [
            ("GET", "/api/v1/health", self.health),
            ("GET", "/api/v1/info", self.info),
            ("GET", "/api/v1/openapi.json", self.openapi),
        ]

    def control_routes(self) -> list[Route]:
        """What the gRPC port answers over HTTP/1.1."""
        return [("GET", "/api/v1/health", self.health), ("POST", "/api/v1/go", self.go)]

    def health_values(self) -> tuple[bool, str, int]:
        """(healthy, version, uptime in seconds) for gRPC."""
        return not self._stopping(), self._version, self._uptime()

    async def health(self, request: Request) -> Answer:
        return json_reply(200, {"healthy": not self._stopping()})

    async def info(self, request: Request) -> Answer:
        return json_reply(
            200,
            {
                "version": self._version,
                "uptime_secs": self._uptime(),
                "running_processes": len(self._processes.running()),
                "total_processes": len(self._processes.all()),
            },
        )

    async def openapi(self, request: Request) -> Answer:
        # Loaded for whoever asks, so that nobody else pays for it.
        from .openapi import document

        return json_reply(200, document(self._version, self._token))

    async def go(self, request: Request) -> Answer:
        """204 once the HTTP API listens and the entrypoint was started; again: 204 and nothing else."""
        await self._go()
        return Reply(204)

    def _uptime(self) -> int:
        return int(time.monotonic() - self._started)
