"""How endpoints write to a connection: the body of a streamed answer, and the wire after an upgrade."""

from __future__ import annotations

from typing import Protocol

from .messages import Inflow, Out, Wire


class Outlet(Protocol):
    """The connection's side of it."""

    def put(self, data: bytes) -> None:
        """Send, or keep until there is room."""

    async def drain(self) -> None:
        """Wait for room. Raises ClientGone."""


class BodyOut(Out):
    """The body of a streamed answer on a connection."""

    def __init__(self, connection: Outlet, chunked: bool, length: int | None) -> None:
        self._connection = connection
        self._chunked = chunked
        self._left = length
        self.broken = False

    @property
    def complete(self) -> bool:
        return not self._left

    async def write(self, data: bytes) -> None:
        if not data:
            return
        if self._left is not None:
            if len(data) > self._left:
                raise AssertionError(f"{len(data) - self._left} bytes more than announced")
            self._left -= len(data)
        if self._chunked:
            data = b"%x\r\n%b\r\n" % (len(data), data)
        self._connection.put(data)
        await self._connection.drain()


class UpgradedWire(Wire):
    """An upgraded connection."""

    def __init__(self, connection: Outlet, inflow: Inflow) -> None:
        self._connection = connection
        self._inflow = inflow

    async def receive(self) -> bytes:
        return await self._inflow.read()

    async def send(self, data: bytes) -> None:
        await self._connection.drain()
        self._connection.put(data)
        await self._connection.drain()
