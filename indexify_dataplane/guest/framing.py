"""How the body of a request is delimited, and what becomes of its connection; what is not clear is refused."""

from __future__ import annotations

from dataclasses import dataclass

import h11

from .refusal import Refusal


@dataclass(frozen=True, slots=True)
class Framing:
    """``length`` None: chunked. ``expects``: the client waits for "100 Continue". ``modern``: HTTP/1.1."""

    length: int | None
    keep: bool
    expects: bool
    modern: bool


def framing_of(event: h11.Request) -> Framing:
    """h11 has refused lengths that differ and codings it does not know. Raises Refusal 400 and 505.

    Two kinds of framing in one request would let a client smuggle a second one past a proxy that reads the other.
    """
    length: int | None = None
    chunked = closes = expects = False
    for name, value in event.headers:
        if name == b"content-length":
            length = int(value)
        elif name == b"transfer-encoding":
            chunked = True
        elif name == b"connection":
            closes = closes or b"close" in [token.strip().lower() for token in value.split(b",")]
        elif name == b"expect":
            expects = value.lower() == b"100-continue"
    modern = event.http_version == b"1.1"
    if not modern and event.http_version != b"1.0":
        raise Refusal(505, "Only HTTP/1.0 and HTTP/1.1 are spoken here", "VERSION_NOT_SUPPORTED")
    if chunked and length is not None:
        raise Refusal(400, "Both Transfer-Encoding and Content-Length", "BAD_REQUEST")
    if chunked and not modern:
        raise Refusal(400, "Transfer-Encoding needs HTTP/1.1", "BAD_REQUEST")
    return Framing(
        length=None if chunked else length or 0,
        keep=modern and not closes,
        expects=expects and modern and bool(chunked or length),
        modern=modern,
    )
