"""Takes in what a heartbeat reports, item by item, and counts the items that could not be taken in."""

from __future__ import annotations

from collections.abc import Callable

from twisted.logger import Logger

from indexify_dataplane.wireproto import executor_api_pb2 as pb

from .errors import Malformed, Unacceptable
from .fleet import Fleet
from .runs import F, Runs
from .sandboxes import Sandboxes
from .snapshots import Snapshots
from .state import Container, Executor, World

log = Logger()

R = pb.ContainerTerminationReason
TERMINATION_OF_FAILURE = {
    F.ALLOCATION_FAILURE_REASON_STARTUP_FAILED_INTERNAL_ERROR: (
        R.CONTAINER_TERMINATION_REASON_STARTUP_FAILED_INTERNAL_ERROR
    ),
    F.ALLOCATION_FAILURE_REASON_STARTUP_FAILED_FUNCTION_ERROR: (
        R.CONTAINER_TERMINATION_REASON_STARTUP_FAILED_FUNCTION_ERROR
    ),
    F.ALLOCATION_FAILURE_REASON_STARTUP_FAILED_FUNCTION_TIMEOUT: (
        R.CONTAINER_TERMINATION_REASON_STARTUP_FAILED_FUNCTION_TIMEOUT
    ),
    F.ALLOCATION_FAILURE_REASON_STARTUP_FAILED_BAD_IMAGE: R.CONTAINER_TERMINATION_REASON_STARTUP_FAILED_BAD_IMAGE,
    F.ALLOCATION_FAILURE_REASON_OOM: R.CONTAINER_TERMINATION_REASON_OOM,
    F.ALLOCATION_FAILURE_REASON_FUNCTION_TIMEOUT: R.CONTAINER_TERMINATION_REASON_FUNCTION_TIMEOUT,
    F.ALLOCATION_FAILURE_REASON_FUNCTION_ERROR: R.CONTAINER_TERMINATION_REASON_UNHEALTHY,
    F.ALLOCATION_FAILURE_REASON_CONTAINER_TERMINATED: R.CONTAINER_TERMINATION_REASON_UNHEALTHY,
}
"""What the server makes of ``AllocationFailed.container_id``; any other reason is UNKNOWN."""


class Ingest:
    """The order is the real server's: snapshot answers, all ContainerTerminated, all ContainerStarted, log entries,
    outcomes. So a container that ends and starts again within one batch is terminated here."""

    def __init__(self, *, world: World, fleet: Fleet, sandboxes: Sandboxes, snapshots: Snapshots, runs: Runs) -> None:
        self._world = world
        self._fleet = fleet
        self._sandboxes = sandboxes
        self._snapshots = snapshots
        self._runs = runs

    def take(self, executor: Executor, request: pb.HeartbeatRequest) -> int:
        """The number of items that failed; malformed ones are skipped and do not count."""
        failures = 0

        def one(item: str, effect: Callable[[], None]) -> None:
            nonlocal failures
            try:
                effect()
            except Malformed as problem:
                log.warn("malformed report item skipped", executor_id=executor.id, item=item, problem=str(problem))
            except Unacceptable as problem:
                failures += 1
                log.warn("report item refused", executor_id=executor.id, item=item, problem=str(problem))

        by_kind: dict[str, list[pb.CommandResponse]] = {}
        for response in request.command_responses:
            by_kind.setdefault(response.WhichOneof("response") or "", []).append(response)
        for response in request.command_responses:
            kind = response.WhichOneof("response")
            if kind == "snapshot_completed":
                one(kind, lambda r=response: self._snapshots.completed(r.snapshot_completed))  # type: ignore[misc]
            elif kind == "snapshot_failed":
                one(kind, lambda r=response: self._snapshots.failed(r.snapshot_failed))  # type: ignore[misc]
        for response in by_kind.get("container_terminated", ()):
            self._terminated(executor, response.container_terminated)
        for response in by_kind.get("container_started", ()):
            self._started(executor, response.container_started)
        if "" in by_kind:
            log.warn("empty command responses skipped", executor_id=executor.id, count=len(by_kind[""]))
        for entry in request.allocation_log_entries:
            one("log_entry", lambda e=entry: self._log_entry(executor, e))  # type: ignore[misc]
        for outcome in request.allocation_outcomes:
            one("outcome", lambda o=outcome: self._outcome(executor, o))  # type: ignore[misc]
        return failures

    def _own(self, executor: Executor, container_id: str) -> Container | None:
        """The container, if it is tracked on this executor."""
        container = self._world.containers.get(container_id)
        return container if container is not None and container.executor_id == executor.id else None

    def _terminated(self, executor: Executor, report: pb.ContainerTerminated) -> None:
        container = self._own(executor, report.container_id)
        if container is not None:
            self._end(container, report.reason)

    def _end(self, container: Container, reason: int) -> None:
        self._sandboxes.container_ended(container, reason)
        self._fleet.end(container, reason)

    def _started(self, executor: Executor, report: pb.ContainerStarted) -> None:
        container = self._own(executor, report.container_id)
        if container is None or container.state == "terminated":
            return
        container.adopting = False
        if container.state == "pending":
            self._sandboxes.container_started(container)
            if not container.is_sandbox and not container.allocations:
                self._world.idle[container.id] = container
        self._world.stirred = True

    def _log_entry(self, executor: Executor, entry: pb.AllocationLogEntry) -> None:
        match entry.WhichOneof("entry"):
            case "call_function":
                self._runs.called(entry, executor.id)
            case "function_call_result":
                log.info("a function call result came from an executor; ignored", executor_id=executor.id)
            case _:
                raise Malformed("allocation log entry is empty: missing entry")

    def _outcome(self, executor: Executor, outcome: pb.AllocationOutcome) -> None:
        match outcome.WhichOneof("outcome"):
            case "completed":
                self._runs.completed(outcome.completed)
            case "failed":
                failed = outcome.failed
                container = self._own(executor, failed.container_id) if failed.container_id else None
                if container is not None and container.state != "terminated":
                    unknown = R.CONTAINER_TERMINATION_REASON_UNKNOWN
                    self._end(container, TERMINATION_OF_FAILURE.get(failed.reason, unknown))
                self._runs.failed(failed)
            case _:
                raise Malformed("allocation outcome is empty: missing outcome")
