"""The node's only log pipe: twisted.logger, the standard library's logging and Python's warnings end here, as lines on
one stream. ``start`` for the console script; under twistd a ``LogPipe`` is set on the Application.
"""

from __future__ import annotations

import contextlib
import contextvars
import io
import logging
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import IO, Any, cast

import twisted.logger
from twisted.logger import ILogObserver, formatEvent, globalLogBeginner, globalLogPublisher
from twisted.python.failure import Failure
from zope.interface import implementer  # type: ignore[import-untyped]

from .log_directives import DEBUG, ERROR, INFO, PROXY, TRACE, WARN, Directives, from_environment, target
from .log_lines import Clock, Line, human_line, json_line, plain
from .log_requests import Later, RequestLog

NOTHING: Mapping[str, Any] = MappingProxyType({})
_NUMBERS = {"debug": DEBUG, "info": INFO, "warn": WARN, "error": ERROR, "critical": ERROR}
_SHOWN = {"debug": "DEBUG", "info": "INFO", "warn": "WARN", "error": "ERROR", "critical": "ERROR"}
_LEGACY = frozenset(("message", "time", "isError", "system", "failure", "why", "format"))
_STANDARD = {ERROR: logging.ERROR, WARN: logging.WARNING, INFO: logging.INFO, DEBUG: logging.DEBUG, TRACE: 1}

_bound: contextvars.ContextVar[Mapping[str, Any]] = contextvars.ContextVar("log context", default=NOTHING)


@contextlib.contextmanager
def bound(**fields: Any) -> Iterator[None]:
    """Events inside of the ``with`` carry these values in their span, whichever coroutine or pool thread they come
    from; inner values hide outer ones."""
    token = _bound.set({**_bound.get(), **fields})
    try:
        yield
    finally:
        _bound.reset(token)


def context() -> Mapping[str, Any]:
    """What is bound now."""
    return _bound.get()


class Logger(twisted.logger.Logger):
    """For hot paths: an event that nobody wants costs half a microsecond instead of the two that building it takes.
    The namespace has to be given."""

    threshold = TRACE

    def emit(self, level: Any, format: str | None = None, **kwargs: object) -> None:
        if _NUMBERS.get(level.name, ERROR) <= Logger.threshold:
            super().emit(level, format, **kwargs)


class LineWriter:
    """Lines to a stream, from any thread. When the stream fails, that is said once on the error stream and the lines
    are lost: a full disk or a closed pipe must not end the node."""

    def __init__(self, stream: IO[str], errors: IO[str] | None = None) -> None:
        self.lost = 0
        self._stream = stream
        self._errors = errors
        # Reentrant: a collected object may log from within a write.
        self._lock = threading.RLock()
        self._waiting: list[str] = []
        self._size = 0

    def write(self, line: str) -> None:
        """Write the line now, after those that wait."""
        with self._lock:
            self._waiting.append(line)
            self._flush()

    def buffer(self, line: str) -> int:
        """Keep the line for the next flush; returns the characters that wait."""
        with self._lock:
            self._waiting.append(line)
            self._size += len(line) + 1
            return self._size

    def flush(self) -> None:
        with self._lock:
            if self._waiting:
                self._flush()

    def _flush(self) -> None:
        lines, self._waiting, self._size = self._waiting, [], 0
        lines.append("")
        text = "\n".join(lines)
        try:
            self._stream.write(text)
            self._stream.flush()
        except (OSError, ValueError) as error:
            self._failed(error, len(lines) - 1)

    def _failed(self, error: Exception, lines: int) -> None:
        first = not self.lost
        self.lost += lines
        if first and self._errors is not None:
            with contextlib.suppress(OSError, ValueError):
                self._errors.write(f"cannot write the log: {error}; lines are lost\n")


