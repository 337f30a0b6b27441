"""``run``: start, output and exit of one process as one event stream that loses nothing.

The process waits while its client is slow, as it would for a pipe. It ends with the stream: a client that goes away
has its process killed, because clients then either report an error or start the command again.
"""

from __future__ import annotations

import asyncio

from .messages import Out, encode_json
from .output_log import STDERR, STDOUT
from .output_view import EventLines
from .process import Ended, Process
from .processes import Processes


class RunStream:
    """One run. ``timeout`` in seconds, None: no limit; 0 kills at once."""

    def __init__(self, *, process: Process, processes: Processes, timeout: float | None) -> None:
        self._process = process
        self._processes = processes
        self._taken = 0
        self._timed_out = False
        self._stop: int | None = None
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(timeout, self._expire) if timeout is not None else None
        process.lossless_reader = lambda: self._taken
        process.end.add_done_callback(self._ended)

    async def send(self, out: Out) -> None:
        process = self._process
        await out.write(_event("started", {"pid": process.pid, "started_at": process.started_at}))
        lines = EventLines(log=process.log, streams=(STDOUT, STDERR), tagged=True, event="output")
        await lines.send(out, start=0, until=lambda: self._stop, took=self._took)
        await out.write(_event("exit", self._exit(await asyncio.shield(process.end))))

    def release(self) -> None:
        """The stream is over, one way or the other."""
        if self._timer is not None:
            self._timer.cancel()
        self._process.release_output()
        self._kill()

    def _ended(self, end: asyncio.Future[Ended]) -> None:
        # A descendant outside the group may hold the pipes open; what came so far is all there is.
        self._stop = self._process.log.next
        self._process.log.nudge()

    def _took(self, size: int) -> None:
        self._taken += size
        self._process.taken()

    def _expire(self) -> None:
        if self._process.alive:
            self._timed_out = True
            self._kill()

    def _kill(self) -> None:
        if self._process.alive:
            self._processes.kill(self._process)

    def _exit(self, ended: Ended) -> dict[str, object]:
        result: dict[str, object] = {"exit_code": ended.exit_code} if ended.signal is None else {"signal": ended.signal}
        reason = "exited" if ended.signal is None else "signaled"
        if self._timed_out and ended.signal is not None:
            reason = "timed_out"
        elif ended.oom_killed:
            reason = "oom_killed"
        return {**result, "oom_killed": ended.oom_killed, "reason": reason}


def _event(name: str, data: dict[str, object]) -> bytes:
    return b"event: %b\ndata: %b\n\n" % (name.encode("ascii"), encode_json(data))
