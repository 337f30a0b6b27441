"""The fork-exec driver: containers are processes of this host, with the node's own rights and no isolation.

For one machine and for trusted code. Sandboxes outlive the node (``sandboxes``), function executors die with it
(``functions``); images and network policies do not exist here, limits where cgroups can be created.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

from attrs import evolve
from twisted.logger import Logger

from ...core.model import ExitStatus, Handle, Kind, NetworkPolicy
from ...reactor import Pool
from ..base import DriverError, Listed, PolicyRefused, PortRefused, SnapshotImpossible, StartOrder
from ..blocking import Cancelled
from .functions import Functions
from .run_directory import Life
from .runs import Runs
from .sandboxes import Sandboxes, Settings
from .upstreams import Upstreams, find_upstream

log = Logger()

NAME = "fork_exec"
GUEST = os.path.join(os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))), "guest")


def guest_command() -> tuple[str, ...]:
    """How the daemon is started from this installation."""
    return (sys.executable, "-I", os.path.join(GUEST, "__main__.py"))


class ForkExecDriver:
    """Implements ``Driver``. ``pool`` is the caller's, started before ``open`` and stopped after ``close``.

    ``environment`` is what children inherit from (the node's own when it is None); ``start_timeout`` is in seconds.
    """

    name = NAME

    def __init__(
        self,
        *,
        reactor: Any,
        state_dir: str,
        executor_id: str,
        settings: Settings,
        pool: Pool,
        fe_binary_path: str = "function-executor",
        daemon_command: Sequence[str] | None = None,
        environment: Mapping[str, str] | None = None,
        start_timeout: float = 60.0,
    ) -> None:
        self._pool = pool
        self._runs = Runs(root=os.path.join(os.path.abspath(state_dir), NAME), driver=NAME, executor_id=executor_id)
        inherited = os.environ if environment is None else environment
        self._sandboxes = Sandboxes(
            reactor=reactor,
            pool=pool,
            runs=self._runs,
            settings=settings,
            daemon_command=guest_command() if daemon_command is None else daemon_command,
            environment=inherited,
            start_timeout=start_timeout,
        )
        self._functions = Functions(
            reactor=reactor,
            pool=pool,
            runs=self._runs,
            settings=settings,
            command=fe_binary_path,
            environment=inherited,
            start_timeout=start_timeout,
        )
        self._upstreams = Upstreams(
            pool=pool, seconds=reactor.seconds, find=lambda life, port: find_upstream(self._runs, life, port)
        )
        self._problems: set[str] = set()

    def enforces_policies(self) -> bool:
        return False

    def survives_node(self, kind: Kind) -> bool:
        return kind is Kind.SANDBOX

    def takes_snapshots(self, kind: Kind) -> bool:
        return False

    def export(self, handle: Handle, cancelled: Cancelled) -> AbstractContextManager[Iterable[bytes]]:
        raise SnapshotImpossible(f"{NAME} has no file systems of its own to copy")

    async def open(self) -> None:
        await self._pool.run(self._runs.open)
        refusals = self._runs.cgroups.refusals
        if refusals:
            log.warn("resource limits are not all enforced: cgroups cannot be created", reasons=list(refusals))
        self._functions.open()

    async def close(self) -> None:
        """Function executors are killed; sandboxes go on."""
        self._sandboxes.close()
        await self._functions.close()

    async def start(self, order: StartOrder) -> Handle:
        if order.network_policy is not None:
            raise PolicyRefused(f"container {order.container_id}: {NAME} cannot enforce a network policy")
        if order.snapshot is not None:
            raise SnapshotImpossible(f"container {order.container_id}: {NAME} cannot restore a snapshot")
        part = self._sandboxes if order.kind is Kind.SANDBOX else self._functions
        return await part.start(order)

    async def apply_policy(self, handle: Handle, container_id: str, policy: NetworkPolicy | None) -> None:
        if policy is not None:
            raise PolicyRefused(f"container {container_id}: {NAME} cannot enforce a network policy")

    def freezes(self) -> bool:
        return False

    async def freeze(self, handle: Handle) -> None:
        raise DriverError(f"{NAME} does not freeze containers")

    async def thaw(self, handle: Handle) -> None:
        """Nothing is ever frozen."""

    async def terminate(self, handle: Handle) -> None:
        life = _life(handle)
        if life is not None:
            await self._part(life).terminate(life)

    async def kill(self, handle: Handle) -> None:
        life = _life(handle)
        if life is not None:
            self._upstreams.forget(life)
            await self._part(life).kill(life)

    async def inspect(self, handle: Handle) -> ExitStatus | None:
        life = _life(handle)
        if life is None:
            return ExitStatus()
        if life.kind is Kind.FUNCTION:
            return await self._functions.inspect(life)
        return await self._pool.run(self._runs.inspect, life)

    async def list_containers(self) -> Sequence[Listed]:
        own = self._functions.own() | self._sandboxes.starting
        listing = await self._pool.run(self._runs.list, own)
        for problem in listing.problems:
            if problem not in self._problems:
                self._problems.add(problem)
                log.warn("run directory is passed over", problem=problem)
        return [self._corrected(listed) for listed in listing.containers]

    def _corrected(self, listed: Listed) -> Listed:
        """The lock of a function's directory is the node's, so an ended child of ours would look alive."""
        life = _life(listed.handle)
        alive = self._functions.alive(life) if life is not None and listed.kind is Kind.FUNCTION else None
        return listed if alive is None else evolve(listed, alive=alive)

    async def logs(self, handle: Handle, lines: int) -> str:
        life = _life(handle)
        return "" if life is None else await self._pool.run(self._runs.logs, life, lines)

    def watch(self, handle: Handle, exited: Callable[[ExitStatus], None]) -> Callable[[], None]:
        life = _life(handle)
        if life is None:
            life = Life(handle.id, Kind.FUNCTION, "")
        return self._part(life).watch(life, exited)

    async def upstream(self, handle: Handle, port: int) -> tuple[str, int]:
        life = _life(handle)
        if life is None or life.kind is not Kind.SANDBOX:
            raise PortRefused(f"{handle.id} is no sandbox of {NAME}")
        return await self._upstreams.address(life, port)

    def _part(self, life: Life) -> Sandboxes | Functions:
        return self._sandboxes if life.kind is Kind.SANDBOX else self._functions


def _life(handle: Handle) -> Life | None:
    """None for a handle this driver never made: unknown, as a container that is gone."""
    try:
        return Life.of(handle)
    except DriverError as error:
        log.debug("handle is not ours", error=str(error))
        return None
