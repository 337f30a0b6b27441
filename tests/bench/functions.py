"""Figures of functions: the node's cost per allocation, warm calls, cold starts, large values, and what is left after.

    .venv/bin/python -m tests.bench.functions [instant] [ahead] [real] [large]

``instant``: the installed program and the embedded control plane in two processes, eight containers of an executor that
answers at once, 10,000 allocations. ``ahead``: the same with runs at hand in each container (``--queue-size 2``), which
leaves out the way to the server and back between two runs of a container. ``real``: calls and starts with a real
executor, by the SDK's clock, beside the executor's own start in the same run. ``large``: 1 GiB to a function and back.
"""

from __future__ import annotations

import asyncio
import http.client
import os
import shutil
import socket
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import grpc

from indexify_dataplane.wireproto import function_executor_pb2 as fe
from indexify_dataplane.wireproto import function_executor_pb2_grpc as service
from tests.bench.node import cpu, rss
from tests.executor.test_program import Program
from tests.system.applications.stage import Stage
from tests.system.harness import Site, until

ROOT = Path(__file__).parents[2]
CONTAINERS = 8
TOTAL = 10_000
WINDOW = 2_000
Row = tuple[str, str, str]


class Deployer(Program):
    """Deploys and calls over REST."""

    def __init__(self, rest: Any) -> None:
        self.rest = rest


def written(blobs: Path) -> int:
    """How many results lie in the store; the node is not asked, because that would cost it as much as its work."""
    return sum(each.name.endswith(".output_out") for folder in blobs.glob("*/*") for each in os.scandir(folder))


def call_many(port: int, applications: list[str], count: int) -> None:
    """``count`` requests, spread evenly; each connection is kept."""

    def calls(application: str, number: int) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        for _ in range(number):
            connection.request("POST", application, b"1", headers)
            connection.getresponse().read()
        connection.close()

    share = count // len(applications)
    threads = [threading.Thread(target=calls, args=(each, share)) for each in applications]
    for each in threads:
        each.start()
    for each in threads:
        each.join()


def descriptors(pid: int) -> int:
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


def threads(pid: int) -> int:
    return len(list(Path(f"/proc/{pid}/task").iterdir()))


def rows_left(store: Path) -> int:
    database = sqlite3.connect(f"file:{store}?mode=ro", uri=True)
    try:
        return sum(
            database.execute(f"SELECT count(*) FROM {each}").fetchone()[0] for each in ("allocations", "reports")
        )
    finally:
        database.close()


class Instant:
    """The installed program and the embedded control plane in two processes, and containers of an executor that answers
    at once. What they import is what ``PYTHONPATH`` says now."""

    def __init__(self, queue_size: int | None = None) -> None:
        self.site = Site()
        try:
            program = self.site.path / "function-executor"
            program.write_text(
                f'#!/bin/sh\nexport PYTHONPATH={ROOT}\nexec {sys.executable} -m tests.bench.instant_executor "$@"\n'
            )
            program.chmod(0o755)
            self.server = self.site.server(queue_size=queue_size)
            executor = {"fe_binary_path": str(program), "code_cache_path": str(self.site.path / "code")}
            address = f"http://127.0.0.1:{self.server.grpc_port}"
            self.node = self.site.node(self.site.config(server_addr=address, function_executor=executor)).ready()
            until("the node at the server", self.server.rest.executors)
            deployer = Deployer(self.server.rest)
            self.applications = [deployer.deploy(f"instant{number}", max_containers=1) for number in range(CONTAINERS)]
            self.run(CONTAINERS * 2)
        except BaseException:
            self.site.close()
            raise

    def run(self, count: int) -> float:
        """Seconds until ``count`` more are done and reported."""
        blobs = self.site.path / "blobs"
        wanted, began = written(blobs) + count, time.monotonic()
        call_many(self.server.rest.port, self.applications, count)
        while (missing := wanted - written(blobs)) > 0:
            # Rarely while many are missing: looking takes CPU from what is measured.
            time.sleep(max(0.02, missing / 1000))
        until("every outcome delivered", lambda: self.node.state()["unacknowledged_reports"] == 0)
        return time.monotonic() - began

    def window(self, count: int) -> tuple[float, float, float]:
        """Allocations per second, and milliseconds of CPU of the node and of the server for each, over ``count``."""
        used, used_there = cpu(self.node.pid), cpu(self.server.pid)
        rate = count / self.run(count)
        return rate, (cpu(self.node.pid) - used) / count * 1000, (cpu(self.server.pid) - used_there) / count * 1000


def ahead() -> list[Row]:
    return instant(queue_size=2)


