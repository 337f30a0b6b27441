"""Frames of HTTP/2 that are longer than announced, found by their first nine bytes."""

from __future__ import annotations

from h2.exceptions import ProtocolError

LARGEST_FRAME = 16384
PREFACE_BYTES = 24
_SETTINGS = 4


class FrameLengths:
    """Watches what a client sends. h2 looks at a frame only when it is there as a whole, so that each connection could
    make the sandbox keep 16 MiB; it also takes whatever follows the preface for the beginning of a frame."""

    def __init__(self) -> None:
        self._left = PREFACE_BYTES
        self._header = b""
        self._first = True

    def check(self, data: bytes) -> None:
        """Raises h2's ProtocolError."""
        at = 0
        while at < len(data):
            if self._left:
                step = min(self._left, len(data) - at)
                self._left -= step
                at += step
                continue
            piece = data[at : at + 9 - len(self._header)]
            at += len(piece)
            self._header += piece
            if len(self._header) < 9:
                return
            length, kind = int.from_bytes(self._header[:3], "big"), self._header[3]
            if length > LARGEST_FRAME or (self._first and kind != _SETTINGS):
                raise ProtocolError(f"a frame of {length} bytes, kind {kind}")
            self._left, self._header, self._first = length, b"", False
