"""Figures of the Docker driver beside the raw engine API, in the same run on the same engine.

    .venv/bin/python -m tests.bench.docker [--pairs 100] [--only create,rate,claim,rest,adopt]

The raw side makes the very container that the node makes (its configuration is read back from the engine, without the
order to hold its entrypoint) and waits for the daemon's port, so that it holds the engine's create and start and the
daemon's own start. Pairs run ABBA. The engine is that of the tests; it must have its packet filter for the node's rules
to be part of the figures.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import signal
import statistics
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from tests.engine import Engine
from tests.system.docker_nodes import DockerNodes
from tests.system.harness import Node, Site, until

from .node import cpu, rss

Row = tuple[str, str, str]
TINY = {"cpus": 0.1, "memory_mb": 64, "ephemeral_disk_mb": 16}
WHOLE = {**TINY, "cpus": 1}
"""For starts beside the engine's: with a tenth of a CPU the kernel stops a starting daemon for 90 of each 100 ms, and
the figure would tell where in that period it was stopped."""
IDLE = ["/bin/sleep", "100000"]
PARALLEL = 4
POLL_SECS = 0.005
"""Often enough for the figures. Asking every half millisecond takes the starting daemon's CPU away."""
RARE_SECS = 0.05
"""For the rate."""


def percentile(values: Sequence[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, round(share * (len(ordered) - 1)))]


def spin(ask: Callable[[], bool], pause: float = POLL_SECS, seconds: float = 120.0) -> None:
    """Wait with little delay of its own."""
    deadline = time.perf_counter() + seconds
    while not ask():
        if time.perf_counter() > deadline:
            raise SystemExit("a condition did not come true")
        time.sleep(pause)


class Heard:
    """Which sandboxes the node's log calls running. Asking the proxy instead, eight times for a start, is a third of
    what the node's main thread does meanwhile, and the raw engine's own calls do no such work."""

    def __init__(self, log: Path) -> None:
        self._log = log.open("rb")
        self._log.seek(0, os.SEEK_END)
        self._lock = threading.Lock()
        self._rest = b""
        self._running: set[str] = set()

    def running(self, sandbox: str) -> bool:
        with self._lock:
            *lines, self._rest = (self._rest + self._log.read()).split(b"\n")
            self._running |= {
                json.loads(line)["fields"]["sandbox_id"] for line in lines if b'"container running"' in line
            }
            return sandbox in self._running


