"""How an executor becomes known, what the server makes of the containers it reports, and how it is given up."""

from __future__ import annotations

from twisted.logger import Logger

from indexify_dataplane.wireproto import executor_api_pb2 as pb

from .errors import RpcError
from .fleet import Fleet
from .placement import Placement
from .runs import F, Runs
from .sandboxes import Sandboxes
from .snapshots import Snapshots
from .state import Container, Executor, World

log = Logger()

R = pb.ContainerTerminationReason
FAILURE_OF_TERMINATION = {
    R.CONTAINER_TERMINATION_REASON_STARTUP_FAILED_INTERNAL_ERROR: (
        F.ALLOCATION_FAILURE_REASON_STARTUP_FAILED_INTERNAL_ERROR
    ),
    R.CONTAINER_TERMINATION_REASON_STARTUP_FAILED_FUNCTION_ERROR: (
        F.ALLOCATION_FAILURE_REASON_STARTUP_FAILED_FUNCTION_ERROR
    ),
    R.CONTAINER_TERMINATION_REASON_STARTUP_FAILED_FUNCTION_TIMEOUT: (
        F.ALLOCATION_FAILURE_REASON_STARTUP_FAILED_FUNCTION_TIMEOUT
    ),
    R.CONTAINER_TERMINATION_REASON_STARTUP_FAILED_BAD_IMAGE: F.ALLOCATION_FAILURE_REASON_STARTUP_FAILED_BAD_IMAGE,
    R.CONTAINER_TERMINATION_REASON_UNHEALTHY: F.ALLOCATION_FAILURE_REASON_FUNCTION_TIMEOUT,
    R.CONTAINER_TERMINATION_REASON_FUNCTION_TIMEOUT: F.ALLOCATION_FAILURE_REASON_FUNCTION_TIMEOUT,
    R.CONTAINER_TERMINATION_REASON_PROCESS_CRASH: F.ALLOCATION_FAILURE_REASON_FUNCTION_ERROR,
    R.CONTAINER_TERMINATION_REASON_INTERNAL_ERROR: F.ALLOCATION_FAILURE_REASON_INTERNAL_ERROR,
    R.CONTAINER_TERMINATION_REASON_OOM: F.ALLOCATION_FAILURE_REASON_OOM,
    R.CONTAINER_TERMINATION_REASON_UNKNOWN: F.ALLOCATION_FAILURE_REASON_CONTAINER_TERMINATED,
    R.CONTAINER_TERMINATION_REASON_FUNCTION_CANCELLED: F.ALLOCATION_FAILURE_REASON_ALLOCATION_CANCELLED,
}
"""The server's own map for containers that a full sync reports as dead (not the executor's)."""


