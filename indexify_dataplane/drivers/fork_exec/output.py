"""Output files of containers: the last lines, and bounds for those that no supervisor watches. Blocking."""

from __future__ import annotations

import os

from .supervisor import rotate

BLOCK = 1 << 16
MOST = 1 << 20
"""Bytes read at most for one tail, however long its lines are."""


def tail(path: str, lines: int) -> str:
    """The last ``lines`` lines of ``path`` and, if it was rotated lately, of the file before it. Bytes that are no
    UTF-8 are replaced; a missing file has no lines."""
    if lines <= 0:
        return ""
    found = _last(path, lines)
    if len(found) < lines:
        found = _last(path + ".1", lines - len(found)) + found
    return "\n".join(line.decode("utf-8", "replace") for line in found)


def _last(path: str, lines: int) -> list[bytes]:
    try:
        with open(path, "rb") as file:
            end = file.seek(0, os.SEEK_END)
            start, text = end, b""
            while start > 0 and text.count(b"\n") <= lines and len(text) < MOST:
                start = max(0, start - BLOCK)
                file.seek(start)
                text = file.read(end - start)
    except FileNotFoundError:
        return []
    return text.removesuffix(b"\n").split(b"\n")[-lines:] if text else []


def bound(path: str, max_bytes: int, keep: int) -> bool:
    """Rotate the file if it is larger than ``max_bytes``; whether it was."""
    try:
        if os.stat(path).st_size <= max_bytes:
            return False
        rotate(path, keep)
    except FileNotFoundError:
        return False
    return True
