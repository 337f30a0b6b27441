"""The small web servers of the node: short answers, no access log, no connection left open at the end."""

from __future__ import annotations

import ipaddress
import json
from typing import Any

from twisted.internet.defer import maybeDeferred
from twisted.logger import Logger

log = Logger()

JSON = "application/json"
TEXT = "text/plain; charset=utf-8"
IDLE_SECONDS = 60.0


def compact(value: object) -> str:
    """JSON without a space, as probes compare it."""
    return json.dumps(value, separators=(",", ":"))


def readable(value: object) -> str:
    """JSON for a person with curl."""
    return json.dumps(value, indent=2) + "\n"


def answer(request: Any, body: str | bytes, *, status: int = 200, content_type: str = JSON) -> bytes:
    """Set the head of the answer; returns the body. For HEAD, twisted.web leaves the body out."""
    data = body.encode() if isinstance(body, str) else body
    request.setResponseCode(status)
    request.setHeader(b"content-type", content_type.encode())
    request.setHeader(b"content-length", str(len(data)).encode())
    request.setHeader(b"cache-control", b"no-store")
    request.setHeader(b"server", b"indexify-dataplane")
    return data


def bare_errors(app: Any) -> None:
    """Answer unknown paths with an empty 404 and other methods with an empty 405 that names those allowed."""
    from werkzeug.exceptions import HTTPException, MethodNotAllowed

    def refused(request: Any, failure: Any) -> bytes:
        error = failure.value
        if isinstance(error, MethodNotAllowed) and error.valid_methods:
            request.setHeader(b"allow", ", ".join(sorted(error.valid_methods)).encode())
        return answer(request, b"", status=error.code or 500, content_type=TEXT)

    app.handle_errors(HTTPException)(refused)


def site(resource: Any) -> Any:
    """A twisted.web Site that keeps no access log: probes every second would drown the node's own lines."""
    from twisted.web.server import Site

    class QuietSite(Site):
        noisy = False
        displayTracebacks = False

        def log(self, request: Any) -> None:
            log.debug("monitoring request", method=request.method.decode("latin-1"), status=request.code)

    return QuietSite(resource, timeout=IDLE_SECONDS)  # type: ignore[no-untyped-call]


async def resolve(reactor: Any, host: str) -> str:
    """The address to bind for ``host``, a name or an address."""
    try:
        return str(ipaddress.ip_address(host))
    except ValueError:
        return str(await reactor.resolve(host))


class Listener:
    """A listening port and its connections. ``port`` is set by whoever makes it listen with ``factory``."""

    def __init__(self, site: Any) -> None:
        from twisted.protocols.policies import WrappingFactory

        self.factory = WrappingFactory(site)
        self.factory.noisy = False
        self.port: Any = None

    async def stop(self) -> None:
        """Stop listening and close every connection."""
        await maybeDeferred(self.port.stopListening)
        for protocol in list(self.factory.protocols):
            if protocol.transport is not None:
                protocol.transport.loseConnection()