class Bench:
    def __init__(self, site: Site, engine: Engine) -> None:
        self.nodes = DockerNodes(site, engine, startup_timeout_secs=300)
        self.node: Node = self.nodes.start()
        self.api = engine.client.api
        self.rest = self.nodes.server.rest
        self.heard = Heard(self.node.log)

    # One container, both ways

    def routable(self, sandbox: str) -> bool:
        return self.node.proxy.send("GET", "/api/v1/health", headers={"Tensorlake-Sandbox-Id": sandbox})[0] == 200

    def wait(self, sandbox: str, pause: float) -> None:
        """Until the proxy answers for it, which is asked when the node has said that it runs."""
        spin(lambda: self.heard.running(sandbox), pause)
        spin(lambda: self.routable(sandbox), pause)

    def by_node(self) -> float:
        """Seconds from the order to an answer through the proxy."""
        began = time.perf_counter()
        sandbox = self.create(resources=WHOLE)
        self.wait(sandbox, POLL_SECS)
        took = time.perf_counter() - began
        self.delete([sandbox])
        return took

    def raw_body(self) -> dict[str, Any]:
        sandbox = self.create(resources=WHOLE)
        self.rest.running(sandbox)
        found = self.nodes.container(sandbox)
        config, host = found["Config"], found["HostConfig"]
        self.delete([sandbox])
        command = [each for each in config["Cmd"] if each != "--held"]
        return {**{name: config[name] for name in ("Image", "Entrypoint", "Env", "User")},
                "Cmd": command, "HostConfig": host}  # fmt: skip

    def raw_start(self, body: dict[str, Any], pause: float = POLL_SECS) -> str:
        """Create, start, look, and wait for the daemon."""
        made = str(self.api.create_container_from_config(body, f"ixbench-{uuid.uuid4().hex}")["Id"])
        self.api.start(made)
        networks = self.api.inspect_container(made)["NetworkSettings"]["Networks"]
        address = next(iter(networks.values()))["IPAddress"]
        spin(lambda: answers(address), pause)
        return made

    def by_engine(self, body: dict[str, Any]) -> float:
        began = time.perf_counter()
        made = self.raw_start(body)
        took = time.perf_counter() - began
        self.api.remove_container(made, force=True)
        return took

    def create(self, **wish: Any) -> str:
        return self.nodes.create(**{"resources": TINY, "entrypoint": IDLE, **wish})

    def delete(self, sandboxes: Sequence[str]) -> None:
        for each in sandboxes:
            self.rest.delete(each)
        names = {f"/indexify-{each}" for each in sandboxes}
        until("they are gone", lambda: not names & {name for each in self.nodes.ours() for name in each["Names"]}, 120)

    # The figures

    def creation(self, pairs: int) -> list[Row]:
        body = self.raw_body()
        ours: list[float] = []
        raw: list[float] = []
        for number in range(pairs):
            for side in "AB" if number % 2 == 0 else "BA":
                if side == "A":
                    ours.append(self.by_node())
                else:
                    raw.append(self.by_engine(body))
        rows = []
        for name, share, limit in (("p50", 0.5, 25), ("p90", 0.9, 60)):
            mine, theirs = percentile(ours, share) * 1000, percentile(raw, share) * 1000
            shown = f"{mine - theirs:.0f} ms ({mine:.0f} - {theirs:.0f})"
            rows.append((f"create to routable over the raw engine, {name} of {pairs}", shown, f"<= {limit} ms"))
        return rows

    def rate(self, count: int = 20, rounds: int = 16) -> list[Row]:
        """Starts per second at four in parallel, from the first order to the last answer; rounds ABBA, short and many:
        the machine itself is 15 % slower or faster from one minute to the next."""
        body = self.raw_body()
        ours: list[float] = []
        raw: list[float] = []
        with ThreadPoolExecutor(PARALLEL) as threads:

            def one(_: int) -> str:
                sandbox = self.create(resources=WHOLE)
                self.wait(sandbox, RARE_SECS)
                return sandbox

            for number in range(rounds):
                for side in "AB" if number % 2 == 0 else "BA":
                    began = time.perf_counter()
                    if side == "A":
                        made = list(threads.map(one, range(count)))
                        ours.append(count / (time.perf_counter() - began))
                        self.delete(made)
                    else:
                        made = list(threads.map(lambda _: self.raw_start(body, RARE_SECS), range(count)))
                        raw.append(count / (time.perf_counter() - began))
                        list(threads.map(lambda each: self.api.remove_container(each, force=True), made))
        mine, theirs = statistics.median(ours), statistics.median(raw)
        shown = f"{mine / theirs * 100:.0f} % ({mine:.1f} of {theirs:.1f} /s)"
        return [(f"starts per second, {PARALLEL} in parallel", shown, ">= 95 % of the raw engine")]

    def claims(self, count: int = 60, per_second: float = 20.0) -> list[Row]:
        """Claims of warm containers, one every 50 ms: order to running at the server and answered by the proxy."""
        pools = "/v1/namespaces/default/sandbox-pools"
        # As many as there may be: no refill beside the claims, it is not what is measured.
        wish = {"image": self.nodes.image, "resources": TINY, "entrypoint": IDLE, "warm_containers": count,
                "max_containers": count}  # fmt: skip
        pool = self.rest.ask("POST", pools, wish)["pool_id"]

        def warm() -> int:
            found = self.rest.get(f"{pools}/{pool}")["containers"]
            return sum(each["state"] == "running" and not each["sandbox_id"] for each in found)

        until("the pool is warm", lambda: warm() >= count, 600)

        def claim(number: int) -> tuple[str, float]:
            at = start + number / per_second
            time.sleep(max(0.0, at - time.perf_counter()))
            began = time.perf_counter()
            sandbox = str(self.rest.ask("POST", f"{pools}/{pool}/sandboxes", {})["sandbox_id"])
            spin(lambda: self.routable(sandbox))
            spin(lambda: self.rest.sandbox(sandbox)["status"] == "running")
            return sandbox, time.perf_counter() - began

        start = time.perf_counter() + 0.2
        with ThreadPoolExecutor(8) as threads:
            done = list(threads.map(claim, range(count)))
        for sandbox, _ in done:
            self.rest.delete(sandbox)
        self.rest.ask("DELETE", f"{pools}/{pool}")
        until("the pool is gone", lambda: not self.nodes.ours(), 300)
        took = [each * 1000 for _, each in done]
        what = f"claim to routable and reported at {per_second:.0f}/s"
        return [
            (f"{what}, p50", f"{percentile(took, 0.5):.0f} ms", "<= 20 ms"),
            (f"{what}, p99", f"{percentile(took, 0.99):.0f} ms", "<= 50 ms"),
        ]

    def at_rest(self, count: int = 100, seconds: float = 30.0) -> list[Row]:
        made = [self.create() for _ in range(count)]
        self.rest.running(*made, seconds=900)
        time.sleep(5)
        before, began = cpu(self.node.pid), time.perf_counter()
        time.sleep(seconds)
        share = (cpu(self.node.pid) - before) / (time.perf_counter() - began) * 100
        memory = rss(self.node.pid)
        self.delete(made)
        return [
            (f"{count} sandboxes at rest, CPU of the node", f"{share:.2f} % of a core", "< 2 %"),
            (f"{count} sandboxes at rest, memory of the node", f"{memory:.1f} MB", "<= 105 MB"),
        ]

    def adoption(self, count: int = 50) -> list[Row]:
        made = [self.create() for _ in range(count)]
        self.rest.running(*made, seconds=600)
        self.node.send_signal(signal.SIGKILL)
        self.node.wait()
        began = time.perf_counter()
        self.node = self.nodes.start(wait=False, name="adopting")
        address = self.node.event("Starting HTTP proxy server", 60)["listen_addr"]
        self.node.proxy = type(self.rest)(int(address.rpartition(":")[2]))
        for each in made:
            spin(lambda each=each: self.routable(each))
        took = time.perf_counter() - began
        self.node.ready()
        self.delete(made)
        return [(f"adoption of {count} after kill -9, process start to all routable", f"{took:.2f} s", "< 2 s")]

    def close(self) -> None:
        self.node.kill()
        self.nodes.close()


def answers(address: str) -> bool:
    connection = http.client.HTTPConnection(address, 9501, timeout=5)
    try:
        connection.request("GET", "/api/v1/health")
        return connection.getresponse().status in (200, 401)
    except OSError:
        return False
    finally:
        connection.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=100)
    parser.add_argument("--only", default="create,rate,claim,rest,adopt", metavar="NAMES")
    arguments = parser.parse_args()
    # Whoever ends it wants nothing to be left behind either.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    site = Site()
    bench = Bench(site, Engine.start())
    figures: dict[str, Callable[[], list[Row]]] = {
        "create": lambda: bench.creation(arguments.pairs), "rate": bench.rate, "claim": bench.claims,
        "rest": bench.at_rest, "adopt": bench.adoption,
    }  # fmt: skip
    try:
        for name in arguments.only.split(","):
            for what, seen, wanted in figures[name]():
                print(f"{what:64} {seen:>28}   {wanted}", flush=True)
    finally:
        bench.close()
        site.close()


if __name__ == "__main__":
    main()
