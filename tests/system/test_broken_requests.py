"""A running node gets requests that are broken in every known way; it says so, and goes on serving."""

from __future__ import annotations

import socket
from collections.abc import Callable

from tests.http_proxy.support import ID
from tests.http_proxy.test_broken_requests import BROKEN, BROKEN_BODIES

from .harness import Node, Site, until


def send(port: int, request: bytes, seconds: float = 10) -> bytes:
    """The answer to raw bytes, until the end of the connection or of the head with its body."""
    with socket.create_connection(("127.0.0.1", port), timeout=seconds) as connection:
        connection.sendall(request)
        said = b""
        while chunk := connection.recv(65536):
            said += chunk
            head, end, body = said.partition(b"\r\n\r\n")
            lengths = [line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
            if end and lengths and len(body) >= int(lengths[0].split(b":")[1]):
                break
        return said


def check(node: Node, sandbox: str, name: str, status: int, request: bytes) -> None:
    answer = send(node.proxy.port, request.replace(ID, f"Tensorlake-Sandbox-Id: {sandbox}\r\n".encode()))
    assert answer.startswith(f"HTTP/1.1 {status} ".encode()), f"{name}: {answer[:300]!r}"
    assert b'"code":' in answer and b'"error":' in answer, f"{name}: {answer[:300]!r}"
    assert node.answers(sandbox), f"the node does not serve after {name}"


def test_broken_requests(site: Site, tell: Callable[[str], None]) -> None:
    server = site.server()
    node = site.node(site.config(server_addr=f"http://127.0.0.1:{server.grpc_port}")).ready()
    sandbox = server.rest.create()
    server.rest.running(sandbox)
    until("routed", lambda: node.answers(sandbox))
    for name, (status, request) in BROKEN.items():
        check(node, sandbox, name, status, request)
    for name, body in BROKEN_BODIES.items():
        head = b"POST /api/v1/processes HTTP/1.1\r\nHost: a\r\n" + ID + b"Transfer-Encoding: chunked\r\n\r\n"
        check(node, sandbox, name, 400, head + body)
    headers = {"Tensorlake-Sandbox-Id": sandbox}
    assert node.proxy.get("/api/v1/processes", headers=headers)["processes"] == [], "a broken request had an effect"
    tell(f"{len(BROKEN)} broken heads and {len(BROKEN_BODIES)} broken bodies, each answered and survived")
    server.rest.delete(sandbox)
    until("gone", lambda: node.proxy.send("GET", "/", headers=headers)[0] in (404, 503))
    errors = [line for line in node.said.splitlines() if '"level":"ERROR"' in line]
    assert errors == []


def test_broken_requests_to_the_monitoring_port(site: Site) -> None:
    """The other listener, and the control socket's kind of server."""
    node = site.node(site.config())
    port = int(node.event("monitoring is listening")["port"])
    for request in (
        b"\r\n\r\n\x00",
        b"GET\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"\x16\x03\x01" * 50,
        b"A" * 100_000 + b"\r\n\r\n",
    ):
        try:
            send(port, request, 0.5)
        except OSError:
            pass  # it may hang up, or wait for more
        assert b"200 OK" in send(port, b"GET /health HTTP/1.1\r\nHost: a\r\n\r\n")
    for method, path, status in (("POST", "/state", 405), ("GET", "/nothing", 404), ("GET", "/ready", 503)):
        assert f" {status} ".encode() in send(port, f"{method} {path} HTTP/1.1\r\nHost: a\r\n\r\n".encode())
    node.stop()
    assert "Traceback" not in node.said + node.said_on_stderr, node.tail()
