"""A driver whose containers are values in memory, for simulations and benches; it passes the contract suite of drivers.

``MemoryHost`` is the machine and outlives driver instances: a node that crashed is simulated by ``host.crash()`` and a
new ``MemoryDriver`` on the same host, which lists and adopts what survived. A start has its effect half way through its
delay, so that a crash can fall between "the container exists" and "the node knows".
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from attrs import define, field, frozen
from twisted.internet.defer import CancelledError, Deferred

from ..core.model import ExitStatus, Handle, Kind, NetworkPolicy
from ..drivers.base import DriverError, Listed, PolicyRefused, PortRefused, SnapshotImpossible, StartOrder
from ..drivers.blocking import Cancelled

DAEMON_PORT = 9500
HTTP_PORT = 9501

Addresses = Callable[[StartOrder], tuple[str | None, str | None]]
"""Where the daemon (or executor) and the HTTP API of a new container are; a test points them at what it runs."""


@frozen
class Fault:
    """What goes wrong in one operation.

    ``delay`` seconds are added before the effect, ``delay_after`` between effect and answer of a start (``math.inf``
    hangs until it is cancelled). ``error`` is raised in the end; ``after_effect`` says that the operation had its
    effect by then. A failed start never leaves anything.
    """

    delay: float = 0.0
    delay_after: float = 0.0
    error: Exception | None = None
    after_effect: bool = False


Faults = Callable[[str, str], Fault | None]
"""Asked with the operation's name and the container id at every call; None lets it pass."""


def no_faults(operation: str, container_id: str) -> Fault | None:
    return None


@define(eq=False)
class MemoryContainer:
    """One life of one container on the host. ``files`` stands for its file system: what ``export`` yields."""

    order: StartOrder
    handle: Handle
    status: ExitStatus | None = None
    frozen: bool = False
    ignores_sigterm: bool = False
    files: bytes = b""
    output: bytearray = field(factory=bytearray)
    listening: dict[int, tuple[str, int]] = field(factory=dict)
    watchers: list[Callable[[], None]] = field(factory=list)

    def end(self, status: ExitStatus) -> None:
        if self.status is None:
            self.status = status
            watchers, self.watchers = self.watchers, []
            for ended in watchers:
                ended()


class MemoryHost:
    """The machine: its containers by container id, whoever started them, the network policies in force, and everything
    that tests do to them."""

    def __init__(self, *, addresses: Addresses | None = None, functions_die_with_node: bool = True) -> None:
        self.containers: dict[str, MemoryContainer] = {}
        self.policies: dict[str, NetworkPolicy | None] = {}
        self.functions_die_with_node = functions_die_with_node
        self.addresses = addresses or self._own_addresses
        self.sigterm_ignored_by: set[str] = set()
        self.started = 0
        self._drivers: list[MemoryDriver] = []

    def _own_addresses(self, order: StartOrder) -> tuple[str | None, str | None]:
        # Distinct over the life of a host, so that a stale address is never taken for a new container's.
        daemon = f"127.{1 + self.started // 62500 % 250}.{self.started // 250 % 250}.{1 + self.started % 250}"
        return f"{daemon}:{DAEMON_PORT}", f"{daemon}:{HTTP_PORT}" if order.kind is Kind.SANDBOX else None

    def attach(self, driver: MemoryDriver) -> None:
        self._drivers.append(driver)

    def detach(self, driver: MemoryDriver) -> None:
        if driver in self._drivers:
            self._drivers.remove(driver)

    def create(self, driver_name: str, order: StartOrder) -> MemoryContainer:
        existing = self.containers.get(order.container_id)
        if existing is not None and existing.status is None:
            raise DriverError(f"container {order.container_id} is running already")
        self.started += 1
        daemon, http = self.addresses(order)
        ip = daemon.rpartition(":")[0] if daemon else None
        handle = Handle(driver_name, f"{order.container_id}#{self.started}", daemon, http, ip)
        if order.snapshot is not None:
            files = b"".join(order.snapshot.read(lambda: None))
        else:
            files = f"files of {order.image} as {handle.id} has them".encode()
        ignores = order.container_id in self.sigterm_ignored_by
        container = MemoryContainer(order, handle, ignores_sigterm=ignores, files=files)
        self.containers[order.container_id] = container
        self.policies[order.container_id] = order.network_policy
        return container

    def find(self, handle: Handle) -> MemoryContainer | None:
        """The container of exactly this life; an earlier life of the same id is not it."""
        container = self.containers.get(handle.id.rpartition("#")[0])
        return container if container is not None and container.handle.id == handle.id else None

    def remove(self, container: MemoryContainer) -> None:
        """SIGKILL and release."""
        container.end(ExitStatus(signal=9))
        if self.containers.get(container.order.container_id) is container:
            del self.containers[container.order.container_id]
            self.policies.pop(container.order.container_id, None)

    def running(self) -> list[str]:
        """Ids of the containers that run, sorted."""
        return sorted(id for id, container in self.containers.items() if container.status is None)

    def exit(self, container_id: str, status: ExitStatus = ExitStatus(code=0)) -> None:
        """The container ends by itself; KeyError when there is none."""
        self.containers[container_id].end(status)

    def write(self, container_id: str, output: bytes) -> None:
        """The container prints something."""
        self.containers[container_id].output += output

    def listen(self, container_id: str, port: int, address: tuple[str, int]) -> None:
        """A process in the container listens on ``port``; the proxy reaches it at ``address``."""
        self.containers[container_id].listening[port] = address

    def crash(self) -> None:
        """The node dies without a word: nothing its drivers began goes on, no Deferred of theirs fires."""
        drivers, self._drivers = self._drivers, []
        for driver in drivers:
            driver.vanish()
        self.end_functions()

    def end_functions(self) -> None:
        if self.functions_die_with_node:
            for container in list(self.containers.values()):
                if container.order.kind is Kind.FUNCTION:
                    self.remove(container)


