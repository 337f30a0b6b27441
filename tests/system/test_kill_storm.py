"""A node that is killed again and again, at any moment: no sandbox is lost, none is left behind, every end is told.

The control plane is a process of its own and sees only heartbeats; the host's process table says what really runs.
``STORM=50`` sets the number of kills, ``STORM_SEED`` repeats a run's choices (not its timing).
"""

from __future__ import annotations

import os
import random
import signal
import time
from collections import Counter
from collections.abc import Callable

from .harness import Node, Server, Site
from .wishes import Wishes

STEADY = 20
"""Sandboxes that run all the time."""
UNHEARD_SECS = 8.0
"""After lives too short for a heartbeat one gets more time: the server gives up an executor after 30 s."""


class Storm:
    def __init__(self, server: Server, wishes: Wishes) -> None:
        self.server = server
        self.wishes = wishes
        self.killed_while: Counter[str] = Counter()
        self.pending_reports = 0
        self.heard = time.monotonic()

    def strike(self, node: Node) -> None:
        """Kill the node at any time of its life, in every other case while the server does not take its reports."""
        chance = self.wishes.chance
        if time.monotonic() - self.heard > UNHEARD_SECS:
            node.event("connection state changed", 60)
        lasts = chance.choice([chance.uniform(0.0, 1.0), chance.uniform(1.0, 3.0)])
        while time.monotonic() - node.began < lasts:
            if chance.random() < 0.2:
                self.wishes.disturb()
            time.sleep(chance.uniform(0.0, 0.1))
        self.wishes.disturb()
        time.sleep(chance.uniform(0.0, 0.2))
        deaf = chance.random() < 0.5
        if deaf:
            self.server.send_signal(signal.SIGSTOP)
            time.sleep(chance.uniform(0.0, 0.8))
        said = node.events()
        assert node.alive, f"the node ended by itself with {node.process.returncode}; {node.tail()}"
        node.kill()
        if deaf:
            self.server.send_signal(signal.SIGCONT)
        began = any(each["message"] == "node started" for each in said)
        if any(each["message"] == "connection state changed" for each in said):
            self.heard = time.monotonic()
        self.killed_while["running" if began else "starting"] += 1
        recovered = [each for each in said if each["message"] == "records recovered"]
        self.pending_reports += sum(each["undelivered_reports"] for each in recovered)
        self.wishes.note_processes()


def test_kill_storm(site: Site, tell: Callable[[str], None]) -> None:
    kills, seed = int(os.environ.get("STORM", "15")), int(os.environ.get("STORM_SEED", str(time.time_ns() % 10**9)))
    tell(f"STORM_SEED={seed}: {kills} kills")
    server = site.server()
    config = site.config(server_addr=f"http://127.0.0.1:{server.grpc_port}")
    wishes = Wishes(site, server.rest, random.Random(seed))
    storm = Storm(server, wishes)
    node = site.node(config).ready()
    wishes.begin(STEADY)
    for number in range(kills):
        storm.strike(node)
        node = site.node(config, name=f"node-{number}")
    node.ready()
    began = time.monotonic()
    wishes.settle(node)
    tell(f"settled {time.monotonic() - began:.1f} s after the last start; {wishes.told()}")
    tell(f"killed while {dict(storm.killed_while)}; reports found undelivered at a start: {storm.pending_reports}")
    wishes.end()
    assert node.stop() == 0
