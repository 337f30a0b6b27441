"""Reads one output pipe of a process into its history.

Bytes are kept as they are and decoded only when somebody reads them, so no byte a program writes can end the
capture. A line without an end is held back up to 64 KiB, then kept in pieces that never cut a UTF-8 character.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import sys
import termios
import time
from collections.abc import Callable

from .output_log import OutputLog

READ_BYTES = 64 * 1024
LINE_BYTES = 64 * 1024


class Capture:
    """Owns the non-blocking descriptor ``fd`` until its end; ``ended`` is called once then."""

    def __init__(
        self,
        *,
        loop: asyncio.AbstractEventLoop,
        fd: int,
        stream: int,
        log: OutputLog,
        ended: Callable[[], None],
        copy_to: Callable[[bytes], None] | None = None,
        backlog_full: Callable[[], bool] | None = None,
    ) -> None:
        self._loop = loop
        self._fd = fd
        self._stream = stream
        self._log = log
        self._ended = ended
        self._copy_to = copy_to
        self._backlog_full = backlog_full
        self._partial = b""
        self._paused = False
        self._owed: int | None = None
        self.settled: asyncio.Future[None] = loop.create_future()
        loop.add_reader(fd, self._readable)

    def settle(self) -> None:
        """The writer is dead: ``settled`` is done when what it left in the pipe was read."""
        if self._fd < 0:
            return
        size = bytearray(4)
        fcntl.ioctl(self._fd, termios.FIONREAD, size)
        self._owed = int.from_bytes(size, sys.byteorder)
        self._pay(0)

    def resume(self) -> None:
        """Read on after ``backlog_full`` had said stop."""
        if self._paused and self._fd >= 0:
            self._paused = False
            self._loop.add_reader(self._fd, self._readable)

    def close(self) -> None:
        """Stop reading; what was read of an unfinished line is kept."""
        if self._fd < 0:
            return
        self._loop.remove_reader(self._fd)
        os.close(self._fd)
        self._fd = -1
        if self._partial:
            partial, self._partial = self._partial, b""
            self._keep(partial)
        if not self.settled.done():
            self.settled.set_result(None)
        self._ended()

    def _readable(self) -> None:
        try:
            data = os.read(self._fd, READ_BYTES)
        except BlockingIOError:
            return
        except OSError:
            # A pipe has no errors but that there is nothing more.
            data = b""
        if not data:
            self.close()
            return
        self._pay(len(data))
        if self._copy_to is not None:
            self._copy_to(data)
        end = data.rfind(b"\n")
        if end >= 0:
            lines = self._partial + data[:end]
            self._partial = data[end + 1 :]
            self._keep(lines)
        else:
            self._partial += data
        if len(self._partial) > LINE_BYTES:
            *pieces, self._partial = pieces_of(self._partial)
            self._keep(b"\n".join(pieces))
        if self._backlog_full is not None and self._backlog_full():
            self._paused = True
            self._loop.remove_reader(self._fd)

    def _pay(self, size: int) -> None:
        if self._owed is not None:
            self._owed = max(0, self._owed - size)
            if self._owed == 0 and not self.settled.done():
                self.settled.set_result(None)

    def _keep(self, lines: bytes) -> None:
        if len(lines) > LINE_BYTES:
            lines = b"\n".join(piece for line in lines.split(b"\n") for piece in pieces_of(line))
        self._log.append(self._stream, int(time.time() * 1000), lines)


def pieces_of(line: bytes) -> list[bytes]:
    """The line in pieces of at most 64 KiB, cut between UTF-8 characters where it is UTF-8."""
    pieces: list[bytes] = []
    start = 0
    while len(line) - start > LINE_BYTES:
        end = start + LINE_BYTES
        for back in range(4):
            if line[end - back] & 0xC0 != 0x80:
                end -= back
                break
        pieces.append(line[start:end])
        start = end
    pieces.append(line[start:])
    return pieces
