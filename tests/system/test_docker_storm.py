"""Node, engine and sandboxes are killed at random: every sandbox is accounted for, with the true reason, and nothing is
left behind.

The engine is the test's own. ``DOCKER_STORM=100`` sets the number of kills, ``STORM_SEED`` repeats a run's choices
(not its timing).
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from docker.errors import DockerException, NotFound

from tests.engine import SCRIPT
from tests.engine import Engine as Running

from .docker_nodes import DockerNodes
from .harness import PROGRAM, Node, NotSeen, Site, until

SANDBOXES = 30
KILLS = int(os.environ.get("DOCKER_STORM", "100" if os.environ.get("TEST_ALL") == "1" else "15"))
LEAKS_SECS = 5.0
TINY = {"cpus": 0.1, "memory_mb": 32, "ephemeral_disk_mb": 16}

CRASH, CANCELLED, UNKNOWN = "ProcessCrash", "FunctionCancelled", "Unknown"
NEVER_RAN = ("StartupFailedInternalError", "InternalError")
BY_DELETION = "Success(UserTerminated)"


class PrivateEngine:
    """An engine that may be killed."""

    def __init__(self) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="ixstorm-"))
        self.running = Running(address=self._order("start"))

    def _order(self, order: str) -> str:
        done = subprocess.run([SCRIPT, order, self.directory], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def kill(self) -> None:
        os.kill(int((self.directory / "dockerd.pid").read_text()), signal.SIGKILL)
        until("the engine is gone", lambda: not self.answers())

    def again(self) -> None:
        self._order("again")

    def answers(self) -> bool:
        try:
            return bool(self.running.client.ping())
        except (DockerException, OSError):
            return False

    def stop(self) -> None:
        self._order("stop")


class Storm:
    """``wanted`` shall run; ``causes`` says what was done to those that shall not."""

    def __init__(self, nodes: DockerNodes, engine: PrivateEngine, chance: random.Random) -> None:
        self.nodes, self.engine, self.chance = nodes, engine, chance
        self.wanted: list[str] = []
        self.causes: dict[str, str] = {}
        self.killed: Counter[str] = Counter()

    @property
    def node(self) -> Node:
        assert self.nodes.node is not None
        return self.nodes.node

    def fill(self) -> None:
        """Order what is missing; nobody waits for it, so that kills meet starts as well."""
        while len(self.wanted) < SANDBOXES:
            self.wanted.append(self.nodes.create(resources=TINY))

    def strike(self, what: str) -> None:
        time.sleep(self.chance.uniform(0.0, 1.0))
        if what == "sandbox":
            until("a running sandbox to kill", self.kill_sandbox, 120)
        elif what == "node":
            self.kill_node()
        else:
            self.kill_engine()
        self.killed[what] += 1
        self.fill()

    def kill_sandbox(self) -> bool:
        """Whether there was one."""
        known = self.nodes.server.rest.sandboxes()
        running = [each for each in self.wanted if known[each]["status"] == "running"]
        if not running:
            return False
        victim = self.chance.choice(running)
        try:
            process = int(self.nodes.container(victim)["State"]["Pid"])
        except NotFound:
            return False  # an earlier blow to the engine took it, and the server has not heard of it yet
        if not process:
            return False
        os.kill(process, signal.SIGKILL)
        self.over(victim, "sandbox")
        return True

    def kill_node(self) -> None:
        self.node.kill()
        if self.chance.random() < 0.5:
            self.kill_sandbox()  # nobody sees it end
        if self.chance.random() < 0.3:
            victim = self.chance.choice(self.wanted)
            self.nodes.server.rest.delete(victim)
            self.over(victim, "deleted")
        self.restart_node()

    def restart_node(self) -> None:
        self.nodes.start(wait=False, name=f"node-{sum(self.killed.values())}-{time.time_ns()}")

    def kill_engine(self) -> None:
        """It takes its containers with it, and nothing can be said of those that were being started."""
        with_node = self.chance.random() < 0.5
        self.engine.kill()
        if with_node:
            self.node.kill()
        for each in list(self.wanted):
            self.over(each, "engine")
        time.sleep(self.chance.uniform(0.0, 2.0))
        self.engine.again()
        if with_node:
            self.restart_node()

    def over(self, sandbox: str, cause: str) -> None:
        self.wanted.remove(sandbox)
        self.causes[sandbox] = cause

    # What must be true when it is over

    def settle(self) -> None:
        try:
            until("everything settled", self.settled, 180)
        except NotSeen as error:
            raise AssertionError(f"{error}\n{self.picture()}") from None

    def settled(self) -> bool:
        known = self.nodes.server.rest.sandboxes()
        return (
            all(known[each]["status"] == "running" for each in self.wanted)
            and all(known[each]["status"] in ("terminated", "running") for each in self.causes)
            and self.node.state()["unacknowledged_reports"] == 0
            and self.there() == {f"/indexify-{each}" for each, found in known.items() if found["status"] == "running"}
        )

    def there(self) -> set[str]:
        return {name for each in self.nodes.ours() for name in each["Names"]}

    def check(self) -> Counter[str]:
        """Reasons are true; the number of each by what was done."""
        found: Counter[str] = Counter()
        for sandbox, cause in self.causes.items():
            told = self.nodes.server.rest.sandbox(sandbox)
            outcome = str(told["outcome"])
            reason = outcome.removeprefix("Failure(ContainerTerminated(").removesuffix("))")
            found[f"{cause}: {outcome if told['status'] == 'terminated' else 'runs'}"] += 1
            if cause == "sandbox":
                assert reason == CRASH, (sandbox, cause, told)
            elif cause == "deleted":
                assert outcome == BY_DELETION, (sandbox, cause, told)
            elif told["status"] == "terminated":
                # Ended by the engine's death, which may have met a start; never a success, never lack of memory.
                assert reason in (CRASH, CANCELLED, UNKNOWN, *NEVER_RAN), (sandbox, cause, told)
        return found

    def leaks(self) -> dict[str, Any]:
        done = self.nodes.site.run(PROGRAM, "ctl", "leaks", "--json", "--config", str(self.nodes.config))
        assert done.stdout, done.stderr
        told = json.loads(done.stdout)
        # Chains and cgroups are the host's: those of other tests are none of ours.
        mine = [each for each in told["leaks"] if each["executor_id"] or each["place"] == self.engine.running.address]
        return {"leaks": mine, "problems": told["problems"]}

    def picture(self) -> str:
        """What is not as it should be, with all that any node said of it."""
        known, at_node = self.nodes.server.rest.sandboxes(), self.node.containers()
        there = {name: each["Status"] for each in self.nodes.ours() for name in each["Names"]}
        lines = []
        for each, found in known.items():
            runs, status = found["status"] == "running", there.get(f"/indexify-{each}")
            if runs != (each in self.wanted) or runs != (status is not None):
                cause = self.causes.get(each, "wanted")
                lines.append(
                    f"{each} {cause}: server {found['status']} {found['outcome']}, node {at_node.get(each)}, "
                    f"engine {status}"
                )
                if runs != (status is not None):
                    lines += [line for line in self.said() if each in line]
        return "\n".join([*lines, self.node.tail()])

    def said(self) -> list[str]:
        logs = sorted(self.nodes.site.path.glob("node*.log"), key=lambda each: each.stat().st_mtime)
        return [line for each in logs for line in each.read_text(errors="replace").splitlines()]


def test_kill_storm_over_docker(site: Site, engine: Running, tell: Callable[[str], None]) -> None:
    """``engine`` is the shared one: only whether there can be one is asked of it."""
    seed = int(os.environ.get("STORM_SEED", str(time.time_ns() % 10**9)))
    tell(f"STORM_SEED={seed}: {KILLS} kills over {SANDBOXES} sandboxes")
    chance = random.Random(seed)
    engines = max(1, KILLS // 15)
    blows = ["engine"] * engines + ["node"] * (KILLS // 3) + ["sandbox"] * (KILLS - engines - KILLS // 3)
    chance.shuffle(blows)
    private = PrivateEngine()
    nodes = DockerNodes(site, private.running, startup_timeout_secs=120)
    try:
        storm = Storm(nodes, private, chance)
        nodes.start()
        storm.fill()
        nodes.server.rest.running(*storm.wanted, seconds=180)
        for blow in blows:
            storm.strike(blow)
        storm.node.ready(120)
        storm.settle()
        tell(f"{dict(storm.killed)}; {dict(storm.check())}")
        began = time.monotonic()
        until("no leak", lambda: storm.leaks() == {"leaks": [], "problems": []}, LEAKS_SECS)
        tell(f"no leak {time.monotonic() - began:.1f} s later")
        for each in list(storm.wanted):
            assert storm.node.answers(each), f"sandbox {each} is not reached through the proxy"
        for each in nodes.server.rest.sandboxes():
            if nodes.server.rest.sandbox(each)["status"] == "running":
                nodes.server.rest.delete(each)
        until("nothing is left", lambda: not nodes.ours(), 120)
        until("no leak", lambda: storm.leaks() == {"leaks": [], "problems": []}, LEAKS_SECS)
        assert storm.node.stop() == 0
    finally:
        if nodes.node is not None:
            nodes.node.kill()
        private.stop()