def instant(queue_size: int | None = None) -> list[Row]:
    stage = Instant(queue_size)
    try:
        node = stage.node
        before = {"rss": rss(node.pid), "fds": descriptors(node.pid), "threads": threads(node.pid)}
        costs, rates, servers = [], [], []
        for window in range(TOTAL // WINDOW):
            for figures, figure in zip((rates, costs, servers), stage.window(WINDOW), strict=True):
                figures.append(figure)
            print(f"  {(window + 1) * WINDOW:6} allocations: {rates[-1]:5.0f}/s, node {costs[-1]:.2f} ms", flush=True)
        [store] = list((stage.site.path / "node").glob("store*.db"))
        size = sum(each.stat().st_size for each in store.parent.glob("store*.db*"))
        left = [str(each) for each in stage.site.path.rglob(".*.upload")]
        through = f"through {CONTAINERS} containers, server included, queue_size {queue_size or 1}"
        return [
            (through, f"{statistics.median(rates):.0f}/s", ">= 150/s"),
            ("CPU of the node per allocation", f"{statistics.median(costs):.2f} ms", "<= 6 ms"),
            ("CPU of the server per allocation", f"{statistics.median(servers):.2f} ms", ""),
            (f"the last {WINDOW} of {TOTAL} beside the first", f"{costs[-1] / costs[0]:.2f}", "flat: about 1"),
            (f"memory after {TOTAL} allocations", f"{rss(node.pid) - before['rss']:+.1f} MB", ""),
            ("file descriptors", f"{descriptors(node.pid) - before['fds']:+d}", "no growth"),
            ("threads", f"{threads(node.pid) - before['threads']:+d}", "no growth"),
            ("rows left in the store; its files", f"{rows_left(store)}; {size / 2**20:.1f} MiB", "0; <= 8 MiB"),
            ("uploads left", str(len(left)), "0"),
        ]  # fmt: skip
    finally:
        stage.site.close()


def own_start(binaries: Path) -> float:
    """Seconds from the start of an executor of its own to its first answer."""

    async def ask(address: str) -> None:
        async with grpc.aio.insecure_channel(address) as channel:
            stub = service.FunctionExecutorStub(channel)  # type: ignore[no-untyped-call]
            await stub.get_info(fe.InfoRequest(), wait_for_ready=True, timeout=60)

    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"127.0.0.1:{free.getsockname()[1]}"
    command = [
        binaries / "python",
        "-m",
        "tensorlake.function_executor.main",
        "--address",
        address,
        "--executor-id",
        "x",
    ]
    began = time.monotonic()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        asyncio.run(ask(address))
        return time.monotonic() - began
    finally:
        process.kill()
        process.wait()


def real(release: str = "newest") -> list[Row]:
    stage = Stage(release)
    try:
        author = stage.author("calls.py")
        author.ask("timed", "process", "x", 10)
        warm = author.ask("timed", "process", "x", 200)
        ours, theirs = [], []
        for _ in range(5):
            theirs.append(own_start(stage.environment / "bin"))
            stage.delete("process")
            author.ask("deploy_again")
            [cold] = author.ask("timed", "process", "x", 1)
            ours.append(cold)
        warm_ms, own, cold = (
            statistics.median(warm) * 1000,
            statistics.median(theirs) * 1000,
            statistics.median(ours) * 1000,
        )
        return [
            (f"warm call of a no-op function, p50 ({author.release})", f"{warm_ms:.1f} ms", "< 40 ms"),
            ("p90", f"{statistics.quantiles(warm, n=10)[-1] * 1000:.1f} ms", ""),
            ("cold call, median of 5", f"{cold:.0f} ms", ""),
            ("the executor's own start to its first answer", f"{own:.0f} ms", ""),
            ("cold call less the executor's start and a warm call", f"{cold - own - warm_ms:.0f} ms", "<= 100 ms"),
        ]  # fmt: skip
    finally:
        stage.close()


def large(release: str = "newest") -> list[Row]:
    if shutil.disk_usage(tempfile.gettempdir()).free < 8 << 30:
        return [("1 GiB to a function and back", "less than 8 GiB of disk are free", "not measured")]
    stage = Stage(release)
    try:
        author = stage.author("large.py")
        assert author.value("hands_over", 1, seconds=120) == 1 << 20
        before = rss(stage.node.pid)
        began = time.monotonic()
        assert author.value("hands_over", 1024, seconds=600) == 1 << 30
        took = time.monotonic() - began
        return [
            ("1 GiB to a function and back", f"{took:.1f} s", ""),
            ("more memory in the node", f"{rss(stage.node.pid) - before:+.1f} MB", "does not grow"),
        ]
    finally:
        stage.close()


PARTS = {"instant": instant, "ahead": ahead, "real": real, "large": large}


def main() -> None:
    rows: list[Row] = []
    for part in sys.argv[1:] or PARTS:
        rows += PARTS[part]()
    for what, seen, wanted in rows:
        print(f"{what:58} {seen:>22}   {wanted}")


if __name__ == "__main__":
    main()
