"""Nodes with the Docker driver, for tests of the installed program on a real engine."""

from __future__ import annotations

import http.client
from typing import Any

from tests.engine import Engine

from .harness import Node, Server, Site

ROOMY = {"cpus": 1, "memory_mb": 128, "ephemeral_disk_mb": 64}
IDLE = ["/bin/sleep", "1000"]


class DockerNodes:
    """Nodes of one executor below one site, their server, and the engine as its operator sees it. ``keys`` go into the
    configuration, ``driver`` into its section of the driver."""

    def __init__(self, site: Site, engine: Engine, *, driver: dict[str, Any] | None = None, **keys: Any) -> None:
        self.site, self.engine, self.api = site, engine, engine.client.api
        self.server: Server = site.server()
        self.image = engine.image("busybox")
        self.driver = {"type": "docker", "address": engine.address, **(driver or {})}
        self.config = site.config(
            **{
                "server_addr": f"http://127.0.0.1:{self.server.grpc_port}",
                "sandbox_driver": self.driver,
                **keys,
            }
        )
        self.node: Node | None = None

    def start(self, *, wait: bool = True, **options: Any) -> Node:
        """A node; the one before it must be gone."""
        self.node = self.site.node(self.config, **options)
        return self.node.ready() if wait else self.node

    def create(self, **wish: Any) -> str:
        return self.server.rest.create(**{"image": self.image, "resources": ROOMY, "entrypoint": IDLE, **wish})

    def container(self, sandbox: str) -> dict[str, Any]:
        return dict(self.api.inspect_container(f"indexify-{sandbox}"))

    def address(self, sandbox: str) -> str:
        networks = self.container(sandbox)["NetworkSettings"]["Networks"]
        return str(next(iter(networks.values()))["IPAddress"])

    def ours(self) -> list[dict[str, Any]]:
        """What the engine has of this site's executors."""
        return [
            each
            for executor in self.server.rest.executors()
            for each in self.api.containers(all=True, filters={"label": [f"indexify.executor_id={executor}"]})
        ]

    def without_token(self, sandbox: str, method: str = "GET", path: str = "/api/v1/processes") -> int:
        """What the daemon answers a neighbour that knows the address alone."""
        neighbour = http.client.HTTPConnection(self.address(sandbox), 9501, timeout=10)
        try:
            neighbour.request(method, path)
            return neighbour.getresponse().status
        finally:
            neighbour.close()

    def run(self, sandbox: str, *argv: str) -> dict[str, Any]:
        """Start a process in the sandbox, through the proxy."""
        assert self.node is not None
        wish = {"command": argv[0], "args": list(argv[1:])}
        headers = {"Tensorlake-Sandbox-Id": sandbox}
        return dict(self.node.proxy.ask("POST", "/api/v1/processes", wish, headers=headers, expected=201))

    def close(self) -> None:
        if self.node is not None:
            self.node.kill()
        for each in self.ours():
            self.api.remove_container(each["Id"], force=True, v=True)