class Registration:
    """Full syncs and deregistrations.

    The real server does not repeat, after a full sync, a RemoveContainer that the reset dropped, nor, after its own
    restart, the RunAllocations of containers that it adopts; with ``repeat_removals`` this one does both, so that
    nothing is left behind and no request hangs after a cut connection.
    """

    def __init__(
        self,
        *,
        world: World,
        fleet: Fleet,
        sandboxes: Sandboxes,
        snapshots: Snapshots,
        runs: Runs,
        placement: Placement,
        repeat_removals: bool,
    ) -> None:
        self._world = world
        self._fleet = fleet
        self._sandboxes = sandboxes
        self._snapshots = snapshots
        self._runs = runs
        self._placement = placement
        self._repeat_removals = repeat_removals

    def register(self, executor: Executor, state: pb.DataplaneStateFullSync) -> None:
        """Take a full sync in. RpcError INTERNAL, and nothing is registered, when its resources are unusable."""
        if state.HasField("total_container_resources"):
            check_resources(state.total_container_resources)
        scheduled_before = executor.known
        executor.commands.reset()
        executor.results.reset()
        executor.last_ack, executor.want_full_state, executor.known = 0, False, True
        executor.identity.CopyFrom(state)
        del executor.identity.container_states[:]
        self._world.stirred = True
        log.info("executor registered", executor_id=executor.id, containers=len(state.container_states))
        self._reconcile(executor, state, first=not scheduled_before)
        if scheduled_before:
            self._repeat(executor)
        # After a restart of the server too: the order may never have reached the executor, and only its answer ends it.
        for snapshot in self._snapshots.in_progress(executor.id):
            self._fleet.snapshot(snapshot)

    def _repeat(self, executor: Executor) -> None:
        """Queue the whole desired state once more: containers and unfinished allocations (snapshots: the caller)."""
        for container in executor.containers.values():
            if container.lives:
                self._fleet.repeat(container)
        # Also those whose container has died meanwhile: only the executor's answer ends them.
        for request in self._world.requests.values():
            for allocation in request.allocations.values():
                if allocation.outcome is None and allocation.executor_id == executor.id:
                    self._fleet.run(allocation, self._placement.message(allocation))

    def _reconcile(self, executor: Executor, state: pb.DataplaneStateFullSync, *, first: bool) -> None:
        tracked = dict(executor.containers)
        tracked.update(
            {c.id: c for c in self._world.containers.values() if c.executor_id == executor.id}  # the dead ones too
        )
        reported = set()
        for entry in state.container_states:
            problem = unusable(entry)
            if problem:
                log.warn("reported container skipped", executor_id=executor.id, problem=problem)
                continue
            reported.add(entry.description.id)
            container = tracked.get(entry.description.id)
            if container is None:
                self._untracked(executor, entry)
            else:
                self._tracked(container, entry)
        for container in tracked.values():
            if container.id not in reported and not container.wanted:
                self._fleet.forget(container)
        if first:
            self._settle_lost(executor)

    def _untracked(self, executor: Executor, entry: pb.ContainerState) -> None:
        if entry.status == pb.CONTAINER_STATUS_TERMINATED:
            return
        description = entry.description
        is_sandbox = description.container_type == pb.CONTAINER_TYPE_SANDBOX
        if self._sandboxes.may_adopt(description) if is_sandbox else self._function_exists(description):
            running = entry.status == pb.CONTAINER_STATUS_RUNNING
            container = self._fleet.adopt(executor, description, "running" if running else "pending")
            if is_sandbox:
                self._sandboxes.adopted(container)
            else:
                self._take_over(container)
        else:
            self._fleet.remove(executor.id, description.id)

    def _take_over(self, container: Container) -> None:
        """The open allocations of an adopted container are on its executor now."""
        for request in self._world.requests.values():
            for allocation in request.allocations.values():
                if allocation.outcome is None and allocation.container_id == container.id:
                    allocation.executor_id = container.executor_id
                    container.allocations[allocation.id] = allocation
                    if self._repeat_removals:
                        # The order may have been lost with the server's memory; a repeat does no harm.
                        self._fleet.run(allocation, self._placement.message(allocation))
        if not container.allocations:
            self._world.idle[container.id] = container

    def _function_exists(self, description: pb.ContainerDescription) -> bool:
        reference = description.function
        application = self._world.applications.get((reference.namespace, reference.application_name))
        version = application.versions.get(reference.application_version) if application is not None else None
        return version is not None and reference.function_name in version.manifest["functions"]

    def _tracked(self, container: Container, entry: pb.ContainerState) -> None:
        if entry.status == pb.CONTAINER_STATUS_TERMINATED:
            allocations = list(container.allocations.values())
            self._sandboxes.container_ended(container, entry.termination_reason)
            self._fleet.end(container, entry.termination_reason)
            reason = FAILURE_OF_TERMINATION.get(entry.termination_reason, 0)
            for number, allocation in enumerate(allocations):
                # Executors begin them in about this order: those beyond the slots have no part in the container's end.
                began = number < container.description.max_concurrency
                self._runs.fail(allocation, reason if began else F.ALLOCATION_FAILURE_REASON_CONTAINER_TERMINATED)
            self._fleet.forget(container)
        elif container.lives:
            container.adopting = entry.status == pb.CONTAINER_STATUS_PENDING
            if entry.status == pb.CONTAINER_STATUS_RUNNING and container.state == "pending":
                self._sandboxes.container_started(container)
        elif self._repeat_removals:
            self._fleet.touch(container)

    def _settle_lost(self, executor: Executor) -> None:
        """After a first registration: sandboxes and allocations that point here without a container are over. A claim
        of a warm one that the executor has never heard of is ordered again."""
        for sandbox in list(self._world.sandboxes.values()):
            if sandbox.executor_id != executor.id or sandbox.status == "terminated":
                continue
            container = self._world.containers.get(sandbox.container_id or "")
            if container is not None and container.lives and container.sandbox_id is None:
                self._sandboxes.claim(sandbox, container)
            elif container is None or container.sandbox_id != sandbox.id:
                self._sandboxes.end(sandbox, "Failure(ContainerTerminated(Unknown))")
        for request in list(self._world.requests.values()):
            for allocation in list(request.allocations.values()):
                if (
                    allocation.outcome is None
                    and allocation.executor_id == executor.id
                    and allocation.container_id not in self._world.containers
                ):
                    self._runs.fail(allocation, F.ALLOCATION_FAILURE_REASON_CONTAINER_TERMINATED)

    def lost(self, executor_id: str) -> None:
        """The executor is gone: what was on it is retried, terminated or failed."""
        executor = self._world.executors.get(executor_id)
        if executor is not None:
            executor.known, executor.want_full_state = False, False
            executor.commands.reset()
            executor.results.reset()
            executor.commands.wake()
            executor.results.wake()
        self._snapshots.executor_lost(executor_id)
        self._sandboxes.executor_lost(executor_id)
        for container in [c for c in self._world.containers.values() if c.executor_id == executor_id]:
            self._fleet.forget(container)
        for request in list(self._world.requests.values()):
            for allocation in list(request.allocations.values()):
                if allocation.outcome is None and allocation.executor_id == executor_id:
                    self._runs.fail(allocation, F.ALLOCATION_FAILURE_REASON_EXECUTOR_REMOVED)
        self._world.stirred = True


def check_resources(resources: pb.HostResources) -> None:
    """RpcError INTERNAL unless all three capacities are there and a GPU entry means something."""
    for name in ("cpu_count", "memory_bytes", "disk_bytes"):
        if not resources.HasField(name):
            raise RpcError("INTERNAL", f"host resources have no {name}")
    if resources.HasField("gpu"):
        if resources.gpu.count == 0:
            raise RpcError("INTERNAL", "host resources have a GPU entry with count 0")
        if resources.gpu.model == pb.GPU_MODEL_UNKNOWN:
            raise RpcError("INTERNAL", "host resources have a GPU of unknown model")


def unusable(entry: pb.ContainerState) -> str | None:
    """Why a reported container cannot be taken in; None if it can."""
    description = entry.description
    if not description.id:
        return "no id"
    for name in ("namespace", "application_name", "function_name", "application_version"):
        if not description.function.HasField(name):
            return f"no function.{name}"
    return None if description.HasField("resources") else "no resources"
