"""The daemon's own standard streams, written without ever waiting for whoever reads them.

A container engine that stops reading its log pipe would freeze the whole daemon through one blocking write. So a pipe
or a terminal is opened a second time, non-blocking, and what does not fit is held up to a bound, then counted and
dropped. Regular files are written as they are: they do not wait for a reader, and a second opening would lose
their offset.
"""

from __future__ import annotations

import asyncio
import os
import stat

BACKLOG_BYTES = 256 * 1024


class Terminal:
    """One of standard output and standard error; ``write`` never blocks and never raises."""

    def __init__(self, *, loop: asyncio.AbstractEventLoop, fd: int) -> None:
        self._loop = loop
        self._backlog = bytearray()
        self._dropped = 0
        self._waiting = False
        self._fd, self._own, self._pollable = _open(fd)

    def write(self, data: bytes) -> None:
        if self._fd < 0:
            return
        if not self._pollable:
            self._put(data)
            return
        if len(self._backlog) + len(data) > BACKLOG_BYTES:
            self._dropped += len(data)
            return
        if self._dropped:
            self._backlog += b"[%d bytes of output dropped: nobody read them in time]\n" % self._dropped
            self._dropped = 0
        self._backlog += data
        if not self._waiting:
            self._flush()

    def close(self) -> None:
        """Write what still goes out at once, then let the stream go."""
        if self._fd >= 0 and self._backlog:
            self._flush()
        self._stop()

    def _flush(self) -> None:
        while self._backlog and self._fd >= 0:
            written = self._put(self._backlog)
            if written <= 0:
                break
            del self._backlog[:written]
        if self._fd >= 0 and bool(self._backlog) != self._waiting:
            self._waiting = not self._waiting
            if self._waiting:
                self._loop.add_writer(self._fd, self._flush)
            else:
                self._loop.remove_writer(self._fd)

    def _put(self, data: bytes | bytearray) -> int:
        try:
            return os.write(self._fd, data)
        except BlockingIOError:
            return 0
        except OSError:
            # Nobody reads any more (or the disk is full), and there is no other place to say so.
            if self._pollable:
                self._stop()
            return -1

    def _stop(self) -> None:
        if self._waiting:
            self._loop.remove_writer(self._fd)
            self._waiting = False
        if self._own and self._fd >= 0:
            os.close(self._fd)
        self._fd = -1


def _open(fd: int) -> tuple[int, bool, bool]:
    """(descriptor or -1, whether it is ours to close, whether it can make us wait)."""
    try:
        mode = os.fstat(fd).st_mode
    except OSError:
        return -1, False, False
    if stat.S_ISREG(mode) or os.path.realpath(f"/proc/self/fd/{fd}") == "/dev/null":
        return fd, False, False
    if stat.S_ISSOCK(mode):
        os.set_blocking(fd, False)
        return fd, False, True
    try:
        return os.open(f"/proc/self/fd/{fd}", os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC), True, True
    except OSError:
        return fd, False, False
