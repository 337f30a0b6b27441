"""Which sandbox a request is for, which executor's proxy serves it, and which headers travel there."""

from __future__ import annotations

import re
from urllib.parse import urlsplit

from attrs import frozen

from .engine import Engine

DAEMON_PORT = 9501
HOST = re.compile(r"(?:(?P<port>[0-9]{1,5})-)?(?P<id>[0-9A-Za-z_-]+)\..+")
ID_HEADERS = (b"x-tensorlake-sandbox-id", b"tensorlake-sandbox-id")
PORT_HEADERS = (b"x-tensorlake-sandbox-port", b"tensorlake-sandbox-port")
HOP_HEADERS = {b"connection", b"keep-alive", b"proxy-connection", b"proxy-authenticate", b"proxy-authorization"}

HOST_LINE = re.compile(rb"\r\nhost:[ \t]*([^\r\n]*)", re.IGNORECASE)
HEAD_END = re.compile(rb"\n\r?\n")
OWN_NAME = re.compile(rb"(?:localhost|127\.0\.0\.1)(?::[0-9]+)?")

Headers = list[tuple[bytes, bytes]]


@frozen
class Wanted:
    """The sandbox and the port in it that a request is for."""

    sandbox_id: str
    port: int


class NoRoute(Exception):
    """The request cannot be passed on; answered with ``status`` and a JSON body."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.code = code


def wanted(headers: Headers) -> Wanted:
    """Read the sandbox from the id headers, else from the host name. NoRoute 400 when there is none or several."""

    def values(names: tuple[bytes, ...]) -> set[str]:
        return {value.decode("latin-1").strip() for name, value in headers if name in names}

    ids, ports = values(ID_HEADERS), values(PORT_HEADERS)
    if not ids:
        host = next((value.decode("latin-1") for name, value in headers if name == b"host"), "")
        found = HOST.fullmatch(urlsplit(f"//{host}").hostname or "")
        if found is None:
            raise NoRoute(400, "SANDBOX_ID_MISSING", f"no sandbox id header, and host {host!r} names no sandbox")
        ids = {found["id"]}
        if found["port"] and not ports:
            ports = {found["port"]}
    if len(ids) > 1 or len(ports) > 1:
        raise NoRoute(400, "SANDBOX_ID_AMBIGUOUS", "the request names several sandboxes or ports")
    port = ports.pop() if ports else str(DAEMON_PORT)
    if not (port.isascii() and port.isdigit() and 1 <= int(port) <= 65535):
        raise NoRoute(400, "INVALID_PORT", f"{port!r} is not a port")
    return Wanted(ids.pop(), int(port))


class Directory:
    """Knows, from the engine, which executor's proxy serves a sandbox."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def address(self, sandbox_id: str) -> tuple[str, int]:
        """Host and port of the executor's proxy. NoRoute 404, 410 or 503."""
        sandbox = self._engine.world.sandboxes.get(sandbox_id)
        if sandbox is None:
            # Host names reach us in lower case from some clients.
            lowered = sandbox_id.lower()
            sandbox = self._engine.world.sandboxes.get(lowered)
        if sandbox is None:
            raise NoRoute(404, "SANDBOX_NOT_FOUND", "Sandbox not found")
        if sandbox.status == "terminated":
            raise NoRoute(410, "SANDBOX_TERMINATED", "Sandbox is terminated")
        executor = self._engine.fleet.known(sandbox.executor_id)
        if executor is None or sandbox.status == "pending":
            raise NoRoute(503, "SANDBOX_NOT_READY", "Sandbox is not running yet")
        try:
            parts = urlsplit(f"//{executor.identity.proxy_address}")
            host, port = parts.hostname, parts.port
        except ValueError:
            host, port = None, None
        if not host or not port:
            raise NoRoute(503, "SANDBOX_UNREACHABLE", "the sandbox's executor advertises no usable proxy address")
        return host, port


def is_upgrade(headers: Headers) -> bool:
    return any(name == b"connection" and b"upgrade" in value.lower() for name, value in headers)


def passed_on(headers: Headers, *, upgrade: bool) -> Headers:
    """The headers without those of this hop and without routing headers of the client's own making."""
    named = {token.strip().lower() for name, value in headers if name == b"connection" for token in value.split(b",")}
    kept = [
        (name, value)
        for name, value in headers
        if name not in HOP_HEADERS
        and name not in ID_HEADERS
        and name not in PORT_HEADERS
        and (name not in named or name == b"upgrade")
        and (upgrade or name != b"upgrade")
    ]
    return [*kept, (b"Connection", b"Upgrade")] if upgrade else kept


def with_one_host(head: bytes) -> bytes:
    """The head of a WebSocket request without a leading Host field that is our own name, where a second one follows.

    SDKs from 0.4.41 to at least 0.5.97 send both when they open a terminal over a proxy on this machine. Any other
    request with two of them stays as it is and is refused.
    """
    hosts = list(HOST_LINE.finditer(head))
    if len(hosts) != 2 or not OWN_NAME.fullmatch(hosts[0][1]) or b"\r\nupgrade: websocket\r\n" not in head.lower():
        return head
    return head[: hosts[0].start()] + head[hosts[0].end() :]
