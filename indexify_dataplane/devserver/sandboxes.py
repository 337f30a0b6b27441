"""Sandboxes, the pools that keep containers warm for them, and where they are placed."""

from __future__ import annotations

import math
from typing import Any

from indexify_dataplane.wireproto import executor_api_pb2 as pb

from .errors import Refused
from .fleet import Fleet
from .state import Amount, Container, Executor, Pool, Sandbox, SandboxSpec, World

MIB = 1024 * 1024
UINT32_MAX = 2**32 - 1
GPU_MODELS = {"A100-40GB": 1, "A100-80GB": 2, "H100": 3, "T4": 4, "A6000": 5, "A10": 6}


def wire_resources(resources: dict[str, Any]) -> pb.ContainerResources:
    """The limits of a container from ``cpus, memory_mb, ephemeral_disk_mb, gpus``; only the first GPU entry counts."""
    found = pb.ContainerResources(
        cpu_ms_per_sec=math.ceil(resources["cpus"] * 1000),
        memory_bytes=resources["memory_mb"] * MIB,
        disk_bytes=resources["ephemeral_disk_mb"] * MIB,
    )
    if resources.get("gpus"):
        first = resources["gpus"][0]
        found.gpu.count = first["count"]
        found.gpu.model = GPU_MODELS.get(first["model"], 0)  # type: ignore[assignment]
    return found


def describe(
    container_id: str, namespace: str, spec: SandboxSpec, *, sandbox_id: str | None, pool_id: str | None
) -> pb.ContainerDescription:
    """The description of a sandbox container, filled as the real server fills it."""
    limit_ms = min(spec.timeout_secs * 1000, UINT32_MAX)
    description = pb.ContainerDescription(
        id=container_id,
        function=pb.FunctionRef(
            namespace=namespace,
            application_name="",
            function_name=sandbox_id or f"pool:{pool_id}",
            application_version="",
        ),
        initialization_timeout_ms=limit_ms,
        allocation_timeout_ms=limit_ms,
        resources=wire_resources(spec.resources),
        max_concurrency=1,
        container_type=pb.CONTAINER_TYPE_SANDBOX,
        pool_id=pool_id,
    )
    description.sandbox_metadata.CopyFrom(metadata(spec, sandbox_id))
    return description


def metadata(spec: SandboxSpec, sandbox_id: str | None) -> pb.SandboxMetadata:
    found = pb.SandboxMetadata(
        image=spec.image,
        timeout_secs=spec.timeout_secs or None,
        entrypoint=spec.entrypoint,
        sandbox_id=sandbox_id,
        snapshot_uri=spec.snapshot_uri,
    )
    if spec.network is not None:
        found.network_policy.CopyFrom(pb.NetworkPolicy(**spec.network))
    return found


