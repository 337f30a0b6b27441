"""Where the proxy finds sandboxes: a view of the Node, asked for every request."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from .core.model import (
    Aborting,
    Container,
    Handle,
    Killing,
    Kind,
    Queued,
    Running,
    Snapshotting,
    Starting,
    Stopping,
    Terminated,
)
from .core.node import Node
from .drivers.base import Driver, PortRefused
from .http_proxy.routes import NotRunning, Target

WORDS: dict[type, str] = {
    Queued: "pending",
    Starting: "pending",
    Aborting: "stopping",
    Snapshotting: "snapshotting",
    Stopping: "stopping",
    Killing: "stopping",
    Terminated: "terminated",
}
"""The state's name in the answer 503."""


class DriverOf(Protocol):
    def __call__(self, handle: Handle) -> Driver: ...


class NodeRoutes:
    """Finds sandboxes by sandbox id or container id. Function containers and unclaimed warm ones are not routed: no
    sandbox is theirs to be reached. Targets are kept per life of a container, so that a lookup makes no objects."""

    def __init__(self, *, node: Callable[[], Node], driver_of: DriverOf) -> None:
        self._node = node
        self._driver_of = driver_of
        self._targets: dict[str, tuple[Container, Target]] = {}

    def find(self, sandbox_id: str) -> Target | NotRunning | None:
        container = self._node().find(sandbox_id)
        if container is None or container.spec.kind is not Kind.SANDBOX or container.spec.sandbox_id is None:
            return None
        state = container.state
        if not isinstance(state, Running):
            return NotRunning(WORDS[type(state)])
        if state.claiming:
            return NotRunning(WORDS[Starting])
        known = self._targets.get(container.id)
        if known is not None and known[0] is container:
            return known[1]
        handle = state.handle
        target = Target(container.id, container.spec.sandbox_id, _address(handle.http_address), handle.token)
        self._targets[container.id] = (container, target)
        return target

    def forget(self, container_id: str) -> None:
        self._targets.pop(container_id, None)

    async def connect_address(self, target: Target, port: int) -> tuple[str, int]:
        container = self._node().containers.get(target.container_id)
        if container is None or not isinstance(container.state, Running):
            raise PortRefused(f"sandbox {target.sandbox_id} is not running any more")
        return await self._driver_of(container.state.handle).upstream(container.state.handle, port)


def _address(text: str | None) -> tuple[str, int] | None:
    if text is None:
        return None
    host, _, port = text.rpartition(":")
    return host.strip("[]"), int(port)
