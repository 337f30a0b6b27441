"""A server that goes away, comes back, answers nonsense or nothing: nothing is lost and nothing happens twice."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable, Iterator

import pytest

from .harness import Node, Site, until
from .inprocess import EngineServer, Wire, threaded
from .wishes import Wishes

CUT_SECS = 60.0 if os.environ.get("TEST_ALL") else 35.0


@pytest.fixture
def another_site() -> Iterator[Site]:
    made = Site()
    try:
        yield made
    finally:
        made.close()


def node_for(site: Site, port: int) -> Node:
    return site.node(site.config(server_addr=f"http://127.0.0.1:{port}")).ready()


def busy(wishes: Wishes, seconds: float, also: Callable[[], None] = lambda: None) -> None:
    """Clients at work for a while."""
    until_then = time.monotonic() + seconds
    while time.monotonic() < until_then:
        if wishes.chance.random() < 0.3:
            wishes.disturb()
        also()
        time.sleep(wishes.chance.uniform(0.05, 0.3))


@threaded
def test_server_answers_internal_and_asks_for_state_at_random(site: Site, tell: Callable[[str], None]) -> None:
    server = EngineServer(site.path)
    try:
        node = node_for(site, server.grpc_port)
        wishes = Wishes(site, server.rest, random.Random(2))
        wishes.begin(8)
        rpcs = ("heartbeat", "poll_commands", "poll_allocation_results")
        done: dict[str, int] = {}

        def fault() -> None:
            faults, chance = server.engine.faults, wishes.chance
            rpc = chance.choice(rpcs)
            name, act = chance.choice([
                ("INTERNAL", lambda: faults.fail_next(rpc, chance.randint(1, 3), "INTERNAL")),
                ("UNAVAILABLE", lambda: faults.fail_next(rpc, 1)),
                ("lost answer", lambda: faults.drop_reply(rpc)),
                ("late answer", lambda: faults.delay_reply(rpc, chance.uniform(0.1, 2.0))),
                ("wish for state", lambda: server.engine.force_full_state(node.executor_id)),
            ])  # fmt: skip
            server.order(lambda _: act())
            done[name] = done.get(name, 0) + 1

        busy(wishes, 15, fault)
        server.order(lambda engine: engine.faults.clear())
        began = time.monotonic()
        wishes.settle(node)
        tell(f"faults {done}; settled {time.monotonic() - began:.1f} s after the last one; {wishes.told()}")
        assert not server.stopped()
        wishes.end()
    finally:
        server.stop()


@threaded
def test_server_is_stopped_and_restarted(site: Site, tell: Callable[[str], None]) -> None:
    """It keeps sandboxes, as the real one does, and forgets executors, containers and numbering."""
    server = EngineServer(site.path)
    try:
        node = node_for(site, server.grpc_port)
        wishes = Wishes(site, server.rest, random.Random(3))
        wishes.begin(8)
        for away in (0.0, 3.0, 6.0):
            busy(wishes, 2)
            server.stop()
            server.order(lambda engine: engine.restart(durable=True))
            until_then = time.monotonic() + away
            until("some time without a server", lambda at=until_then: time.monotonic() >= at)
            assert node.monitoring.send("GET", "/health")[0] == 200
            assert all(node.answers(each) for each in wishes.kept[:8])
            server.start()
            wishes.rest = server.rest
            began = time.monotonic()
            until("the node is back", lambda: server.rest.executors())
            tell(f"after {away:g} s without a server the node was back in {time.monotonic() - began:.1f} s")
        wishes.settle(node)
        tell(wishes.told())
        assert not server.stopped()
        wishes.end()
    finally:
        server.stop()


@threaded
def test_server_that_forgot_everything(site: Site) -> None:
    """An empty server does not want what runs here: it goes, and new work comes."""
    server = EngineServer(site.path)
    try:
        node = node_for(site, server.grpc_port)
        wishes = Wishes(site, server.rest, random.Random(4))
        wishes.begin(4)
        server.stop()
        server.order(lambda engine: engine.restart(durable=False))
        server.start()
        wishes = Wishes(site, server.rest, random.Random(4))
        until("the node is back", lambda: server.rest.executors())
        wishes.begin(4)
        wishes.settle(node)
        wishes.end()
    finally:
        server.stop()


@threaded
def test_cut_off(site: Site, another_site: Site, tell: Callable[[str], None]) -> None:
    """First silence, then refusals. One server is patient; the other one gives executors up after 30 s, as the real
    one does: what it gave up has to go, and what ended meanwhile is told to either."""
    servers = {site: EngineServer(site.path, liveness_secs=600), another_site: EngineServer(another_site.path)}
    wires = {each: Wire(server.grpc_port) for each, server in servers.items()}
    try:
        nodes = {each: node_for(each, wire.port) for each, wire in wires.items()}
        wishes = {each: Wishes(each, server.rest, random.Random(5)) for each, server in servers.items()}
        for each in wishes.values():
            each.begin(6)
            each.mortal = [each.rest.create(timeout_secs=6) for _ in range(3)]
            each.rest.running(*each.mortal)
        began = time.monotonic()
        for wire in wires.values():
            wire.silence()
        patient, real = wishes[site], wishes[another_site]
        for _ in range(3):
            patient.delete(patient.kept[-1])
        late = [patient.rest.create() for _ in range(3)]
        patient.kept += late
        until("half of the cut", lambda: time.monotonic() - began > CUT_SECS / 2)
        for wire in wires.values():
            wire.refuse()
        until("the cut is over", lambda: time.monotonic() - began > CUT_SECS)
        for each, node in nodes.items():
            assert node.monitoring.send("GET", "/ready")[0] == 503
            steady = [name for name in wishes[each].kept if name not in late] + patient.deleted * (each is site)
            assert all(node.answers(name) for name in steady), "traffic does not depend on the server"
        began = time.monotonic()
        for wire in wires.values():
            wire.restore()
        patient.settle(nodes[site])
        tell(f"cut off for {CUT_SECS:g} s; settled {time.monotonic() - began:.1f} s after; {patient.told()}")
        given_up = real.rest.ended(*real.kept)
        assert set(given_up.values()) == {"Failure(ExecutorRemoved)"}
        until("what was given up is gone", lambda: not another_site.processes() and not another_site.run_directories())
        again = Wishes(another_site, real.rest, random.Random(6))
        again.begin(2)
        assert nodes[another_site].state()["unacknowledged_reports"] == 0
        for server in servers.values():
            assert not server.stopped()
    finally:
        for each, server in servers.items():
            wires[each].close()
            server.stop()