class MemoryDriver:
    """Implements ``Driver`` on an injected ``IReactorTime``; delays are seconds, 0 answers at once."""

    def __init__(
        self,
        *,
        reactor: Any,
        host: MemoryHost,
        name: str = "memory",
        start_delay: float = 0.0,
        terminate_delay: float = 0.0,
        kill_delay: float = 0.0,
        enforces_policies: bool = True,
        freezes: bool = True,
        faults: Faults = no_faults,
    ) -> None:
        self._reactor = reactor
        self.host = host
        self.name = name
        self.start_delay = start_delay
        self.terminate_delay = terminate_delay
        self.kill_delay = kill_delay
        self.faults = faults
        self._enforces_policies = enforces_policies
        self._freezes = freezes
        self._timers: set[Any] = set()
        self._watching: dict[Callable[[], None], MemoryContainer] = {}
        self._vanished = False
        host.attach(self)

    def enforces_policies(self) -> bool:
        return self._enforces_policies

    def survives_node(self, kind: Kind) -> bool:
        return kind is Kind.SANDBOX or not self.host.functions_die_with_node

    def takes_snapshots(self, kind: Kind) -> bool:
        return True

    @contextmanager
    def export(self, handle: Handle, cancelled: Cancelled) -> Iterator[Iterable[bytes]]:
        fault = self.faults("export", handle.id.rpartition("#")[0]) or Fault()
        if fault.error is not None and not fault.after_effect:
            raise fault.error
        container = self.host.find(handle)
        if container is None:
            raise SnapshotImpossible(f"container {handle.id} is not there")
        files = container.files

        def pieces() -> Iterator[bytes]:
            for begin in range(0, len(files), 1024):
                cancelled.check()
                yield files[begin : begin + 1024]
            if fault.error is not None:
                raise fault.error

        yield pieces()

    async def open(self) -> None:
        await self._pass("open", "")

    async def close(self) -> None:
        """Function containers end with the node where the host says so; sandboxes go on."""
        self.vanish()
        self.host.detach(self)
        self.host.end_functions()

    def vanish(self) -> None:
        """Forget everything that is under way, as a dead process does."""
        self._vanished = True
        timers, self._timers = self._timers, set()
        for timer in timers:
            if timer.active():
                timer.cancel()
        for ended, container in self._watching.items():
            if ended in container.watchers:
                container.watchers.remove(ended)
        self._watching = {}

    async def start(self, order: StartOrder) -> Handle:
        fault = self.faults("start", order.container_id) or Fault()
        if order.network_policy is not None and not self._enforces_policies:
            raise PolicyRefused(f"{self.name} cannot enforce the network policy of {order.container_id}")
        await self._pause(fault.delay + self.start_delay / 2)
        if fault.error is not None and not fault.after_effect:
            raise fault.error
        container = self.host.create(self.name, order)
        try:
            await self._pause(fault.delay_after + self.start_delay / 2)
            if fault.error is not None:
                raise fault.error
        except (Exception, CancelledError):
            # A vanished node cleans nothing up.
            if not self._vanished:
                self.host.remove(container)
            raise
        if self.host.find(container.handle) is None:
            raise DriverError(f"container {order.container_id} was killed while it started")
        return container.handle

    async def apply_policy(self, handle: Handle, container_id: str, policy: NetworkPolicy | None) -> None:
        fault = await self._pass("apply_policy", container_id)
        if policy is not None and not self._enforces_policies:
            raise PolicyRefused(f"{self.name} cannot enforce the network policy of {container_id}")
        container = self.host.find(handle)
        if container is None or container.status is not None:
            raise DriverError(f"container {container_id} is not running")
        self.host.policies[container_id] = policy
        if fault.error is not None:
            raise fault.error

    def freezes(self) -> bool:
        return self._freezes

    async def freeze(self, handle: Handle) -> None:
        fault = await self._pass("freeze", handle.id.rpartition("#")[0])
        container = self.host.find(handle)
        if container is None or container.status is not None or not self._freezes:
            raise DriverError(f"container {handle.id} cannot be frozen")
        container.frozen = True
        if fault.error is not None:
            raise fault.error

    async def thaw(self, handle: Handle) -> None:
        fault = await self._pass("thaw", handle.id.rpartition("#")[0])
        container = self.host.find(handle)
        if container is not None:
            container.frozen = False
        if fault.error is not None:
            raise fault.error

    async def terminate(self, handle: Handle) -> None:
        fault = await self._pass("terminate", handle.id.rpartition("#")[0])
        container = self.host.find(handle)
        if container is not None and container.status is None and not container.ignores_sigterm:
            container.frozen = False
            self._later(self.terminate_delay, lambda: container.end(ExitStatus(code=0)))
        if fault.error is not None:
            raise fault.error

    async def kill(self, handle: Handle) -> None:
        fault = await self._pass("kill", handle.id.rpartition("#")[0])
        await self._pause(self.kill_delay)
        container = self.host.find(handle)
        if container is not None:
            self.host.remove(container)
        if fault.error is not None:
            raise fault.error

    async def inspect(self, handle: Handle) -> ExitStatus | None:
        await self._pass("inspect", handle.id.rpartition("#")[0])
        container = self.host.find(handle)
        return ExitStatus() if container is None else container.status

    async def list_containers(self) -> Sequence[Listed]:
        await self._pass("list_containers", "")
        return [
            Listed(id, found.order.executor_id, found.order.kind, found.handle, found.status is None)
            for id, found in self.host.containers.items()
        ]

    async def logs(self, handle: Handle, lines: int) -> str:
        await self._pass("logs", handle.id.rpartition("#")[0])
        container = self.host.find(handle)
        if container is None or lines <= 0:
            return ""
        return "\n".join(container.output.decode("utf-8", "replace").removesuffix("\n").split("\n")[-lines:])

    def watch(self, handle: Handle, exited: Callable[[ExitStatus], None]) -> Callable[[], None]:
        container = self.host.find(handle)
        stopped = False

        def tell() -> None:
            if not stopped:
                exited((container.status if container is not None else None) or ExitStatus())

        def ended() -> None:
            self._watching.pop(ended, None)
            # Never from inside the call that ended it: a real exit arrives on its own.
            self._later(0.0, tell, at_once=False)

        def stop() -> None:
            nonlocal stopped
            stopped = True
            if container is not None and ended in container.watchers:
                container.watchers.remove(ended)
            self._watching.pop(ended, None)

        if container is None or container.status is not None:
            ended()
        else:
            container.watchers.append(ended)
            self._watching[ended] = container
        return stop

    async def upstream(self, handle: Handle, port: int) -> tuple[str, int]:
        await self._pass("upstream", handle.id.rpartition("#")[0])
        container = self.host.find(handle)
        if container is None or container.status is not None:
            raise PortRefused(f"container {handle.id} is not running")
        if port == HTTP_PORT and container.handle.http_address is not None:
            host, _, number = container.handle.http_address.rpartition(":")
            return host, int(number)
        if port == DAEMON_PORT or port not in container.listening:
            raise PortRefused(f"no process of container {handle.id} may be reached on port {port}")
        return container.listening[port]

    async def _pass(self, operation: str, container_id: str) -> Fault:
        """Wait and fail as the fault says; returns it for what happens after the effect."""
        fault = self.faults(operation, container_id) or Fault()
        await self._pause(fault.delay)
        if fault.error is not None and not fault.after_effect:
            raise fault.error
        return fault

    async def _pause(self, seconds: float) -> None:
        if seconds <= 0:
            return
        waiting: Deferred[None] = Deferred()
        timer = None if math.isinf(seconds) else self._later(seconds, lambda: waiting.callback(None))
        try:
            await waiting
        finally:
            if timer is not None and timer.active():
                timer.cancel()
                self._timers.discard(timer)

    def _later(self, seconds: float, call: Callable[[], None], at_once: bool = True) -> Any:
        if self._vanished:
            return None
        if seconds <= 0 and at_once:
            call()
            return None

        def run() -> None:
            self._timers.discard(timer)
            call()

        timer = self._reactor.callLater(seconds, run)
        self._timers.add(timer)
        return timer
