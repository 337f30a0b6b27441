"""Sandboxes in containers of a real engine, driven through the server's API and the proxy."""

from __future__ import annotations

import http.client
import json
import unittest
from collections.abc import Iterator
from typing import Any

import pytest

from tests.engine import Engine, require

from .harness import Node, Server, Site, until

ROOMY = {"cpus": 1, "memory_mb": 128, "ephemeral_disk_mb": 64}


class DockerNodes:
    """Nodes with the Docker driver below one site, and one server."""

    def __init__(self, site: Site, engine: Engine, **driver: Any) -> None:
        self.site, self.engine, self.api = site, engine, engine.client.api
        self.server: Server = site.server()
        self.image = engine.image("busybox")
        self.driver = {"type": "docker", "address": engine.address, **driver}
        self.config = site.config(
            server_addr=f"http://127.0.0.1:{self.server.grpc_port}", sandbox_driver=self.driver, fork_exec=None
        )
        self.node: Node | None = None

    def start(self) -> Node:
        self.node = self.site.node(self.config).ready()
        return self.node

    def create(self, **wish: Any) -> str:
        return self.server.rest.create(**{"image": self.image, "resources": ROOMY, **wish})

    def container(self, sandbox: str) -> dict[str, Any]:
        return dict(self.api.inspect_container(f"indexify-{sandbox}"))

    def left(self) -> list[str]:
        executors = self.server.rest.executors()
        return [
            each["Names"][0]
            for executor in executors
            for each in self.api.containers(all=True, filters={"label": [f"indexify.executor_id={executor}"]})
        ]

    def close(self) -> None:
        for executor in self.server.rest.executors():
            for each in self.api.containers(all=True, filters={"label": [f"indexify.executor_id={executor}"]}):
                self.api.remove_container(each["Id"], force=True, v=True)


@pytest.fixture
def engine() -> Engine:
    try:
        return require(unittest.TestCase())
    except unittest.SkipTest as skipped:
        pytest.skip(str(skipped))


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
    name = f"indexify-{sandbox}"
    until("its output", lambda: b"hello" in nodes.api.logs(name))
    found = nodes.container(sandbox)
    assert found["Config"]["Labels"]["indexify.managed"] == "true"
    assert found["HostConfig"]["Memory"] == found["HostConfig"]["MemorySwap"] == 128 << 20
    headers = {"Tensorlake-Sandbox-Id": sandbox}
    assert node.proxy.ask("GET", "/api/v1/processes", headers=headers)["processes"][0]["command"] == "/bin/sh"
    # A neighbour that knows the address, but not the token.
    address = next(iter(found["NetworkSettings"]["Networks"].values()))["IPAddress"]
    neighbour = http.client.HTTPConnection(address, 9501, timeout=10)
    neighbour.request("GET", "/api/v1/processes")
    assert neighbour.getresponse().status == 401
    assert "token" not in json.dumps(node.state()).lower()
    rest.delete(sandbox)
    rest.ended(sandbox)
    until("nothing is left", lambda: not nodes.left())
