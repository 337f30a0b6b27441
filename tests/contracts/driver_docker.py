"""The place of the Docker driver: containers of a real engine, the stand-in daemon told over its port."""

from __future__ import annotations

import base64
import os
import secrets
import shutil
import tempfile
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from attrs import evolve
from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectError

from indexify_dataplane.config_model import DockerDriver as Section
from indexify_dataplane.core.model import Handle, Kind, NetworkPolicy
from indexify_dataplane.drivers.base import Driver, Listed, StartOrder
from indexify_dataplane.drivers.blocking import Cancelled
from indexify_dataplane.drivers.docker.driver import DockerDriver
from indexify_dataplane.drivers.docker.firewall import Networks
from indexify_dataplane.drivers.threaded import ThreadedDriver
from indexify_dataplane.guestbundle import Bundle
from tests.engine import Engine

from .driver_fork_exec import STANDIN, tell

MISSING = "127.0.0.1:1/nobody/has-this:ever"
"""An image of a registry that refuses connections."""


class Hold:
    """A firewall that never comes to an end for the containers in ``held``, and enforces nothing."""

    def __init__(self) -> None:
        self.held: set[str] = set()

    def open(self, client: Any, network: str | None, alive: Callable[[], Collection[str]]) -> str | None:
        return None

    def admit(
        self, container_id: str, handle: Handle, networks: Networks, policy: NetworkPolicy | None, cancelled: Cancelled
    ) -> None:
        while container_id in self.held:
            cancelled.wait(60.0)
            cancelled.check()

    def protect(self, container_id: str, handle: Handle, networks: Networks) -> None:
        return

    def apply(self, container_id: str, handle: Handle, policy: NetworkPolicy | None) -> None:
        return

    def forget(self, handle: Handle) -> None:
        return

    def check(self) -> None:
        return

    def repairs(self) -> int:
        return 0

    def close(self) -> None:
        return


class Unprivileged(DockerDriver):
    """It has a hook for a firewall, and no firewall."""

    def enforces_policies(self) -> bool:
        return False


class Own(ThreadedDriver):
    """What the contract sees of an engine that others use as well: ids have a prefix of this place there. Orders of the
    contract name no image; and it tells the stand-in what to do as soon as it was started, whereas the node waits
    until a daemon answers."""

    place: DockerPlace

    async def start(self, order: StartOrder) -> Handle:
        named = evolve(order, container_id=self.place.prefix + order.container_id)
        handle = await super().start(evolve(named, image=order.image or self.place.image))
        await self.place.tell(handle, "ready?")
        return handle

    async def list_containers(self) -> Sequence[Listed]:
        prefix = self.place.prefix
        return [
            evolve(found, container_id=found.container_id.removeprefix(prefix))
            for found in await super().list_containers()
            if found.container_id.startswith(prefix)
        ]


class DockerPlace:
    """A state directory of its own, and a prefix for the ids of its containers."""

    knows_listeners = False

    def __init__(self, reactor: Any, engine: Engine, bundle: Bundle, *, runtime: str | None = None) -> None:
        self.reactor = reactor
        self.engine = engine
        self.state_dir = tempfile.mkdtemp(prefix="docker-driver-")
        self.prefix = f"{secrets.token_hex(4)}-"
        shutil.copytree(bundle.path, os.path.join(self.state_dir, "bundles", bundle.path.name))
        self.firewall = Hold()
        self.standin = (*bundle.interpreter(), "/standin/standin.py")
        places = [f"{os.path.dirname(STANDIN)}:/standin:ro"]
        self.settings = {
            Kind.SANDBOX: Section(runtime=runtime, binds=tuple(places)),
            Kind.FUNCTION: Section(runtime=runtime, binds=(*places, f"{bundle.path}:/.indexify:ro")),
        }
        entrypoint = ", ".join(f'"{part}"' for part in self.standin)
        self.image = engine.image("busybox", f"ENTRYPOINT [{entrypoint}]")
        self._open: list[Own] = []

    async def open(self, environ: Mapping[str, str] = os.environ, **changes: Any) -> Own:
        driver = Own(
            reactor=self.reactor,
            driver=Unprivileged(
                **{
                    "settings": self.settings,
                    "address": self.engine.address,
                    "state_dir": self.state_dir,
                    "pull_timeout": 60.0,
                    "firewall": self.firewall,
                    "daemon": (*self.standin, "--address", "0.0.0.0:9500"),
                    "environ": environ,
                    **changes,
                }
            ),
            poll_interval=60.0,
        )
        driver.place = self
        await driver.open()
        self._open.append(driver)
        return driver

    async def drop(self, driver: Driver) -> None:
        # Threads cannot be dropped; closing is all that can be seen of a node's end here.
        await driver.close()  # containers are told nothing

    async def close(self) -> None:
        self.firewall.held.clear()
        for driver in self._open:
            if not driver.closed:
                await driver.close()
        for each in self.engine.client.api.containers(all=True, filters={"name": [f"indexify-{self.prefix}"]}):
            self.engine.client.api.remove_container(each["Id"], force=True, v=True)
        shutil.rmtree(self.state_dir)

    def hanging(self, order: StartOrder) -> StartOrder:
        self.firewall.held.add(self.prefix + order.container_id)
        return order

    def failing(self, order: StartOrder) -> StartOrder:
        return evolve(order, image=MISSING)

    async def tell(self, handle: Handle, line: str) -> str:
        """Have the stand-in do something; it may still be starting."""
        while True:
            try:
                return await tell(self.reactor, handle, line)
            except ConnectError:
                waiting: Deferred[None] = Deferred()
                self.reactor.callLater(0.02, waiting.callback, None)
                await waiting

    async def exit(self, handle: Handle, code: int) -> None:
        await self.tell(handle, f"exit {code}")

    async def signal(self, handle: Handle, number: int) -> None:
        # From outside: the kernel protects a first process from its own signals.
        self.engine.client.api.kill(handle.id, signal=number)

    async def ignore_sigterm(self, handle: Handle) -> None:
        await self.tell(handle, "ignore-term")

    async def write(self, handle: Handle, output: bytes) -> None:
        await self.tell(handle, "print " + base64.b64encode(output).decode())

    async def listen(self, handle: Handle) -> tuple[int, tuple[str, int]]:
        return 8080, (handle.ip or "", 8080)
