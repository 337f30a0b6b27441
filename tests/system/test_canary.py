"""Sandboxes that shout from their first instruction, on a real engine with a real packet filter: nobody hears them.

Listeners are in a namespace that the test makes (an address outside, both metadata addresses) and on the bridge's own
addresses of the host. Starts, claims, restarts of the node and kill -9 go on while sandboxes shout. ``CANARY=100`` sets
how many sandboxes shout, under runc and under gVisor alike.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from indexify_dataplane.network.chains import node_chain
from tests.engine import Engine, EngineUnavailable
from tests.network.stage import METADATA, OUTSIDE, run
from tests.network.stage import Node as Namespace

from .harness import Node, Site, until

PEER = Path(__file__).resolve().parent.parent / "network" / "peer.py"
PORT = 7777
NUMBER = os.environ.get("CANARY") or ("100" if os.environ.get("TEST_ALL") == "1" else None)
TIMES = {None: int(NUMBER or "20"), "runsc": int(NUMBER or "6")}
"""By runtime: the engine's own, which is runc, and gVisor, whose sandboxes take seconds to start."""
CHECK_SECS = 2.0
CLOSED = {"allow_internet_access": False}


class Ears:
    """Listeners in a namespace outside and on the host; ``heard`` tells what came by address and protocol."""

    def __init__(self, host: tuple[str, str]) -> None:
        self.host = host
        self.addresses = [*OUTSIDE, *METADATA, *host]
        self.namespace = Namespace(f"ixear-{os.getpid()}")
        self.link = f"ixear{os.getpid() % 100000}"
        self._listeners: list[subprocess.Popen[str]] = []
        run("ip", "netns", "add", self.namespace.name)
        try:
            self._open()
        except BaseException:
            self.close()
            raise

    def _open(self) -> None:
        run("ip", "link", "add", self.link, "type", "veth", "peer", "name", "eth0", "netns", self.namespace.name)
        run("ip", "address", "add", "198.18.77.1/30", "dev", self.link)
        run("ip", "address", "add", "2001:db8:c1::1/64", "dev", self.link, "nodad")
        run("ip", "link", "set", self.link, "up")
        self.namespace("ip", "link", "set", "lo", "up")
        self.namespace("ip", "link", "set", "eth0", "up")
        self.namespace("ip", "address", "add", "198.18.77.2/30", "dev", "eth0")
        self.namespace("ip", "address", "add", "2001:db8:c1::2/64", "dev", "eth0", "nodad")
        self.namespace("ip", "route", "add", "default", "via", "198.18.77.1")
        self.namespace("ip", "-6", "route", "add", "default", "via", "2001:db8:c1::1")
        for address in (*OUTSIDE, *METADATA):
            six, via = (["-6"], "2001:db8:c1::2") if ":" in address else ([], "198.18.77.2")
            self.namespace("ip", "address", "add", address, "dev", "lo", *(["nodad"] if six else []))
            run("ip", *six, "route", "add", address, "via", via, "dev", self.link)
        outside = ["ip", "netns", "exec", self.namespace.name]
        for place, addresses in ((outside, (*OUTSIDE, *METADATA)), ([], self.host)):
            listener = subprocess.Popen(
                [*place, sys.executable, "-S", str(PEER), "watch", str(PORT), *addresses],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            )  # fmt: skip
            self._listeners.append(listener)
            assert listener.stdout is not None and listener.stdout.readline() == "ready\n"

    def heard(self) -> dict[str, dict[str, int]]:
        found: dict[str, dict[str, int]] = {}
        for listener in self._listeners:
            assert listener.stdin is not None and listener.stdout is not None
            listener.stdin.write("\n")
            listener.stdin.flush()
            found |= json.loads(listener.stdout.readline())
        heard = {address: {name: count for name, count in each.items() if count} for address, each in found.items()}
        return {address: each for address, each in heard.items() if each}

    def close(self) -> None:
        for listener in self._listeners:
            listener.kill()
            listener.communicate()
        run("ip", "netns", "del", self.namespace.name)