@implementer(ILogObserver)
class LogPipe:
    """A twisted.logger observer that filters, formats and writes. Never raises."""

    def __init__(self, *, directives: Directives, out: LineWriter, local: bool, colour: bool = False) -> None:
        self._directives = directives
        self._out = out
        self._local = local
        self._colour = colour
        self._line: Line = human_line(Clock(), colour=colour) if local else json_line(Clock())
        self._levels: dict[str, int] = {}
        self._records: _Records | None = None
        self._requests: list[RequestLog] = []

    def __call__(self, event: Mapping[str, Any]) -> None:
        namespace = event.get("log_namespace") or "log_legacy"
        level = event["log_level"].name if "log_level" in event else "info"
        if namespace == "log_legacy" and level == "info":
            # Twisted's own chatter: every port and factory that starts or stops.
            level = "debug"
        wanted = self._levels.get(namespace)
        if wanted is None:
            wanted = self.level(namespace)
        if _NUMBERS.get(level, ERROR) > wanted:
            return
        try:
            self._out.write(self._event(event, namespace, _SHOWN.get(level, "ERROR")))
        except Exception as error:
            text = f"an event cannot be shown: {type(error).__name__}"
            self._out.write(self._line(0.0, "ERROR", "indexify_dataplane::logs", text, {"namespace": namespace}, {}))

    def level(self, namespace: str) -> int:
        """The most verbose level (0 off … 5 trace) wanted of a module."""
        level = self._levels[namespace] = self._directives.level(namespace)
        return level

    def say(self, level: str, message: str, **fields: Any) -> None:
        """Write an event about the log itself, whatever the directives say."""
        self._out.write(self._line(time.time(), level, "indexify_dataplane::logs", message, fields, context()))

    def request_log(self, clock: Later) -> RequestLog:
        """The proxy's request log, in this pipe's format and order; stopped with the pipe at the latest."""
        made = RequestLog(
            out=self._out, clock=clock, threshold=self.level(PROXY), local=self._local, colour=self._colour
        )
        self._requests.append(made)
        return made

    def capture(self) -> None:
        """Take over the records of libraries that use the standard library's logging."""
        self._records = _Records(self)
        root = logging.getLogger()
        self._before = (root.level, root.handlers[:])
        root.handlers[:] = [self._records]
        root.setLevel(_STANDARD.get(self._directives.most, logging.CRITICAL + 1))
        Logger.threshold = self._directives.most

    def stop(self) -> None:
        """Write what waits and undo ``capture``; the stream stays open, it is the caller's."""
        for requests in self._requests:
            requests.stop()
        self._requests.clear()
        with contextlib.suppress(ValueError):
            globalLogPublisher.removeObserver(cast(ILogObserver, self))
        if self._records is not None:
            root = logging.getLogger()
            root.setLevel(self._before[0])
            root.handlers[:] = self._before[1]
            Logger.threshold = TRACE
            self._records = None
        self._out.flush()

    def _event(self, event: Mapping[str, Any], namespace: str, level: str) -> str:
        text = event.get("log_format")
        message = text if isinstance(text, str) and "{" not in text and "}" not in text else formatEvent(dict(event))
        legacy = "log_text" in event
        fields = {
            name: value
            for name, value in event.items()
            if not name.startswith("log_") and not (legacy and name in _LEGACY)
        }
        failure = event.get("log_failure")
        if isinstance(failure, Failure):
            fields.setdefault("error", f"{type(failure.value).__name__}: {plain(failure.getErrorMessage())}")
            fields.setdefault("traceback", failure.getTraceback())
            message = message or "unhandled error"
        return self._line(event["log_time"], level, target(namespace), message, fields, context())


class _Records(logging.Handler):
    """Turns records of the standard library's logging into events of the pipe."""

    def __init__(self, pipe: LogPipe) -> None:
        super().__init__()
        self._pipe = pipe

    def emit(self, record: logging.LogRecord) -> None:
        levels = twisted.logger.LogLevel
        level = (
            levels.error if record.levelno >= logging.ERROR
            else levels.warn if record.levelno >= logging.WARNING
            else levels.info if record.levelno >= logging.INFO
            else levels.debug
        )  # fmt: skip
        try:
            message = record.getMessage()
        except Exception as error:
            message = f"{record.msg} ({type(error).__name__} while its arguments were put in)"
        event: dict[str, Any] = {
            "log_format": "{log_text}",
            "log_text": message,
            "log_level": level,
            "log_namespace": record.name,
            "log_time": record.created,
        }
        if record.exc_info and record.exc_info[1] is not None:
            event["error"] = record.exc_info[1]
            event["traceback"] = logging.Formatter().formatException(record.exc_info)
        self._pipe(event)


def create(env: str, environ: Mapping[str, str], stream: IO[str] | None = None) -> LogPipe:
    """A pipe to ``stream``, the process's own standard output where none is given. ``env`` ``local`` means lines for
    people. What is wrong with the directives is said at once."""
    out = stream if stream is not None else sys.__stdout__
    if out is None:
        raise RuntimeError("standard output is closed: there is nowhere to log to")
    if isinstance(out, io.TextIOWrapper):
        # What UTF-8 cannot carry (lone surrogates of odd file names) becomes an escape that JSON knows as well.
        out.reconfigure(encoding="utf-8", errors="backslashreplace")
    directives, warnings = from_environment(environ)
    colour = env == "local" and not environ.get("NO_COLOR") and out.isatty()
    writer = LineWriter(out, sys.__stderr__)
    pipe = LogPipe(directives=directives, out=writer, local=env == "local", colour=colour)
    for warning in warnings:
        pipe.say("WARN", warning)
    return pipe


def start(env: str, environ: Mapping[str, str], stream: IO[str] | None = None) -> LogPipe:
    """Make a pipe and send everything that is logged in this process through it. Warnings of Python come through
    twisted.logger, which takes them over when logging begins. The caller stops the pipe."""
    pipe = create(env, environ, stream)
    globalLogBeginner.beginLoggingTo([cast(ILogObserver, pipe)], redirectStandardIO=False)
    pipe.capture()
    return pipe
