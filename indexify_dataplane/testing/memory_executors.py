"""Function executors that are values in memory, for simulations: the counterpart of ``memory_driver``.

``ExecutorWorld`` outlives the node and counts what user code would have noticed: how often a constructor and how
often each allocation ran.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

from attrs import define, field, frozen
from twisted.internet.defer import CancelledError, Deferred

from ..core.model import (
    Allocation,
    Completed,
    ContainerSpec,
    Failed,
    FailureReason,
    Handle,
    Outcome,
    TerminationReason,
)
from ..perform.executors import StartupFailed, ignore
from ..reactor import Clock


@frozen
class Plan:
    """What an allocation does: it calls functions (encoded ``FunctionCallRequest``), waits for as many results as
    ``awaits``, works for ``seconds`` and ends with ``outcome``."""

    seconds: float = 0.0
    outcome: Outcome = Completed()
    calls: tuple[bytes, ...] = ()
    awaits: int = 0


@define
class ExecutorWorld:
    """What happened in all executors, and what will."""

    plan: Callable[[Allocation], Plan] = lambda allocation: Plan()
    startup_seconds: float = 0.0
    startup_error: Callable[[ContainerSpec], StartupFailed | None] = lambda spec: None
    constructed: Counter[str] = field(factory=Counter)
    ran: Counter[str] = field(factory=Counter)
    delivered: list[tuple[str, bytes]] = field(factory=list)


class MemoryExecutors:
    """Implements ``perform.executors.Executors`` on an injected clock."""

    def __init__(self, *, clock: Clock, world: ExecutorWorld) -> None:
        self._clock = clock
        self._world = world
        self._results: dict[str, list[bytes]] = {}
        self._wanting: dict[str, Deferred[None]] = {}

    def arguments(self, spec: ContainerSpec) -> tuple[str, ...]:
        return ("memory-executor", spec.id)

    async def initialize(self, spec: ContainerSpec, handle: Handle, gone: Callable[[], bool]) -> None:
        self._world.constructed[spec.id] += 1
        await self._pause(self._world.startup_seconds)
        if gone():
            raise StartupFailed(TerminationReason.STARTUP_FAILED_INTERNAL_ERROR, "the executor ended while it started")
        error = self._world.startup_error(spec)
        if error is not None:
            raise error

    async def healthy(self, handle: Handle, timeout: float) -> bool:
        return True

    async def release(self, container_id: str) -> None:
        """Nothing is held for a container."""

    async def prepare(self, allocation: Allocation) -> None:
        """Inputs need no preparation in memory."""

    async def run(
        self,
        allocation: Allocation,
        handle: Handle,
        timeout_ms: int,
        called: Callable[[bytes], None],
        began: Callable[[str, str], None] = ignore,
    ) -> Outcome:
        self._world.ran[allocation.id] += 1
        plan = self._world.plan(allocation)
        for request in plan.calls:
            called(request)
        try:
            while len(self._results.get(allocation.id, ())) < plan.awaits:
                self._wanting[allocation.id] = Deferred()
                await self._wanting[allocation.id]
            await self._pause(plan.seconds)
        except CancelledError:
            return Failed(FailureReason.ALLOCATION_CANCELLED)
        finally:
            self._results.pop(allocation.id, None)
            self._wanting.pop(allocation.id, None)
        return plan.outcome

    def deliver(self, allocation_id: str, result: bytes) -> None:
        self._world.delivered.append((allocation_id, result))
        self._results.setdefault(allocation_id, []).append(result)
        wanting = self._wanting.pop(allocation_id, None)
        if wanting is not None:
            wanting.callback(None)

    async def finalize(self, allocation: Allocation, outcome: Outcome) -> Outcome:
        return outcome

    async def close(self) -> None:
        """Nothing is open."""

    async def _pause(self, seconds: float) -> None:
        if seconds <= 0:
            return
        waiting: Deferred[None] = Deferred()
        timer = self._clock.callLater(seconds, waiting.callback, None)
        try:
            await waiting
        finally:
            if timer.active():
                timer.cancel()
