"""REST over plain twisted.web: routes by pattern, refusals as plain text, and what keeps web pages out.

The server runs code for whoever may talk to it, so a page open in a browser must not: requests are refused when their
Host is a name that could be anybody's (DNS rebinding) or when their Origin is another site, JSON routes insist on a
JSON content type, and no CORS header is ever sent.
"""

from __future__ import annotations

import ipaddress
import json
import re
from collections.abc import Callable, Iterable
from typing import Any, TypeVar
from urllib.parse import unquote, urlsplit

import msgspec
from attrs import frozen
from twisted.internet.defer import Deferred
from twisted.logger import Logger
from twisted.protocols.policies import WrappingFactory
from twisted.python.failure import Failure
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET, Request, Site

from .errors import Refused

log = Logger()

S = TypeVar("S")

BODY_BYTES = 10 * 1024 * 1024
"""The most that any route takes (the invocation of an application); multipart bodies have a lower limit."""


@frozen
class Reply:
    """A whole answer."""

    status: int = 200
    body: bytes = b""
    content_type: str | None = None
    headers: tuple[tuple[str, str], ...] = ()


def as_json(value: Any, status: int = 200) -> Reply:
    return Reply(status, json.dumps(value, separators=(",", ":")).encode(), "application/json")


class Call:
    """One request as a route sees it."""

    def __init__(self, request: Any) -> None:
        self.request = request

    @property
    def body(self) -> bytes:
        self.request.content.seek(0)
        body: bytes = self.request.content.read()
        return body

    @property
    def size(self) -> int:
        """Bytes of the body as it was sent; ``body`` has no more than ``BODY_BYTES`` of them."""
        size: int = self.request.received_bytes
        return size

    @property
    def method(self) -> str:
        return str(self.request.method.decode("latin-1"))

    def header(self, name: str) -> str | None:
        value: str | None = self.request.getHeader(name)
        return value

    def query(self, name: str, default: str | None = None) -> str | None:
        values = self.request.args.get(name.encode())
        return values[0].decode("utf-8", "replace") if values else default

    def count(self, name: str, default: int) -> int:
        """A number of the query. Refused 400 when it is none."""
        text = self.query(name)
        if text is None:
            return default
        if not text.isascii() or not text.isdigit():
            raise Refused(400, f"{name} must be a number, not {text!r}")
        return int(text)

    def shaped(self, shape: type[S]) -> S:
        """The JSON body. Refused 415, 400 or 422 when it is none, broken, or has wrong fields."""
        media = (self.header("content-type") or "").partition(";")[0].strip().lower()
        if media != "application/json" and not (media.startswith("application/") and media.endswith("+json")):
            raise Refused(415, "Expected request with `Content-Type: application/json`")
        try:
            return msgspec.json.decode(self.body, type=shape)
        except msgspec.ValidationError as error:
            raise Refused(422, f"Failed to deserialize the JSON body into the target type: {error}") from error
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise Refused(400, f"Failed to parse the request body as JSON: {error}") from error


Answer = Reply | None
"""None: the route writes the answer itself, now or later."""

Route = Callable[..., Answer]


@frozen
class Pattern:
    """A method and a path with ``{names}``, each one segment. ``any_size``: the route needs only the beginning of a
    body that is over the limit."""

    method: str
    path: str
    route: Route
    any_size: bool = False

    def expression(self) -> re.Pattern[str]:
        return re.compile(re.sub(r"\\\{(\w+)\\\}", r"(?P<\1>[^/]+)", re.escape(self.path)))


