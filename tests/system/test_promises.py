"""The debugging and troubleshooting rows of the product's public README, each done as it says, on a real engine."""

from __future__ import annotations

import json
import socket
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest

from tests.engine import Engine, _busybox
from tests.registry import Registry

from .docker_nodes import DockerNodes
from .harness import PROGRAM, Server, Site, until


@pytest.fixture
def nodes(site: Site, engine: Engine) -> Iterator[DockerNodes]:
    made = DockerNodes(site, engine, health={"interval_secs": 0.5, "timeout_secs": 2, "failure_threshold": 2})
    try:
        yield made
    finally:
        made.close()


def docker(engine: Engine, *words: str) -> str:
    done = subprocess.run(["docker", "-H", engine.address, *words], capture_output=True, text=True, check=True)
    return done.stdout + done.stderr


def lines(nodes: DockerNodes, message: str) -> list[dict[str, Any]]:
    """Whole JSON lines of the node's log with this message."""
    assert nodes.node is not None
    said = [json.loads(line) for line in nodes.node.said.splitlines() if line.startswith("{")]
    return [each for each in said if each["fields"]["message"] == message]


def test_debugging_rows(nodes: DockerNodes, engine: Engine) -> None:
    node = nodes.start(env={"RUST_LOG": "info,indexify_dataplane::http_proxy=debug"})
    talk = "echo to stdout; echo to stderr >&2; exec sleep 1000"
    sandbox = nodes.create(entrypoint=["/bin/sh", "-c", talk])
    nodes.server.rest.running(sandbox)

    # 1. docker logs indexify-<container_id>
    until(
        "output", lambda: {"to stdout", "to stderr"} <= set(docker(engine, "logs", f"indexify-{sandbox}").split("\n"))
    )
    # 2. docker ps --filter "label=indexify.managed=true"
    listed = docker(engine, "ps", "--filter", "label=indexify.managed=true", "--format", "{{.Names}}").split()
    assert f"indexify-{sandbox}" in listed
    # 3. RUST_LOG=indexify_dataplane::http_proxy=debug
    assert node.answers(sandbox)
    [routed] = until("the routing", lambda: lines(nodes, "Routing request to container"))
    assert (routed["level"], routed["target"]) == ("DEBUG", "indexify_dataplane::http_proxy")
    nodes.server.rest.delete(sandbox)
    nodes.server.rest.ended(sandbox)

    def listed_again() -> bool:
        everything = docker(engine, "ps", "-a", "--filter", "label=indexify.managed=true", "--format", "{{.Names}}")
        return f"indexify-{sandbox}" in everything.split()

    until("it is gone from the list", lambda: not listed_again())


def test_rows_of_the_proxy_and_its_log(nodes: DockerNodes) -> None:
    node = nodes.start()
    sandbox = nodes.create()
    nodes.server.rest.running(sandbox)

    # nc -zv localhost 8095
    socket.create_connection(("127.0.0.1", node.proxy.port), 5).close()
    # curl -H "Tensorlake-Sandbox-Id: test" http://localhost:8095/health
    status, body = node.proxy.send("GET", "/health", headers={"Tensorlake-Sandbox-Id": "test"})
    assert (status, json.loads(body)["code"]) == (404, "SANDBOX_NOT_FOUND")
    assert node.proxy.send("GET", "/health")[0] == 400
    headers = {"Tensorlake-Sandbox-Id": sandbox}
    assert node.proxy.send("GET", "/api/v1/processes", headers=headers)[0] == 200
    status, _ = node.proxy.send("GET", "/", headers={**headers, "Tensorlake-Sandbox-Port": "81"})
    assert status == 502

    expected = {
        "Sandbox not found": "WARN", "Missing Tensorlake-Sandbox-Id header": "WARN", "Request completed": "INFO",
        "Failed to connect to container": "ERROR",
    }  # fmt: skip
    for message, level in expected.items():
        found = until(message, lambda message=message: lines(nodes, message))
        assert {each["level"] for each in found} == {level}, found
        assert {each["target"] for each in found} == {"indexify_dataplane::http_proxy"}
    [done] = lines(nodes, "Request completed")
    assert done["span"] == {"sandbox_id": sandbox, "port": 9501, "method": "GET", "path": "/api/v1/processes"}
    assert done["fields"]["status_code"] == 200 and done["fields"]["duration_ms"] > 0
    assert done["fields"]["container_addr"] == f"{nodes.address(sandbox)}:9501"
    [start] = lines(nodes, "Starting HTTP proxy server")
    assert start["level"] == "INFO" and str(node.proxy.port) in start["fields"]["listen_addr"]