class Sandboxes:
    """Creates, places and ends sandboxes, and keeps pools filled."""

    def __init__(self, world: World, fleet: Fleet) -> None:
        self._world = world
        self._fleet = fleet

    # What clients ask for

    def create(self, namespace: str, spec: SandboxSpec, application: str | None, pool: Pool | None) -> Sandbox:
        self._world.touch_namespace(namespace)
        sandbox = Sandbox(
            self._world.fresh_id(),
            namespace,
            spec,
            self._world.now_ms(),
            application=application,
            pool_id=pool.id if pool else None,
        )
        self._world.sandboxes[sandbox.id] = sandbox
        self._world.unplaced_sandboxes[sandbox.id] = sandbox
        self._world.stirred = True
        return sandbox

    def find(self, namespace: str, sandbox_id: str) -> Sandbox:
        sandbox = self._world.sandboxes.get(sandbox_id)
        if sandbox is None or sandbox.namespace != namespace:
            raise Refused(404, "Sandbox not found")
        return sandbox

    def delete(self, sandbox: Sandbox) -> None:
        """End the sandbox. One that is being snapshotted ends at once, and its snapshot goes on."""
        if sandbox.status == "terminated":
            return
        snapshotting = sandbox.status == "snapshotting"
        self.end(sandbox, "Success(UserTerminated)", remove_container=not snapshotting)

    def create_pool(self, pool: Pool) -> None:
        self._world.touch_namespace(pool.namespace)
        self._world.pools[pool.id] = pool
        self._world.stirred = True

    def find_pool(self, namespace: str, pool_id: str) -> Pool:
        pool = self._world.pools.get(pool_id)
        if pool is None or pool.namespace != namespace:
            raise Refused(404, "Sandbox pool not found")
        return pool

    def delete_pool(self, pool: Pool) -> None:
        if any(sandbox.pool_id == pool.id and sandbox.status != "terminated" for sandbox in self._all()):
            raise Refused(409, "Sandbox pool has sandboxes that are not terminated")
        del self._world.pools[pool.id]
        for container in self._fleet.members(pool.namespace, pool.id):
            self._fleet.unwant(container)

    def _all(self) -> list[Sandbox]:
        return list(self._world.sandboxes.values())

    # What happens to them

    def end(self, sandbox: Sandbox, outcome: str | None, *, remove_container: bool = True) -> None:
        """Terminate a sandbox; ``outcome`` None leaves it unset, as snapshots do."""
        if sandbox.status != "terminated":
            sandbox.status, sandbox.outcome = "terminated", outcome
            sandbox.pending_reason = ""
        self._world.unplaced_sandboxes.pop(sandbox.id, None)
        self._world.stirred = True
        container = self._world.containers.get(sandbox.container_id or "")
        if container is not None and remove_container and container.wanted:
            self._fleet.unwant(container)

    def container_started(self, container: Container) -> None:
        """A pending container became usable: it and its sandbox are running."""
        container.state = "running"
        if container.pool_id:
            self._fleet.refill.started(container.pool_key)
        sandbox = self._world.sandboxes.get(container.sandbox_id or "")
        promoted = sandbox is not None and sandbox.status == "pending"
        if sandbox is not None and promoted:
            sandbox.status, sandbox.pending_reason = "running", ""
        self._fleet.touch(container, sandbox_changed=promoted)

    def container_ended(self, container: Container, reason: int) -> None:
        """A container is dead; its sandbox ends, except while a snapshot of it is under way."""
        sandbox = self._world.sandboxes.get(container.sandbox_id or "")
        if sandbox is None or sandbox.container_id != container.id:
            return
        if sandbox.status in ("snapshotting", "terminated"):
            return
        if reason == pb.CONTAINER_TERMINATION_REASON_FUNCTION_TIMEOUT:
            self.end(sandbox, "Success(Timeout)")
        else:
            self.end(sandbox, f"Failure(ContainerTerminated({reason_text(reason)}))")

    def executor_lost(self, executor_id: str) -> None:
        for sandbox in self._all():
            if sandbox.executor_id == executor_id and sandbox.status != "terminated":
                self.end(sandbox, "Failure(ExecutorRemoved)", remove_container=False)

    def may_adopt(self, description: pb.ContainerDescription) -> bool:
        """Whether a container that the server does not track may go on: its pool and its sandbox must be there."""
        if description.pool_id and description.pool_id not in self._world.pools:
            return False
        sandbox_id = description.sandbox_metadata.sandbox_id
        if not sandbox_id:
            return True
        sandbox = self._world.sandboxes.get(sandbox_id)
        if sandbox is None or sandbox.status not in ("pending", "running", "snapshotting"):
            return False
        return sandbox.container_id in (None, description.id)

    def adopted(self, container: Container) -> None:
        sandbox = self._world.sandboxes.get(container.sandbox_id or "")
        if sandbox is not None:
            self._assign(sandbox, container)

    # Placing

    def _assign(self, sandbox: Sandbox, container: Container) -> None:
        sandbox.container_id, sandbox.executor_id = container.id, container.executor_id
        self._world.unplaced_sandboxes.pop(sandbox.id, None)
        if container.state == "running":
            if sandbox.status == "pending":
                sandbox.status, sandbox.pending_reason = "running", ""
        else:
            sandbox.pending_reason = "waiting_for_container"

    def schedule(self) -> None:
        """Place what waits, then fill and trim the pools."""
        for sandbox in list(self._world.unplaced_sandboxes.values()):
            pool = self._world.pools.get(sandbox.pool_id or "")
            sandbox.pending_reason = self._place(sandbox, pool) or sandbox.pending_reason
        for pool in self._world.pools.values():
            self._fill(pool)

    def _place(self, sandbox: Sandbox, pool: Pool | None) -> str | None:
        """Give the sandbox a container; a text says why it must wait."""
        if pool is not None:
            siblings = self._fleet.members(pool.namespace, pool.id)
            warm = [c for c in siblings if c.sandbox_id is None and self._fleet.known(c.executor_id)]
            if warm:
                self.claim(sandbox, min(warm, key=lambda c: (c.state != "running", c.created_at_clock)))
                return None
            if pool.max_containers is not None and len(siblings) >= pool.max_containers:
                return "pool_at_capacity"
        description = describe(
            sandbox.id, sandbox.namespace, sandbox.spec, sandbox_id=sandbox.id, pool_id=pool.id if pool else None
        )
        executor = self._executor_for(description)
        if executor is None:
            return "no_resources_available" if any(self._fleet.registered()) else "no_executors_available"
        self._assign(sandbox, self._fleet.place(executor, description))
        return None

    def claim(self, sandbox: Sandbox, container: Container) -> None:
        """Give the sandbox a warm container."""
        container.description.sandbox_metadata.CopyFrom(metadata(sandbox.spec, sandbox.id))
        self._assign(sandbox, container)
        self._fleet.touch(container, sandbox_changed=True)

    def _executor_for(self, description: pb.ContainerDescription) -> Executor | None:
        need = Amount.of_container(description.resources)
        function = description.function
        found = self._fleet.candidates(need, function.namespace, "", function.function_name)
        return found[0] if found else None

    def _fill(self, pool: Pool) -> None:
        if not self._fleet.refill.may((pool.namespace, pool.id)):
            return
        siblings = self._fleet.members(pool.namespace, pool.id)
        warm = [container for container in siblings if container.sandbox_id is None]
        room = math.inf if pool.max_containers is None else pool.max_containers - len(siblings)
        for _ in range(int(min(pool.warm_containers - len(warm), room))):
            description = describe(self._world.fresh_id(), pool.namespace, pool.spec, sandbox_id=None, pool_id=pool.id)
            executor = self._executor_for(description)
            if executor is None:
                return
            self._fleet.place(executor, description)
        surplus = max(len(warm) - pool.warm_containers, -room if room < 0 else 0)
        for container in sorted(warm, key=lambda c: (c.state == "running", -c.created_at_clock))[: int(surplus)]:
            self._fleet.unwant(container)


def reason_text(reason: int) -> str:
    """The name of a termination reason as outcomes spell it."""
    names = {value: name for name, value in pb.ContainerTerminationReason.items()}
    name = names.get(reason, "UNKNOWN").removeprefix("CONTAINER_TERMINATION_REASON_")
    return "".join(word.capitalize() for word in name.split("_"))
