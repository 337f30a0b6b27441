"""One process as the API knows it: what was asked for, the child that runs now, its input, output and end.

The end is published when the child was reaped *and* both output pipes are at their end, so that whoever sees "exited"
finds all output there; a descendant that keeps a pipe open delays this by one second at most.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from . import environment
from .capture import Capture
from .children import Child, Children, Identity
from .descendants import Descendants
from .oom import OomKills
from .output_log import STDERR, STDOUT, OutputLog
from .stdin_pipe import StdinPipe
from .supervision import Supervision

DRAIN_SECONDS = 1.0
RUN_BACKLOG_BYTES = 256 * 1024


@dataclass(frozen=True, slots=True)
class Order:
    """What a request asks to run. ``identity`` None: as the daemon itself."""

    command: str
    args: tuple[str, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict)
    working_dir: str | None = None
    stdin: bool = False
    stdout: bool = True
    stderr: bool = True
    identity: Identity | None = None
    group_ends_with_leader: bool = False
    copies: tuple[Callable[[bytes], None], Callable[[bytes], None]] | None = None


@dataclass(frozen=True, slots=True)
class Ended:
    """How a child ended: an exit code or a signal, when, and whether the kernel killed it for want of memory."""

    exit_code: int | None
    signal: int | None
    at_ms: int
    oom_killed: bool


class Surroundings:
    """What every process is started with."""

    def __init__(
        self,
        *,
        loop: asyncio.AbstractEventLoop,
        children: Children,
        base_environment: Mapping[bytes, bytes],
        oom_kills: OomKills,
        mark: str,
    ) -> None:
        self.loop = loop
        self.children = children
        self.base_environment = base_environment
        self.oom_kills = oom_kills
        self.mark = mark


class Process:
    """See the module's text. ``handle`` counts starts and is never used twice, unlike ``pid``."""

    # A thousand ended ones are kept.
    __slots__ = (
        "_captures", "_child", "_drained", "_mark", "_surroundings", "_task", "end", "ended", "handle",
        "keep_log_open", "log", "lossless_reader", "order", "pid", "started_at", "stdin", "supervision",
    )  # fmt: skip

    def __init__(self, *, handle: int, order: Order, log: OutputLog, surroundings: Surroundings) -> None:
        self.handle = handle
        self.order = order
        self.log = log
        self.pid = 0
        self.started_at = 0
        self.ended: Ended | None = None
        self.end: asyncio.Future[Ended] = surroundings.loop.create_future()
        self.stdin: StdinPipe | None = None
        self.lossless_reader: Callable[[], int] | None = None  # bytes it has taken; capture waits for it
        self.supervision: Supervision | None = None
        self.keep_log_open = False
        self._surroundings = surroundings
        self._mark = f"{surroundings.mark}-{handle}"
        self._child: Child | None = None
        self._captures: set[Capture] = set()
        self._drained: asyncio.Future[None] = surroundings.loop.create_future()
        self._task: asyncio.Task[None] | None = None

    @property
    def running(self) -> bool:
        return self.ended is None

    @property
    def alive(self) -> bool:
        """Whether the child itself was not reaped yet, which is a little before its end is published."""
        return self._child is not None and not self._child.exited.done()

    @property
    def over(self) -> bool:
        """Whether it has ended for good."""
        return self.ended is not None if self.supervision is None else not self.supervision.active

    @property
    def descendants(self) -> Descendants:
        return Descendants(leader=self.pid, mark=self._mark)

    @property
    def left_behind(self) -> Descendants:
        """What an ended process started and is still there. Its pid may be another's now: only the mark tells."""
        return Descendants(leader=-1, mark=self._mark)

    def start(self) -> None:
        """Spawn the child; also again after an end. Raises OSError."""
        order, surroundings, loop = self.order, self._surroundings, self._surroundings.loop
        pipes = _Pipes(stdin=order.stdin, stdout=order.stdout, stderr=order.stderr)
        started_at = int(time.time() * 1000)
        try:
            child = surroundings.children.spawn(
                [encode(order.command), *map(encode, order.args)],
                env=environment.for_process(
                    surroundings.base_environment, wanted=order.env, identity=order.identity, mark=self._mark
                ),
                cwd=encode(order.working_dir) if order.working_dir is not None else None,
                stdin=pipes.theirs[0],
                stdout=pipes.theirs[1],
                stderr=pipes.theirs[2],
                identity=order.identity,
            )
        except BaseException:
            pipes.close_ours()
            raise
        finally:
            pipes.close_theirs()
        child.group_ends_with_leader = order.group_ends_with_leader
        leftover, self._captures = self._captures, set()
        for capture in leftover:
            capture.close()
        self.pid, self.started_at, self._child, self.ended = child.pid, started_at, child, None
        if self.end.done():
            self.end = loop.create_future()
        self._drained = loop.create_future()
        self.stdin = StdinPipe(loop=loop, fd=pipes.ours[0]) if order.stdin else None
        captures = self._captures
        for fd, stream in ((pipes.ours[1], STDOUT), (pipes.ours[2], STDERR)):
            if fd >= 0:
                captures.add(self._capture(fd, stream, captures))
        self._task = loop.create_task(self._attend(child, bool(captures)))

    def signal_group(self, number: int) -> None:
        """Raises ProcessLookupError when it has ended."""
        if self._child is None:
            raise ProcessLookupError("the process was not started")
        self._child.signal_group(number)

    async def kill_tree(self) -> None:
        """SIGKILL for the group and, as far as they can be told, the descendants that left it."""
        if not self.alive:
            return
        descendants = self.descendants
        descendants.look_while_leader_lives()
        self.signal_group(signal.SIGKILL)
        await descendants.kill()

    def taken(self) -> None:
        """The lossless reader has taken some output: reading may go on."""
        if not self._backlog_full():
            for capture in self._captures:
                capture.resume()

    def release_output(self) -> None:
        """Nobody has to see all output any more: let the process write on."""
        self.lossless_reader = None
        self.taken()

    def close(self) -> None:
        """Give up what is held for it; the child itself is not touched."""
        if self._task is not None:
            self._task.cancel()
        if self.stdin is not None:
            self.stdin.abandon()
        for capture in list(self._captures):
            capture.close()

    def close_log_when_drained(self) -> None:
        """No further child will come: the history ends with the pipes of this one."""
        self.keep_log_open = False
        self._close_log_if_over()

    def reopen_log(self) -> None:
        """A further child has come after all; its output goes on in the same history."""
        self.keep_log_open = True
        self.log.closed = False

    def _capture(self, fd: int, stream: int, captures: set[Capture]) -> Capture:
        def ended() -> None:
            captures.discard(capture)
            if not captures and captures is self._captures:
                if not self._drained.done():
                    self._drained.set_result(None)
                self._close_log_if_over()

        capture = Capture(
            loop=self._surroundings.loop,
            fd=fd,
            stream=stream,
            log=self.log,
            ended=ended,
            copy_to=self.order.copies[stream - STDOUT] if self.order.copies is not None else None,
            backlog_full=self._backlog_full,
        )
        return capture

    async def _attend(self, child: Child, captured: bool) -> None:
        code = await child.exited
        at_ms = int(time.time() * 1000)
        oom = code in (-signal.SIGKILL, 128 + signal.SIGKILL) and not child.killed_by_us
        oom = oom and self._surroundings.oom_kills.claim()
        if self.stdin is not None:
            self.stdin.abandon()
        if captured and self.lossless_reader is not None:
            for capture in list(self._captures):
                capture.settle()
                await asyncio.shield(capture.settled)
        elif captured:
            await asyncio.wait([self._drained], timeout=DRAIN_SECONDS)
        self.ended = Ended(
            exit_code=code if code >= 0 else None, signal=-code if code < 0 else None, at_ms=at_ms, oom_killed=oom
        )
        self._close_log_if_over()
        self.end.set_result(self.ended)
        self._task = None

    def _close_log_if_over(self) -> None:
        if self.ended is not None and not self._captures and not self.keep_log_open:
            self.log.close()

    def _backlog_full(self) -> bool:
        reader = self.lossless_reader
        return reader is not None and self.log.bytes_total - reader() > RUN_BACKLOG_BYTES


class _Pipes:
    """The three standard streams of a child: its ends (or the null device) and ours (or -1), ours non-blocking."""

    def __init__(self, *, stdin: bool, stdout: bool, stderr: bool) -> None:
        self.theirs = [subprocess.DEVNULL] * 3
        self.ours = [-1] * 3
        try:
            for place, wanted in enumerate((stdin, stdout, stderr)):
                if wanted:
                    read, write = os.pipe2(os.O_CLOEXEC)
                    self.theirs[place], self.ours[place] = (read, write) if place == 0 else (write, read)
                    os.set_blocking(self.ours[place], False)
        except OSError:
            self.close_theirs()
            self.close_ours()
            raise

    def close_theirs(self) -> None:
        for fd in self.theirs:
            if fd >= 0:
                os.close(fd)

    def close_ours(self) -> None:
        for fd in self.ours:
            if fd >= 0:
                os.close(fd)


def encode(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")
