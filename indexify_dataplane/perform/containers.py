"""One coroutine per effect on a container. Their results are events; the Node is never touched here.

Interleaving that matters: a start may be cancelled while the driver works (the driver cleans up), while the process
is waited for (it is killed here), or while it is being killed already (the kill goes on, undisturbed).

And one with an earlier life of the node: that had ordered the removal of the container, which the platform has not
carried out when this life finds the container running and finishes its start. Such a sandbox is started anew.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Coroutine, Mapping
from typing import Any, TypeVar

from attrs import evolve
from twisted.internet.defer import CancelledError, Deferred, DeferredLock
from twisted.logger import Logger

from ..core.effects import Adopt, Conform, Kill, KillOrphan, Start, Terminate
from ..core.events import Conformed, ConformFailed, Event, Killed, KillFailed, Started, StartFailed
from ..core.model import ContainerSpec, Handle, Kind, Resources, TerminationReason
from ..daemon_client import Daemons, DaemonUnreachable
from ..drivers.base import Driver, DriverError, PolicyRefused, StartOrder
from ..metrics import Metrics
from ..reactor import Clock, sleep
from ..tracing import Tracing
from .executors import Executors, StartupFailed
from .readiness import Readiness, Timing
from .secrets import SecretProvider, variables
from .snapshots import SnapshotWork

log = Logger()
T = TypeVar("T")
Reason = TerminationReason

LOG_LINES = 50
CONFORM_PAUSES = (0.2, 1.0)
"""Seconds between tries to put a policy in force."""


class ContainerWork:
    """Starts, adopts, stops and kills through the drivers."""

    def __init__(
        self,
        *,
        clock: Clock,
        drivers: Mapping[Kind, Driver],
        daemons: Daemons,
        executors: Executors | None,
        executor_id: str,
        timing: Timing,
        metrics: Metrics,
        default_image: str | None = None,
        tracing: Tracing | None = None,
        secrets: SecretProvider | None = None,
    ) -> None:
        self.snapshots: SnapshotWork | None = None
        self._clock = clock
        self._drivers = drivers
        self._by_name = {driver.name: driver for driver in drivers.values()}
        self._daemons = daemons
        self._executors = executors
        self._executor_id = executor_id
        self._timing = timing
        self._readiness = Readiness(clock=clock, daemons=daemons, timing=timing, metrics=metrics)
        self._metrics = metrics
        self._default_image = default_image
        self._tracing = tracing or Tracing()
        self._secrets = secrets
        self._cancellable: dict[int, Deferred[Any]] = {}
        self._locks: dict[str, DeferredLock] = {}

    def driver_of(self, handle: Handle) -> Driver:
        """Raises DriverError for a container of a driver that is not configured any more."""
        driver = self._by_name.get(handle.driver)
        if driver is None:
            raise DriverError(f"container {handle.id} belongs to the driver {handle.driver}, which is not configured")
        return driver

    def start(self, effect: Start | Adopt) -> Deferred[Event]:
        work: Deferred[Event] = Deferred.fromCoroutine(self._start(effect))
        if not work.called:
            self._cancellable[effect.op] = work
            work.addBoth(self._done, effect.op)
        return work

    def _done(self, result: Any, op: int) -> Any:
        self._cancellable.pop(op, None)
        return result

    def cancel_start(self, op: int) -> None:
        """Make the start end soon. One that is cleaning up already is left alone."""
        work = self._cancellable.pop(op, None)
        if work is not None:
            work.cancel()

    async def _start(self, effect: Start | Adopt) -> Event:
        name = "fe_startup" if effect.spec.kind is Kind.FUNCTION else "container_lifecycle"
        with self._tracing.root(
            name, executor_id=self._executor_id, container_id=effect.container_id, **_labels(effect.spec)
        ) as span:
            event = await self._start_in_span(effect)
            if isinstance(event, StartFailed):
                span.fail(event.message)
        return event

    async def _start_in_span(self, effect: Start | Adopt) -> Event:
        spec, began = effect.spec, self._clock.seconds()
        try:
            if isinstance(effect, Adopt):
                handle = effect.handle
                driver = self.driver_of(handle)
            else:
                driver = self._drivers[spec.kind]
                order = self._order(effect)
                secrets = await variables(self._secrets, self._executor_id, spec)
                order = evolve(order, env={**order.env, **secrets})
                with self._tracing.span("start_container", container_id=spec.id):
                    handle = await driver.start(order)
        except (CancelledError, Exception) as error:
            return StartFailed(effect.container_id, effect.op, _reason(error), _text(error))
        try:
            if isinstance(effect, Adopt) and spec.sandbox is not None:
                # It may be held still: the rules come before the word to go on, as at a start.
                await driver.apply_policy(handle, spec.id, spec.sandbox.network_policy)
            await self._until_usable(driver, spec, handle)
        except (CancelledError, Exception) as error:
            work = self._cancellable.pop(effect.op, None)
            cancelled = isinstance(error, CancelledError)
            output = "" if cancelled else await self._last_output(driver, handle)
            taken_away = isinstance(effect, Adopt) and not cancelled and await self._was_killed(driver, handle)
            await self.kill_until_gone(handle)
            if isinstance(effect, Adopt) and spec.kind is Kind.SANDBOX and taken_away:
                log.info(
                    "container was killed while its start was being finished, starting it anew",
                    container_id=spec.id, problem=_text(error),
                )  # fmt: skip
                if work is not None:
                    self._cancellable[effect.op] = work
                return await self._start_in_span(Start(effect.container_id, effect.op, spec, effect.gpus))
            return StartFailed(effect.container_id, effect.op, _reason(error), _text(error) + output)
        if spec.kind is Kind.SANDBOX:
            took = self._clock.seconds() - began
            self._metrics.histogram("sandbox.startup_latency_seconds").observe(took)
        return Started(effect.container_id, effect.op, handle)

    def _order(self, effect: Start) -> StartOrder:
        spec = effect.spec
        sandbox = spec.sandbox
        env: dict[str, str] = {}
        argv: tuple[str, ...] = sandbox.entrypoint if sandbox else ()
        if spec.kind is Kind.FUNCTION:
            if self._executors is None:
                raise DriverError("this node has no way to talk to function executors")
            argv = self._executors.arguments(spec)
            env = {
                "INDEXIFY_EXECUTOR_ID": self._executor_id,
                "INDEXIFY_FE_ID": spec.id,
                "PYTHONFAULTHANDLER": "1",
            }
        snapshot = None
        if sandbox is not None and sandbox.snapshot_uri:
            if self.snapshots is None:
                raise DriverError(f"snapshot {sandbox.snapshot_uri}: snapshots are not configured on this node")
            snapshot = self.snapshots.stored_root(sandbox.snapshot_uri)
        return StartOrder(
            container_id=spec.id,
            executor_id=self._executor_id,
            kind=spec.kind,
            argv=argv,
            env=env,
            image=(sandbox.image if sandbox else None) or self._default_image,
            resources=spec.resources or Resources(),
            gpus=effect.gpus,
            network_policy=sandbox.network_policy if sandbox else None,
            snapshot=snapshot,
            labels=_labels(spec),
        )

    async def _until_usable(self, driver: Driver, spec: ContainerSpec, handle: Handle) -> None:
        if spec.kind is Kind.FUNCTION:
            if self._executors is None:
                raise DriverError("this node has no way to talk to function executors")
            gone = False

            def exited(_: object) -> None:
                nonlocal gone
                gone = True

            stop = driver.watch(handle, exited)
            try:
                await self._executors.initialize(spec, handle, lambda: gone)
            finally:
                stop()
        elif handle.daemon_address is not None:
            await self._readiness.wait(driver, handle, handle.daemon_address)

    async def _last_output(self, driver: Driver, handle: Handle) -> str:
        try:
            text = await driver.logs(handle, LOG_LINES)
        except DriverError as error:
            return f"; its output cannot be read: {error}"
        return f"; last output:{os.linesep}{text}" if text else ""

    async def terminate(self, effect: Terminate) -> None:
        try:
            await self.driver_of(effect.handle).terminate(effect.handle)
        except DriverError as error:
            log.warn("container cannot be asked to end", container_id=effect.container_id, error=str(error))

    def conform(self, effect: Conform) -> Deferred[Event | None]:
        """Policy first, then rest or wake it. None if it has ended: its watch tells how."""
        return self._one_by_one(effect.container_id, lambda: self._try_to_conform(effect))

    def _one_by_one(self, container_id: str, work: Callable[[], Coroutine[Any, Any, T]]) -> Deferred[T]:
        lock = self._locks.setdefault(container_id, DeferredLock())
        return lock.run(lambda: Deferred.fromCoroutine(work()))

    async def _try_to_conform(self, effect: Conform) -> Event | None:
        problem: DriverError
        try:
            driver, pauses = self.driver_of(effect.handle), list(CONFORM_PAUSES)
            while True:
                try:
                    return Conformed(effect.container_id, effect.op, await self._conform(driver, effect))
                except DriverError as error:
                    problem = error
                if not pauses or isinstance(problem, PolicyRefused):
                    break
                await sleep(self._clock, pauses.pop(0))
            if await self._has_ended(driver, effect.handle):
                return None
        except DriverError as error:
            problem = error
        return ConformFailed(effect.container_id, effect.op, str(problem))

    async def _conform(self, driver: Driver, effect: Conform) -> bool:
        """Whether it is frozen in the end."""
        if driver.enforces_policies() or effect.policy is not None:
            await driver.apply_policy(effect.handle, effect.container_id, effect.policy)
        if not effect.frozen:
            await driver.thaw(effect.handle)
            return False
        try:
            await driver.freeze(effect.handle)
        except DriverError as error:
            log.warn("an idle container cannot be frozen", container_id=effect.container_id, error=str(error))
            await driver.thaw(effect.handle)
            return False
        return True

    async def _was_killed(self, driver: Driver, handle: Handle) -> bool:
        """Whether it was ended from outside: with SIGKILL, not for lack of memory, or so that nobody can tell how."""
        try:
            status = await driver.inspect(handle)
        except DriverError as error:
            log.debug("a container cannot be looked at", handle=handle.id, error=str(error))
            return False
        return status is not None and not status.oom and status.code is None and status.signal in (None, signal.SIGKILL)

    async def _has_ended(self, driver: Driver, handle: Handle) -> bool:
        try:
            return await driver.inspect(handle) is not None
        except DriverError as error:
            log.debug("a container cannot be looked at", handle=handle.id, error=str(error))
            return False

    async def kill(self, effect: Kill) -> Event:
        """Rules that are being applied come first: they would otherwise be left behind."""
        event = await self._one_by_one(effect.container_id, lambda: self._kill(effect))
        if isinstance(event, Killed):
            self._locks.pop(effect.container_id, None)
        return event

    async def _kill(self, effect: Kill) -> Event:
        try:
            await self.driver_of(effect.handle).kill(effect.handle)
        except Exception as error:
            log.warn("kill failed and will be tried again", container_id=effect.container_id, error=_text(error))
            return KillFailed(effect.container_id, effect.op, _text(error))
        await self.release(effect.container_id, effect.handle)
        return Killed(effect.container_id, effect.op)

    async def kill_orphan(self, effect: KillOrphan) -> None:
        log.warn("ending a container that is in no record", handle=effect.handle.id, driver=effect.handle.driver)
        await self.kill_until_gone(effect.handle)

    async def kill_until_gone(self, handle: Handle) -> None:
        """Kill, again and again if need be: whoever calls this has nobody to hand the failure to."""
        pause = 1.0
        while True:
            try:
                await self.driver_of(handle).kill(handle)
                return
            except CancelledError:
                raise
            except Exception as error:
                log.warn("kill failed and will be tried again", handle=handle.id, error=_text(error))
            await sleep(self._clock, pause)
            pause = min(pause * 2, 30.0)

    async def release(self, container_id: str, handle: Handle) -> None:
        """Let go of the connections to a dead container."""
        if handle.daemon_address is not None:
            await self._daemons.forget(handle.daemon_address)
        if self._executors is not None:
            await self._executors.release(container_id)

    async def healthy(self, spec: ContainerSpec, handle: Handle) -> bool:
        """Ask the daemon or the executor once; True when there is nobody to ask."""
        if spec.kind is Kind.FUNCTION:
            return self._executors is None or await self._executors.healthy(handle, self._timing.health_timeout)
        if handle.daemon_address is None:
            return True
        return await self._daemons.healthy(handle.daemon_address, self._timing.health_timeout, handle.token)


def _labels(spec: ContainerSpec) -> dict[str, str]:
    function = spec.function
    return {
        "namespace": (function.namespace if function else None) or "",
        "app": (function.application if function else None) or "",
        "fn": (function.function if function else None) or "",
        "app_version": (function.version if function else None) or "",
        "sandbox_id": spec.sandbox_id or "",
        "pool_id": spec.pool_id or "",
    }


def _reason(error: BaseException) -> TerminationReason:
    if isinstance(error, StartupFailed | DriverError):
        return error.reason
    return Reason.STARTUP_FAILED_INTERNAL_ERROR


def _text(error: BaseException) -> str:
    if isinstance(error, CancelledError):
        return "the start was cancelled"
    if isinstance(error, DriverError | StartupFailed | DaemonUnreachable):
        return str(error)
    return f"{type(error).__name__}: {error}"
