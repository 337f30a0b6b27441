"""One client at a terminal over a WebSocket: binary messages whose first byte says what they are."""

from __future__ import annotations

import asyncio
import struct

from .logs import Log
from .messages import Wire
from .pty_session import PtySession, Viewer
from .ptys import Ptys
from .refusal import ClientGone
from .stdin_pipe import StdinClosed
from .websocket import GOING_AWAY, NORMAL, POLICY, WebSocket, WebSocketClosed

DATA, RESIZE, READY, EXIT = 0x00, 0x01, 0x02, 0x03

LARGEST_MESSAGE = 65_536
INPUT_BYTES_PER_SECOND = 1_048_576
PING_SECONDS = 30.0
MOST_ROWS, MOST_COLS = 500, 1000


class PtyAttachment:
    """Runs from the upgrade to the end of the connection."""

    def __init__(self, *, session: PtySession, ptys: Ptys, log: Log) -> None:
        self._session = session
        self._ptys = ptys
        self._log = log
        self._ready = asyncio.Event()
        self._window_began = 0.0
        self._window_bytes = 0

    async def attend(self, wire: Wire) -> None:
        socket = WebSocket(wire=wire)
        viewer = self._ptys.attach(self._session)
        loop = asyncio.get_running_loop()
        receiving = loop.create_task(self._receive(socket, viewer))
        sending = loop.create_task(self._send(socket, viewer))
        pinging = loop.create_task(self._ping(socket))
        tasks = [receiving, sending, pinging]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            receiving.cancel()
            await asyncio.wait([receiving])
            if socket.closing:
                await socket.wait_closed()
        finally:
            self._ptys.detach(self._session, viewer)
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
            for task in tasks:
                if not task.cancelled() and (error := task.exception()) is not None:
                    self._tell(error)

    def _tell(self, error: BaseException) -> None:
        if isinstance(error, ClientGone | WebSocketClosed):
            self._log.debug("terminal client left", session=self._session.id, reason=str(error))
        else:
            self._log.failure("terminal client cut by an error", error, session=self._session.id)

    async def _receive(self, socket: WebSocket, viewer: Viewer) -> None:
        while True:
            try:
                message = await socket.receive(LARGEST_MESSAGE)
            except WebSocketClosed:
                await socket.close(NORMAL, "")
                return
            if not isinstance(message, bytes) or not message:
                continue
            kind, payload = message[0], message[1:]
            if kind == DATA:
                if not self._admit(len(payload)):
                    await socket.close(POLICY, "input rate limit exceeded")
                    return
                await self._type(payload)
            elif kind == RESIZE and len(payload) >= 4:
                cols, rows = struct.unpack_from(">HH", payload)
                self._resize(rows, cols)
            elif kind == READY:
                viewer.ready = True
                self._ready.set()

    async def _send(self, socket: WebSocket, viewer: Viewer) -> None:
        session = self._session
        over = asyncio.get_running_loop().create_task(session.over.wait())
        ready = asyncio.get_running_loop().create_task(self._ready.wait())
        try:
            # A terminated session says so at once; one that ended by itself waits for whoever wants its output.
            await asyncio.wait([ready, over], return_when=asyncio.FIRST_COMPLETED)
            if not session.terminated:
                await ready
        finally:
            over.cancel()
            ready.cancel()
        if self._ready.is_set():
            while data := await session.read(viewer):
                await socket.send(bytes([DATA]) + data)
        if viewer.cut is not None:
            await socket.close(POLICY, viewer.cut)
        elif session.terminated or session.exit_code is None:
            await socket.close(GOING_AWAY, "session terminated")
        else:
            await socket.send(struct.pack(">Bi", EXIT, session.exit_code))
            await socket.close(NORMAL, f"exit:{session.exit_code}")

    async def _ping(self, socket: WebSocket) -> None:
        """Return when the client was silent from one ping to the next, or reads so little that no ping goes out."""
        await asyncio.sleep(PING_SECONDS)
        while True:
            heard = socket.heard
            try:
                async with asyncio.timeout(PING_SECONDS):
                    await socket.ping()
            except TimeoutError:
                return
            await asyncio.sleep(PING_SECONDS)
            if socket.heard == heard:
                return

    async def _type(self, data: bytes) -> None:
        if self._session.input is None:
            return
        try:
            await self._session.input.write(data)
        except StdinClosed:
            # Typed after the program has ended; the client learns of the end by itself.
            self._log.debug("input for an ended terminal session dropped", session=self._session.id)

    def _resize(self, rows: int, cols: int) -> None:
        try:
            self._session.resize(*clamped(rows, cols))
        except OSError as error:
            self._log.debug("terminal not resized", session=self._session.id, error=str(error))

    def _admit(self, size: int) -> bool:
        now = asyncio.get_running_loop().time()
        if now - self._window_began >= 1.0:
            self._window_began, self._window_bytes = now, 0
        self._window_bytes += size
        return self._window_bytes <= INPUT_BYTES_PER_SECOND


def clamped(rows: int, cols: int) -> tuple[int, int]:
    """A size a terminal can have."""
    return min(max(rows, 1), MOST_ROWS), min(max(cols, 1), MOST_COLS)
