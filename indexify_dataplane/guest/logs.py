"""The daemon's own log: one plain line per event on standard error, never waiting for a reader."""

from __future__ import annotations

import time
from collections.abc import Callable

LEVELS = {"debug": 10, "info": 20, "warn": 30, "error": 40}


class Log:
    """Writes ``time LEVEL message key=value ...`` through ``write``; lines below ``level`` are dropped."""

    def __init__(self, *, write: Callable[[bytes], None], level: str = "info") -> None:
        self._write = write
        self._threshold = LEVELS.get(level.strip().lower(), LEVELS["info"])

    def debug(self, message: str, **values: object) -> None:
        self._emit("debug", message, values)

    def info(self, message: str, **values: object) -> None:
        self._emit("info", message, values)

    def warn(self, message: str, **values: object) -> None:
        self._emit("warn", message, values)

    def error(self, message: str, **values: object) -> None:
        self._emit("error", message, values)

    def failure(self, message: str, error: BaseException, **values: object) -> None:
        """An error nobody expected, with the place it came from."""
        import traceback

        trace = "".join(traceback.format_exception(error)).rstrip().replace("\n", "\n    ")
        self._emit("error", message, {**values, "error": f"{type(error).__name__}: {error}"})
        self._write(f"    {trace}\n".encode("utf-8", "backslashreplace"))

    def _emit(self, level: str, message: str, values: dict[str, object]) -> None:
        if LEVELS[level] < self._threshold:
            return
        now = time.time()
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now))
        fields = "".join(f" {name}={_field(value)}" for name, value in values.items())
        line = f"{stamp}.{int(now * 1000) % 1000:03d}Z {level.upper():5} {message}{fields}\n"
        self._write(line.encode("utf-8", "backslashreplace"))


def _field(value: object) -> str:
    text = str(value)
    return repr(text) if not text or any(character in text for character in " \n\t\"'") else text
