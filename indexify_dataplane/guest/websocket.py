"""The server side of one WebSocket over an upgraded connection.

wsproto's frame layer is loaded with the first WebSocket: a sandbox that never has one does not pay for it.
"""

from __future__ import annotations

import asyncio
import binascii
from typing import TYPE_CHECKING

from .messages import Request, Wire
from .refusal import ClientGone, Refusal

if TYPE_CHECKING:
    from wsproto.frame_protocol import FrameProtocol

CLOSE_SECONDS = 2.0
_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"

NORMAL, GOING_AWAY, PROTOCOL_ERROR, UNSUPPORTED, POLICY, TOO_BIG = 1000, 1001, 1002, 1003, 1008, 1009


def accept_headers(request: Request) -> tuple[tuple[str, str], ...]:
    """The header of the 101. Raises Refusal: 426 over HTTP/1.0, 400 for what is no handshake of version 13."""
    if not request.modern:
        raise Refusal(426, "WebSockets need HTTP/1.1", "UPGRADE_REQUIRED")
    connection = (request.header("connection") or "").lower().split(",")
    if (request.header("upgrade") or "").lower() != "websocket" or "upgrade" not in map(str.strip, connection):
        raise Refusal(400, "Expected a WebSocket upgrade", "BAD_REQUEST")
    if request.header("sec-websocket-version") != "13":
        raise Refusal(400, "Only WebSocket version 13 is supported", "BAD_REQUEST", (("sec-websocket-version", "13"),))
    key = (request.header("sec-websocket-key") or "").encode("latin-1")
    try:
        valid = len(binascii.a2b_base64(key, strict_mode=True)) == 16
    except binascii.Error:
        valid = False
    if not valid:
        raise Refusal(400, "Sec-WebSocket-Key is missing or invalid", "BAD_REQUEST")
    from hashlib import sha1

    accept = binascii.b2a_base64(sha1(key + _GUID).digest(), newline=False).decode("ascii")
    return (("upgrade", "websocket"), ("connection", "Upgrade"), ("sec-websocket-accept", accept))


class WebSocketClosed(Exception):
    """The peer has sent its close frame (or broke the protocol, and was told)."""


class WebSocket:
    """Receives pieces of messages, sends whole ones, answers pings. ``heard`` counts all frames of the peer."""

    def __init__(self, *, wire: Wire) -> None:
        from wsproto.frame_protocol import FrameProtocol

        self._wire = wire
        self._frames: FrameProtocol = FrameProtocol(client=False, extensions=[])
        self._ready: list[tuple[bytes | str, bool]] = []
        self._close_sent = False
        self._close_received = False
        self.heard = 0

    @property
    def closing(self) -> bool:
        """Whether our close frame went out."""
        return self._close_sent

    async def receive_piece(self) -> tuple[bytes | str, bool]:
        """Part of a message as it came, and whether it is the last part. Raises WebSocketClosed and ClientGone."""
        while not self._ready:
            if self._close_received:
                raise WebSocketClosed
            data = await self._wire.receive()
            if not data:
                raise ClientGone("the connection ended without a close frame")
            await self._take(data)
        return self._ready.pop(0)

    async def receive(self, most: int) -> bytes | str:
        """A whole message. One of more than ``most`` bytes closes with 1009. Raises as ``receive_piece``."""
        parts: list[bytes] = []
        text = False
        size = 0
        while True:
            piece, last = await self.receive_piece()
            text = isinstance(piece, str)
            data = piece.encode("utf-8") if isinstance(piece, str) else bytes(piece)
            size += len(data)
            if size > most:
                await self.close(TOO_BIG, f"message larger than {most} bytes")
                raise WebSocketClosed
            parts.append(data)
            if last:
                whole = b"".join(parts)
                return whole.decode("utf-8", "replace") if text else whole

    async def send(self, data: bytes) -> None:
        """One binary message; nothing once the close frame went out."""
        if not self._close_sent:
            await self._wire.send(bytes(self._frames.send_data(data)))

    async def ping(self) -> None:
        if not self._close_sent:
            await self._wire.send(bytes(self._frames.ping(b"")))

    async def close(self, code: int, reason: str) -> None:
        """Send the close frame, once."""
        if not self._close_sent:
            self._close_sent = True
            await self._wire.send(bytes(self._frames.close(code, reason)))

    async def wait_closed(self) -> None:
        """After ``close``: give the peer a moment to answer, so that it reads all before the connection goes."""
        try:
            async with asyncio.timeout(CLOSE_SECONDS):
                while True:
                    await self.receive_piece()
                    self._ready.clear()
        except (TimeoutError, WebSocketClosed, ClientGone):
            return

    async def _take(self, data: bytes) -> None:
        from wsproto.frame_protocol import Opcode, ParseFailed

        try:
            self._frames.receive_bytes(data)
            for frame in self._frames.received_frames():
                self.heard += 1
                payload = frame.payload
                if frame.opcode is Opcode.CLOSE or isinstance(payload, tuple):
                    self._close_received = True
                    return
                if frame.opcode is Opcode.PING:
                    if not self._close_sent and not isinstance(payload, str):
                        await self._wire.send(bytes(self._frames.pong(bytes(payload))))
                elif frame.opcode is not Opcode.PONG:
                    piece = payload if isinstance(payload, str) else bytes(payload)
                    self._ready.append((piece, frame.message_finished))
        except ParseFailed as error:
            self._close_received = True
            await self.close(int(error.code), str(error))