class Nodes:
    """One node after another of the same executor, its server and its engine."""

    def __init__(self, site: Site, engine: Engine, shared: Path, runtime: str | None) -> None:
        self.site, self.engine, self.times = site, engine, TIMES[runtime]
        self.limits = {"cpus": 0.2, "memory_mb": 256 if runtime else 64, "ephemeral_disk_mb": 64}
        self.server = site.server()
        self.rest = self.server.rest
        self.executor = f"canary-{os.getpid()}-{random.randrange(1 << 30):x}"
        (shared / "peer.py").write_bytes(PEER.read_bytes())
        self.config = site.config(
            server_addr=f"http://127.0.0.1:{self.server.grpc_port}",
            executor_id=self.executor,
            sandbox_driver={
                "type": "docker", "address": engine.address, "binds": [f"{shared}:/shared:ro"],
                "firewall_check_interval_secs": CHECK_SECS, **({"runtime": runtime} if runtime else {}),
            },
        )  # fmt: skip
        self.image = engine.image("debian")
        self.node: Node | None = None

    def start(self) -> Node:
        self.node = self.site.node(self.config).ready()
        return self.node

    def shout(self, addresses: list[str], **wish: Any) -> str:
        entrypoint = ["/usr/bin/python3", "-S", "/shared/peer.py", "shout", str(PORT), *addresses]
        return self.rest.create(image=self.image, resources=self.limits, entrypoint=entrypoint, **wish)

    def processes(self, sandbox: str) -> list[dict[str, Any]]:
        assert self.node is not None
        found = self.node.proxy.get("/api/v1/processes", headers={"Tensorlake-Sandbox-Id": sandbox})
        return list(found["processes"])

    def ours(self) -> list[dict[str, Any]]:
        label = f"indexify.executor_id={self.executor}"
        return list(self.engine.client.api.containers(all=True, filters={"label": [label]}))

    def rules(self) -> str:
        """What this executor has in force, in both families."""
        text = "".join(run(f"{each}-save", "-t", "filter") for each in ("iptables", "ip6tables"))
        return "\n".join(line for line in text.splitlines() if line.startswith(f"-A {node_chain(self.executor)}"))

    def close(self) -> None:
        if self.node is not None:
            self.node.kill()
        for each in self.ours():
            self.engine.client.api.remove_container(each["Id"], force=True, v=True)


@pytest.fixture(scope="module")
def private_engine() -> Engine:
    try:
        return Engine.start()
    except EngineUnavailable as error:
        if os.environ.get("CI") == "true":
            pytest.fail(f"the Docker engine is needed in CI: {error}")
        pytest.skip(f"no Docker engine: {error}")


@pytest.fixture
def nodes(request: pytest.FixtureRequest, site: Site, private_engine: Engine, tmp_path: Path) -> Iterator[Nodes]:
    made = Nodes(site, private_engine, tmp_path, getattr(request, "param", None))
    try:
        yield made
    finally:
        made.close()


under_each_runtime = pytest.mark.parametrize("nodes", [None, "runsc"], indirect=True, ids=["runc", "runsc"])


@pytest.fixture
def ears(private_engine: Engine) -> Iterator[Ears]:
    network = private_engine.client.api.inspect_network("bridge")
    bridge = network["Options"]["com.docker.network.bridge.name"]
    shown = json.loads(run("ip", "-j", "address", "show", "dev", bridge))
    found = [each for info in shown for each in info.get("addr_info", ()) if each.get("scope") == "global"]
    four, six = (next(each["local"] for each in found if each["family"] == family) for family in ("inet", "inet6"))
    made = Ears((four, six))
    try:
        yield made
    finally:
        made.close()


@under_each_runtime
def test_the_listeners_hear_who_may_speak(nodes: Nodes, ears: Ears) -> None:
    """Without this, silence would prove nothing."""
    nodes.start()
    sandbox = nodes.shout(ears.addresses, network={"allow_internet_access": False, "allow_out": ears.addresses})
    nodes.rest.running(sandbox)
    until(
        "every address was reached over TCP and UDP",
        lambda: all({"tcp", "udp"} <= set(ears.heard().get(address, ())) for address in ears.addresses),
    )


