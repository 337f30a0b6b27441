"""Figures of the node itself: memory and CPU at rest, 1,000 containers, start, latency, cost per container.

    .venv/bin/python -m tests.bench.node

The node runs against the embedded control plane in a process of its own. With ``--memory`` (how this program starts its
own child) the node has the shipped memory driver, so that what is measured is the node and not a thousand processes.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from datetime import datetime
from pathlib import Path
from typing import Any

PYTHON = sys.executable
NODE = str(Path(sys.executable).with_name("indexify-dataplane"))


ACCEPTED = re.compile(rb"^(\S+) .*connection state changed", re.M)
SMALL = {"timeout_secs": 0, "resources": {"cpus": 0.01, "memory_mb": 1}}


def rss(pid: int) -> float:
    """Resident memory in MB."""
    text = Path(f"/proc/{pid}/status").read_text()
    found = re.search(r"VmRSS:\s+(\d+) kB", text)
    assert found is not None
    return int(found[1]) / 1024


def cpu(pid: int) -> float:
    """CPU seconds used so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def get(url: str) -> Any:
    with urllib.request.urlopen(url, timeout=10) as answer:
        return json.load(answer)


def post(url: str, body: Any, method: str = "POST") -> Any:
    data = json.dumps(body).encode() if body is not None else None
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"}, method=method)
    with urllib.request.urlopen(request, timeout=60) as answer:
        text = answer.read()
        return json.loads(text) if text else None


def until(ask: Any, seconds: float = 60.0) -> Any:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            answer = ask()
        except OSError:
            answer = None
        if answer:
            return answer
        time.sleep(0.01)
    raise SystemExit("a condition did not come true")