def test_a_sandbox_that_is_not_running_is_503_with_its_state(site: Site, engine: Engine) -> None:
    """And the row of a slow pull: it is waited for; what was pulled before starts at once."""
    registry = Registry()
    image = registry.push("promises", "1", _busybox())
    nodes = DockerNodes(site, engine)
    try:
        node = nodes.start()
        registry.hold("/blobs/")
        sandbox = nodes.create(image=image)
        assert registry.reached_hold.wait(30)
        status, body = node.proxy.send("GET", "/", headers={"Tensorlake-Sandbox-Id": sandbox})
        assert (status, json.loads(body)["code"]) == (503, "SANDBOX_NOT_RUNNING")
        assert "starting" in json.loads(body)["error"] or "pending" in json.loads(body)["error"]
        [warned] = until("the warning", lambda: lines(nodes, "Sandbox not running"))
        assert warned["level"] == "WARN"
        registry.release()
        nodes.server.rest.running(sandbox)
        asked = len(registry.asked)
        nodes.server.rest.running(nodes.create(image=image))
        assert len(registry.asked) == asked
    finally:
        registry.release()
        nodes.close()
        docker(engine, "rmi", "-f", image)
        registry.stop()


def test_heartbeat_failures_are_said_and_end_when_the_server_is_back(nodes: DockerNodes, site: Site) -> None:
    node = nodes.start()
    sandbox = nodes.create()
    nodes.server.rest.running(sandbox)
    port = nodes.server.grpc_port
    nodes.server.kill()
    assert node.event("heartbeat failed")
    failures = node.monitoring.send("GET", "/metrics")[1].decode()
    assert "heartbeat_failures" in failures
    assert node.answers(sandbox), "sandboxes do not need the server"
    assert node.monitoring.send("GET", "/ready")[0] == 503
    back: Server = site.server(grpc_port=port)
    until("the node ready again", lambda: node.monitoring.send("GET", "/ready")[0] == 200, 60)
    assert node.executor_id in back.rest.executors()
    nodes.server = back


def test_without_the_privilege_a_policy_is_refused_with_the_reason(nodes: DockerNodes) -> None:
    """Network rules not applied: missing privileges. Never started open; doctor says the same."""
    unprivileged = ["setpriv", "--bounding-set=-net_admin", "--inh-caps=-net_admin", "--"]
    nodes.start(command=[*unprivileged, PROGRAM, "--config", str(nodes.config)])
    plain = nodes.create()
    closed = nodes.create(network={"allow_internet_access": False})
    nodes.server.rest.running(plain)
    [outcome] = nodes.server.rest.ended(closed).values()
    assert outcome.startswith("Failure("), outcome
    assert f"indexify-{closed}" not in {name.lstrip("/") for each in nodes.ours() for name in each["Names"]}
    assert nodes.node is not None and "NET_ADMIN" in nodes.node.said
    doctor = nodes.site.run(*unprivileged, PROGRAM, "doctor", "--json", "--config", str(nodes.config), seconds=120)
    [privilege] = [each for each in json.loads(doctor.stdout)["checks"] if each["check"] == "privilege"]
    assert doctor.returncode == 1 and privilege["grade"] == "failed"
    assert "--privileged" in privilege["advice"] and "NET_ADMIN" in privilege["advice"]