@under_each_runtime
def test_nothing_passes_in_starts_restarts_and_kills(nodes: Nodes, ears: Ears) -> None:
    chance = random.Random(5)
    node, living = nodes.start(), []
    for number in range(nodes.times):
        living.append(nodes.shout(ears.addresses, network=CLOSED))
        if number % 2:
            threading.Event().wait(chance.uniform(0.0, 0.8))
            node.kill() if number % 4 == 1 else node.stop()
            node = nodes.start()
        else:
            nodes.rest.running(living[-1])
            until("it shouts", lambda: nodes.processes(living[-1])[0]["status"] == "running")
        if len(living) > 4:
            nodes.rest.delete(living.pop(0))
        assert ears.heard() == {}, f"after {number + 1} sandboxes"
    nodes.rest.running(*living)
    assert ears.heard() == {}
    for sandbox in living:
        nodes.rest.delete(sandbox)
    nodes.rest.ended(*living)
    until("nothing is left", lambda: not nodes.ours())
    until("no rule is left", lambda: not nodes.rules())
    assert ears.heard() == {}


@under_each_runtime
def test_two_opposite_policies_at_once(nodes: Nodes, ears: Ears) -> None:
    nodes.start()
    closed = nodes.shout([OUTSIDE[1], *METADATA, *ears.host], network=CLOSED)
    nodes.rest.running(closed)
    half = nodes.shout(ears.addresses, network={"allow_internet_access": True, "deny_out": [OUTSIDE[1]]})
    nodes.rest.running(half)
    until("the open one is heard", lambda: OUTSIDE[0] in ears.heard())
    assert set(ears.heard()) == {OUTSIDE[0]}
    assert nodes.processes(closed)[0]["status"] == "running"


def test_the_chain_is_where_the_documentation_says(nodes: Nodes, ears: Ears) -> None:
    nodes.start()
    sandbox = nodes.shout([OUTSIDE[0]], network=CLOSED)
    nodes.rest.running(sandbox)

    def dropped() -> int:
        shown = run("iptables", "-L", f"INDEXIFY-SB-{sandbox[:16]}", "-n", "-v", "-x")
        return sum(int(line.split()[0]) for line in shown.splitlines() if line.split()[2:3] == ["DROP"])

    until("dropped packets are counted", dropped)
    assert node_chain(nodes.executor) in run("iptables", "-L", "DOCKER-USER", "-n", "-v")
    assert f"INDEXIFY-SB-{sandbox[:16]}" in run("ip6tables", "-L", f"INDEXIFY-SB-{sandbox[:16]}", "-n", "-v")
    nodes.rest.delete(sandbox)
    nodes.rest.ended(sandbox)
    until("the rules are gone with the container", lambda: not nodes.rules())
    assert f"INDEXIFY-SB-{sandbox[:16]}" not in run("iptables-save") + run("ip6tables-save")


REPAIRED = "rules of the packet filter had been changed by somebody else, and are back"


def test_flushed_rules_are_back_within_the_interval(nodes: Nodes, ears: Ears) -> None:
    """Somebody empties chains while the node runs; only this node's, because the host is not the test's alone."""
    node = nodes.start()
    sandbox = nodes.shout(ears.addresses, network=CLOSED)
    nodes.rest.running(sandbox)
    until("it shouts", lambda: nodes.processes(sandbox)[0]["status"] == "running")
    assert ears.heard() == {}
    # A repair tells when the next look is: what is flushed then is open for nearly the whole interval.
    for number, (program, surely) in enumerate((("iptables", False), ("ip6tables", True), ("iptables", True)), start=1):
        before = sum_of(ears.heard())
        flush(program, nodes.executor, f"INDEXIFY-SB-{sandbox[:16]}")
        flushed = time.monotonic()
        if surely:
            until("it is heard without its rules", lambda before=before: sum_of(ears.heard()) > before, CHECK_SECS)
        until("the rules are back", lambda number=number: len(node.events(REPAIRED)) == number)
        assert time.monotonic() - flushed < CHECK_SECS + 5
        assert "INPUT does not lead to" in node.events(REPAIRED)[-1]["wrong"]
        loud = ears.heard()
        threading.Event().wait(CHECK_SECS / 4)  # time in which it could be heard
        assert ears.heard() == loud, program
    told = node.monitoring.send("GET", "/metrics")[1].decode()
    assert "indexify_dataplane_sandbox_network_rules_repairs_total 3" in told