class Server:
    """The embedded control plane as a process."""

    def __init__(self, directory: Path) -> None:
        ports = directory / "ports.json"
        self.process = subprocess.Popen(
            [PYTHON, "-m", "indexify_dataplane.devserver", "--grpc-port", "0", "--rest-port", "0",
             "--sandbox-proxy-port", "0", "--blob-dir", str(directory / "blobs"), "--port-file", str(ports)],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        until(ports.exists)
        self.ports = json.loads(ports.read_text())
        self.url = f"http://127.0.0.1:{self.ports['rest']}/v1/namespaces/default/sandboxes"

    def states(self) -> dict[str, int]:
        counts: dict[str, int] = {}
        for each in get(self.url)["sandboxes"]:
            counts[each["status"]] = counts.get(each["status"], 0) + 1
        return counts

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(20)


def environment(directory: Path, server: Server) -> dict[str, str]:
    return {
        **os.environ,
        "INDEXIFY__STATE_DIR": str(directory / "state"),
        "INDEXIFY__SERVER_ADDR": f"http://127.0.0.1:{server.ports['grpc']}",
        "INDEXIFY__HTTP_PROXY__PORT": "0",
        "INDEXIFY__MONITORING__PORT": "0",
    }


def at_rest(directory: Path, server: Server) -> list[tuple[str, str, str]]:
    """The real node with fork-exec: memory, CPU, and the time to its first heartbeat."""
    starts = []
    log = directory / "node.log"
    for attempt in range(5):
        with log.open("wb") as out:
            began = time.time()
            node = subprocess.Popen([NODE], env=environment(directory, server), stdout=out, stderr=out)
        stamp = until(lambda: ACCEPTED.search(log.read_bytes()))
        starts.append(datetime.fromisoformat(stamp[1].decode()).timestamp() - began)
        if attempt < 4:
            node.send_signal(signal.SIGTERM)
            node.wait(20)
    time.sleep(5)
    before, began = cpu(node.pid), time.monotonic()
    time.sleep(20)
    share = (cpu(node.pid) - before) / (time.monotonic() - began) * 100
    memory = rss(node.pid)
    node.send_signal(signal.SIGTERM)
    node.wait(20)
    return [
        ("start to first heartbeat (median of 5)", f"{statistics.median(starts) * 1000:.0f} ms", "< 1000 ms"),
        ("resident at rest, fork-exec", f"{memory:.1f} MB", "<= 90 MB"),
        ("CPU at rest over 20 s", f"{share:.2f} % of a core", "< 1 %"),
    ]


def create(server: Server, count: int) -> list[str]:
    """Add ``count`` sandboxes and wait until the server has heard that they run."""
    before = server.states().get("running", 0)
    made = [post(server.url, SMALL)["sandbox_id"] for _ in range(count)]
    until(lambda: server.states().get("running", 0) == before + count)
    return made


def delete(server: Server, sandboxes: list[str]) -> None:
    for sandbox in sandboxes:
        post(f"{server.url}/{sandbox}", None, "DELETE")
    wanted = set(sandboxes)
    until(lambda: all(each["status"] == "terminated" for each in get(server.url)["sandboxes"] if each["id"] in wanted))


def thousand(directory: Path, server: Server) -> list[tuple[str, str, str]]:
    """1,000 containers of the memory driver, from the command to the report."""
    report = directory / "child.json"
    child = subprocess.Popen(
        [PYTHON, "-m", "tests.bench.node", "--memory", str(report)], env=environment(directory / "memory", server)
    )
    until(report.exists)
    empty = rss(child.pid)
    costs: dict[int, float] = {}
    made: list[str] = []
    for others in (10, 1000):
        made += create(server, others - len(made))
        if others == 1000:
            child.send_signal(signal.SIGUSR1)
            time.sleep(8)
            full = rss(child.pid)
        # What the others cost by being there (their health checks) is not the price of one more.
        used, began = cpu(child.pid), time.monotonic()
        time.sleep(10)
        idle = (cpu(child.pid) - used) / (time.monotonic() - began)
        used, began = cpu(child.pid), time.monotonic()
        for _ in range(20):
            delete(server, create(server, 20))
        costs[others] = (cpu(child.pid) - used - idle * (time.monotonic() - began)) / 400
    delete(server, made)
    child.send_signal(signal.SIGTERM)
    child.wait(30)
    seen = json.loads(report.read_text())
    return [
        ("1,000 containers: more memory", f"{full - empty:.1f} MB", "<= 25 MB"),
        ("heartbeat with full sync of 1,000", f"{seen['full_sync_ms']:.1f} ms", "< 50 ms"),
        ("longest block of the loop", f"{seen['longest_block_ms']:.1f} ms", "< 50 ms"),
        ("command arrives to driver called (median)", f"{seen['command_ms']:.2f} ms", "< 10 ms"),
        ("CPU per container added and removed, 10 others", f"{costs[10] * 1000:.2f} ms", ""),
        ("CPU per container added and removed, 1,000 others", f"{costs[1000] * 1000:.2f} ms",
         f"within 20 %: ratio {costs[1000] / costs[10]:.2f}"),
    ]  # fmt: skip


def memory_node(report: Path) -> None:
    """The child: a node with the memory driver, its loop watched."""
    from indexify_dataplane.reactor import install

    install()
    import random

    from twisted.internet import reactor as installed
    from twisted.internet.defer import Deferred

    from indexify_dataplane.config import load
    from indexify_dataplane.control.client import GrpcTransport
    from indexify_dataplane.core.model import Kind
    from indexify_dataplane.daemon_client import GrpcDaemons
    from indexify_dataplane.dataplane import Dataplane, Settings
    from indexify_dataplane.metrics import Metrics
    from indexify_dataplane.process import settle_memory
    from indexify_dataplane.store import Store
    from indexify_dataplane.testing.memory_driver import MemoryDriver, MemoryHost
    from indexify_dataplane.wireproto import executor_api_pb2 as pb

    reactor: Any = installed
    config = load(None, os.environ).config
    os.makedirs(config.state_dir, exist_ok=True)
    called: dict[str, float] = {}
    arrived: dict[str, float] = {}
    figures = {"longest_block_ms": 0.0, "full_sync_ms": 0.0, "command_ms": 0.0}

    class Timed(MemoryDriver):
        async def start(self, order: Any) -> Any:
            called.setdefault(order.container_id, time.perf_counter())
            return await super().start(order)

    def nowhere(order: Any) -> tuple[str | None, str | None]:
        return None, None

    capacity = pb.HostResources(cpu_count=1000, memory_bytes=1 << 44, disk_bytes=1 << 50)
    identity = pb.DataplaneStateFullSync(
        hostname="bench", version="0", total_container_resources=capacity, proxy_address="127.0.0.1:1"
    )
    transport = GrpcTransport(server_addr=config.server_addr, tls_settings=config.tls)
    transport.start()
    driver = Timed(reactor=reactor, host=MemoryHost(addresses=nowhere))
    plane = Dataplane(
        clock=reactor,
        store=Store(reactor=reactor, path=Path(config.state_dir) / "store.db", others=False, executor_id=None),
        drivers=lambda executor_id: {Kind.SANDBOX: driver},
        daemons=GrpcDaemons(),
        executors=None,
        transport=transport,
        identity=lambda: identity,
        settings=Settings(),
        metrics=Metrics(),
        rng=random.SystemRandom(),
    )
    loop = asyncio.get_event_loop()
    beat = [time.perf_counter()]
    watching = [False]

    def tick() -> None:
        now = time.perf_counter()
        if watching[0]:
            figures["longest_block_ms"] = max(figures["longest_block_ms"], (now - beat[0] - 0.002) * 1000)
        beat[0] = now
        loop.call_later(0.002, tick)

    def full_sync() -> None:
        """The next heartbeat carries the full state."""
        plane.session.require_full_state("bench")
        plane.heartbeat.wake()

    def watch_heartbeats() -> None:
        """From the first line of building the message to the server's answer."""
        running = plane.heartbeat._call.running

        async def timed(batch: Any, *, full: bool, began: float) -> Any:
            before = time.perf_counter()
            reply = await running(batch, full=full, began=began)
            if full:
                figures["full_sync_ms"] = (time.perf_counter() - before) * 1000
            return reply

        plane.heartbeat._call.running = timed  # type: ignore[method-assign]

    def opened(_: Any) -> None:
        submit = plane.reconciliation.submit

        def timed(event: Any) -> Any:
            container = getattr(getattr(getattr(event, "command", None), "spec", None), "id", None)
            if container:
                arrived.setdefault(container, time.perf_counter())
            return submit(event)

        plane.reconciliation.submit = timed  # type: ignore[method-assign]
        plane.connect()
        settle_memory()
        watch_heartbeats()
        tick()
        watching[0] = True
        report.write_text("{}")

    def stop() -> None:
        lags = [called[each] - arrived[each] for each in called if each in arrived]
        figures["command_ms"] = statistics.median(lags) * 1000
        report.write_text(json.dumps(figures))
        done = Deferred.fromCoroutine(plane.stop(deadline=reactor.seconds() + 2))
        done.addBoth(lambda result: reactor.stop())

    Deferred.fromCoroutine(plane.open()).addCallback(opened)
    reactor.callWhenRunning(lambda: loop.add_signal_handler(signal.SIGUSR1, full_sync))
    reactor.callWhenRunning(lambda: loop.add_signal_handler(signal.SIGTERM, stop))
    reactor.run(installSignalHandlers=False)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--memory", type=Path)
    arguments = parser.parse_args()
    if arguments.memory:
        memory_node(arguments.memory)
        return
    with tempfile.TemporaryDirectory(prefix="bench-node-") as name:
        directory = Path(name)
        server = Server(directory)
        try:
            rows = at_rest(directory, server) + thousand(directory, server)
        finally:
            server.stop()
    for what, seen, wanted in rows:
        print(f"{what:52} {seen:>22}   {wanted}")


if __name__ == "__main__":
    main()
