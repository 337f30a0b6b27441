"""A process's standard input: an ordered queue of bytes with back pressure, apart from every other process's."""

from __future__ import annotations

import asyncio
import os

PENDING_BYTES = 1024 * 1024


class StdinClosed(Exception):
    """Nothing can be written any more; the text says why."""


class StdinPipe:
    """Writes to the non-blocking descriptor ``fd``, which it owns."""

    __slots__ = ("_fd", "_loop", "_pending", "_room", "_waiting", "_why_closed")

    def __init__(self, *, loop: asyncio.AbstractEventLoop, fd: int) -> None:
        self._loop = loop
        self._fd = fd
        self._pending = bytearray()
        self._waiting = False
        self._room: set[asyncio.Future[None]] = set()
        self._why_closed: str | None = None

    @property
    def writable(self) -> bool:
        return self._why_closed is None

    async def write(self, data: bytes) -> None:
        """Queue ``data`` whole; waits while 1 MiB is pending already. Raises StdinClosed."""
        while self._why_closed is None and len(self._pending) >= PENDING_BYTES:
            room = self._loop.create_future()
            self._room.add(room)
            try:
                await room
            finally:
                self._room.discard(room)
        if self._why_closed is not None:
            raise StdinClosed(self._why_closed)
        self._pending += data
        if not self._waiting:
            self._flush()

    def close(self) -> None:
        """End of input after what is queued. Idempotent."""
        if self._why_closed is None:
            self._why_closed = "Process stdin is closed"
            self._wake()
            if not self._pending:
                self._drop()

    def abandon(self) -> None:
        """The process has ended; what is queued is lost."""
        if self._why_closed is None:
            self._why_closed = "Process stdin is closed"
        self._drop()
        self._wake()

    def _flush(self) -> None:
        try:
            while self._pending:
                with memoryview(self._pending) as view:
                    written = os.write(self._fd, view[:65536])
                del self._pending[:written]
        except BlockingIOError:
            if not self._waiting:
                self._waiting = True
                self._loop.add_writer(self._fd, self._flush)
        except OSError:
            # The program closed its end: an ordinary way to use a pipe, told to the next writer.
            self._why_closed = "Process stdin channel closed"
            self._drop()
        else:
            if self._waiting:
                self._waiting = False
                self._loop.remove_writer(self._fd)
            if self._why_closed is not None:
                self._drop()
        if len(self._pending) < PENDING_BYTES:
            self._wake()

    def _wake(self) -> None:
        for room in self._room:
            if not room.done():
                room.set_result(None)

    def _drop(self) -> None:
        self._pending.clear()
        if self._fd < 0:
            return
        if self._waiting:
            self._waiting = False
            self._loop.remove_writer(self._fd)
        os.close(self._fd)
        self._fd = -1
