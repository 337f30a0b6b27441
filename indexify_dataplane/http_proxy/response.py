"""Heads of upstream responses: parsed, and freed of what concerns that connection alone. No I/O."""

from __future__ import annotations

import re

import httptools

from .head import CHUNKED, UNTIL_CLOSE, Field, without

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


class ResponseHead:
    """One response's head; ``length`` is what its fields say, before method and status are considered."""

    __slots__ = ("connection", "encodings", "keep_alive", "length", "lines", "minor", "reason", "status", "upgrade")

    def __init__(self, status: int, reason: bytes, minor: int) -> None:
        self.status = status
        self.reason = reason
        self.minor = minor
        self.lines: list[bytes] = []
        self.length: int = UNTIL_CLOSE
        self.keep_alive = minor == 1
        self.connection: bytes | None = None
        self.encodings: bytes | None = None
        self.upgrade: bytes | None = None

    def on_header(self, name: bytes, value: bytes) -> None:
        field = _RESPONSE_FIELDS.get(name.lower())
        if value[-1:] in b" \t":
            value = value.rstrip(b" \t")
        if field is None:
            self.lines.append(name + b": " + value)
        elif field is Field.LENGTH:
            self.length = int(value)
            self.lines.append(b"Content-Length: " + value)
        elif field is Field.CONNECTION:
            value = value.lower()
            self.connection = value if self.connection is None else self.connection + b"," + value
        elif field is Field.ENCODING:
            value = value.lower()
            self.encodings = value if self.encodings is None else self.encodings + b"," + value
        elif field is Field.UPGRADE:
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
        if self.connection is not None:
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
    first = _STATUS_LINE.match(head)
    if first is None:
        raise ValueError("the status line cannot be read")
    minor, status, reason = first.groups()
    parsed = ResponseHead(int(status), reason or b"", 1 if minor == b"1" else 0)
    try:
        httptools.HttpResponseParser(parsed).feed_data(head)
    except (httptools.HttpParserUpgrade, httptools.HttpParserError) as error:
        # HttpParserUpgrade says that the head is complete and agrees to an upgrade.
        if not isinstance(error, httptools.HttpParserUpgrade):
            if "Transfer-Encoding" not in str(error):
                raise ValueError(f"the head cannot be read: {error}") from error
            parsed = _with_both_lengths(head, parsed)
    parsed.finish()
    return parsed


def _with_both_lengths(head: bytes, before: ResponseHead) -> ResponseHead:
    parsed = ResponseHead(before.status, before.reason, before.minor)
    parser = httptools.HttpResponseParser(parsed)
    parser.set_dangerous_leniencies(lenient_chunked_length=True)
    try:
        parser.feed_data(head)
    except httptools.HttpParserError as error:
        raise ValueError(f"the head cannot be read: {error}") from error
    return parsed
