"""Commands, files and terminals through the real proxy and the real daemon: what ``guest`` measures of them.

A node with the fork-exec driver and the embedded control plane run as processes of their own; the clients here are bare
sockets, so that what is timed is the product. Peers run in between: a spawn of the same program from Python, and a
plain copy of a file to the same disk.
"""

from __future__ import annotations

import os
import re
import socket
import statistics
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.contracts.daemon_wire import Api, SocketClosed, WebSocket
from tests.system.harness import Site

GIB = 1 << 30
BLOCK = memoryview(bytes(range(256)) * 4096)
SESSIONS = 64
ROOM = {"cpus": 2.0, "memory_mb": 4096, "ephemeral_disk_mb": 4096}
"""What the sandbox may use: its limits are not what is measured."""
LINES = 1000


class Sandbox:
    """One sandbox of a node: ``address`` of the proxy, and the processes whose memory counts."""

    def __init__(self, *, port: int, sandbox: str, proxy: int) -> None:
        self.address = ("127.0.0.1", port)
        self.fields = f"Host: bench\r\nTensorlake-Sandbox-Id: {sandbox}\r\n"
        self.api = Api(self.address, {"tensorlake-sandbox-id": sandbox})
        self.proxy = proxy
        self.daemon = int(self.api.output("sh", "-c", "echo $PPID")[0][0])

    def connect(self) -> socket.socket:
        made = socket.create_connection(self.address, timeout=60)
        made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return made


@contextmanager
def sandbox() -> Iterator[Sandbox]:
    """A running sandbox behind a node's proxy."""
    site = Site()
    try:
        server = site.server()
        node = site.node(site.config(server_addr=f"http://127.0.0.1:{server.grpc_port}")).ready()
        made = server.rest.create(resources=ROOM)
        server.rest.running(made)
        yield Sandbox(port=node.proxy.port, sandbox=made, proxy=node.pid)
        server.rest.delete(made)
        server.rest.ended(made)
    finally:
        site.close()


# -- run


def one_run(connection: socket.socket, request: bytes) -> None:
    connection.sendall(request)
    got = b""
    while not got.endswith(b"\r\n0\r\n\r\n"):
        data = connection.recv(65536)
        if not data:
            raise AssertionError(f"the stream of a run broke off: {got!r}")
        got += data
    if b'"exit_code":0' not in got:
        raise AssertionError(f"a run did not end well: {got!r}")


def run_request(place: Sandbox) -> bytes:
    body = b'{"command":"/bin/true"}'
    head = f"POST /api/v1/processes/run HTTP/1.1\r\n{place.fields}Content-Type: application/json\r\n"
    return head.encode() + b"Content-Length: %d\r\n\r\n" % len(body) + body


