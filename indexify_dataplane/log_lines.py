"""How a log event looks as a line: for people, or as a JSON object."""

from __future__ import annotations

import json
import math
import re
import time
from collections.abc import Callable, Mapping
from enum import Enum
from typing import Any

COLOURS = {"ERROR": "31", "WARN": "33", "INFO": "32", "DEBUG": "34"}

_BARE = re.compile(r"[^\s\"'=\\\x00-\x1f\x7f-\x9f]+")
_CONTROL = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028\u2029]")
_encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode

Line = Callable[[float, str, str, str, Mapping[str, Any], Mapping[str, Any]], str]
"""Makes one line, without its end, of: seconds since the epoch, level, target, message, fields, span."""


class Clock:
    """Seconds since the epoch as RFC 3339 in UTC with microseconds; the part down to the second is kept."""

    def __init__(self) -> None:
        self._kept = (-1, "")

    def __call__(self, when: float) -> str:
        whole = math.floor(when)
        micros = min(int((when - whole) * 1_000_000), 999_999)
        # Several threads may be in here: the second and its text are read and written as one.
        second, text = self._kept
        if whole != second:
            text = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(whole))
            self._kept = (whole, text)
        return f"{text}.{micros:06d}Z"


def plain(value: Any) -> Any:
    """The value as a log line carries it: numbers, booleans and None as they are, all else as text. Never raises."""
    if value is None or isinstance(value, bool | str):
        return value if type(value) in (bool, str, type(None)) else str.__str__(value)
    if type(value) is int or (type(value) is float and math.isfinite(value)):
        return value
    try:
        if isinstance(value, Enum):
            return plain(value.value)
        if isinstance(value, bytes):
            return value.decode("utf-8", "backslashreplace")
        if isinstance(value, BaseException):
            return f"{type(value).__name__}: {value}"
        if isinstance(value, dict | list | tuple | set | frozenset):
            return _encode(_inside(value, 8))
        return str(value)
    except Exception as error:
        return f"<{type(value).__name__} that cannot be shown: {type(error).__name__}>"


def _inside(value: Any, depth: int) -> Any:
    if depth == 0:
        return "…"
    if isinstance(value, dict):
        return {str(name): _inside(inner, depth - 1) for name, inner in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_inside(inner, depth - 1) for inner in value]
    return plain(value)


def json_line(clock: Clock) -> Line:
    """The README's shape: timestamp, level, target, span where something is bound, fields with the message first."""

    def line(
        when: float, level: str, target: str, message: str, fields: Mapping[str, Any], span: Mapping[str, Any]
    ) -> str:
        event: dict[str, Any] = {"timestamp": clock(when), "level": level, "target": target}
        if span:
            event["span"] = {name: plain(value) for name, value in span.items()}
        event["fields"] = {"message": message}
        for name, value in fields.items():
            event["fields"]["message_" if name == "message" else name] = plain(value)
        return _encode(event)

    return line


def human_line(clock: Clock, *, colour: bool = False) -> Line:
    """``TIMESTAMP  LEVEL target: message key=value``; the bound context comes last, and a traceback below."""

    def line(
        when: float, level: str, target: str, message: str, fields: Mapping[str, Any], span: Mapping[str, Any]
    ) -> str:
        shown = f"{level:>5}"
        if colour:
            shown = f"\x1b[{COLOURS.get(level, '0')}m{shown}\x1b[0m"
        parts = [f"{clock(when)} {shown} {target}: {one_line(message)}"]
        parts += [f"{name}={_value(value)}" for name, value in fields.items() if name != "traceback"]
        parts += [f"{name}={_value(value)}" for name, value in span.items() if name not in fields]
        text = " ".join(parts)
        if "traceback" in fields:
            text += "\n" + _CONTROL.sub(_escape, str(plain(fields["traceback"]))).rstrip("\n")
        return text

    return line


def one_line(text: str) -> str:
    """Control characters escaped, so that nobody's text can forge a line or move the terminal's cursor."""
    return _CONTROL.sub(_escape, text).replace("\n", "\\n")


def _value(value: Any) -> str:
    shown = plain(value)
    if isinstance(shown, str) and not _BARE.fullmatch(shown):
        return one_line(_encode(shown))
    return "true" if shown is True else "false" if shown is False else "null" if shown is None else str(shown)


def _escape(match: re.Match[str]) -> str:
    return (
        "\t" if match[0] == "\t" else f"\\u{ord(match[0]):04x}" if ord(match[0]) > 0xFF else f"\\x{ord(match[0]):02x}"
    )
