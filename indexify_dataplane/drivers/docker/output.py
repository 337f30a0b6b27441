"""A container's own output, as the engine keeps it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

HEADER = 8
"""Bytes before each frame: the stream's number, three zeros, the length (big-endian)."""
LARGEST = 256 * 1024
"""Bytes of output that are kept at most."""


def frames(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """The contents of a multiplexed stream's frames; chunks may split anywhere, the last frame may be cut."""
    buffer = bytearray()
    for chunk in chunks:
        buffer += chunk
        while len(buffer) >= HEADER:
            length = int.from_bytes(buffer[4:HEADER], "big")
            if len(buffer) < HEADER + length:
                break
            yield bytes(buffer[HEADER : HEADER + length])
            del buffer[: HEADER + length]
    if len(buffer) > HEADER:
        yield bytes(buffer[HEADER:])


def last_lines(contents: Iterable[bytes], lines: int) -> str:
    """Decoded with replacement; the end of it where it is too large."""
    kept = bytearray()
    for content in contents:
        kept += content
        if len(kept) > 2 * LARGEST:
            del kept[:-LARGEST]
    text = bytes(kept[-LARGEST:]).decode("utf-8", "replace").removesuffix("\n")
    return "\n".join(text.split("\n")[-lines:]) if lines > 0 else ""
