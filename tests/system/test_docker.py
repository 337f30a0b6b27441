"""Sandboxes in containers of a real engine, driven through the server's API and the proxy."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import time
from collections.abc import Iterator

import pytest

from tests.engine import Engine
from tests.registry import Registry

from .docker_nodes import DockerNodes
from .harness import Site, until


@pytest.fixture
def nodes(site: Site, engine: Engine) -> Iterator[DockerNodes]:
    made = DockerNodes(site, engine)
    try:
        yield made
    finally:
        made.close()


def test_a_sandbox_runs_is_reached_and_ends(nodes: DockerNodes) -> None:
    node, rest = nodes.start(), nodes.server.rest
    sandbox = nodes.create(entrypoint=["/bin/sh", "-c", "echo hello; exec sleep 1000"])
    rest.running(sandbox)
    until("traffic", lambda: node.answers(sandbox))
    found = nodes.container(sandbox)
    assert found["HostConfig"]["Memory"] == found["HostConfig"]["MemorySwap"] == 128 << 20
    headers = {"Tensorlake-Sandbox-Id": sandbox}
    assert node.proxy.ask("GET", "/api/v1/processes", headers=headers)["processes"][0]["command"] == "/bin/sh"
    rest.delete(sandbox)
    rest.ended(sandbox)
    until("nothing is left", lambda: not nodes.ours())


def test_what_operators_are_told_about_docker_is_true(nodes: DockerNodes) -> None:
    """The debugging steps of the documentation, with the engine's own command."""
    nodes.start()
    sandbox = nodes.create(entrypoint=["/bin/sh", "-c", "echo to-stdout; echo to-stderr >&2; exec sleep 1000"])
    nodes.server.rest.running(sandbox)

    def docker(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = ["docker", "-H", nodes.engine.address, *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True)

    listed = docker("ps", "--filter", "label=indexify.managed=true", "--format", "{{.Names}}").stdout.split()
    assert f"indexify-{sandbox}" in listed
    (executor,) = nodes.server.rest.executors()
    labels = nodes.container(sandbox)["Config"]["Labels"]
    for prefix in ("", "indexify."):
        assert labels[f"{prefix}container_id"] == sandbox
        assert labels[f"{prefix}executor_id"] == executor
        assert labels[f"{prefix}managed"] == "true"
        assert labels[f"{prefix}type"] == "sandbox"
    until("the entrypoint's output", lambda: "to-stdout" in docker("logs", f"indexify-{sandbox}").stdout)
    assert "to-stderr" in docker("logs", f"indexify-{sandbox}").stderr


def test_only_the_node_has_the_token(nodes: DockerNodes) -> None:
    node = nodes.start()
    sandbox = nodes.create()
    nodes.server.rest.running(sandbox)
    assert nodes.without_token(sandbox) == 401
    assert nodes.without_token(sandbox, "GET", "/api/v1/health") == 200
    found = nodes.container(sandbox)
    (token,) = [each.partition("=")[2] for each in found["Config"]["Env"] if each.startswith("INDEXIFY_SANDBOX_TOKEN=")]
    assert len(token) == 43
    assert token not in json.dumps([found["Config"]["Labels"], found["Args"], found["Path"]])
    assert token not in json.dumps(node.state())
    assert token not in node.said + node.said_on_stderr
    shown = nodes.run(sandbox, "/bin/sh", "-c", "env; sleep 1000")["pid"]
    headers = {"Tensorlake-Sandbox-Id": sandbox}
    path = f"/api/v1/processes/{shown}/stdout"
    lines = until("its environment", lambda: node.proxy.ask("GET", path, headers=headers)["lines"])
    assert not [line for line in lines if token in line]


def test_sandboxes_outlive_a_killed_node(nodes: DockerNodes) -> None:
    node, rest = nodes.start(), nodes.server.rest
    sandboxes = [nodes.create() for _ in range(3)]
    rest.running(*sandboxes)
    before = {sandbox: nodes.container(sandbox)["Id"] for sandbox in sandboxes}
    node.kill()
    nodes.api.kill(before[sandboxes[2]], signal="SIGKILL")
    node = nodes.start()
    for sandbox in sandboxes[:2]:
        until("traffic after the node was killed", lambda each=sandbox: node.answers(each))
        assert nodes.container(sandbox)["Id"] == before[sandbox]
        assert nodes.run(sandbox, "/bin/true")
    assert set(rest.ended(sandboxes[2]).values()) == {"Failure(ContainerTerminated(ProcessCrash))"}
    nodes.api.kill(before[sandboxes[1]], signal="SIGKILL")
    rest.ended(sandboxes[1])
    rest.delete(sandboxes[0])
    rest.ended(sandboxes[0])
    until("nothing is left", lambda: not nodes.ours())


def test_a_node_killed_at_any_moment_of_a_start_finishes_it(nodes: DockerNodes) -> None:
    """Between record, creation, start, the go and its answer. In the end each runs once, its entrypoint, too."""
    rest, chance = nodes.server.rest, random.Random(7)
    nodes.start()
    sandboxes = []
    for _ in range(4):
        sandboxes += [nodes.create(), nodes.create()]
        time.sleep(chance.uniform(0.02, 0.6))
        assert nodes.node is not None
        nodes.node.send_signal(signal.SIGKILL)
        nodes.node.wait()
        nodes.start()
    rest.running(*sandboxes)
    node = nodes.node
    assert node is not None
    for sandbox in sandboxes:
        until("traffic", lambda each=sandbox: node.answers(each))
        headers = {"Tensorlake-Sandbox-Id": sandbox}
        processes = node.proxy.ask("GET", "/api/v1/processes", headers=headers)["processes"]
        assert [each["command"] for each in processes] == ["/bin/sleep"]
    assert len(nodes.ours()) == len(sandboxes)


def test_a_container_that_was_made_but_never_started_makes_room(nodes: DockerNodes) -> None:
    """The node is killed after the engine made the container and before it started it. What is not the node's stays."""
    registry = Registry()
    other = {"managed": "true", "type": "sandbox"}
    foreign = nodes.api.create_container(nodes.image, ["/bin/true"], labels=other)["Id"]
    try:
        image = registry.push("tests/held", "1", layer(nodes))
        registry.hold("/manifests/")
        node = nodes.start()
        sandbox = nodes.create(image=image)
        until("the pull", registry.reached_hold.is_set)
        node.kill()
        (executor,) = nodes.server.rest.executors()
        mine = {"managed": "true", "executor_id": executor, "container_id": sandbox, "type": "sandbox"}
        labels = {f"indexify.{name}": value for name, value in mine.items()}
        name = f"indexify-{sandbox}"
        half = nodes.api.create_container(nodes.image, ["/bin/true"], name=name, labels=labels)["Id"]
        registry.release()
        node = nodes.start()
        nodes.server.rest.running(sandbox)
        until("traffic", lambda: node.answers(sandbox))
        assert [each["Id"] for each in nodes.ours()] == [nodes.container(sandbox)["Id"]] != [half]
        assert nodes.api.inspect_container(foreign)["State"]["Status"] == "created"
    finally:
        nodes.api.remove_container(foreign, force=True)
        registry.stop()


def layer(nodes: DockerNodes) -> bytes:
    """The content of the test image, as one layer."""
    container = nodes.api.create_container(nodes.image, ["/bin/true"])["Id"]
    try:
        return b"".join(nodes.api.export(container))
    finally:
        nodes.api.remove_container(container)


def test_removal_at_any_moment_of_a_start_leaves_nothing(nodes: DockerNodes) -> None:
    nodes.start()
    rest = nodes.server.rest
    sandboxes = []
    for number in range(10):
        sandboxes.append(nodes.create())
        time.sleep(number * 0.05)
        rest.delete(sandboxes[-1])
    assert set(rest.ended(*sandboxes).values()) == {"Success(UserTerminated)"}
    until("nothing is left", lambda: not nodes.ours())
