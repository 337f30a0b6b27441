"""One terminal and the program on it, with any number of viewers.

All viewers read the same recent bytes by their position in the stream: what a viewer missed while it was away and
what comes live are one thing, so nothing falls in between. A viewer that does not keep up holds the program back for
a while, as a slow terminal does; one that takes nothing for ten seconds is cut, so that it cannot freeze the others.

The exit code is told when the child was reaped *and* the terminal is drained. The kernel hands output over in the
background, so an empty terminal proves nothing: only the error of a terminal without any other side does, or half a
second for the case that something in the background keeps that side open.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import signal
import struct
import termios
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass

from . import environment
from .children import Child, Identity
from .descendants import Descendants
from .process import Surroundings, encode
from .stdin_pipe import StdinPipe

READ_BYTES = 16 * 1024
MERGED_BYTES = 4096
SENT_BYTES = 65_535
HISTORY_BYTES = 1024 * 1024
LAG_BYTES = 512 * 1024
LAG_SECONDS = 10.0
DRAIN_SECONDS = 0.5
IUTF8 = 0o40000


@dataclass(frozen=True)
class PtyOrder:
    """What a request asks for; sizes are clamped already."""

    command: str
    args: tuple[str, ...]
    env: Mapping[str, str]
    working_dir: str | None
    rows: int
    cols: int
    identity: Identity | None


class Viewer:
    """One attached client: where it is in the stream, and whether it must go (``cut`` says why)."""

    def __init__(self, position: int) -> None:
        self.position = position
        self.ready = False
        self.cut: str | None = None


class PtySession:
    """See the module's text. ``over`` is set at the end; ``exit_code`` is 128 + signal for a death by signal."""

    def __init__(self, *, session_id: str, token: str, order: PtyOrder, surroundings: Surroundings) -> None:
        self.id = session_id
        self.token = token
        self.order = order
        self.rows, self.cols = order.rows, order.cols
        self.pid = 0
        self.created_at = int(time.time() * 1000)
        self.ended_at: int | None = None
        self.exit_code: int | None = None
        self.terminated = False
        self.over = asyncio.Event()
        self.viewers: set[Viewer] = set()
        self.input: StdinPipe | None = None
        self._surroundings = surroundings
        self._mark = f"{surroundings.mark}-{session_id}"
        self._child: Child | None = None
        self._master = -1
        self._history: deque[bytes] = deque()
        self._first = 0  # position of the first byte kept
        self._next = 0
        self._paused = False
        self._cutter: asyncio.TimerHandle | None = None
        self._hung_up: asyncio.Future[None] = surroundings.loop.create_future()
        self._waiting: set[asyncio.Future[None]] = set()
        self._task: asyncio.Task[None] | None = None

    @property
    def alive(self) -> bool:
        return not self.over.is_set()

    def start(self) -> None:
        """Raises OSError."""
        order, surroundings = self.order, self._surroundings
        master, slave = os.openpty()
        try:
            _prepare(slave, order)
            env = environment.for_process(
                surroundings.base_environment, wanted=order.env, identity=order.identity, mark=self._mark
            )
            env.setdefault(b"TERM", b"xterm-256color")
            child = surroundings.children.spawn(
                [encode(order.command), *map(encode, order.args)],
                env=env,
                cwd=encode(order.working_dir) if order.working_dir is not None else None,
                stdin=slave,
                stdout=slave,
                stderr=slave,
                identity=order.identity,
                before_exec=_take_terminal,
            )
        except BaseException:
            os.close(master)
            raise
        finally:
            os.close(slave)
        os.set_blocking(master, False)
        self._master, self._child, self.pid = master, child, child.pid
        self.input = StdinPipe(loop=surroundings.loop, fd=os.dup(master))
        surroundings.loop.add_reader(master, self._readable)
        self._task = surroundings.loop.create_task(self._attend(child))

    def resize(self, rows: int, cols: int) -> None:
        """Raises OSError when the terminal is gone."""
        if self._master < 0:
            raise ProcessLookupError("the session has ended")
        fcntl.ioctl(self._master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, cols, 0, 0))
        self.rows, self.cols = rows, cols

    def hang_up(self) -> None:
        """Ask the program to go; viewers are told that the session was terminated."""
        self.terminated = True
        if self._child is not None and not self._child.exited.done():
            self._child.signal_group(signal.SIGHUP)
            self._child.signal_group(signal.SIGCONT)

    async def kill(self) -> None:
        """SIGKILL for all that runs on the terminal."""
        self.terminated = True
        if self._child is not None and not self._child.exited.done():
            descendants = Descendants(leader=self.pid, mark=self._mark)
            descendants.look_while_leader_lives()
            self._child.signal_group(signal.SIGKILL)
            await descendants.kill()

    def attach(self) -> Viewer:
        viewer = Viewer(self._first)
        self.viewers.add(viewer)
        return viewer

    def detach(self, viewer: Viewer) -> None:
        self.viewers.discard(viewer)
        self._let_flow()

    async def read(self, viewer: Viewer) -> bytes:
        """The next bytes for a viewer; empty when the session is over or the viewer was cut."""
        while viewer.cut is None:
            data = self._from(max(viewer.position, self._first))
            if data:
                viewer.position = max(viewer.position, self._first) + len(data)
                self._let_flow()
                return data
            if self.over.is_set():
                return b""
            waiting = self._surroundings.loop.create_future()
            self._waiting.add(waiting)
            try:
                await waiting
            finally:
                self._waiting.discard(waiting)
        return b""

    def close(self) -> None:
        """Let go of everything but the program."""
        if self._task is not None:
            self._task.cancel()
        self._hang_up_master()
        self.over.set()
        self._wake()

    def _readable(self) -> None:
        try:
            data = os.read(self._master, READ_BYTES)
        except BlockingIOError:
            return
        except OSError:
            # EIO: no process has the other side open any more.
            data = b""
        if not data:
            self._surroundings.loop.remove_reader(self._master)
            if not self._hung_up.done():
                self._hung_up.set_result(None)
            return
        if self._history and len(self._history[-1]) < MERGED_BYTES:
            self._history[-1] += data
        else:
            self._history.append(data)
        self._next += len(data)
        while self._next - self._first > HISTORY_BYTES:
            self._first += len(self._history.popleft())
        self._wake()
        if self._lag() > LAG_BYTES:
            self._paused = True
            self._surroundings.loop.remove_reader(self._master)
            self._watch_laggards()

    def _from(self, position: int) -> bytes:
        """Up to 64 KiB from ``position`` on."""
        parts: list[bytes] = []
        size = 0
        begin = self._first
        for chunk in self._history:
            end = begin + len(chunk)
            if end > position:
                parts.append(chunk[max(0, position - begin) :])
                size += len(parts[-1])
                if size >= SENT_BYTES:
                    break
            begin = end
        return b"".join(parts)[:SENT_BYTES]

    def _lag(self) -> int:
        return max((self._next - viewer.position for viewer in self.viewers if viewer.ready), default=0)

    def _let_flow(self) -> None:
        if self._paused and self._lag() <= LAG_BYTES // 2:
            self._paused = False
            if self._cutter is not None:
                self._cutter.cancel()
                self._cutter = None
            if self._master >= 0 and not self._hung_up.done():
                self._surroundings.loop.add_reader(self._master, self._readable)

    def _watch_laggards(self) -> None:
        """Cut those that take nothing from now on for ten seconds, again and again while the program is held back."""
        positions = {viewer: viewer.position for viewer in self.viewers if viewer.ready}
        self._cutter = self._surroundings.loop.call_later(LAG_SECONDS, self._cut, positions)

    def _cut(self, positions: dict[Viewer, int]) -> None:
        self._cutter = None
        for viewer, position in positions.items():
            lag = self._next - viewer.position
            if viewer in self.viewers and viewer.position == position and lag > LAG_BYTES // 2:
                viewer.cut = f"output lagged by {lag} bytes"
                self.viewers.discard(viewer)
        self._wake()
        self._let_flow()
        if self._paused:
            self._watch_laggards()

    async def _attend(self, child: Child) -> None:
        code = await child.exited
        self.ended_at = int(time.time() * 1000)
        while not self._hung_up.done():
            seen = self._next
            await asyncio.wait([self._hung_up], timeout=DRAIN_SECONDS)
            if self._next == seen and not self._paused:
                break
        self.exit_code = code if code >= 0 else 128 - code
        self._hang_up_master()
        self.over.set()
        self._wake()

    def _hang_up_master(self) -> None:
        if self.input is not None:
            self.input.abandon()
        if self._cutter is not None:
            self._cutter.cancel()
            self._cutter = None
        if self._master >= 0:
            self._surroundings.loop.remove_reader(self._master)
            os.close(self._master)
            self._master = -1

    def _wake(self) -> None:
        for waiting in self._waiting:
            if not waiting.done():
                waiting.set_result(None)


def _prepare(slave: int, order: PtyOrder) -> None:
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", order.rows, order.cols, 0, 0))
    modes = termios.tcgetattr(slave)
    modes[0] |= IUTF8  # erasing in cooked mode takes whole characters
    termios.tcsetattr(slave, termios.TCSANOW, modes)
    if order.identity is not None:
        os.fchown(slave, order.identity.uid, -1)


def _take_terminal() -> None:
    """In the child, after its session began: make its standard input the controlling terminal."""
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
