"""Which port of which sandbox a request is for: by routing fields, else by the name in its Host field. Pure.

Both listeners use it, the edge and the ``resource``.
"""

from __future__ import annotations

import hmac
import re
from collections.abc import Iterable

from attrs import frozen

from .head import RequestHead
from .replies import (
    CONFLICTING_SANDBOX_ID,
    INVALID_SANDBOX_PORT,
    MISSING_SANDBOX_ID,
    SANDBOX_NOT_FOUND,
    UNAUTHORIZED,
    Reply,
    not_running,
    port_not_allowed,
)
from .routes import DAEMON_GRPC_PORT, DAEMON_PORT, NotRunning, Routes, Target

_VISIBLE = re.compile(rb"[\x21-\x7e]*")
_PORT = re.compile(rb"[0-9]{1,5}")
_PORT_AND_ID = re.compile(r"([0-9]{1,5})-(.+)")


@frozen
class Route:
    """Where a request goes."""

    target: Target
    port: int


@frozen
class Refusal:
    """Where it does not go, and what is known of where it wanted to."""

    reply: Reply
    sandbox_id: str = ""
    port: int = DAEMON_PORT
    state: str = ""


@frozen
class Preflight:
    """A browser's question about the daemon's API, answered by the proxy; ``origin`` asks."""

    origin: bytes


class Router:
    """``host_suffixes`` begin with a dot; hosts that are the node's own names never name a sandbox."""

    def __init__(
        self,
        *,
        routes: Routes,
        host_suffixes: Iterable[str],
        own_names: Iterable[str],
        secret: bytes | None = None,
    ) -> None:
        self._routes = routes
        self._suffixes = tuple(suffix.lower() for suffix in host_suffixes)
        self._own = frozenset(name.lower() for name in own_names)
        self._secret = secret

    def route(self, head: RequestHead) -> Route | Refusal | Preflight:
        if self._secret is not None and not hmac.compare_digest(head.secret or b"", self._secret):
            return Refusal(UNAUTHORIZED)
        if head.id_conflict:
            return Refusal(CONFLICTING_SANDBOX_ID)
        port = 0
        if head.sandbox_port is not None or head.port_conflict:
            port = _port(head)
            if not port:
                return Refusal(INVALID_SANDBOX_PORT)
        if head.sandbox_id is not None and _VISIBLE.fullmatch(head.sandbox_id):
            sandbox_id = head.sandbox_id.decode("ascii")
            found = self._routes.find(sandbox_id)
        else:
            named = self._by_host(head.host)
            if named is None:
                # A browser asks without the routing fields of the request it is going to send.
                if head.preflight and head.origin is not None and head.method == b"OPTIONS":
                    return Preflight(head.origin)
                return Refusal(MISSING_SANDBOX_ID)
            sandbox_id, host_port, found = named
            if host_port is not None:
                if not 0 < host_port < 65536 or (port and port != host_port):
                    return Refusal(INVALID_SANDBOX_PORT, sandbox_id)
                port = host_port
        port = port or DAEMON_PORT
        if port == DAEMON_PORT and head.preflight and head.origin is not None and head.method == b"OPTIONS":
            return Preflight(head.origin)
        if port == DAEMON_GRPC_PORT:
            return Refusal(port_not_allowed(port), sandbox_id, port)
        if isinstance(found, Target):
            return Route(found, port)
        if found is None:
            return Refusal(SANDBOX_NOT_FOUND, sandbox_id, port)
        return Refusal(not_running(found.state), sandbox_id, port, found.state)

    def _by_host(self, host: bytes | None) -> tuple[str, int | None, Target | NotRunning | None] | None:
        """Id, port and finding of a sandbox's host name; None where the host is not one."""
        if not host:
            return None
        name = host.decode("latin-1").partition(":")[0].rstrip(".")
        folded = name.lower()
        if folded in self._own:
            return None
        for suffix in self._suffixes:
            if folded.endswith(suffix):
                label = name[: -len(suffix)]
                break
        else:
            return None
        if not label or "." in label:
            return None
        found = self._routes.find(label)
        if found is None and label != label.lower():
            # Host names are alike in both cases; ids that the server makes are in lower case.
            label = label.lower()
            found = self._routes.find(label)
        parts = _PORT_AND_ID.fullmatch(label) if found is None else None
        if parts is None:
            return label, None, found
        return parts[2], int(parts[1]), self._routes.find(parts[2])


def _port(head: RequestHead) -> int:
    """The port that the routing fields name; 0 when they name none that is one."""
    text = head.sandbox_port
    if head.port_conflict or text is None or not _PORT.fullmatch(text):
        return 0
    port = int(text)
    return port if port < 65536 else 0
