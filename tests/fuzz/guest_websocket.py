"""Frames of a WebSocket at a terminal, read a second time by a reader of its own."""

from __future__ import annotations

import asyncio
import struct
from typing import Any

from indexify_dataplane.guest.messages import Wire
from indexify_dataplane.guest.pty_attachment import DATA, LARGEST_MESSAGE, READY, RESIZE, PtyAttachment, clamped
from indexify_dataplane.guest.pty_session import Viewer
from indexify_dataplane.guest.refusal import ClientGone

from .guest_http1 import silent_log
from .wire import Loop, cuts, expect, in_loop, settle

Action = tuple[Any, ...]


class Terminal:
    """Notes what is done to it. Its program writes once and ends when it is told to."""

    def __init__(self) -> None:
        self.id = "pty-1"
        self.actions: list[Action] = []
        self.over = asyncio.Event()
        self.terminated = False
        self.exit_code = 3
        self.input = self
        self._output = [b"output"]
        self.viewers = 0

    async def write(self, data: bytes) -> None:
        self.actions.append(("typed", data))

    def resize(self, rows: int, cols: int) -> None:
        expect(1 <= rows <= 500 and 1 <= cols <= 1000, "a size is one that a terminal can have", rows, cols)
        self.actions.append(("resized", rows, cols))

    async def read(self, viewer: Viewer) -> bytes:
        if self._output:
            return self._output.pop()
        await self.over.wait()
        return b""

    # The other terminals of the daemon are not needed, so this is their list too.

    def attach(self, session: object) -> Viewer:
        self.viewers += 1
        return Viewer(0)

    def detach(self, session: object, viewer: Viewer) -> None:
        self.viewers -= 1


class Pieces(Wire):
    """The raw connection after the upgrade."""

    def __init__(self, arriving: list[bytes]) -> None:
        self._arriving = arriving
        self.gone = asyncio.Event()
        self.sent = bytearray()
        self.received = 0

    async def receive(self) -> bytes:
        if self._arriving:
            self.received += 1
            return self._arriving.pop(0)
        await self.gone.wait()
        return b""

    async def send(self, data: bytes) -> None:
        if self.gone.is_set():
            raise ClientGone("the connection was closed")
        self.sent += data


def _expected(data: bytes) -> tuple[list[Action], list[bytes], bool]:
    """What a reader by the letter of RFC 6455 makes of it: actions, pings, and whether it ends before the bytes do."""
    actions: list[Action] = []
    pings: list[bytes] = []
    at = 0
    kind = 0
    parts = b""
    while True:
        if len(data) - at < 2:
            # A header that can only be wrong is refused early, or when it is whole: both are right.
            return actions, pings, False
        first, second = data[at], data[at + 1]
        opcode, size, final = first & 15, second & 127, bool(first & 0x80)
        if opcode not in (0, 1, 2, 8, 9, 10):
            return actions, pings, True
        if opcode >= 8 and (not final or size > 125):
            return actions, pings, True
        at += 2
        if size >= 126:
            width, least = (2, 126) if size == 126 else (8, 65536)
            if len(data) - at < width:
                return actions, pings, False
            size = int.from_bytes(data[at : at + width], "big")
            if size < least or size >> 63:
                return actions, pings, True
            at += width
        if first & 0x70 or not second & 0x80:
            return actions, pings, True
        mask = data[at : at + 4]
        if len(mask) < 4:
            return actions, pings, False
        at += 4
        if (opcode == 0 and not kind) or (opcode in (1, 2) and kind):
            # Noticed with the first of its payload.
            return actions, pings, at < len(data) or not size
        payload = bytes(byte ^ mask[place & 3] for place, byte in enumerate(data[at : at + size]))
        whole = len(payload) == size
        at += len(payload)
        if opcode < 8:
            kind = kind or opcode
            parts += payload
            if len(parts) > LARGEST_MESSAGE:
                return actions, pings, True
            if kind == 1 and not _text_so_far(parts, whole and final):
                return actions, pings, True
            if not whole:
                return actions, pings, False
            if final:
                if kind == 2:
                    actions += _actions(parts)
                kind, parts = 0, b""
        elif not whole:
            return actions, pings, False
        elif opcode == 8:
            return actions, pings, True
        elif opcode == 9:
            pings.append(payload)


def _text_so_far(text: bytes, ended: bool) -> bool:
    try:
        text.decode("utf-8")
    except UnicodeDecodeError as error:
        return not ended and error.reason == "unexpected end of data"
    return True


def _actions(message: bytes) -> list[Action]:
    if not message:
        return []
    kind, payload = message[0], message[1:]
    if kind == DATA:
        return [("typed", payload)]
    if kind == RESIZE and len(payload) >= 4:
        cols, rows = struct.unpack_from(">HH", payload)
        return [("resized", *clamped(rows, cols))]
    if kind == READY:
        return [("ready",)]
    return []


def _sent_frames(sent: bytes) -> list[tuple[int, bytes]]:
    """Frames of ours: whole, final, not masked."""
    frames, at = [], 0
    while at < len(sent):
        first, size = sent[at], sent[at + 1]
        expect(first & 0x80 and not first & 0x70 and not size & 0x80, "our frames are plain", sent[at:])
        at += 2
        if size >= 126:
            width = 2 if size == 126 else 8
            size = int.from_bytes(sent[at : at + width], "big")
            at += width
        expect(len(sent) - at >= size, "our frames are whole", sent[at:])
        frames.append((first & 15, sent[at : at + size]))
        at += size
    return frames


async def _attend(arriving: list[bytes]) -> tuple[list[Action], list[tuple[int, bytes]], bool]:
    terminal: Any = Terminal()
    lines: list[str] = []
    raw = Pieces(arriving)
    attachment = PtyAttachment(session=terminal, ptys=terminal, log=silent_log(lines))
    task = asyncio.get_running_loop().create_task(attachment.attend(raw))
    await settle()
    ended = bool(_sent_frames(bytes(raw.sent))) and _sent_frames(bytes(raw.sent))[-1][0] == 8
    terminal.over.set()
    await settle()
    raw.gone.set()
    await settle()
    expect(task.done(), "an attachment ends with its connection")
    task.result()
    expect(not terminal.viewers, "no viewer is left")
    expect(not lines, "nothing unexpected happens", lines)
    return terminal.actions, _sent_frames(bytes(raw.sent)), ended


def guest_pty(data: bytes) -> None:
    """Any frames of a client do to the terminal what an independent reader finds in them, whatever the pieces."""
    wanted, pings, ends = _expected(data)
    done = [action for action in wanted if action != ("ready",)]

    async def work(loop: Loop, arriving: list[bytes]) -> None:
        actions, frames, ended = await _attend(arriving)
        expect(actions == done, "the terminal is driven as the frames say", data, done, actions)
        closes = [payload for kind, payload in frames if kind == 8]
        expect(len(closes) <= 1 and (not closes or frames[-1][0] == 8), "a close frame comes once, and last", frames)
        expect(ended or not ends, "a connection that broke the protocol or was closed ends", data, frames)
        answered = [payload for kind, payload in frames if kind == 10]
        expect(answered == pings[: len(answered)], "pings are answered in their order", data, answered)
        expect(ends or len(answered) == len(pings), "each ping is answered", data, pings, answered)
        told = [payload for kind, payload in frames if kind == 2]
        if ("ready",) in wanted and not ends:
            expect(told == [b"\0output", b"\x03\0\0\0\x03"], "output and exit code come after ready", data, told)

    in_loop(lambda loop: work(loop, [data] if data else []))
    in_loop(lambda loop: work(loop, cuts(data) if data else []))