def sum_of(heard: dict[str, dict[str, int]]) -> int:
    return sum(count for each in heard.values() for count in each.values())


def flush(program: str, executor: str, chain: str) -> None:
    node = node_chain(executor)
    saved = run(f"{program}-save", "-t", "filter").splitlines()
    hooks = [each.replace("-A", "-D", 1) for each in saved if each.startswith("-A") and each.endswith(f" -j {node}")]
    assert len(hooks) == 2, hooks
    lines = ["*filter", f":{chain} - [0:0]", *hooks, "COMMIT", ""]
    run(f"{program}-restore", "--noflush", "-w", "10", text="\n".join(lines))


@under_each_runtime
def test_a_claim_changes_the_rules_before_anybody_is_told(nodes: Nodes, ears: Ears) -> None:
    """Warm containers of an open pool, which shout at somebody else meanwhile, become closed sandboxes: awake, and not
    heard from the moment their claim is known. Idle ones are frozen before."""
    node, pools = nodes.start(), "/v1/namespaces/default/sandbox-pools"
    entrypoint = ["/usr/bin/python3", "-S", "/shared/peer.py", "shout", str(PORT), OUTSIDE[0]]
    wish = {"image": nodes.image, "resources": nodes.limits, "entrypoint": entrypoint, "warm_containers": 1,
            "max_containers": 3}  # fmt: skip

    def shouts() -> int:
        return ears.heard().get(OUTSIDE[0], {}).get("udp", 0)

    for number in range(nodes.times // 5):
        pool = f"{pools}/{nodes.rest.ask('POST', pools, wish)['pool_id']}"
        idle, before = until("a warm container", lambda pool=pool: warm(nodes, pool)), shouts()
        if number == 0:
            until("it is frozen", lambda idle=idle: frozen(nodes, idle))
        else:
            until("it shouts", lambda before=before: shouts() > before)
        nodes.rest.ask("PUT", pool, {**wish, "network": CLOSED})
        claimed = nodes.rest.ask("POST", f"{pool}/sandboxes")["sandbox_id"]
        nodes.rest.running(claimed)
        assert nodes.rest.sandbox(claimed)["container_id"] == idle
        until("it is routed to", lambda claimed=claimed: node.answers(claimed))
        loud = ears.heard()
        assert not frozen(nodes, idle)
        assert nodes.processes(claimed)[0]["status"] == "running"
        threading.Event().wait(0.3)  # time in which it could be heard
        assert ears.heard() == loud, f"claim {number}"
        nodes.rest.delete(claimed)
        nodes.rest.ask("DELETE", pool)
        until("all are gone", lambda: not nodes.ours())


def warm(nodes: Nodes, pool: str) -> str | None:
    found = nodes.rest.get(pool)["containers"]
    return next((each["id"] for each in found if each["state"] == "running" and not each["sandbox_id"]), None)


def frozen(nodes: Nodes, container: str) -> bool:
    identity = nodes.engine.client.api.inspect_container(f"indexify-{container}")["Id"]
    old = Path(f"/sys/fs/cgroup/freezer/docker/{identity}/freezer.state")
    new = Path(f"/sys/fs/cgroup/docker/{identity}/cgroup.freeze")
    return old.read_text().strip() == "FROZEN" if old.exists() else new.read_text().strip() == "1"
