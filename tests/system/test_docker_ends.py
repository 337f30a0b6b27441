"""Why containers end, made for real, and what the server is told of it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from docker.errors import APIError

from indexify_dataplane.drivers.docker.lives import OOM_SECONDS
from tests.engine import SCRIPT, Engine
from tests.registry import Registry

from .docker_nodes import DockerNodes
from .harness import Site, until
from .test_docker import layer

QUICK: dict[str, Any] = {
    "health": {"interval_secs": 0.3, "timeout_secs": 0.5, "failure_threshold": 2},
    "startup_timeout_secs": 20,
}


@pytest.fixture
def nodes(site: Site, engine: Engine) -> Iterator[DockerNodes]:
    made = DockerNodes(site, engine, driver={"pull_timeout_secs": 6}, **QUICK)
    try:
        yield made
    finally:
        made.close()


@pytest.fixture
def registry() -> Iterator[Registry]:
    made = Registry()
    try:
        yield made
    finally:
        made.stop()


def ended(nodes: DockerNodes, sandbox: str) -> str:
    (outcome,) = nodes.server.rest.ended(sandbox).values()
    until("nothing of it is left", lambda: not nodes.ours())
    return str(outcome)


def reason(nodes: DockerNodes, sandbox: str) -> str:
    return ended(nodes, sandbox).removeprefix("Failure(ContainerTerminated(").removesuffix("))")


def told(nodes: DockerNodes) -> str:
    assert nodes.node is not None
    return nodes.node.said


def test_an_image_that_does_not_exist(nodes: DockerNodes, registry: Registry) -> None:
    nodes.start()
    assert "BadImage" in ended(nodes, nodes.create(image=f"{registry.address}/tests/nothing:1"))
    assert "manifest unknown" in told(nodes)
    assert "BadImage" in ended(nodes, nodes.create(image="UPPER CASE"))


def test_an_image_for_another_architecture(nodes: DockerNodes, registry: Registry) -> None:
    nodes.start()
    image = registry.push("tests/foreign", "1", layer(nodes), architecture="s390x")
    assert "BadImage" in ended(nodes, nodes.create(image=image))
    assert "is for s390x, this engine runs" in told(nodes)


def test_a_registry_that_fails_or_hangs(nodes: DockerNodes, registry: Registry) -> None:
    nodes.start()
    image = registry.push("tests/slow", "1", layer(nodes))
    registry.fail("/manifests/", 500)
    assert "InternalError" in ended(nodes, nodes.create(image=image))
    registry.heal()
    registry.hold("/blobs/")
    assert "InternalError" in ended(nodes, nodes.create(image=image))
    assert "longer than 6 s (pull_timeout_secs)" in told(nodes)
    registry.release()
    nodes.server.rest.running(nodes.create(image=image))


def test_removal_during_the_pull(nodes: DockerNodes, registry: Registry) -> None:
    nodes.start()
    image = registry.push("tests/removed", "1", layer(nodes))
    registry.hold("/blobs/")
    sandbox = nodes.create(image=image)
    until("the pull", registry.reached_hold.is_set)
    began = time.monotonic()
    nodes.server.rest.delete(sandbox)
    assert ended(nodes, sandbox) == "Success(UserTerminated)"
    assert time.monotonic() - began < 5
    registry.release()


def test_one_pull_for_all_who_wait(nodes: DockerNodes, registry: Registry) -> None:
    nodes.start()
    image = registry.push("tests/shared", "1", layer(nodes))
    registry.hold("/blobs/")
    sandboxes = [nodes.create(image=image) for _ in range(4)]
    until("the pull", registry.reached_hold.is_set)
    nodes.server.rest.delete(sandboxes.pop())
    registry.release()
    nodes.server.rest.running(*sandboxes)
    assert registry.count("/manifests/1") <= 1
    assert "image pulled" in told(nodes)


def test_out_of_memory(nodes: DockerNodes) -> None:
    """Memory that belongs to no process, by one that has made itself no likelier a victim than the daemon: the kernel
    takes the largest, which is the daemon."""
    nodes.start()
    fill = [
        "/bin/sh",
        "-c",
        "sleep 1; echo 0 > /proc/$$/oom_score_adj; dd if=/dev/zero of=/dev/shm/fill bs=1M count=200",
    ]
    sandbox = nodes.create(entrypoint=fill, resources={"cpus": 1, "memory_mb": 64, "ephemeral_disk_mb": 64})
    assert reason(nodes, sandbox) == "OutOfMemory" or "Oom" in nodes.server.rest.sandbox(sandbox)["outcome"]


def test_a_crash(nodes: DockerNodes) -> None:
    nodes.start()
    sandbox = nodes.create()
    nodes.server.rest.running(sandbox)
    nodes.api.kill(nodes.container(sandbox)["Id"], signal="SIGKILL")
    assert reason(nodes, sandbox) == "ProcessCrash"
    assert nodes.node is not None
    (line,) = [each for each in nodes.node.said.splitlines() if "container is being killed" in each]
    told = json.loads(line)
    cause = {"exit_code": None, "signal": 9, "oom": False, "reason": "PROCESS_CRASH"}
    assert told["level"] == "WARN" and cause.items() <= told["fields"].items(), line


def survives_an_oom(nodes: DockerNodes) -> str:
    """A sandbox of 64 MB, a child of which was killed for memory more than two seconds ago."""
    sandbox = nodes.create(resources={"cpus": 1, "memory_mb": 64, "ephemeral_disk_mb": 64})
    nodes.server.rest.running(sandbox)
    identity = nodes.container(sandbox)["Id"]
    since = time.time()
    nodes.run(sandbox, "/bin/busybox", "tail", "/dev/zero")
    filters = {"container": identity, "event": "oom"}
    told = next(iter(nodes.api.events(since=int(since), until=int(since) + 60, filters=filters, decode=True)))
    over = told["timeNano"] / 1e9 + OOM_SECONDS + 0.2
    until("the OOM kill is past", lambda: time.time() > over)
    assert nodes.container(sandbox)["State"]["Running"]
    return sandbox


def test_a_crash_long_after_an_oom_kill_that_it_survived(nodes: DockerNodes) -> None:
    nodes.start()
    sandbox = survives_an_oom(nodes)
    nodes.api.kill(nodes.container(sandbox)["Id"], signal="SIGKILL")
    assert reason(nodes, sandbox) == "ProcessCrash"


def test_the_same_while_no_node_listens(nodes: DockerNodes) -> None:
    node = nodes.start()
    sandbox = survives_an_oom(nodes)
    node.kill()
    nodes.api.kill(nodes.container(sandbox)["Id"], signal="SIGKILL")
    nodes.start()
    assert reason(nodes, sandbox) == "ProcessCrash"


def test_started_anew_by_an_operator(nodes: DockerNodes) -> None:
    """What runs after ``docker restart`` is not the sandbox that was: its end is told at once."""
    nodes.start()
    sandbox = nodes.create()
    nodes.server.rest.running(sandbox)
    with suppress(APIError):  # the node may have removed it before the engine starts it again
        nodes.api.restart(nodes.container(sandbox)["Id"], timeout=5)
    began = time.monotonic()
    assert reason(nodes, sandbox) == "FunctionCancelled"  # SIGTERM by somebody else
    assert time.monotonic() - began < 5


def test_started_anew_while_no_node_listens(nodes: DockerNodes) -> None:
    node = nodes.start()
    sandbox = nodes.create()
    nodes.server.rest.running(sandbox)
    node.kill()
    nodes.api.kill(nodes.container(sandbox)["Id"], signal="SIGKILL")
    nodes.api.wait(nodes.container(sandbox)["Id"])
    nodes.api.start(nodes.container(sandbox)["Id"])
    nodes.start()
    assert reason(nodes, sandbox) == "ProcessCrash"


def test_its_lifetime_is_over(nodes: DockerNodes) -> None:
    nodes.start()
    assert ended(nodes, nodes.create(timeout_secs=2)) == "Success(Timeout)"


def test_a_daemon_that_does_not_answer(nodes: DockerNodes) -> None:
    nodes.start()
    sandbox = nodes.create()
    nodes.server.rest.running(sandbox)
    os.kill(nodes.container(sandbox)["State"]["Pid"], signal.SIGSTOP)
    assert reason(nodes, sandbox) == "Unhealthy"


def test_an_image_whose_user_is_unknown(nodes: DockerNodes) -> None:
    nodes.start()
    assert "InternalError" in ended(nodes, nodes.create(image=nodes.engine.image("busybox", "USER nobody-knows-me")))
    assert "Unknown user" in told(nodes)


def test_the_engine_is_killed_and_comes_back(site: Site) -> None:
    """Its containers do not survive that; each end is told, and new ones start, also those ordered while it is away."""
    directory = Path(tempfile.mkdtemp(prefix="ixengine-"))

    def engine(order: str) -> str:
        return subprocess.run([SCRIPT, order, directory], capture_output=True, text=True, check=True).stdout.strip()

    try:
        second = Engine(address=engine("start"))
        # The engine gives them ten seconds to end, in which their daemons do not answer; it has the last word.
        nodes = DockerNodes(site, second, **{**QUICK, "startup_timeout_secs": 90})
        node = nodes.start()
        sandboxes = [nodes.create() for _ in range(2)]
        nodes.server.rest.running(*sandboxes)
        os.kill(int((directory / "dockerd.pid").read_text()), signal.SIGKILL)
        until("the engine is gone", lambda: not answers(second))
        waiting, removed = [nodes.create() for _ in range(2)], nodes.create()
        begins = "waiting for the Docker engine, which is away"
        until("starts that wait", lambda: len(node.events(begins)) == 3)
        nodes.server.rest.delete(removed)
        assert set(nodes.server.rest.ended(removed, seconds=5).values()) == {"Success(UserTerminated)"}
        engine("again")
        nodes.server.rest.running(*waiting)
        goes_on = node.events("the Docker engine is back, the start goes on")
        assert sorted(each["container_id"] for each in goes_on) == sorted(waiting)
        assert len(node.events(begins)) == 3
        outcomes = nodes.server.rest.ended(*sandboxes)
        # It comes back, finds them and tells them to end.
        assert set(outcomes.values()) == {"Failure(ContainerTerminated(FunctionCancelled))"}
        fresh = nodes.create()
        nodes.server.rest.running(fresh)
        there = sorted(name for each in nodes.ours() for name in each["Names"])
        assert there == sorted(f"/indexify-{each}" for each in (fresh, *waiting))
        nodes.close()
    finally:
        engine("stop")


def answers(engine: Engine) -> bool:
    try:
        return bool(engine.client.ping())
    except Exception:
        return False
