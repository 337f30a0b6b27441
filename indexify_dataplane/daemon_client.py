"""The node's side of the daemon inside a sandbox: asks how it is (gRPC Health on port 9500), and tells a held one to go
on (POST on the same port).

The token goes along as ``x-indexify-sandbox-token``, so that nobody but the node can drive the daemon.
"""

from __future__ import annotations

import asyncio
from typing import Protocol

from google.protobuf.message import DecodeError

from .daemon_connection import CallFailed, DaemonConnection
from .reactor import from_asyncio

HEALTH = b"/container_daemon_pb.ContainerDaemon/Health"
GO = "/api/v1/go"
TOKEN_HEADER = "x-indexify-sandbox-token"


class DaemonUnreachable(Exception):
    """It did not answer; the text has the address and the cause."""


class Daemons(Protocol):
    async def healthy(self, address: str, timeout: float, token: str | None = None) -> bool:
        """Ask the daemon at ``host:port`` once, for at most ``timeout`` seconds. Raises DaemonUnreachable."""

    async def go(self, address: str, timeout: float, token: str | None = None) -> None:
        """Tell a held daemon to go on: when this returns its API listens and the entrypoint was started. Repeating it
        changes nothing. Raises DaemonUnreachable."""

    async def forget(self, address: str) -> None:
        """Close what is held for this daemon."""

    async def close(self) -> None:
        """Close everything."""


class GrpcDaemons:
    """One connection per daemon, opened at the first question."""

    def __init__(self) -> None:
        self._connections: dict[str, DaemonConnection] = {}

    async def healthy(self, address: str, timeout: float, token: str | None = None) -> bool:
        from .wireproto import container_daemon_pb2 as pb

        fields = [(TOKEN_HEADER.encode(), token.encode())] if token is not None else []
        connection = self._connections.get(address)
        if connection is None or connection.over:
            connection = self._connections[address] = DaemonConnection(address)
        try:
            answer = await connection.call(HEALTH, b"", fields, timeout)
            return bool(pb.HealthResponse.FromString(answer).healthy)
        except (CallFailed, DecodeError) as error:
            raise DaemonUnreachable(f"the daemon at {address} does not answer: {error}") from error

    async def go(self, address: str, timeout: float, token: str | None = None) -> None:
        try:
            status = await from_asyncio(_post_go(address, timeout, token))
        except (OSError, TimeoutError, ValueError) as error:
            text = str(error) or type(error).__name__
            raise DaemonUnreachable(f"the daemon at {address} does not answer: {text}") from error
        if status != 204:
            raise DaemonUnreachable(f"the daemon at {address} refuses to go on: it answers {status}")

    async def forget(self, address: str) -> None:
        found = self._connections.pop(address, None)
        if found is not None:
            found.close()

    async def close(self) -> None:
        for address in list(self._connections):
            await self.forget(address)


async def _post_go(address: str, timeout: float, token: str | None) -> int:
    """The status of the answer."""
    host, _, port = address.rpartition(":")
    head = f"POST {GO} HTTP/1.1\r\nHost: {address}\r\nContent-Length: 0\r\nConnection: close\r\n"
    if token is not None:
        head += f"{TOKEN_HEADER}: {token}\r\n"
    async with asyncio.timeout(timeout):
        reader, writer = await asyncio.open_connection(host.strip("[]"), int(port))
        try:
            writer.write(f"{head}\r\n".encode())
            line = await reader.readline()
        finally:
            writer.close()
    version, _, rest = line.decode("latin-1").partition(" ")
    if not version.startswith("HTTP/1.") or not rest[:3].isdigit():
        raise ValueError("it closed the connection" if not line else f"it speaks no HTTP: {line[:40]!r}")
    return int(rest[:3])
