"""The proxy's edge in memory: one for the process, its tables emptied for each input."""

from __future__ import annotations

from typing import Any

from twisted.internet import task
from twisted.internet.defer import Deferred

from indexify_dataplane.config_model import HttpProxy, Upstream
from indexify_dataplane.drivers.base import PortRefused
from indexify_dataplane.http_proxy.client import Http1Client
from indexify_dataplane.http_proxy.pool import IdleConnections
from indexify_dataplane.http_proxy.routes import NotRunning, Target
from indexify_dataplane.http_proxy.shared import Shared
from indexify_dataplane.http_proxy.shared import open_shared as _open_shared
from indexify_dataplane.http_proxy.telemetry import Telemetry
from indexify_dataplane.metrics import Metrics

from .wire import Loop, Wire, expect, settle

TOKEN = "daemon-token"
SANDBOXES: dict[str, Target | NotRunning] = {
    "sb-1": Target(container_id="c-1", sandbox_id="sb-1", token=TOKEN),
    "sb-2": Target(container_id="c-2", sandbox_id="sb-2"),
    "sb-3": NotRunning("pending"),
}


class Table:
    """Sandboxes with every port but 7."""

    def find(self, sandbox_id: str) -> Target | NotRunning | None:
        return SANDBOXES.get(sandbox_id)

    async def connect_address(self, target: Target, port: int) -> tuple[str, int]:
        if port == 7:
            raise PortRefused("port 7")
        if port == 8:
            await Deferred()
        return "10.0.0.2", port


class Silent:
    """A request log whose lines are formed and thrown away."""

    enabled = True

    def completed(self, *values: Any) -> None:
        expect(200 <= values[4] < 600 or values[4] == 101, "an answer that is told of has a status", values)


_CLOCK = task.Clock()
_TELEMETRY: Telemetry | None = None


def open_edge(loop: Loop) -> Shared:
    global _TELEMETRY
    if _TELEMETRY is None:
        _TELEMETRY = Telemetry(metrics=Metrics(), request_log=Silent(), seconds=_CLOCK.seconds)
    _TELEMETRY.active_requests = _TELEMETRY.active_upgrades = 0
    return _open_shared(
        config=HttpProxy(port=0, listen_addr="127.0.0.1", upstream=Upstream()), routes=Table(), telemetry=_TELEMETRY,
        pool=IdleConnections(capacity=10, idle_secs=55), clock=_CLOCK, own_names=("node.local",),
    )  # fmt: skip


def client_of(shared: Shared) -> Wire:
    return Wire(Http1Client(shared)).begin()


async def close_edge(shared: Shared, loop: Loop, *wires: Wire) -> None:
    """Everything ends; nothing may be left that counts as under way."""
    for connection in list(shared.connections):
        connection.stop()
    shared.pool.close()
    if shared.http2 is not None:
        shared.http2.close()
    await settle(*wires, *loop.made)
    telemetry = shared.telemetry
    counts = telemetry.active_requests, telemetry.active_upgrades
    expect(counts == (0, 0), "no request is under way when all connections are closed", counts)
    expect(not shared.connections, "no connection is known when all are closed", len(shared.connections))
    expect(shared.http2 is None or not shared.http2.count, "no connection to a container is left")
    for wire in loop.made:
        expect(wire.closing, "no connection to a container is left open")
