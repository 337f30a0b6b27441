"""The output history as clients see it: a JSON document of all lines, or server-sent events."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from json.encoder import encode_basestring_ascii as quoted

from .messages import Out
from .output_log import STDERR, STDOUT, OutputLog, Record

KEEPALIVE_SECONDS = 15.0
BATCH_LINES = 500
"""Lines made into text before other connections get their turn."""

NAMES = {STDOUT: "stdout", STDERR: "stderr"}

EVENT_STREAM = (("content-type", "text/event-stream"), ("cache-control", "no-cache"))


def decoded(text: bytes) -> list[str]:
    """Lines of a record: one carriage return before the end is removed, undecodable bytes become U+FFFD."""
    return [line[:-1] if line.endswith("\r") else line for line in text.decode("utf-8", "replace").split("\n")]


async def write_document(out: Out, *, pid: int, log: OutputLog | None, streams: tuple[int, ...]) -> None:
    """All lines so far: those of the first stream, then those of the second."""
    count = lost = 0
    await out.write(b'{"pid":%d,"lines":[' % pid)
    end = log.next if log is not None else 0
    for stream in streams if log is not None else ():
        line = 0
        while log is not None and line < end:
            records = log.read(line)
            if not records:
                break
            if records[0].first > line and stream == streams[0]:
                lost += records[0].first - line
            line = records[-1].first + records[-1].lines
            for record in records:
                if record.stream == stream and record.first < end:
                    for batch in _batches(record):
                        text = ",".join(map(quoted, batch))
                        await out.write((("," if count else "") + text).encode("ascii"))
                        count += len(batch)
                        await asyncio.sleep(0)
    missing = b',"lost_lines":%d' % lost if lost else b""
    await out.write(b'],"line_count":%d%b}' % (count, missing))


class EventLines:
    """Sends the lines of a log as events until the log ends.

    ``streams`` chooses; ``tagged`` adds the stream's name to each; ``numbered`` gives each event its line number as
    id, so that a client that comes back with ``Last-Event-ID`` gets the rest and nothing twice.
    """

    def __init__(self, *, log: OutputLog, streams: tuple[int, ...], tagged: bool, event: str) -> None:
        self._log = log
        self._streams = streams
        self._tagged = tagged
        self._event = event

    async def send(
        self,
        out: Out,
        *,
        start: int,
        until: Callable[[], int | None] = lambda: None,
        took: Callable[[int], None] | None = None,
    ) -> None:
        """From line ``start`` to the end of the log, or to line ``until()`` once that is known.

        ``took`` hears the bytes that went out.
        """
        line = start
        while (stop := until()) is None or line < stop:
            records = self._log.read(line) if line < self._log.next else []
            if not records:
                if self._log.closed or line < self._log.next:
                    return
                await self._wait(out, line)
                continue
            if records[0].first > line:
                await out.write(b": %d lines lost\n\n" % (records[0].first - line))
            for record in records:
                line = record.first + record.lines
                if record.stream in self._streams:
                    await self._send_record(out, record)
                if took is not None:
                    took(len(record.text))

    async def _wait(self, out: Out, line: int) -> None:
        try:
            async with asyncio.timeout(KEEPALIVE_SECONDS):
                await self._log.changed(line)
        except TimeoutError:
            await out.write(b":\n\n")

    async def _send_record(self, out: Out, record: Record) -> None:
        tag = f',"stream":"{NAMES[record.stream]}"' if self._tagged else ""
        end = f',"timestamp":{record.time_ms}{tag}}}\n\n'
        number = record.first
        for batch in _batches(record):
            parts = []
            for text in batch:
                parts.append(f'id: {number}\nevent: {self._event}\ndata: {{"line":{quoted(text)}{end}')
                number += 1
            await out.write("".join(parts).encode("ascii"))
            await asyncio.sleep(0)


def _batches(record: Record) -> Iterator[list[str]]:
    lines = decoded(record.text)
    for place in range(0, len(lines), BATCH_LINES):
        yield lines[place : place + BATCH_LINES]


def resume_line(last_event_id: str | None, log: OutputLog) -> int:
    """Where a follower starts: behind the id it names, or at the beginning when that id makes no sense here."""
    text = (last_event_id or "").strip()
    if text.isascii() and text.isdigit() and len(text) < 19 and int(text) < log.next:
        return int(text) + 1
    return 0
