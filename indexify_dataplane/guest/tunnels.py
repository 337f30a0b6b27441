"""TCP to a port of the sandbox through a WebSocket: binary messages carry the stream, without framing of their own."""

from __future__ import annotations

import asyncio

from .logs import Log
from .messages import Answer, Request, Upgrade, Wire
from .refusal import ClientGone, Refusal
from .router import Route
from .websocket import NORMAL, UNSUPPORTED, WebSocket, WebSocketClosed, accept_headers

MOST_TUNNELS = 256
CONNECT_SECONDS = 10.0
LEFTOVER_SECONDS = 30.0
"""How long a server may still send after its client said that it has nothing more to say."""

READ_BYTES = 64 * 1024


class Tunnels:
    """Opens tunnels to 127.0.0.1; ``own_ports`` are the daemon's and refused."""

    def __init__(self, *, own_ports: frozenset[int], log: Log) -> None:
        self._own_ports = own_ports
        self._log = log
        self._open = 0

    def routes(self) -> list[Route]:
        return [("GET", "/api/v1/tunnels/tcp", self.open)]

    async def open(self, request: Request) -> Answer:
        """Connects before the upgrade: a port nobody listens on is a plain 502."""
        headers = accept_headers(request)
        text = request.query.get("port", "")
        port = int(text) if text.isascii() and text.isdigit() and len(text) <= 5 else 0
        if not 1 <= port <= 65535:
            raise Refusal(400, "The query key 'port' must be a number from 1 to 65535", "BAD_REQUEST")
        if port in self._own_ports:
            raise Refusal(403, f"Port {port} belongs to the sandbox daemon", "PORT_REFUSED")
        if self._open >= MOST_TUNNELS:
            raise Refusal(429, f"Maximum number of concurrent tunnels ({MOST_TUNNELS}) reached", "TOO_MANY_TUNNELS")
        self._open += 1
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=READ_BYTES)
        except (OSError, TimeoutError) as error:
            self._open -= 1
            reason = getattr(error, "strerror", None) or "timed out"
            raise Refusal(502, f"Cannot connect to port {port}: {reason}", "CONNECTION_FAILED") from error
        except BaseException:
            self._open -= 1
            raise

        def release() -> None:
            self._open -= 1
            # What the client sent last may still be on its way to the server.
            writer.close()
            asyncio.get_running_loop().call_later(LEFTOVER_SECONDS, writer.transport.abort)

        async def attend(wire: Wire) -> None:
            await self._relay(WebSocket(wire=wire), reader, writer)

        return Upgrade(attend, headers=headers, release=release)

    async def _relay(self, socket: WebSocket, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        loop = asyncio.get_running_loop()
        outward = loop.create_task(self._to_client(socket, reader))
        inward = loop.create_task(self._to_server(socket, writer))
        tasks = [outward, inward]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            if outward.done():
                inward.cancel()
                await asyncio.wait([inward])
                if outward.exception() is None:
                    await writer.drain()
                    await socket.close(NORMAL, "")
                    await socket.wait_closed()
            elif inward.exception() is None:
                await asyncio.wait([outward], timeout=LEFTOVER_SECONDS)
                await socket.close(NORMAL, "")
        except (OSError, ClientGone) as error:
            self._log.debug("tunnel cut", error=str(error))
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
            for task in tasks:
                failure = None if task.cancelled() else task.exception()
                if failure is not None:
                    self._log.debug("tunnel ended", error=f"{type(failure).__name__}: {failure}")

    async def _to_client(self, socket: WebSocket, reader: asyncio.StreamReader) -> None:
        while data := await reader.read(READ_BYTES):
            await socket.send(data)

    async def _to_server(self, socket: WebSocket, writer: asyncio.StreamWriter) -> None:
        while True:
            try:
                piece, _ = await socket.receive_piece()
            except WebSocketClosed:
                writer.write_eof()
                return
            if isinstance(piece, str):
                await socket.close(UNSUPPORTED, "a tunnel carries binary messages only")
                raise ClientGone("the client sent a text message")
            writer.write(piece)
            await writer.drain()