def run_latency(place: Sandbox, count: int) -> tuple[float, float, float]:
    """Seconds: p50 and p99 of a run of /bin/true; p50 of spawning and reaping it from Python, in between."""
    request = run_request(place)
    ours: list[float] = []
    peer: list[float] = []
    with place.connect() as connection:
        for number in range(count + 20):
            began = time.perf_counter()
            one_run(connection, request)
            ours.append(time.perf_counter() - began)
            if number % 4 == 0:
                began = time.perf_counter()
                subprocess.run(["/bin/true"], check=True)
                peer.append(time.perf_counter() - began)
    ours = sorted(ours[20:])
    return statistics.median(ours), ours[len(ours) * 99 // 100], statistics.median(peer[5:])


def run_rate(place: Sandbox, seconds: float, clients: int) -> tuple[float, float]:
    """Runs a second from ``clients`` clients, and the rate of the slowest second."""
    request = run_request(place)
    ends: list[float] = []
    problems: list[BaseException] = []
    stop = time.perf_counter() + seconds

    def work() -> None:
        try:
            with place.connect() as connection:
                while time.perf_counter() < stop:
                    one_run(connection, request)
                    ends.append(time.perf_counter())
        except BaseException as problem:
            problems.append(problem)

    began = time.perf_counter()
    threads = [threading.Thread(target=work) for _ in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if problems:
        raise problems[0]
    seen = [sum(1 for end in ends if second <= end - began < second + 1) for second in range(int(seconds))]
    return len(ends) / (time.perf_counter() - began), min(seen)


# -- files


class Peak:
    """How much the resident memory of a process grew at most since this was made."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._before = self._read("VmRSS")
        Path(f"/proc/{pid}/clear_refs").write_text("5")

    def growth(self) -> int:
        return self._read("VmHWM") - self._before

    def _read(self, field: str) -> int:
        found = re.search(rf"{field}:\s+(\d+) kB", Path(f"/proc/{self._pid}/status").read_text())
        assert found is not None
        return int(found[1]) * 1024


class Transfer:
    """One gibibyte one way: bytes a second, and the growth of both processes in bytes."""

    def __init__(self, place: Sandbox, method: str, path: str) -> None:
        peaks = Peak(place.proxy), Peak(place.daemon)
        began = time.perf_counter()
        (self._upload if method == "PUT" else self._download)(place, path)
        self.seconds = time.perf_counter() - began
        self.rate = GIB / self.seconds
        self.proxy, self.daemon = (peak.growth() for peak in peaks)

    def _upload(self, place: Sandbox, path: str) -> None:
        with place.connect() as connection:
            head = f"PUT /api/v1/files?path={path} HTTP/1.1\r\n{place.fields}Content-Length: {GIB}\r\n\r\n"
            connection.sendall(head.encode())
            for _ in range(GIB // len(BLOCK)):
                connection.sendall(BLOCK)
            answer = connection.recv(65536)
            if not answer.startswith(b"HTTP/1.1 204"):
                raise AssertionError(answer)

    def _download(self, place: Sandbox, path: str) -> None:
        buffer = bytearray(1 << 20)
        with place.connect() as connection:
            connection.sendall(f"GET /api/v1/files?path={path} HTTP/1.1\r\n{place.fields}\r\n".encode())
            head = b""
            while b"\r\n\r\n" not in head:
                head += connection.recv(4096)
            head, _, rest = head.partition(b"\r\n\r\n")
            if not head.startswith(b"HTTP/1.1 200"):
                raise AssertionError(head)
            left = GIB - len(rest)
            while left:
                size = connection.recv_into(buffer)
                if not size:
                    raise AssertionError(f"{left} bytes are missing")
                left -= size


def plain_copy(path: str) -> float:
    """Bytes a second of writing and syncing a gibibyte by itself: what the disk gives."""
    began = time.perf_counter()
    with open(path, "wb", buffering=0) as file:
        for _ in range(GIB // len(BLOCK)):
            file.write(BLOCK)
        os.fsync(file.fileno())
    seconds = time.perf_counter() - began
    os.unlink(path)
    return GIB / seconds


# -- terminals


def terminals(place: Sandbox) -> tuple[int, int, float]:
    """Sessions whose thousand lines came back whole and in order, the status of the 65th, and the seconds it took."""
    script = "stty -echo; echo up; while read x; do echo got $x; done"
    order = {"command": "sh", "args": ["-c", script]}
    sessions = [place.api.call("POST", "/pty", order).json for _ in range(SESSIONS)]
    refused = place.api.call("POST", "/pty", order).status
    whole: list[bool] = []

    def echo(session: dict[str, Any]) -> None:
        viewer = WebSocket(place.api, f"/pty/{session['session_id']}/ws?token={session['token']}")
        viewer.send(b"\2")
        wanted = [f"got {number}" for number in range(LINES)]
        got = b""
        try:
            while b"up\r\n" not in got:
                got += viewer.receive()[1:]
            for start in range(0, LINES, 100):
                viewer.send(b"\0" + b"".join(b"%d\n" % number for number in range(start, start + 100)))
            while not got.endswith(b"got %d\r\n" % (LINES - 1)):
                got += viewer.receive()[1:]
        except SocketClosed:
            whole.append(False)
            return
        whole.append([line for line in got.decode().split("\r\n") if line.startswith("got ")] == wanted)
        viewer.drop()

    began = time.perf_counter()
    threads = [threading.Thread(target=echo, args=(session,)) for session in sessions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    took = time.perf_counter() - began
    for session in sessions:
        place.api.call("DELETE", f"/pty/{session['session_id']}")
    return sum(whole), refused, took


__all__ = ["Sandbox", "Transfer", "plain_copy", "run_latency", "run_rate", "sandbox", "terminals"]
