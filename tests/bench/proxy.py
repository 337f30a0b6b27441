"""The proxy against nginx: requests a second and p99 on 32 keep-alive connections, memory of 1 GiB bodies and of
2,000 idle WebSockets.

    .venv/bin/python -m tests.bench.proxy [--seconds 3] [--rounds 5] [--varied] [--only speed|bodies|sockets]

Both proxies are one process with a request log, in front of one nginx that answers 200 bytes; rounds are interleaved
(ours, nginx, nginx, ours). ``wrk`` drives them. Ends with 1 when a limit of ``LIMITS`` is missed.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import re
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

CONNECTIONS = 32
GIB = 1 << 30
SOCKETS = 2000
LIMITS = {
    "requests/s, of nginx": (">=", 0.50),
    "p99, of nginx": ("<=", 3.0),
    "1 GiB download, growth in MiB": ("<", 8.0),
    "1 GiB upload, growth in MiB": ("<", 8.0),
    "2000 idle WebSockets, dropped": ("<=", 0),
    "idle WebSocket, KiB each": ("<=", 30.0),
}

UPSTREAM_CONF = """
worker_processes 1; daemon off; pid {dir}/up.pid; error_log {dir}/up.err;
events {{ worker_connections 1024; }}
http {{ access_log off; keepalive_requests 100000000; client_body_temp_path {dir}/b; proxy_temp_path {dir}/p;
fastcgi_temp_path {dir}/f; uwsgi_temp_path {dir}/u; scgi_temp_path {dir}/s;
server {{ listen 127.0.0.1:{port}; location / {{ default_type text/plain; return 200 "{body}"; }} }} }}
"""
PEER_CONF = """
worker_processes 1; daemon off; pid {dir}/peer.pid; error_log {dir}/peer.err;
events {{ worker_connections 1024; }}
http {{ access_log {dir}/peer.log; keepalive_requests 100000000; client_body_temp_path {dir}/b2;
proxy_temp_path {dir}/p2; fastcgi_temp_path {dir}/f2; uwsgi_temp_path {dir}/u2; scgi_temp_path {dir}/s2;
upstream up {{ server 127.0.0.1:{upstream}; keepalive 64; keepalive_requests 100000000; }}
server {{ listen 127.0.0.1:{port}; location / {{ proxy_pass http://up; proxy_http_version 1.1;
proxy_set_header Connection ""; proxy_set_header Host $host; }} }} }}
"""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def wait_for(port: int) -> None:
    end = time.monotonic() + 15
    while time.monotonic() < end:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        time.sleep(0.02)
    raise RuntimeError(f"nothing listens on port {port}")


@contextlib.contextmanager
def running(*argv: str) -> Iterator[subprocess.Popen[bytes]]:
    child = subprocess.Popen(argv)
    try:
        yield child
    finally:
        child.terminate()
        child.wait(10)


@contextlib.contextmanager
def nginx(text: str, path: Path, port: int) -> Iterator[None]:
    path.write_text(text)
    with running("nginx", "-c", str(path), "-e", "/dev/null"):
        wait_for(port)
        yield


@contextlib.contextmanager
def edge(upstream: int, directory: Path, *wrapper: str) -> Iterator[tuple[int, int]]:
    """Our proxy in a process of its own; gives its port and pid."""
    port = free_port()
    argv = (
        *wrapper,
        sys.executable,
        "-m",
        "tests.bench.proxy_node",
        str(port),
        str(upstream),
        str(directory / "node.log"),
    )
    with running(*argv) as child:
        wait_for(port)
        yield port, child.pid


def resident(pid: int) -> int:
    match = re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    assert match is not None
    return int(match[1]) * 1024


VARIED = """local n = 0
request = function() n = n + 1; return wrk.format("GET", "/api/v1/processes/" .. n) end
"""


def load(port: int, seconds: int, *options: str) -> tuple[float, float]:
    """Requests a second and p99 in milliseconds."""
    told = subprocess.run(
        ["wrk", "-t1", f"-c{CONNECTIONS}", f"-d{seconds}s", "--latency", "-H", "Tensorlake-Sandbox-Id: sb-bench",
         *options, f"http://127.0.0.1:{port}/api/v1/health"],
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    if "Non-2xx" in told or "Socket errors" in told:
        raise RuntimeError(told)
    rate = re.search(r"Requests/sec:\s+([\d.]+)", told)
    slow = re.search(r"99%\s+([\d.]+)(us|ms|s)", told)
    assert rate and slow
    return float(rate[1]), float(slow[1]) * {"us": 0.001, "ms": 1, "s": 1000}[slow[2]]


def speed(directory: Path, seconds: int, rounds: int, varied: bool) -> dict[str, float]:
    """``varied``: every request has another path, so that no connection sees the same head twice."""
    script = directory / "varied.lua"
    script.write_text(VARIED)
    options = ("-s", str(script)) if varied else ()
    up, peer = free_port(), free_port()
    with contextlib.ExitStack() as stack:
        stack.enter_context(
            nginx(UPSTREAM_CONF.format(dir=directory, port=up, body="x" * 200), directory / "up.conf", up)
        )
        conf = PEER_CONF.format(dir=directory, port=peer, upstream=up)
        stack.enter_context(nginx(conf, directory / "peer.conf", peer))
        ours, _ = stack.enter_context(edge(up, directory))
        load(ours, 1)
        load(peer, 1)
        pairs = []
        for number in range(rounds):
            first, second = (ours, peer) if number % 2 == 0 else (peer, ours)
            by_port = {first: load(first, seconds, *options), second: load(second, seconds, *options)}
            pairs.append((by_port[ours], by_port[peer]))
            (rate, slow), (peer_rate, peer_slow) = pairs[-1]
            told = f"ours {rate:8.0f}/s p99 {slow:6.2f} ms   nginx {peer_rate:8.0f}/s p99 {peer_slow:6.2f} ms"
            print(f"  round {number + 1}: {told}")
        return {
            "requests/s, of nginx": statistics.median(a[0] / b[0] for a, b in pairs),
            "p99, of nginx": statistics.median(a[1] / b[1] for a, b in pairs),
        }


async def _plain_upstream(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """GET /<n> gives n bytes, POST counts its body, an upgrade stays open in silence."""
    with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
        while True:
            head = await reader.readuntil(b"\r\n\r\n")
            if b"upgrade: websocket" in head.lower():
                writer.write(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: upgrade\r\n\r\n")
                await reader.read()
                break
            if head.startswith(b"GET"):
                size = int(head.split(b" ")[1][1:])
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size)
                block = bytes(range(256)) * 1024
                for _ in range(size // len(block)):
                    writer.write(block)
                    await writer.drain()
                continue
            match = re.search(rb"content-length: (\d+)", head, re.IGNORECASE)
            assert match is not None
            left = int(match[1])
            while left:
                left -= len(await reader.read(min(left, 1 << 18)))
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
    writer.close()


async def _download(port: int) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(f"GET /{GIB} HTTP/1.1\r\nHost: x\r\nTensorlake-Sandbox-Id: sb-bench\r\n\r\n".encode())
    await reader.readuntil(b"\r\n\r\n")
    left = GIB
    while left:
        left -= len(await reader.read(1 << 18))
    writer.close()


async def _upload(port: int) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(
        f"POST / HTTP/1.1\r\nHost: x\r\nTensorlake-Sandbox-Id: sb-bench\r\nContent-Length: {GIB}\r\n\r\n".encode()
    )
    block = bytes(range(256)) * 1024
    for _ in range(GIB // len(block)):
        writer.write(block)
        await writer.drain()
    assert b" 200 " in await reader.readuntil(b"\r\n\r\n")
    writer.close()


async def bodies(directory: Path) -> dict[str, float]:
    server = await asyncio.start_server(_plain_upstream, "127.0.0.1", 0)
    found = {}
    for name, work in (("download", _download), ("upload", _upload)):
        with edge(server.sockets[0].getsockname()[1], directory) as (port, pid):
            before = resident(pid)
            most = before
            began = time.monotonic()
            task = asyncio.create_task(work(port))
            while not task.done():
                await asyncio.wait([task], timeout=0.02)
                most = max(most, resident(pid))
            await task
            print(f"  1 GiB {name}: {1024 / (time.monotonic() - began):.0f} MiB/s")
            found[f"1 GiB {name}, growth in MiB"] = (most - before) / (1 << 20)
    server.close()
    return found


async def sockets(directory: Path) -> dict[str, float]:
    server = await asyncio.start_server(_plain_upstream, "127.0.0.1", 0, backlog=4096)
    with edge(server.sockets[0].getsockname()[1], directory) as (port, pid):
        upgrade = (
            b"GET / HTTP/1.1\r\nHost: x\r\nTensorlake-Sandbox-Id: sb-bench\r\nConnection: Upgrade\r\n"
            b"Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
        )
        before = resident(pid)
        opened = []
        for _ in range(SOCKETS):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(upgrade)
            assert b" 101 " in await reader.readuntil(b"\r\n\r\n")
            opened.append((reader, writer))
        await asyncio.sleep(5)
        each = (resident(pid) - before) / SOCKETS / 1024
        dropped = sum(reader.at_eof() for reader, _ in opened)
        for _, writer in opened:
            writer.close()
    server.close()
    return {"2000 idle WebSockets, dropped": dropped, "idle WebSocket, KiB each": each}


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--seconds", type=int, default=3)
    options.add_argument("--rounds", type=int, default=5)
    options.add_argument("--only", choices=("speed", "bodies", "sockets"))
    options.add_argument("--varied", action="store_true", help="another path for every request")
    chosen = options.parse_args()
    directory = Path(tempfile.mkdtemp(prefix="bench-proxy-"))
    figures: dict[str, float] = {}
    try:
        if chosen.only in (None, "speed"):
            figures |= speed(directory, chosen.seconds, chosen.rounds, chosen.varied)
        if chosen.only in (None, "bodies"):
            figures |= asyncio.run(bodies(directory))
        if chosen.only in (None, "sockets"):
            figures |= asyncio.run(sockets(directory))
    finally:
        shutil.rmtree(directory)
    missed = 0
    print(f"{'figure':34} {'measured':>9}   limit")
    for name, value in figures.items():
        sign, limit = LIMITS[name]
        held = {">=": value >= limit, "<=": value <= limit, "<": value < limit}[sign]
        missed += not held
        print(f"{name:34} {value:9.2f}   {sign} {limit:g}{'' if held else '   MISSED'}")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