class Routes(Resource):
    """Finds the route of a request, guards it and writes its answer."""

    isLeaf = True

    def __init__(
        self,
        patterns: Iterable[Pattern],
        allowed_hosts: Iterable[str] = (),
        names: Callable[[str], bool] = lambda name: False,
    ) -> None:
        """``names`` tells whether a host name is one of this server's at the moment."""
        super().__init__()  # type: ignore[no-untyped-call]
        self._table = [(pattern, pattern.expression()) for pattern in patterns]
        self._allowed_hosts = {name.lower() for name in allowed_hosts}
        self._names = names

    def render(self, request: Any) -> Any:
        try:
            answer = self._answer(request)
        except Refused as refusal:
            answer = Reply(refusal.status, refusal.message.encode(), "text/plain; charset=utf-8")
        except Exception:
            log.failure("REST request failed", method=request.method, path=request.path)
            answer = Reply(500, b"internal error; see the server's log", "text/plain; charset=utf-8")
        if answer is None:
            return NOT_DONE_YET
        return write(request, answer)

    def _answer(self, request: Any) -> Answer:
        self._guard(request)
        path = request.path.decode("latin-1")
        if len(path) > 1:
            path = path.rstrip("/")
        allowed = set()
        method = request.method.decode("latin-1")
        too_large = request.received_bytes > BODY_BYTES
        for pattern, expression in self._table:
            found = expression.fullmatch(path)
            if found is None:
                continue
            if pattern.method == method and (pattern.any_size or not too_large):
                names = {name: unquote(value) for name, value in found.groupdict().items()}
                return pattern.route(Call(request), **names)
            allowed.add(pattern.method)
        if too_large:
            raise Refused(413, f"a request body may have {BODY_BYTES} bytes")
        if allowed:
            return Reply(405, b"Method Not Allowed", "text/plain", (("Allow", ", ".join(sorted(allowed))),))
        return Reply(404, b"Not Found", "text/plain")

    def _guard(self, request: Any) -> None:
        host = request.getHeader("host") or ""
        if not self._is_ours(host):
            raise Refused(403, f"Host {host!r} is not one of this server's names; allow it with an option")
        origin = request.getHeader("origin")
        if origin is not None and urlsplit(origin).netloc.lower() != host.lower():
            raise Refused(403, "requests from web pages of other origins are refused")

    def _is_ours(self, host: str) -> bool:
        try:
            name = (urlsplit(f"//{host}").hostname or "").lower()
        except ValueError:
            return False
        if name == "localhost" or name.endswith(".localhost") or name in self._allowed_hosts or self._names(name):
            return True
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return False
        return True


def write(request: Any, reply: Reply) -> bytes:
    """Put the head of ``reply`` on the request; its body."""
    request.setResponseCode(reply.status)
    if reply.content_type is not None:
        request.setHeader("Content-Type", reply.content_type)
    else:
        # twisted.web would say text/html.
        request.defaultContentType = None
    for name, value in reply.headers:
        request.setHeader(name, value)
    request.setHeader("Content-Length", str(len(reply.body)))
    return b"" if request.method == b"HEAD" else reply.body


class BoundedRequest(Request):
    """A request whose body may not grow without limit. What is over it is read and thrown away, because a client that
    is still sending would not see the answer."""

    received_bytes = 0

    def handleContentChunk(self, data: bytes) -> None:
        self.received_bytes += len(data)
        if self.received_bytes <= BODY_BYTES:
            super().handleContentChunk(data)  # type: ignore[no-untyped-call]


class RestSite(Site):
    """The routes as a site; requests are logged at debug level."""

    noisy = False

    def __init__(self, routes: Routes, reactor: Any) -> None:
        super().__init__(  # type: ignore[no-untyped-call]
            routes, requestFactory=BoundedRequest, reactor=reactor, parsePOSTFormSubmission=False
        )

    def log(self, request: Any) -> None:
        log.debug("REST request", method=request.method.decode(), path=request.path.decode(), status=request.code)


class RestConnections(WrappingFactory):
    """Every connection of a site; ``close`` ends those that clients keep open."""

    noisy = False

    def close(self) -> None:
        for protocol in list(self.protocols):
            transport: Any = protocol.transport
            transport.abortConnection()


def gone(request: Any) -> Deferred[None]:
    """Fires when the request's connection is over, however that came."""
    over: Deferred[None] = Deferred()

    def note(_: Failure | None) -> None:
        over.callback(None)

    request.notifyFinish().addBoth(note)
    return over
