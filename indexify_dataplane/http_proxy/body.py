"""Bodies in chunks: read strictly and framed anew, so that no oddity of one side's framing reaches the other."""

from __future__ import annotations

import re

from .head import CHUNKED, parse_trailer

MAX_SIZE_LINE = 1024
MAX_TRAILERS = 16 * 1024

_SIZE = re.compile(rb"([0-9A-Fa-f]{1,15})(?:;[\t\x20-\x7e\x80-\xff]*)?")

_SIZE_LINE, _DATA, _DATA_END, _TRAILERS = range(4)


class BrokenChunks(Exception):
    """The bytes are not a body in chunks; nothing after them can be trusted."""


class ChunkedDecoder:
    """Takes the bytes of one chunked body as they come. ``done`` after its last byte, with ``trailers`` complete."""

    __slots__ = ("_kept", "_left", "_state", "_trailer_bytes", "done", "trailers")

    def __init__(self) -> None:
        self.done = False
        self.trailers: list[bytes] = []
        self._state = _SIZE_LINE
        self._left = 0
        self._kept = b""
        self._trailer_bytes = 0

    def feed(self, data: bytes) -> tuple[bytes, bytes]:
        """Returns the payload in ``data`` and what follows the body (empty unless ``done``). Raises BrokenChunks."""
        payload: list[bytes] = []
        if self._kept:
            data, self._kept = self._kept + data, b""
        at, end = 0, len(data)
        while at < end:
            if self._state == _DATA:
                piece = data[at : at + self._left]
                payload.append(piece)
                at += len(piece)
                self._left -= len(piece)
                if not self._left:
                    self._state = _DATA_END
                continue
            if self._state == _DATA_END:
                if data[at] != 13 or (at + 1 < end and data[at + 1] != 10):
                    raise BrokenChunks("a chunk is longer than its size says")
                if at + 1 == end:
                    break
                at += 2
                self._state = _SIZE_LINE
                continue
            stop = data.find(b"\n", at)
            if stop < 0:
                if end - at > (MAX_SIZE_LINE if self._state == _SIZE_LINE else MAX_TRAILERS):
                    raise BrokenChunks("a line of the framing is too long")
                break
            if stop == at or data[stop - 1] != 13:
                raise BrokenChunks("a line of the framing ends without a carriage return")
            line = data[at : stop - 1]
            at = stop + 1
            if self._state == _SIZE_LINE:
                self._size(line)
            elif line:
                self._trailer(line)
            else:
                self.done = True
                return b"".join(payload), data[at:]
        self._kept = data[at:]
        return payload[0] if len(payload) == 1 else b"".join(payload), b""

    def _size(self, line: bytes) -> None:
        match = _SIZE.fullmatch(line)
        if match is None or len(line) > MAX_SIZE_LINE:
            raise BrokenChunks("a chunk's size cannot be read")
        self._left = int(match[1], 16)
        self._state = _DATA if self._left else _TRAILERS

    def _trailer(self, line: bytes) -> None:
        self._trailer_bytes += len(line)
        if self._trailer_bytes > MAX_TRAILERS:
            raise BrokenChunks("the trailers are too long")
        try:
            trailer = parse_trailer(line)
        except ValueError as error:
            raise BrokenChunks(str(error)) from error
        if trailer is not None:
            self.trailers.append(trailer)


class RequestBody:
    """The body that a client announced: ``length`` bytes, or chunks when that is CHUNKED."""

    __slots__ = ("_decoder", "_left", "complete")

    def __init__(self, length: int) -> None:
        self._decoder = ChunkedDecoder() if length == CHUNKED else None
        self._left = length
        self.complete = length == 0

    def feed(self, data: bytes) -> tuple[bytes, bytes]:
        """Returns the payload in ``data`` and what follows the body. Raises BrokenChunks."""
        if self._decoder is not None:
            found = self._decoder.feed(data)
            self.complete = self._decoder.done
            return found
        left = self._left
        payload, rest = (data, b"") if len(data) <= left else (data[:left], data[left:])
        self._left -= len(payload)
        self.complete = not self._left
        return payload, rest

    @property
    def trailers(self) -> list[bytes]:
        return self._decoder.trailers if self._decoder is not None else []


def frame(payload: bytes) -> bytes:
    """One chunk; ``payload`` must not be empty."""
    return b"%x\r\n%b\r\n" % (len(payload), payload)


def last_chunk(trailers: list[bytes]) -> bytes:
    """The end of a body in chunks."""
    if not trailers:
        return b"0\r\n\r\n"
    return b"0\r\n" + b"\r\n".join(trailers) + b"\r\n\r\n"
