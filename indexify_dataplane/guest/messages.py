"""What an endpoint gets and gives back: requests, and the three kinds of answer."""

from __future__ import annotations

import asyncio
import json
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Protocol

from .refusal import ClientGone, Refusal

HIGH_WATER = 1024 * 1024
"""Bytes held for a reader before the socket is no longer read (and again below a quarter of it)."""


class Inflow:
    """Bytes on their way from the socket to one reader, with back pressure; ``set_flowing`` stops the socket."""

    def __init__(self, *, set_flowing: Callable[[bool], None]) -> None:
        self._set_flowing = set_flowing
        self._chunks: deque[bytes] = deque()
        self._held = 0
        self._flowing = True
        self._reader: asyncio.Future[None] | None = None
        self._failure: Exception | None = None
        self.ended = False

    def put(self, data: bytes) -> None:
        self._chunks.append(data)
        self._held += len(data)
        if self._flowing and self._held >= HIGH_WATER:
            self._flowing = False
            self._set_flowing(False)
        self._wake()

    def end(self) -> None:
        self.ended = True
        self._wake()

    def fail(self, failure: Exception) -> None:
        """The rest will never come: ``read`` raises this once what is here was taken."""
        if not self.ended and self._failure is None:
            self._failure = failure
            self._wake()

    def discard(self) -> None:
        """Nobody reads this any more."""
        self._chunks.clear()
        self._took(self._held)

    async def read(self) -> bytes:
        """The next bytes as they came; empty at the end. Raises what ``fail`` was given."""
        while not self._chunks:
            if self.ended:
                return b""
            if self._failure is not None:
                raise self._failure
            self._reader = asyncio.get_running_loop().create_future()
            try:
                await self._reader
            finally:
                self._reader = None
        data = self._chunks.popleft()
        self._took(len(data))
        return data

    def read_now(self, most: int) -> list[bytes]:
        """Further chunks that are already here, together not much more than ``most`` bytes."""
        taken: list[bytes] = []
        size = 0
        while self._chunks and size < most:
            data = self._chunks.popleft()
            size += len(data)
            taken.append(data)
        self._took(size)
        return taken

    def _took(self, size: int) -> None:
        self._held -= size
        if not self._flowing and self._held <= HIGH_WATER // 4:
            self._flowing = True
            self._set_flowing(True)

    def _wake(self) -> None:
        if self._reader is not None and not self._reader.done():
            self._reader.set_result(None)


class Request:
    """One request. ``segments`` is the decoded path split at its slashes; ``body`` must be read at most once."""

    __slots__ = ("_on_read", "body", "headers", "length", "method", "modern", "path", "query", "segments")

    def __init__(
        self,
        *,
        method: str,
        target: str,
        headers: list[tuple[bytes, bytes]],
        body: Inflow,
        length: int | None,
        modern: bool = True,
        on_read: Callable[[], None] | None = None,
    ) -> None:
        if not target.startswith("/"):
            # The absolute form; its authority says nothing that matters here.
            target = "/" + target.partition("://")[2].partition("/")[2]
        path, _, query = target.partition("?")
        self.method = method
        self.path = path
        self.segments = tuple(unquote(part) for part in path.split("/")[1:])
        self.query = parse_query(query)
        self.headers = headers
        self.body = body
        self.length = length
        self.modern = modern
        self._on_read = on_read

    @property
    def unasked(self) -> bool:
        """Whether the client still waits for "100 Continue" before it sends the body."""
        return self._on_read is not None

    def header(self, name: str) -> str | None:
        """The first field of this name (lower case), as Latin-1."""
        wanted = name.encode("latin-1")
        for field, value in self.headers:
            if field == wanted:
                return value.decode("latin-1").strip()
        return None

    async def read(self) -> bytes:
        """The next bytes of the body, empty at its end. Lets a client that waits for "100 Continue" go on."""
        if self._on_read is not None:
            self._on_read()
            self._on_read = None
        return await self.body.read()

    async def read_all(self, most: int) -> bytes:
        """The whole body; more than ``most`` bytes are refused with 413."""
        too_large = Refusal(413, f"The request body is larger than {most} bytes", "PAYLOAD_TOO_LARGE")
        if self.length is not None and self.length > most:
            raise too_large
        parts: list[bytes] = []
        size = 0
        while data := await self.read():
            size += len(data)
            if size > most:
                raise too_large
            parts.append(data)
        return b"".join(parts)


