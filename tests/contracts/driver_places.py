"""Places to run the driver contract in: memory, and a blocking example behind ``ThreadedDriver``."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from attrs import evolve

from indexify_dataplane.core.model import ExitStatus, Handle, Kind
from indexify_dataplane.drivers.base import Driver, DriverError, Listed, PortRefused, SnapshotImpossible, StartOrder
from indexify_dataplane.drivers.blocking import Cancelled
from indexify_dataplane.drivers.threaded import ThreadedDriver
from indexify_dataplane.testing.memory_driver import Fault, MemoryContainer, MemoryDriver, MemoryHost

FOREVER = 1e9


class MemoryPlace:
    """One ``MemoryHost``; its containers are told what to do directly."""

    knows_listeners = True

    def __init__(self, reactor: Any) -> None:
        self._reactor = reactor
        self.host = MemoryHost()
        self._faults: dict[str, Fault] = {}
        self._port = 3000

    async def open(self) -> Driver:
        driver = MemoryDriver(
            reactor=self._reactor,
            host=self.host,
            faults=lambda operation, container_id: self._faults.get(container_id) if operation == "start" else None,
        )
        await driver.open()
        return driver

    async def drop(self, driver: Driver) -> None:
        self.host.crash()

    async def close(self) -> None:
        self.host.crash()

    def hanging(self, order: StartOrder) -> StartOrder:
        self._faults[order.container_id] = Fault(delay_after=FOREVER)
        return order

    def failing(self, order: StartOrder) -> StartOrder:
        self._faults[order.container_id] = Fault(error=DriverError(f"{order.container_id} fails"))
        return order

    def _container(self, handle: Handle) -> MemoryContainer:
        found = self.host.find(handle)
        if found is None:
            raise AssertionError(f"{handle.id} is gone")
        return found

    async def exit(self, handle: Handle, code: int) -> None:
        self._container(handle).end(ExitStatus(code=code))

    async def signal(self, handle: Handle, number: int) -> None:
        self._container(handle).end(ExitStatus(signal=number))

    async def ignore_sigterm(self, handle: Handle) -> None:
        self._container(handle).ignores_sigterm = True

    async def write(self, handle: Handle, output: bytes) -> None:
        self._container(handle).output += output

    async def listen(self, handle: Handle) -> tuple[int, tuple[str, int]]:
        self._port += 1
        self.host.listen(self._container(handle).order.container_id, self._port, ("127.0.0.1", self._port))
        return self._port, ("127.0.0.1", self._port)


class BlockingExample:
    """A ``BlockingDriver`` that keeps its containers in a ``MemoryHost`` and tells of exits through a queue."""

    name = "example"

    def __init__(self, host: MemoryHost, tells_exits: bool) -> None:
        self._host = host
        self._tells_exits = tells_exits
        self._lock = threading.RLock()
        self._ended: queue.SimpleQueue[str] = queue.SimpleQueue()

    def enforces_policies(self) -> bool:
        return True

    def survives_node(self, kind: Kind) -> bool:
        return kind is Kind.SANDBOX or not self._host.functions_die_with_node

    def takes_snapshots(self, kind: Kind) -> bool:
        return True

    @contextmanager
    def export(self, handle: Handle, cancelled: Cancelled) -> Iterator[Iterable[bytes]]:
        container = self._host.find(handle)
        if container is None:
            raise SnapshotImpossible(f"container {handle.id} is not there")
        yield [container.files]

    def open(self) -> None:
        with self._lock:
            for container in self._host.containers.values():
                self._tell_end(container)

    def close(self) -> None:
        with self._lock:
            self._host.end_functions()

    def _tell_end(self, container: MemoryContainer) -> None:
        container.watchers.append(lambda: self._ended.put(container.handle.id))

    def start(self, order: StartOrder, cancelled: Cancelled) -> Handle:
        if order.argv == ("fail",):
            raise DriverError(f"{order.container_id} fails")
        with self._lock:
            container = self._host.create(self.name, order)
            self._tell_end(container)
        while order.argv == ("hang",) and not cancelled.wait(0.005) and container.status is None:
            continue
        with self._lock:
            if cancelled.is_set() or container.status is not None:
                self._host.remove(container)
                raise DriverError(f"the start of {order.container_id} was given up")
        return container.handle

    def terminate(self, handle: Handle) -> None:
        with self._lock:
            container = self._host.find(handle)
            if container is not None and not container.ignores_sigterm:
                container.end(ExitStatus(code=0))

    def kill(self, handle: Handle) -> None:
        with self._lock:
            container = self._host.find(handle)
            if container is not None:
                self._host.remove(container)

    def inspect(self, handle: Handle) -> ExitStatus | None:
        container = self._host.find(handle)
        return ExitStatus() if container is None else container.status

    def list_containers(self) -> Sequence[Listed]:
        with self._lock:
            return [
                Listed(name, found.order.executor_id, found.order.kind, found.handle, found.status is None)
                for name, found in self._host.containers.items()
            ]

    def logs(self, handle: Handle, lines: int) -> str:
        container = self._host.find(handle)
        if container is None or not lines:
            return ""
        return "\n".join(container.output.decode("utf-8", "replace").removesuffix("\n").split("\n")[-lines:])

    def apply_policy(self, handle: Handle, container_id: str, policy: object) -> None:
        return

    def freezes(self) -> bool:
        return False

    def freeze(self, handle: Handle) -> None:
        raise DriverError(f"{handle.id} cannot be frozen")

    def thaw(self, handle: Handle) -> None:
        return

    def upstream(self, handle: Handle, port: int) -> tuple[str, int]:
        container = self._host.find(handle)
        if container is None or container.status is not None:
            raise PortRefused(f"{handle.id} is not running")
        if port == 9501 and handle.http_address is not None:
            host, _, number = handle.http_address.rpartition(":")
            return host, int(number)
        if port not in container.listening:
            raise PortRefused(f"{handle.id} does not listen on {port}")
        return container.listening[port]

    def surely_runs(self, handle: Handle) -> bool:
        container = self._host.find(handle)
        return self._tells_exits and container is not None and container.status is None

    def exits(self, stopped: Cancelled) -> Iterator[str]:
        while self._tells_exits and not stopped.is_set():
            try:
                yield self._ended.get(timeout=0.02)
            except queue.Empty:
                continue


class ThreadedPlace(MemoryPlace):
    """The same host behind ``ThreadedDriver``."""

    def __init__(self, reactor: Any, tells_exits: bool) -> None:
        super().__init__(reactor)
        self._tells_exits = tells_exits
        self._opened: list[ThreadedDriver] = []

    async def open(self) -> Driver:
        driver = ThreadedDriver(
            reactor=self._reactor,
            driver=BlockingExample(self.host, self._tells_exits),
            poll_interval=60.0 if self._tells_exits else 0.02,
            patience=5.0,
        )
        await driver.open()
        self._opened.append(driver)
        return driver

    async def drop(self, driver: Driver) -> None:
        # Threads cannot be dropped; closing is all that can be seen of a node's end here.
        await driver.close()

    async def close(self) -> None:
        for container in list(self.host.containers.values()):
            self.host.remove(container)
        for driver in self._opened:
            if not driver.closed:
                await driver.close()

    def hanging(self, order: StartOrder) -> StartOrder:
        return evolve(order, argv=("hang",))

    def failing(self, order: StartOrder) -> StartOrder:
        return evolve(order, argv=("fail",))
