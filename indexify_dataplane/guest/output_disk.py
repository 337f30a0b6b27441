"""The part of the output history that does not fit into memory: files of records, bounded per process and in all.

A user's process can reach these files. So every read checks what it finds, and what does not parse counts as lost.
Files are opened for the moment of a read or a write: a thousand ended processes must not hold a thousand descriptors.
"""

from __future__ import annotations

import os
import struct
import time
from bisect import bisect_right
from typing import TYPE_CHECKING

from .logs import Log

if TYPE_CHECKING:
    from .output_log import Record

SEGMENT_BYTES = 4 * 1024 * 1024
PROCESS_BYTES = 32 * 1024 * 1024
TOTAL_BYTES = 256 * 1024 * 1024
RETRY_SECONDS = 30.0

_HEAD = struct.Struct("<IBQQII")  # magic, stream, first line, time, lines, bytes
_MAGIC = 0x1D10C0DE


class _Segment:
    """One file. ``blocks`` are (first line, offset, size) of the writes it got."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.blocks: list[tuple[int, int, int]] = []
        self.size = 0


class DiskPart:
    """The files of one process, oldest first. Lines ``first`` to ``next - 1`` are there; ``first`` None: none are."""

    __slots__ = ("_count", "_disk", "_name", "_segments", "next")

    def __init__(self, *, disk: OutputDisk, name: str) -> None:
        self._disk = disk
        self._name = name
        self._segments: list[_Segment] = []
        self._count = 0
        self.next = 0

    @property
    def first(self) -> int | None:
        return self._segments[0].blocks[0][0] if self._segments else None

    @property
    def size(self) -> int:
        return sum(segment.size for segment in self._segments)

    def append(self, records: list[Record]) -> bool:
        """Write ``records``, the successors of what is there; False where the disk does not take them."""
        data = b"".join(
            part
            for record in records
            for part in (
                _HEAD.pack(_MAGIC, record.stream, record.first, record.time_ms, record.lines, len(record.text)),
                record.text,
            )
        )
        segment = self._segments[-1] if self._segments else None
        if segment is None or segment.size + len(data) > SEGMENT_BYTES:
            segment = _Segment(f"{self._name}.{self._count}")
        if not self._disk.write(segment.path, segment.size, data):
            return False
        if not segment.blocks:
            self._count += 1
            self._segments.append(segment)
            self._disk.added(segment, self)
        segment.blocks.append((records[0].first, segment.size, len(data)))
        segment.size += len(data)
        self.next = records[-1].first + records[-1].lines
        while len(self._segments) > 1 and self.size > PROCESS_BYTES:
            self.drop_oldest()
        self._disk.wrote(len(data))
        return True

    def read(self, line: int) -> list[Record]:
        """The records of the write that holds ``line``, from that line's record on; empty when they are spoilt."""
        from .output_log import Record

        segment, index = self._find(line)
        first, offset, size = segment.blocks[index]
        data = self._disk.read(segment.path, offset, size)
        records: list[Record] = []
        position = 0
        while position + _HEAD.size <= len(data):
            magic, stream, number, time_ms, count, length = _HEAD.unpack_from(data, position)
            position += _HEAD.size
            text = data[position : position + length]
            if magic != _MAGIC or number != first or len(text) != length or text.count(b"\n") + 1 != count:
                break
            position += length
            first += count
            if first > line:
                records.append(Record(number, stream, time_ms, count, text))
        return records

    def after(self, line: int) -> int:
        """The first line of the write that follows the one with ``line``."""
        segment, index = self._find(line)
        if index + 1 < len(segment.blocks):
            return segment.blocks[index + 1][0]
        place = self._segments.index(segment)
        return self._segments[place + 1].blocks[0][0] if place + 1 < len(self._segments) else self.next

    def drop_oldest(self) -> None:
        segment = self._segments.pop(0)
        self._disk.remove(segment)

    def drop(self) -> None:
        while self._segments:
            self.drop_oldest()

    def _find(self, line: int) -> tuple[_Segment, int]:
        for segment in reversed(self._segments):
            if segment.blocks[0][0] <= line:
                return segment, bisect_right(segment.blocks, (line, 2**63, 0)) - 1
        return self._segments[0], 0


class OutputDisk:
    """One directory of this run of the daemon, made when it is first needed."""

    def __init__(self, *, directory: str, log: Log) -> None:
        self._directory = os.path.join(directory, f"output-{os.getpid()}-{time.time_ns():x}")
        self._made = False
        self._log = log
        self._used = 0
        self._failed_at: float | None = None
        self._segments: dict[_Segment, DiskPart] = {}  # in the order they were begun

    def part(self, name: str) -> DiskPart:
        return DiskPart(disk=self, name=name)

    def write(self, name: str, offset: int, data: bytes) -> bool:
        """Put ``data`` at ``offset``; a failure is logged once and not tried again for half a minute."""
        if self._failed_at is not None and time.monotonic() - self._failed_at < RETRY_SECONDS:
            return False
        try:
            if not self._made:
                os.makedirs(self._directory, mode=0o700, exist_ok=True)
                self._made = True
            descriptor = os.open(
                os.path.join(self._directory, name), os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600
            )
            try:
                while data:
                    written = os.pwrite(descriptor, data, offset)
                    offset += written
                    data = data[written:]
            finally:
                os.close(descriptor)
        except OSError as error:
            if self._failed_at is None:
                self._log.warn(
                    "output goes to memory alone: its directory cannot be written",
                    directory=self._directory,
                    error=error.strerror,
                )
            self._failed_at = time.monotonic()
            self._made = False
            return False
        self._failed_at = None
        return True

    def read(self, name: str, offset: int, size: int) -> bytes:
        """What is there; empty when it cannot be read."""
        try:
            descriptor = os.open(os.path.join(self._directory, name), os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
            try:
                return os.pread(descriptor, size, offset)
            finally:
                os.close(descriptor)
        except OSError as error:
            self._log.warn("output on disk is lost", file=name, error=error.strerror)
            return b""

    def added(self, segment: _Segment, part: DiskPart) -> None:
        self._segments[segment] = part

    def wrote(self, size: int) -> None:
        self._used += size
        while self._used > TOTAL_BYTES and len(self._segments) > 1:
            # The first one begun is also the oldest of its process.
            next(iter(self._segments.values())).drop_oldest()

    def remove(self, segment: _Segment) -> None:
        self._used -= segment.size
        del self._segments[segment]
        self._unlink(segment.path)

    def close(self) -> None:
        """Remove everything: nobody can ask for it any more."""
        self._segments.clear()
        if not self._made:
            return
        try:
            for name in os.listdir(self._directory):
                self._unlink(name)
            os.rmdir(self._directory)
        except OSError as error:
            self._log.debug("output directory could not be removed", error=error.strerror)

    def _unlink(self, name: str) -> None:
        try:
            os.unlink(os.path.join(self._directory, name))
        except OSError as error:
            self._log.debug("output file could not be removed", file=name, error=error.strerror)
