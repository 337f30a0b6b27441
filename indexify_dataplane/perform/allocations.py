"""One coroutine per effect on an allocation. Whatever happens in here, the core hears of an end."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.defer import CancelledError, Deferred
from twisted.logger import Logger

from ..core.effects import Finalize, Prepare, Run
from ..core.events import Called, Ended, Event, Finalized, Prepared, PrepareFailed, UploadBegun
from ..core.model import Allocation, Completed, Failed, FailureReason
from ..metrics import Metrics
from ..reactor import Clock
from ..tracing import Tracing
from .executors import Executors

log = Logger()


class AllocationWork:
    """Prepares, runs and finalizes through the executors."""

    def __init__(
        self,
        *,
        clock: Clock,
        executors: Executors,
        submit: Callable[[Event], Any],
        metrics: Metrics,
        tracing: Tracing,
    ) -> None:
        self._clock = clock
        self._executors = executors
        self._submit = submit
        self._metrics = metrics
        self._tracing = tracing
        self._running: dict[str, Deferred[Event]] = {}

    async def prepare(self, effect: Prepare) -> Event:
        allocation = effect.allocation
        began = self._clock.seconds()
        self._metrics.counter("allocation_preparations").add()
        try:
            with self._tracing.root("allocation_prep", **_ids(allocation)):
                await self._executors.prepare(allocation)
        except Exception as error:
            self._metrics.counter("allocation_preparation_errors").add()
            log.warn("allocation cannot be prepared", allocation_id=allocation.id, error=repr(error))
            return PrepareFailed(allocation.id, repr(error))
        finally:
            took = self._clock.seconds() - began
            self._metrics.histogram("allocation_preparation_latency_seconds").observe(took)
        return Prepared(allocation.id)

    def run(self, effect: Run) -> Deferred[Event]:
        work: Deferred[Event] = Deferred.fromCoroutine(self._run(effect))
        if not work.called:
            self._running[effect.allocation.id] = work
            work.addBoth(self._ran, effect.allocation.id)
        return work

    def _ran(self, result: Any, allocation_id: str) -> Any:
        self._running.pop(allocation_id, None)
        return result

    async def _run(self, effect: Run) -> Event:
        allocation = effect.allocation
        began = self._clock.seconds()
        self._metrics.counter("allocation_runs").add()

        def called(request: bytes) -> None:
            self._submit(Called(allocation.id, request))

        def began_upload(uri: str, upload_id: str) -> None:
            self._submit(UploadBegun(allocation.id, uri, upload_id))

        try:
            with self._tracing.root("allocation_exec", **_ids(allocation)):
                outcome = await self._executors.run(allocation, effect.handle, effect.timeout_ms, called, began_upload)
        except CancelledError:
            outcome = Failed(FailureReason.ALLOCATION_CANCELLED)
        except Exception as error:
            self._metrics.counter("allocation_run_errors").add()
            log.error("allocation run failed", allocation_id=allocation.id, error=repr(error))
            outcome = Failed(FailureReason.INTERNAL_ERROR)
        took = self._clock.seconds() - began
        self._metrics.histogram("allocation_run_latency_seconds").observe(took)
        return Ended(allocation.id, outcome)

    def cancel(self, allocation_id: str) -> None:
        work = self._running.pop(allocation_id, None)
        if work is not None:
            work.cancel()

    def deliver(self, allocation_id: str, result: bytes) -> None:
        self._executors.deliver(allocation_id, result)

    async def finalize(self, effect: Finalize) -> Event:
        allocation, outcome = effect.allocation, effect.outcome
        began = self._clock.seconds()
        self._metrics.counter("allocation_finalizations").add()
        try:
            with self._tracing.root("allocation_finalize", **_ids(allocation)):
                outcome = await self._executors.finalize(allocation, outcome)
        except Exception as error:
            self._metrics.counter("allocation_finalization_errors").add()
            log.error("allocation cannot be finalized", allocation_id=allocation.id, error=repr(error))
            if isinstance(outcome, Completed):
                outcome = Failed(FailureReason.INTERNAL_ERROR, duration_ms=outcome.duration_ms)
        took = self._clock.seconds() - began
        self._metrics.histogram("allocation_finalization_latency_seconds").observe(took)
        return Finalized(allocation.id, outcome)


def _ids(allocation: Allocation) -> dict[str, str]:
    spec = allocation.spec
    return {
        "allocation_id": spec.id,
        "request_id": spec.request_id,
        "container_id": spec.container_id,
        "namespace": spec.function.namespace or "",
        "app": spec.function.application or "",
        "fn": spec.function.function or "",
    }
