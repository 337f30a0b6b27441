"""What processes wrote, line by line, with time and stream: a bounded history that any number of readers follow.

One numbering covers both streams, so that a reader needs nothing but the number of the next line: history and live
output come from the same place by the same number, and no line can fall between them or come twice. A reader that is
too slow for the bound finds a gap it can count.

The newest lines are in memory. Beyond a bound they go to files (``output_disk``), the oldest of which are dropped.
Lines that arrived in one read share a record and a time; records are cut at line ends.
"""

from __future__ import annotations

import asyncio
from typing import NamedTuple

from .logs import Log
from .output_disk import DiskPart, OutputDisk

STDOUT, STDERR = 1, 2

TAIL_BYTES = 64 * 1024
"""Per process in memory before it goes to disk in one write."""

MEMORY_BYTES = 2 * 1024 * 1024
"""Of all processes together in memory."""

MEMORY_ONLY_TAIL_BYTES = 1024 * 1024
"""Per process where no disk can be written."""

_RECORD_COST = 160
"""Bytes that a record costs beside its text (CPython 3.11: tuple, ints, bytes header)."""


class Record(NamedTuple):
    """``lines`` lines of one stream from line number ``first`` on; ``text`` joins them by newlines."""

    first: int
    stream: int
    time_ms: int
    lines: int
    text: bytes

    def since(self, line: int) -> Record:
        """The part from line number ``line`` on."""
        if line <= self.first:
            return self
        skipped = line - self.first
        text = self.text.split(b"\n", skipped)[skipped]
        return Record(line, self.stream, self.time_ms, self.lines - skipped, text)


class OutputLog:
    """One process's history. Lines ``first`` to ``next - 1`` are there."""

    __slots__ = ("_disk", "_readers", "_store", "_tail", "bytes_total", "closed", "next", "tail_bytes")

    def __init__(self, *, store: OutputStore, disk: DiskPart) -> None:
        self._store = store
        self._disk = disk
        self._tail: list[Record] = []
        self.tail_bytes = 0
        self.next = 0
        self.bytes_total = 0
        self.closed = False
        self._readers: set[asyncio.Future[None]] = set()

    @property
    def first(self) -> int:
        if self._disk.first is not None:
            return self._disk.first
        return self._tail[0].first if self._tail else self.next

    def append(self, stream: int, time_ms: int, text: bytes) -> None:
        """Add the lines of ``text`` (joined by newlines, without the last one)."""
        record = Record(self.next, stream, time_ms, text.count(b"\n") + 1, text)
        self.next += record.lines
        self.bytes_total += len(text)
        self._tail.append(record)
        grown = len(text) + _RECORD_COST
        self.tail_bytes += grown
        self._store.grew(self, grown)
        self._wake()

    def close(self) -> None:
        """Nothing more will come. Idempotent."""
        self.closed = True
        self._wake()

    def read(self, line: int) -> list[Record]:
        """Records from line number ``line`` (or the oldest there is) on, about 64 KiB of them; empty at the end."""
        line = max(line, self.first)
        while self._disk.first is not None and line < self._disk.next:
            records = self._disk.read(line)
            if records:
                return [records[0].since(line), *records[1:]]
            # Somebody spoilt the file: go on behind the damage.
            line = self._disk.after(line)
        found: list[Record] = []
        size = 0
        for record in self._tail:
            if record.first + record.lines > line:
                found.append(record.since(line))
                size += len(record.text)
                if size >= TAIL_BYTES:
                    break
        return found

    async def changed(self, line: int) -> None:
        """Return when line number ``line`` is there or will never be, or when readers are nudged."""
        if self.next <= line and not self.closed:
            reader = asyncio.get_running_loop().create_future()
            self._readers.add(reader)
            try:
                await reader
            finally:
                self._readers.discard(reader)

    def nudge(self) -> None:
        """Let all readers look again at whatever they wait for."""
        self._wake()

    def spill(self) -> None:
        """Move what is in memory to disk; where that fails, only as much stays as memory allows."""
        if self._tail and self._disk.append(list(self._tail)):
            self._tail.clear()
            self._shrank(self.tail_bytes)

    def trim(self, most: int) -> None:
        """Forget the oldest lines in memory beyond ``most`` bytes."""
        forgotten = 0
        while forgotten < len(self._tail) and self.tail_bytes > most:
            self._shrank(len(self._tail[forgotten].text) + _RECORD_COST)
            forgotten += 1
        if forgotten:
            # What is on disk is older still: history has no holes on purpose.
            self._disk.drop()
            del self._tail[:forgotten]

    def drop(self) -> None:
        """Forget everything; the process was removed from the table."""
        self.closed = True
        self._tail.clear()
        self._shrank(self.tail_bytes)
        self._disk.drop()
        self._store.dropped(self)
        self._wake()

    def _shrank(self, size: int) -> None:
        self.tail_bytes -= size
        self._store.memory -= size

    def _wake(self) -> None:
        for reader in self._readers:
            if not reader.done():
                reader.set_result(None)


class OutputStore:
    """All histories: shares out memory and disk among them."""

    def __init__(self, *, directory: str, log: Log) -> None:
        self._disk = OutputDisk(directory=directory, log=log)
        self._logs: dict[OutputLog, None] = {}
        self.memory = 0

    def create(self, name: str) -> OutputLog:
        log = OutputLog(store=self, disk=self._disk.part(name))
        self._logs[log] = None
        return log

    def grew(self, log: OutputLog, size: int) -> None:
        self.memory += size
        if log.tail_bytes > TAIL_BYTES:
            log.spill()
            if log.tail_bytes > MEMORY_ONLY_TAIL_BYTES:
                log.trim(MEMORY_ONLY_TAIL_BYTES // 4 * 3)
        if self.memory > MEMORY_BYTES:
            self._relieve()

    def dropped(self, log: OutputLog) -> None:
        self._logs.pop(log, None)

    def close(self) -> None:
        self._disk.close()

    def _relieve(self) -> None:
        """Spill, ended processes first, until half of the memory is free; without a disk forget in that order."""
        order = sorted(self._logs, key=lambda log: not log.closed)
        for log in order:
            if self.memory <= MEMORY_BYTES // 2:
                return
            log.spill()
        for log in order:
            if self.memory <= MEMORY_BYTES // 2:
                return
            log.trim(MEMORY_BYTES // 16)
        for log in order:
            if self.memory <= MEMORY_BYTES // 2:
                return
            log.trim(0)
