"""The Range header (RFC 9110 section 14)."""

from __future__ import annotations

from dataclasses import dataclass

from .messages import Request
from .refusal import Refusal


@dataclass(frozen=True)
class ByteRange:
    """Both ends count."""

    first: int
    last: int


def requested_range(request: Request, size: int, tag: str) -> ByteRange | None:
    """None for the whole file: no range, one that cannot be understood, several, or an If-Range that differs.

    Raises Refusal 416 for a range outside the file.
    """
    if request.method != "GET" or request.header("if-range") not in (None, tag):
        return None
    unit, _, text = (request.header("range") or "").partition("=")
    first_text, dash, last_text = text.strip().partition("-")
    if unit.strip().lower() != "bytes" or not dash or not all(_is_number(part) for part in (first_text, last_text)):
        return None
    if first_text:
        first = int(first_text)
        last = min(int(last_text), size - 1) if last_text else size - 1
        if last_text and int(last_text) < first:
            return None
    elif last_text:
        first, last = max(0, size - int(last_text)), size - 1
    else:
        return None
    if first > last:
        raise Refusal(416, "The range is outside the file", "BAD_RANGE", (("content-range", f"bytes */{size}"),))
    return ByteRange(first, last)


def _is_number(text: str) -> bool:
    return not text or (text.isascii() and text.isdigit() and len(text) < 20)
