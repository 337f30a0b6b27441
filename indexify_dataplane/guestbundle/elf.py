"""Reads and slims 64-bit little-endian ELF files, so that a bundle does not depend on the host's binutils.

Loading needs only the segments that the program headers name. ``slim`` cuts what lies behind them (symbol tables,
debug information, section headers: 16 of the 23 MB of a libpython built from source) and removes RPATH and RUNPATH,
because a library path of the build host would be looked up in the sandbox's own file system.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path

from .errors import BundleError

_HEADER = struct.Struct("<16sHHIQQQIHHHHHH")
_PROGRAM_HEADER = struct.Struct("<IIQQQQQQ")
_DYNAMIC_ENTRY = struct.Struct("<qQ")
_PT_DYNAMIC, _PT_INTERP = 2, 3
_DT_NULL, _DT_RPATH, _DT_RUNPATH = 0, 15, 29
_SECTION_TABLE_OFFSET = 0x28
_SECTION_COUNTS_OFFSET = 0x3A


def _program_headers(data: bytes | bytearray, name: str) -> Iterator[tuple[int, int, int]]:
    """Yields type, file offset and file size of every segment."""
    if len(data) < _HEADER.size or data[:6] != b"\x7fELF\x02\x01":
        raise BundleError(f"{name} is not a 64-bit little-endian ELF file; only x86_64 and aarch64 nodes are supported")
    header = _HEADER.unpack_from(data)
    offset, entry_size, count = header[5], header[9], header[10]
    if entry_size != _PROGRAM_HEADER.size or offset + entry_size * count > len(data):
        raise BundleError(f"{name} has a damaged ELF program header table")
    for index in range(count):
        kind, _, start, _, _, size, _, _ = _PROGRAM_HEADER.unpack_from(data, offset + index * entry_size)
        yield kind, start, size


def interpreter(path: Path) -> Path | None:
    """The dynamic loader that the file asks for; None for a library or a static program."""
    data = path.read_bytes()
    for kind, start, size in _program_headers(data, str(path)):
        if kind == _PT_INTERP:
            return Path(data[start : start + size].rstrip(b"\0").decode())
    return None


def slim(source: bytes, name: str) -> bytes:
    """The same program or library without sections and library paths; ``name`` is for the error's text."""
    data = bytearray(source)
    end = _HEADER.size
    for kind, start, size in _program_headers(data, name):
        if start + size > len(data):
            raise BundleError(f"{name} is shorter than its ELF program headers say")
        end = max(end, start + size)
        if kind == _PT_DYNAMIC:
            _drop_library_paths(data, start, size)
    header = _HEADER.unpack_from(data)
    end = max(end, header[5] + header[9] * header[10])
    struct.pack_into("<Q", data, _SECTION_TABLE_OFFSET, 0)
    struct.pack_into("<HHH", data, _SECTION_COUNTS_OFFSET, header[11], 0, 0)
    return bytes(data[:end])


def _drop_library_paths(data: bytearray, start: int, size: int) -> None:
    entries = [_DYNAMIC_ENTRY.unpack_from(data, start + at) for at in range(0, size, _DYNAMIC_ENTRY.size)]
    kept = [entry for entry in entries if entry[0] not in (_DT_RPATH, _DT_RUNPATH)]
    kept += [(_DT_NULL, 0)] * (len(entries) - len(kept))
    for index, entry in enumerate(kept):
        _DYNAMIC_ENTRY.pack_into(data, start + index * _DYNAMIC_ENTRY.size, *entry)
