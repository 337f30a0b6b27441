"""Heads as they go out: the request to a container and its answer to the client. Pure."""

from __future__ import annotations

from .head import CHUNKED, RequestHead, without
from .replies import Reply
from .response import ResponseHead
from .routes import TOKEN_HEADER

_TOKEN = TOKEN_HEADER.encode() + b": "

ALLOWED_METHODS = b"GET, POST, PUT, DELETE, OPTIONS"
ALLOWED_HEADERS = (
    b"content-type, authorization, x-tensorlake-sandbox-id, x-tensorlake-sandbox-port, "
    b"tensorlake-sandbox-id, tensorlake-sandbox-port, x-pty-token, last-event-id"
)
_CORS_NAMES = frozenset(
    {
        b"access-control-allow-origin", b"access-control-allow-methods", b"access-control-allow-headers",
        b"access-control-allow-credentials",
    }
)  # fmt: skip


def cors(origin: bytes) -> list[bytes]:
    """What lets a page of ``origin`` use the daemon's API, but never with the browser's own credentials."""
    return [
        b"access-control-allow-origin: " + origin,
        b"access-control-allow-methods: " + ALLOWED_METHODS,
        b"access-control-allow-headers: " + ALLOWED_HEADERS,
        b"vary: origin",
    ]


def forwarded_lines(head: RequestHead, peer: bytes) -> list[bytes]:
    """X-Forwarded-For, -Proto and -Host, each only where the request has none."""
    if not head.forwarded and head.host:
        return [b"X-Forwarded-For: " + peer, b"X-Forwarded-Proto: http", b"X-Forwarded-Host: " + head.host]
    lines = []
    if not head.forwarded & 1:
        lines.append(b"X-Forwarded-For: " + peer)
    if not head.forwarded & 2:
        lines.append(b"X-Forwarded-Proto: http")
    if not head.forwarded & 4 and head.host:
        lines.append(b"X-Forwarded-Host: " + head.host)
    return lines


def request_lines(
    head: RequestHead, *, peer: bytes, address: bytes, token: bytes | None, strip_credentials: bool
) -> list[bytes]:
    """The end-to-end fields for the container. ``token`` is its daemon's; None for ports of its users."""
    lines = head.lines + forwarded_lines(head, peer)
    if head.host is None:
        lines.insert(0, b"Host: " + address)
    if head.credentials and not strip_credentials:
        lines += head.credentials
    if head.expects_continue:
        lines.append(b"Expect: 100-continue")
    if token is not None:
        lines.append(_TOKEN + token)
    return lines


def request_head(head: RequestHead, lines: list[bytes]) -> bytes:
    """The head for an HTTP/1.1 upstream, with the fields of this hop."""
    if head.length == CHUNKED:
        lines.append(b"Transfer-Encoding: chunked")
    if head.upgrade is not None:
        lines += (b"Connection: upgrade", b"Upgrade: " + head.upgrade)
    elif head.te_trailers:
        lines += (b"Connection: TE", b"TE: trailers")
    lines.append(b"\r\n")
    return b"%b %b HTTP/1.1\r\n%b" % (head.method, head.target, b"\r\n".join(lines))


def response_lines(head: ResponseHead, origin: bytes | None) -> list[bytes]:
    """The end-to-end fields for the client; ``origin`` is given for answers of the daemon to a page."""
    if origin is None:
        return head.lines
    return without(head.lines, _CORS_NAMES) + cors(origin)


def response_head(head: ResponseHead, lines: list[bytes], hop: bytes) -> bytes:
    """The head for an HTTP/1.x client; ``hop`` are the lines of this hop, each with its end of line."""
    if lines:
        return b"HTTP/1.1 %d %b\r\n%b\r\n%b\r\n" % (head.status, head.reason, b"\r\n".join(lines), hop)
    return b"HTTP/1.1 %d %b\r\n%b\r\n" % (head.status, head.reason, hop)


def reply(reply: Reply, *, origin: bytes | None, closes: bool, without_body: bool) -> bytes:
    """An answer of the proxy itself, whole."""
    body = reply.body
    lines = [b"content-type: application/json", b"content-length: %d" % len(body)]
    lines.append(b"cache-control: private, no-store")
    if origin is not None:
        lines += cors(origin)
    if closes:
        lines.append(b"connection: close")
    lines.append(b"\r\n")
    head = b"HTTP/1.1 %d %b\r\n%b" % (reply.status, reply.reason, b"\r\n".join(lines))
    return head if without_body else head + body


def preflight(origin: bytes, closes: bool) -> bytes:
    """The answer to a browser's question whether a page may use the daemon's API."""
    lines = [b"content-length: 0", b"access-control-max-age: 86400", *cors(origin)]
    if closes:
        lines.append(b"connection: close")
    return b"HTTP/1.1 200 OK\r\n" + b"\r\n".join(lines) + b"\r\n\r\n"
