"""Heads of upstream responses: parsed, and freed of what concerns that connection alone. No I/O."""

from __future__ import annotations

import re

import httptools

from .head import CHUNKED, NOBODY, UNTIL_CLOSE, Field, without

_STATUS_LINE = re.compile(rb"HTTP/1\.([01]) ([1-5]\d\d)(?: ([\t\x20-\x7e\x80-\xff]*))?\r\n")

_RESPONSE_FIELDS = {
    b"connection": Field.CONNECTION,
    b"content-length": Field.LENGTH,
    b"transfer-encoding": Field.ENCODING,
    b"upgrade": Field.UPGRADE,
    b"keep-alive": Field.DROP,
    b"proxy-connection": Field.DROP,
    b"proxy-authenticate": Field.DROP,
    b"te": Field.DROP,
}


_LENGTH, _CONNECTION, _ENCODING, _UPGRADE = Field.LENGTH, Field.CONNECTION, Field.ENCODING, Field.UPGRADE


class ResponseHead:
    """One response's head; ``length`` is what its fields say, before method and status are considered."""

    length: int = UNTIL_CLOSE
    connection: bytes | None = None
    encodings: bytes | None = None
    upgrade: bytes | None = None

    def __init__(self, status: int, reason: bytes, minor: int) -> None:
        self.status = status
        self.reason = reason
        self.minor = minor
        self.keep_alive = minor == 1
        self.lines: list[bytes] = []

    def on_header(self, name: bytes, value: bytes) -> None:
        """One field that was read by somebody else."""
        field = _RESPONSE_FIELDS.get(name.lower())
        if field is None:
            self.lines.append(name + b": " + value)
        else:
            self.special(field, value)

    def special(self, field: int, value: bytes) -> None:
        """A field that means something here, its value without white space around it."""
        if field == _LENGTH:
            self.length = int(value)
            self.lines.append(b"Content-Length: " + value)
        elif field == _CONNECTION:
            value = value.lower()
            self.connection = value if self.connection is None else self.connection + b"," + value
        elif field == _ENCODING:
            value = value.lower()
            self.encodings = value if self.encodings is None else self.encodings + b"," + value
        elif field == _UPGRADE:
            self.upgrade = value

    def body_length(self, method: bytes) -> int:
        """How the body of this answer to ``method`` ends: a number of bytes, CHUNKED or UNTIL_CLOSE."""
        if method == b"HEAD" or self.status in (204, 304) or self.status < 200:
            return 0
        return self.length

    def finish(self) -> None:
        if self.encodings is not None:
            if self.encodings != b"chunked" or self.minor == 0:
                raise ValueError(f"transfer coding {self.encodings!r} in HTTP/1.{self.minor}")
            if self.length >= 0:
                # Both fields: the coding wins, and the connection is not trusted for another answer.
                self.lines = without(self.lines, {b"content-length"})
                self.keep_alive = False
            self.length = CHUNKED
        if self.connection is not None and (self.connection != b"keep-alive" or not self.minor):
            tokens = {token.strip(b" \t") for token in self.connection.split(b",")}
            keep = b"close" not in tokens and (self.minor == 1 or b"keep-alive" in tokens)
            self.keep_alive = keep and (self.keep_alive or self.minor == 0)
            tokens -= {b"", b"close", b"keep-alive", b"upgrade", b"content-length", b"transfer-encoding"}
            if tokens:
                self.lines = without(self.lines, tokens)
        if self.status == 204 and self.length != UNTIL_CLOSE:
            self.lines = without(self.lines, {b"content-length"})


def parse_response(head: bytes) -> ResponseHead:
    """``head`` ends with its empty line. Raises ValueError with what is wrong."""
    end = head.index(b"\r\n") + 2
    line = head[:end]
    known = _KNOWN.get(line) or _status(line)
    parsed = ResponseHead(*known)
    try:
        httptools.HttpResponseParser(NOBODY).feed_data(head)
    except (httptools.HttpParserUpgrade, httptools.HttpParserError) as error:
        # HttpParserUpgrade says that the head is complete and agrees to an upgrade.
        if not isinstance(error, httptools.HttpParserUpgrade):
            if "Transfer-Encoding" not in str(error):
                raise ValueError(f"the head cannot be read: {error}") from error
            _check_with_both_lengths(head)
    plain, special = parsed.lines, parsed.special
    for line in head[end:-4].split(b"\r\n"):
        name, _, value = line.partition(b":")
        field = _RESPONSE_FIELDS.get(name.lower())
        if field is None:
            if line:
                plain.append(line)
        else:
            special(field, value.strip(b" \t"))
    parsed.finish()
    return parsed


_KNOWN: dict[bytes, tuple[int, bytes, int]] = {}
"""Status lines seen before; containers use few, and at most 256 are kept."""


def _status(line: bytes) -> tuple[int, bytes, int]:
    first = _STATUS_LINE.fullmatch(line)
    if first is None:
        raise ValueError("the status line cannot be read")
    minor, status, reason = first.groups()
    told = (int(status), reason or b"", 1 if minor == b"1" else 0)
    if len(_KNOWN) < 256:
        _KNOWN[line] = told
    return told


def _check_with_both_lengths(head: bytes) -> None:
    parser = httptools.HttpResponseParser(NOBODY)
    parser.set_dangerous_leniencies(lenient_chunked_length=True)
    try:
        parser.feed_data(head)
    except httptools.HttpParserUpgrade:
        raise ValueError("an upgrade has no body, and this one frames one twice") from None
    except httptools.HttpParserError as error:
        raise ValueError(f"the head cannot be read: {error}") from error
