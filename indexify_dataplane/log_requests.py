"""The request log of the proxy: the one exception to the log pipe.

At 20 microseconds an event, twisted.logger would take half of the proxy's throughput, so a request's line is made
straight into a buffer that is written at most every 200 ms, or when 64 KiB have gathered. Any other log line is written
after the buffer, so the order in the log is the order of events.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from json.encoder import encode_basestring as _quoted
from typing import Any, Protocol

from .log_directives import ERROR, INFO, OFF, PROXY, WARN
from .log_lines import COLOURS, Clock, one_line

EVERY_SECS = 0.2
FULL = 64 * 1024


class Buffer(Protocol):
    def buffer(self, line: str) -> int:
        """Keep a line for later; returns the characters that wait."""

    def flush(self) -> None:
        """Write all that waits."""


class Later(Protocol):
    """The part of ``IReactorTime`` that is needed here."""

    def callLater(self, delay: float, callable: Callable[..., Any], *args: Any, **kwargs: Any) -> Any: ...


class RequestLog:
    """One per node. ``enabled`` says whether any request can give a line; the caller may then skip measuring."""

    def __init__(
        self, *, out: Buffer, clock: Later, threshold: int, local: bool, colour: bool = False,
        now: Callable[[], float] = time.time,
    ) -> None:  # fmt: skip
        self.enabled = threshold >= ERROR
        self._out = out
        self._clock = clock
        self._threshold = threshold
        self._local = local
        self._colour = colour
        self._now = now
        self._stamp = Clock()
        self._pending: Any = None

    def completed(
        self,
        sandbox_id: str,
        port: int,
        method: str,
        path: str,
        status_code: int,
        duration_ms: float,
        container_addr: str,
    ) -> None:
        """A container's answer has been passed on. Below 400 it is an INFO event, below 500 a WARN, else an ERROR."""
        if status_code < 400:
            level, needed, message = "INFO", INFO, "Request completed"
        elif status_code < 500:
            level, needed, message = "WARN", WARN, "Request completed with a client error"
        else:
            level, needed, message = "ERROR", ERROR, "Request completed with a server error"
        if needed > self._threshold:
            return
        stamp = self._stamp(self._now())
        if self._local:
            shown = f"\x1b[{COLOURS[level]}m{level:>5}\x1b[0m" if self._colour else f"{level:>5}"
            line = one_line(
                f"{message} status_code={status_code} duration_ms={duration_ms:.3f} container_addr={container_addr} "
                f"sandbox_id={sandbox_id} port={port} method={method} path={path}"
            )
            line = f"{stamp} {shown} {PROXY}: {line}"
        else:
            line = (
                f'{{"timestamp":"{stamp}","level":"{level}","target":"{PROXY}","span":{{"sandbox_id":{_quoted(sandbox_id)},'
                f'"port":{port},"method":{_quoted(method)},"path":{_quoted(path)}}},"fields":{{"message":"{message}",'
                f'"status_code":{status_code},"duration_ms":{duration_ms:.3f},"container_addr":{_quoted(container_addr)}}}}}'
            )
        if self._out.buffer(line) >= FULL:
            self._out.flush()
        elif self._pending is None:
            self._pending = self._clock.callLater(EVERY_SECS, self._flush)

    def stop(self) -> None:
        """Write what waits and let go of the clock; later requests are not logged."""
        self.enabled, self._threshold = False, OFF
        if self._pending is not None:
            self._pending.cancel()
        self._flush()

    def _flush(self) -> None:
        self._pending = None
        self._out.flush()
