"""The form in which a snapshot is stored, as streams: nothing here holds more than a few MiB, whatever the size.

A snapshot is one zstd frame (level 3, with checksum) around a tar of the root file system. Snapshots of other
dataplanes have no checksum and are read alike. The decompressor alone does not notice that a blob ends too early, so
``unpack`` reads a small frame of its own behind it: that frame comes out whole only if the ones before it did.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import zstandard

LEVEL = 3
PIECE_BYTES = 1024 * 1024
"""How much is handed on at a time, in either direction."""

LARGEST_WINDOW = 1 << 27
"""What a stored snapshot may make the decompressor remember: 128 MiB, which is more than level 19 asks for."""


UPPER = b"indexify-snapshot: rootfs-upper"
"""The note in front of a snapshot that holds only what was written on top of an image."""

_SKIPPABLE = 0x184D2A50


class SnapshotDamaged(Exception):
    """The blob is not a whole snapshot; the text says how."""


class Transfer:
    """How far one transfer is. Written by one thread, read by any."""

    def __init__(self) -> None:
        self.plain_bytes = 0
        self.stored_bytes = 0
        self._digest = hashlib.sha256()

    def stored(self, piece: bytes) -> None:
        self.stored_bytes += len(piece)
        self._digest.update(piece)

    @property
    def sha256(self) -> str:
        """Of what was stored so far, in hex."""
        return self._digest.hexdigest()


def note_of(head: bytes) -> bytes:
    """The note in front of a snapshot that begins with ``head``, which decompressors pass over; empty when there is
    none."""
    if len(head) < 8 or int.from_bytes(head[:4], "little") != _SKIPPABLE:
        return b""
    return head[8 : 8 + int.from_bytes(head[4:8], "little")]


def pack(
    tar: Iterable[bytes], transfer: Transfer, check: Callable[[], None] = lambda: None, note: bytes = b""
) -> Iterator[bytes]:
    """``tar`` compressed, in pieces of at most ``PIECE_BYTES``. ``check`` is called between pieces and raises what
    should end the transfer."""
    # Without threads of zstd's own, which cost twice the time; ``pipeline`` has reading and compressing overlap.
    compressor = zstandard.ZstdCompressor(level=LEVEL, write_checksum=True)
    chunker: Any = compressor.chunker(chunk_size=PIECE_BYTES)

    def counted(pieces: Iterable[bytes]) -> Iterator[bytes]:
        for piece in pieces:
            check()
            transfer.stored(piece)
            yield piece

    if note:
        yield from counted([_SKIPPABLE.to_bytes(4, "little") + len(note).to_bytes(4, "little") + note])
    for read in tar:
        check()
        transfer.plain_bytes += len(read)
        yield from counted(chunker.compress(read))
    yield from counted(chunker.finish())


def unpack(stored: Iterable[bytes], transfer: Transfer, check: Callable[[], None] = lambda: None) -> Iterator[bytes]:
    """The tar of a stored snapshot, in pieces of at most ``PIECE_BYTES``. Raises SnapshotDamaged, before the end at the
    latest: a consumer that sees the end has seen everything."""

    # Repeated, so that it is compressed: bytes that a cut-off block passes on as they are must not look like it.
    end = secrets.token_hex(16).encode() * 8

    def frames() -> Iterator[bytes]:
        for piece in stored:
            check()
            transfer.stored(piece)
            yield piece
        yield zstandard.ZstdCompressor().compress(end)

    decompressor: Any = zstandard.ZstdDecompressor(max_window_size=LARGEST_WINDOW)
    reader = decompressor.stream_reader(_Source(frames()), read_size=PIECE_BYTES, read_across_frames=True)
    held = b""
    try:
        while piece := reader.read(PIECE_BYTES):
            check()
            held += piece
            ready, held = held[: -len(end)], held[-len(end) :]
            if ready:
                transfer.plain_bytes += len(ready)
                yield ready
    except zstandard.ZstdError as error:
        raise SnapshotDamaged(f"it is damaged or cut off after {transfer.stored_bytes} bytes: {error}") from error
    if held != end:
        raise SnapshotDamaged(f"it is cut off after {transfer.stored_bytes} bytes")
    if transfer.plain_bytes == 0:
        raise SnapshotDamaged("it is empty")


class _Source:
    """An iterator as something to read from."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces = pieces
        self._rest = b""

    def read(self, size: int = -1) -> bytes:
        while not self._rest:
            piece = next(self._pieces, None)
            if piece is None:
                return b""
            self._rest = piece
        taken, self._rest = (self._rest, b"") if size < 0 else (self._rest[:size], self._rest[size:])
        return taken