class Out(Protocol):
    """Where a stream writes its body; ``write`` returns when there is room for more."""

    async def write(self, data: bytes) -> None:
        """Raises ClientGone when nobody is there any more."""


class Wire(Protocol):
    """The raw connection after an upgrade."""

    async def receive(self) -> bytes:
        """Bytes from the peer; empty when it has closed its side."""

    async def send(self, data: bytes) -> None:
        """Returns when there is room for more. Raises ClientGone when the connection is no more."""


class Reply:
    """A whole answer."""

    __slots__ = ("body", "headers", "status")

    def __init__(self, status: int, body: bytes = b"", headers: tuple[tuple[str, str], ...] = ()) -> None:
        self.status = status
        self.body = body
        self.headers = headers


class Stream:
    """An answer written bit by bit. ``release`` is always called once, also when ``produce`` never runs (HEAD)."""

    __slots__ = ("headers", "length", "produce", "release", "status")

    def __init__(
        self,
        status: int,
        produce: Callable[[Out], Awaitable[None]],
        *,
        headers: tuple[tuple[str, str], ...] = (),
        length: int | None = None,
        release: Callable[[], None] = lambda: None,
    ) -> None:
        self.status = status
        self.produce = produce
        self.headers = headers
        self.length = length
        self.release = release


class Upgrade:
    """101, then the connection belongs to ``attend`` until it returns."""

    __slots__ = ("attend", "headers", "release")

    def __init__(
        self,
        attend: Callable[[Wire], Awaitable[None]],
        *,
        headers: tuple[tuple[str, str], ...],
        release: Callable[[], None] = lambda: None,
    ) -> None:
        self.attend = attend
        self.headers = headers
        self.release = release


Answer = Reply | Stream | Upgrade
Endpoint = Callable[..., Awaitable[Answer]]


def json_reply(status: int, value: object) -> Reply:
    return Reply(status, encode_json(value), (("content-type", "application/json"),))


def encode_json(value: object) -> bytes:
    """Compact UTF-8 JSON; a lone surrogate (an undecodable byte of a file name) becomes U+FFFD."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")


def refusal_reply(refusal: Refusal) -> Reply:
    body = {"error": refusal.error}
    if refusal.code is not None:
        body["code"] = refusal.code
    reply = json_reply(refusal.status, body)
    reply.headers += refusal.headers
    return reply


def unquote(text: str) -> str:
    """Percent-decoding; bytes that are no UTF-8 survive as surrogates, as in file names. Raises Refusal 400."""
    if "%" not in text and text.isascii():
        return text
    head, *parts = text.encode("latin-1").split(b"%")
    decoded = bytearray(head)
    for part in parts:
        try:
            decoded.append(int(part[:2].decode("ascii"), 16) if len(part) >= 2 and part[:2].isalnum() else -1)
        except ValueError:
            raise Refusal(400, "The request target is not percent-encoded correctly", "BAD_REQUEST") from None
        decoded += part[2:]
    return decoded.decode("utf-8", "surrogateescape")


def parse_query(text: str) -> dict[str, str]:
    """Form decoding: ``+`` is a space; the first of several equal keys counts."""
    pairs: dict[str, str] = {}
    for part in text.split("&") if text else ():
        key, _, value = part.partition("=")
        pairs.setdefault(unquote(key.replace("+", " ")), unquote(value.replace("+", " ")))
    return pairs


__all__ = [
    "Answer",
    "ClientGone",
    "Endpoint",
    "Inflow",
    "Out",
    "Reply",
    "Request",
    "Stream",
    "Upgrade",
    "Wire",
    "encode_json",
    "json_reply",
    "parse_query",
    "refusal_reply",
    "unquote",
]
