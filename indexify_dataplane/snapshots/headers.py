"""Extended attributes put into a tar while it streams by.

The engine's export knows of file capabilities only; its import takes whatever attributes an entry has as records
``SCHILY.xattr.<name>`` of its extended header. So an entry with more of them gets such records, beside those that it
has. Everything else passes as it is, in the pieces in which it came: at most one entry's headers are held.
"""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from tarfile import BLOCKSIZE, TarInfo
from typing import Final, NamedTuple, cast

from twisted.logger import Logger

from .attributes import Attribute

log = Logger()

RECORD: Final = "SCHILY.xattr."
LARGEST = 1 << 20
"""Bytes of an extended header that the engine reads (``maxSpecialFileSize`` of Go's archive/tar)."""

_BEFORE_ENTRY = b"xgLK"
_WITHOUT_CONTENT = b"123456"
_ORDINARY = b"0123456"
_FORMS = {"encoding": "utf-8", "errors": "surrogateescape"}
_END = bytes(BLOCKSIZE)


class _Strange(Exception):
    """This is not as the engine writes it."""


class _Entry(NamedTuple):
    """Where the headers of one entry lie in a piece; ``special`` is what a new extended header takes the place of, and
    ``known`` the names of attributes that the old one tells."""

    kind: int
    path: bytes
    size: int
    end: int
    special: tuple[int, int]
    records: bytes = b""
    known: frozenset[bytes] = frozenset()


def with_attributes(
    pieces: Iterable[bytes],
    attributes: Callable[[bytes], Sequence[Attribute]],
    left_out: Callable[[bytes], None] = lambda path: None,
) -> Iterator[bytes]:
    """The tar of ``pieces`` with the ``attributes`` of each path; ``left_out`` is told of files that have more of them
    than a header can hold. Should the tar have an unknown form, the rest of it passes as it is."""
    held, content, over = b"", 0, False
    for new in pieces:
        piece = held + new if held else new
        held, at, sent = b"", 0, 0
        while not over:
            step = min(content, len(piece) - at)
            content, at = content - step, at + step
            if len(piece) - at < BLOCKSIZE:
                break
            try:
                entry = _entry(piece, at)
            except (_Strange, tarfile.TarError, ValueError) as error:
                log.warn("an export has a form that is not known: what follows gets no attributes", error=repr(error))
                over = True
                break
            if entry is None:
                over = piece.startswith(_END, at)
                break
            # A hard link has the attributes of the file, which has come before.
            found = () if entry.kind == tarfile.LNKTYPE[0] else attributes(entry.path)
            if found and (header := _header(entry, found, left_out)):
                yield piece[sent : entry.special[0]]
                yield header
                sent = entry.special[1]
            at, content = entry.end, _blocks(entry.size)
        if over:
            at = len(piece)
        if at > sent:
            yield piece[sent:at]
        held = piece[at:]
    if held:
        yield held


def _blocks(size: int) -> int:
    return -(-size // BLOCKSIZE) * BLOCKSIZE


def _entry(piece: bytes, at: int) -> _Entry | None:
    """The entry whose headers begin ``at``; None if they are not all there yet, or it is the end. Raises _Strange."""
    kind = piece[at + 156]
    if kind in _ORDINARY and piece.startswith(b"ustar\x0000", at + 257):
        name, above = piece[at : at + 100].partition(b"\0")[0], piece[at + 345 : at + 500].partition(b"\0")[0]
        size = 0 if kind in _WITHOUT_CONTENT else _number(piece, at)
        return _Entry(kind, _plain(above + b"/" + name if above else name), size, at + BLOCKSIZE, (at, at))
    return _unusual(piece, at)


def _unusual(piece: bytes, first: int) -> _Entry | None:
    """As ``_entry``, in any form that tarfile knows."""
    at, special, records = first, None, b""
    while True:
        if len(piece) - at < BLOCKSIZE or piece.startswith(_END, at):
            return None
        kind = piece[at + 156]
        if kind not in _BEFORE_ENTRY:
            break
        size = _number(piece, at)
        if size > LARGEST or at - first > 4 * LARGEST:
            raise _Strange(f"a header of {size} bytes")
        end = at + BLOCKSIZE + _blocks(size)
        if kind == tarfile.XHDTYPE[0]:
            special, records = (at, end), piece[at + BLOCKSIZE : at + BLOCKSIZE + size]
        at = end
    end = at + BLOCKSIZE
    with tarfile.open(fileobj=io.BytesIO(piece[first:end]), mode="r:", **_FORMS) as read:  # type: ignore[call-overload]
        info = cast("TarInfo | None", read.next())
    if info is None or info.issparse() or kind in b"SV":
        raise _Strange(f"an entry of the type {chr(kind)}")
    told = {_bytes(name.removeprefix(RECORD)) for name in info.pax_headers if name.startswith(RECORD)}
    size = int(info.pax_headers["size"]) if "size" in info.pax_headers else _number(piece, at)
    return _Entry(
        kind=kind,
        path=_plain(_bytes(info.name)),
        size=0 if kind in _WITHOUT_CONTENT else size,
        end=end,
        special=special or (at, at),
        records=records,
        known=frozenset(told),
    )


def _number(piece: bytes, at: int) -> int:
    """The size that a header tells, as tarfile reads it."""
    size = TarInfo.frombuf(piece[at : at + BLOCKSIZE], **_FORMS).size if piece[at + 124] & 0x80 else None
    return int(piece[at + 124 : at + 136].strip(b" \0") or b"0", 8) if size is None else size


def _plain(path: bytes) -> bytes:
    return path.removeprefix(b"./").rstrip(b"/")


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


def _header(entry: _Entry, found: Sequence[Attribute], left_out: Callable[[bytes], None]) -> bytes:
    """The extended header of ``entry`` with its own records and those of ``found``; empty if nothing is new."""
    gathered, size, told = [entry.records], len(entry.records), False
    for name, value in found:
        if name in entry.known:
            continue
        record = _record(RECORD.encode() + name, value)
        if b"=" in name or size + len(record) > LARGEST:
            told = True
            continue
        gathered.append(record)
        size += len(record)
    if told:
        left_out(entry.path)
    if len(gathered) == 1:
        return b""
    info = TarInfo("PaxHeaders.0/attributes")
    info.type, info.size = tarfile.XHDTYPE, size
    return info.tobuf(tarfile.USTAR_FORMAT) + b"".join(gathered).ljust(_blocks(size), b"\0")


def _record(key: bytes, value: bytes) -> bytes:
    """``<length> <key>=<value>\\n``; the length counts its own digits."""
    rest = b" %b=%b\n" % (key, value)
    length = len(rest)
    while length != len(rest) + len(str(length)):
        length = len(rest) + len(str(length))
    return b"%d%b" % (length, rest)
