"""Tunnels to servers in the sandbox, and a desktop at the end of one."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator
from pathlib import Path

from .checks import Given, check, content, same, until
from .processes import PYTHON

ECHO = """
import socket, threading
def serve(peer):
    while data := peer.recv(65536):
        peer.sendall(data.upper())
    peer.sendall(b"bye")
    peer.close()
listener = socket.create_server(("127.0.0.1", 0))
print(listener.getsockname()[1], flush=True)
while True:
    threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()
"""


@contextlib.contextmanager
def server(given: Given, *command: str) -> Iterator[int]:
    """A server in the sandbox that prints its port first."""
    process = given.sandbox.start_process(PYTHON, list(command))
    try:
        yield int(until("a port", lambda: given.sandbox.get_stdout(process.pid).lines)[0])
    finally:
        given.sandbox.kill_process(process.pid)


def received(peer: socket.socket) -> bytes:
    parts = []
    while data := peer.recv(65536):
        parts.append(data)
    return b"".join(parts)


@check(since=(0, 5, 114))
def a_tunnel_carries_bytes_both_ways(given: Given) -> None:
    with server(given, "-c", ECHO) as port:
        tunnel = given.sandbox.create_tunnel(port, local_port=0)
        same((tunnel.remote_port, tunnel.local_host), (port, "127.0.0.1"))
        same(tunnel.address().port, tunnel.local_port)
        for size in (5, 1_000_000 if given.full else 200_000):
            with socket.create_connection(("127.0.0.1", tunnel.local_port), timeout=20) as peer:
                for _ in range(3):
                    peer.sendall(b"a" * size)
                    left = size
                    while left:
                        data = peer.recv(left)
                        assert data and set(data) == {ord("A")}
                        left -= len(data)
                peer.shutdown(socket.SHUT_WR)
                same(received(peer), b"bye")
        tunnel.close()
        assert tunnel.closed


@check(since=(0, 5, 114))
def a_tunnel_can_be_opened_by_itself(given: Given) -> None:
    with server(given, "-c", ECHO) as port:
        sandbox = given.sandbox
        tunnel = given.a("TcpTunnel").listen(
            base_url=given.client.get(sandbox.sandbox_id).sandbox_url,
            ws_headers={"X-Tensorlake-Sandbox-Id": sandbox.sandbox_id},
            remote_port=port,
            local_port=0,
        )
        with socket.create_connection(("127.0.0.1", tunnel.local_port), timeout=20) as peer:
            peer.sendall(b"abc")
            peer.shutdown(socket.SHUT_WR)
            same(received(peer), b"ABCbye")
        tunnel.close()


@check(since=(0, 4, 36), flavours="sync")
def a_desktop_is_seen_and_driven(given: Given) -> None:
    """Against a small VNC server in the sandbox, which writes down what it is told."""
    told = given.fresh("told")
    script = given.fresh("vnc.py")
    given.sandbox.write_file(script, Path(__file__).with_name("vnc_server.py").read_bytes())
    with server(given, script, told) as port:
        desktop = given.sandbox.connect_desktop(port=port)
        same((desktop.width, desktop.height), (64, 48))
        assert desktop.screenshot().startswith(b"\x89PNG")
        desktop.move_mouse(10, 20)
        desktop.mouse_press("left")
        desktop.mouse_release("left")
        desktop.click(1, 2)
        desktop.double_click(3, 4, delay_ms=1)
        desktop.left_click(5, 6)
        desktop.middle_click(7, 8)
        desktop.right_click(9, 10)
        desktop.scroll(2)
        desktop.scroll_up()
        desktop.scroll_down()
        desktop.key_down("a")
        desktop.key_up("a")
        desktop.press("Enter")
        desktop.type_text("hi")

        def heard(*events: str) -> bool:
            rows = content(given, told).decode().splitlines()
            position = iter(rows)
            return all(each in position for each in events)

        until("the pointer", lambda: heard("pointer 0 10 20", "pointer 1 10 20", "pointer 0 10 20", "pointer 1 1 2"))
        until("other buttons", lambda: heard("pointer 2 7 8", "pointer 4 9 10", "pointer 8 9 10", "pointer 16 9 10"))
        until("the keys", lambda: heard("key 1 97", "key 0 97", "key 1 65293", "key 1 104", "key 1 105", "key 0 105"))
        desktop.close()
