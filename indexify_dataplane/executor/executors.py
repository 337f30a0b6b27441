"""Function executors as the node uses them: connections by container, allocations from preparation to their uploads."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from attrs import define, field
from twisted.internet.defer import CancelledError, Deferred, DeferredSemaphore
from twisted.logger import Logger
from twisted.python.failure import Failure

from ..blobs.stores import Blobs
from ..code_cache import CodeCache
from ..core.model import Allocation, ContainerSpec, Failed, FailureReason, Handle, Outcome
from ..metrics import Metrics
from ..perform.executors import ignore
from ..reactor import Clock
from ..wireproto import executor_api_pb2 as pb
from .blobs import AllocationBlobs, sweep
from .client import ExecutorClient
from .event_log_protocol import EventLogRun
from .run import AllocationRun, let_go
from .startup import ExecutorProtocol, Startup
from .state_protocol import StateProtocolRun

log = Logger()

SEATS = {ExecutorProtocol.STATE: 90, ExecutorProtocol.EVENT_LOG: 30}
"""An executor serves 100 calls at a time; a run keeps one open, with the event log three. The rest is for answers."""
FORGET_SECONDS = 10.0
"""How long an executor is asked to forget a finished allocation whose last thread has not ended."""
_RUNS: dict[ExecutorProtocol, type[AllocationRun]] = {
    ExecutorProtocol.STATE: StateProtocolRun,
    ExecutorProtocol.EVENT_LOG: EventLogRun,
}


@define
class _Connection:
    """One executor that was initialized."""

    client: ExecutorClient
    protocol: ExecutorProtocol
    seats: DeferredSemaphore
    forgetting: set[Deferred[Any]] = field(factory=set)


class RealExecutors:
    """Implements ``perform.executors.Executors``. ``executor_id`` is asked when a command line is made."""

    def __init__(
        self,
        *,
        clock: Clock,
        fe_binary_path: str,
        executor_id: Callable[[], str],
        code_cache: CodeCache,
        blobs: Blobs,
        metrics: Metrics,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._clock = clock
        self._fe_binary_path = fe_binary_path
        self._executor_id = executor_id
        self._code_cache = code_cache
        self._blobs = blobs
        self._metrics = metrics
        self._wall = wall
        self._startup = Startup(clock=clock, code_cache=code_cache, metrics=metrics)
        self._connections: dict[str, _Connection] = {}
        self._handles: dict[str, str] = {}
        self._allocations: dict[str, AllocationBlobs] = {}
        self._runs: dict[str, AllocationRun] = {}

    def arguments(self, spec: ContainerSpec) -> tuple[str, ...]:
        return (
            self._fe_binary_path,
            f"--executor-id={self._executor_id()}",
            f"--function-executor-id={spec.id}",
        )

    async def initialize(self, spec: ContainerSpec, handle: Handle, gone: Callable[[], bool]) -> None:
        assert handle.daemon_address is not None, handle
        client = ExecutorClient(handle.daemon_address)
        try:
            protocol = await self._startup.run(client, spec, gone)
        except Exception:
            await client.close()
            raise
        seats = SEATS[protocol]
        if spec.slots > seats:
            log.warn(
                "the executor cannot run as many allocations at once as its function permits",
                container_id=spec.id,
                max_concurrency=spec.slots,
                at_once=seats,
            )
        self._connections[handle.id] = _Connection(client, protocol, DeferredSemaphore(min(spec.slots, seats)))
        self._handles[spec.id] = handle.id

    async def healthy(self, handle: Handle, timeout: float) -> bool:
        connection = self._connections[handle.id]
        response = await connection.client.health(timeout)
        return response.healthy

    async def release(self, container_id: str) -> None:
        connection = self._connections.pop(self._handles.pop(container_id, ""), None)
        if connection is not None:
            await self._disconnect(connection)

    async def prepare(self, allocation: Allocation) -> None:
        blobs = AllocationBlobs(clock=self._clock, blobs=self._blobs, allocation=allocation.spec)
        self._allocations[allocation.id] = blobs
        await blobs.prepare()

    async def run(
        self,
        allocation: Allocation,
        handle: Handle,
        timeout_ms: int,
        called: Callable[[bytes], None],
        began: Callable[[str, str], None] = ignore,
    ) -> Outcome:
        connection = self._connections[handle.id]
        self._allocations[allocation.id].began = began
        run = _RUNS[connection.protocol](
            clock=self._clock,
            wall=self._wall,
            client=connection.client,
            allocation=allocation,
            blobs=self._allocations[allocation.id],
            timeout_ms=timeout_ms,
            called=called,
            metrics=self._metrics,
        )
        self._runs[allocation.id] = run
        try:
            try:
                await connection.seats.acquire()
            except CancelledError:
                return Failed(FailureReason.ALLOCATION_CANCELLED, begun=False)
            try:
                outcome = await run.outcome()
            finally:
                connection.seats.release()
        finally:
            del self._runs[allocation.id]
        if run.finished:
            self._forget_later(connection, allocation.id)
        return outcome

    def deliver(self, allocation_id: str, result: bytes) -> None:
        run = self._runs.get(allocation_id)
        if run is None:
            log.warn("result of a call for an allocation that does not run", allocation_id=allocation_id)
            return
        run.deliver(pb.FunctionCallResult.FromString(result))

    async def finalize(self, allocation: Allocation, outcome: Outcome) -> Outcome:
        blobs = self._allocations.pop(allocation.id, None)
        if blobs is None:
            await sweep(self._blobs, allocation)
            return outcome
        return await blobs.settle(outcome)

    async def close(self) -> None:
        await self._code_cache.close()
        connections = tuple(self._connections.values())
        self._connections.clear()
        self._handles.clear()
        for connection in connections:
            await self._disconnect(connection)

    def _forget_later(self, connection: _Connection, allocation_id: str) -> None:
        """The result is there, so nobody need wait until the executor's last thread for it has ended."""
        forgetting = Deferred.fromCoroutine(let_go(self._clock, connection.client, allocation_id, FORGET_SECONDS))
        connection.forgetting.add(forgetting)

        def done(result: Any) -> None:
            connection.forgetting.discard(forgetting)
            if isinstance(result, Failure) and not result.check(CancelledError):
                log.failure("a finished allocation cannot be forgotten", result, allocation_id=allocation_id)

        forgetting.addBoth(done)

    async def _disconnect(self, connection: _Connection) -> None:
        for forgetting in tuple(connection.forgetting):
            forgetting.cancel()
        await connection.client.close()
