"""The executors, their containers, and the commands that follow from what was touched.

Commands are gathered while one request is processed and sent at its end in the real server's order: RemoveContainer,
UpdateContainerDescription, AddContainer, RunAllocation, SnapshotContainer; KillAllocation, which the real server never
sends, goes behind RunAllocation. They follow from which container records were touched, so all of them repeat in normal
operation, as the real server's do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from twisted.logger import Logger

from indexify_dataplane.wireproto import executor_api_pb2 as pb

from .alarm import Alarm
from .outbox import Outbox
from .refill import Refill
from .state import Allocation, Amount, Container, Executor, Snapshot, World

log = Logger()


class Fleet:
    """Keeps executors and containers in step with each other and turns touched records into commands."""

    def __init__(self, world: World, wake: Callable[[], None]) -> None:
        self._world = world
        self.refill = Refill(world.clock, wake)
        self._removals: dict[str, tuple[str, str]] = {}
        self._updates: dict[str, Container] = {}
        self._additions: dict[str, Container] = {}
        self._runs: dict[str, tuple[Allocation, pb.Allocation]] = {}
        self._kills: dict[str, Allocation] = {}
        self._snapshots: dict[str, Snapshot] = {}

    # Executors

    def executor(self, executor_id: str) -> Executor:
        """The record of an executor, made on first contact; it is not known until its full sync."""
        found = self._world.executors.get(executor_id)
        if found is None:
            clock = self._world.clock
            found = Executor(executor_id, Outbox(clock), Outbox(clock), Alarm(clock))
            self._world.executors[executor_id] = found
        return found

    def known(self, executor_id: str | None) -> Executor | None:
        """The executor if it is registered."""
        executor = self._world.executors.get(executor_id or "")
        return executor if executor is not None and executor.known else None

    def registered(self) -> Iterable[Executor]:
        return (executor for executor in self._world.executors.values() if executor.known)

    def candidates(self, need: Amount, namespace: str, application: str, function: str) -> list[Executor]:
        """Registered executors that may and can take a container, the least loaded first."""
        permitted = self.permitted(namespace, application, function)
        fitting = [executor for executor in permitted if need.fits_into(executor.free)]
        return sorted(fitting, key=lambda executor: (len(executor.containers), executor.id))

    def permitted(self, namespace: str, application: str, function: str) -> list[Executor]:
        """Registered executors whose allowlists admit the function."""
        return [e for e in self.registered() if allows(e, namespace, application, function)]

    # Containers

    def place(self, executor: Executor, description: pb.ContainerDescription) -> Container:
        """Record a new container on ``executor`` and order its start."""
        container = Container(
            description.id, executor.id, description, Alarm(self._world.clock), created_at_clock=self._world.tick()
        )
        self._track(executor, container)
        self.touch(container)
        return container

    def adopt(self, executor: Executor, description: pb.ContainerDescription, state: str) -> Container:
        """Take a container that an executor reported and that the server did not track there."""
        before = self._world.containers.get(description.id)
        if before is not None:
            self.forget(before)
        container = Container(
            description.id,
            executor.id,
            description,
            Alarm(self._world.clock),
            state=state,
            created_at_clock=self._world.tick(),
        )
        self._track(executor, container)
        for allocation, _ in self._world.called_off.values():
            if allocation.container_id == container.id:
                allocation.executor_id = executor.id
                container.allocations[allocation.id] = allocation
        self._repeat_kills(container)
        return container

    def _track(self, executor: Executor, container: Container) -> None:
        self._world.containers[container.id] = container
        executor.containers[container.id] = container
        executor.used.add(Amount.of_container(container.description.resources))
        if container.pool_id:
            self._world.members.setdefault(container.pool_key, {})[container.id] = container

    def _free(self, container: Container) -> None:
        """Give the container's resources back; once, because it leaves the executor's list with it."""
        executor = self._world.executors.get(container.executor_id)
        if executor is not None and executor.containers.pop(container.id, None) is not None:
            executor.used.add(Amount.of_container(container.description.resources), -1)
            self._world.stirred = True
            members = self._world.members.get(container.pool_key, {})
            members.pop(container.id, None)
            if not members:
                self._world.members.pop(container.pool_key, None)
        for allocation_id in container.allocations:
            self._world.called_off.pop(allocation_id, None)
        container.idle.stop()

    def end(self, container: Container, reason: int) -> None:
        """The container is dead: its resources are free, and a RemoveContainer for it follows."""
        if container.state == "pending" and container.wanted and container.pool_id:
            self.refill.failed(container.pool_key)
        if container.state != "terminated":
            container.state, container.reason = "terminated", reason
        container.wanted = False
        self._free(container)
        self.touch(container)

    def unwant(self, container: Container) -> None:
        """The container should end; it counts until it is reported dead."""
        container.wanted = False
        self._world.stirred = True
        self.touch(container)

    def forget(self, container: Container) -> None:
        """Drop the record, without a command."""
        self._free(container)
        if self._world.containers.get(container.id) is container:
            del self._world.containers[container.id]

    def members(self, namespace: str, pool_id: str) -> list[Container]:
        """The containers of a pool that should live."""
        return [c for c in self._world.members.get((namespace, pool_id), {}).values() if c.lives]

    # Commands

    def touch(self, container: Container, sandbox_changed: bool = False) -> None:
        """Order what the container's record now calls for."""
        if not container.wanted:
            self.remove(container.executor_id, container.id)
        elif container.state == "pending":
            self._additions[container.id] = container
        elif container.is_sandbox and sandbox_changed:
            self._updates[container.id] = container

    def remove(self, executor_id: str, container_id: str) -> None:
        """Order a removal, also of a container that is not tracked."""
        self._removals[container_id] = (executor_id, container_id)

    def repeat(self, container: Container) -> None:
        """Order AddContainer again whatever the state, as after a full sync."""
        self._additions[container.id] = container
        self._repeat_kills(container)

    def _repeat_kills(self, container: Container) -> None:
        """An order that the executor may never have got goes with its end: only the outcome frees the slot."""
        for allocation_id in container.allocations.keys() & self._world.called_off.keys():
            allocation, message = self._world.called_off[allocation_id]
            if not allocation.accepted:
                self._runs[allocation_id] = (allocation, message)
            self._kills[allocation_id] = allocation

    def run(self, allocation: Allocation, message: pb.Allocation) -> None:
        self._runs[allocation.id] = (allocation, message)

    def call_off(self, allocation: Allocation, message: pb.Allocation) -> None:
        """Order the end of an allocation, which ``message`` ordered. Its slot stays taken until the executor's outcome
        comes: whatever went there before would wait behind it. One that was never ordered is just not."""
        container = self._world.containers.get(allocation.container_id)
        if not allocation.sent:
            self._runs.pop(allocation.id, None)
            self.vacate(allocation)
        elif container is None and self.known(allocation.executor_id) is None:
            # The server was restarted and has yet to hear what the executor still has.
            self._world.called_off[allocation.id] = (allocation, message)
        elif container is not None and container.state != "terminated":
            self._world.called_off[allocation.id] = (allocation, message)
            self._kills[allocation.id] = allocation

    def ended(self, allocation_id: str) -> None:
        """The executor tells the outcome of an allocation: if it was called off, its slot is free now."""
        called_off = self._world.called_off.pop(allocation_id, None)
        if called_off is not None:
            self._kills.pop(allocation_id, None)
            self.vacate(called_off[0])

    def vacate(self, allocation: Allocation) -> None:
        """The allocation takes up its slot no more."""
        self._world.stirred = True
        container = self._world.containers.get(allocation.container_id)
        if container is not None:
            container.allocations.pop(allocation.id, None)
            if container.lives and not container.allocations:
                self._world.idle[container.id] = container

    def snapshot(self, snapshot: Snapshot) -> None:
        self._snapshots[snapshot.id] = snapshot

    def flush(self) -> None:
        """Send what was gathered and answer the polls that wait for it."""
        touched: dict[str, Executor] = {}

        def put(executor_id: str, command: pb.Command) -> None:
            executor = self.known(executor_id)
            if executor is not None:
                executor.commands.put(command)
                touched[executor_id] = executor

        for executor_id, container_id in self._removals.values():
            put(executor_id, pb.Command(remove_container=pb.RemoveContainer(container_id=container_id)))
        for container in self._updates.values():
            if container.lives:
                update = pb.UpdateContainerDescription(
                    container_id=container.id, sandbox_metadata=container.description.sandbox_metadata
                )
                put(container.executor_id, pb.Command(update_container_description=update))
        for container in self._additions.values():
            if container.lives:
                addition = pb.AddContainer(container=container.description)
                put(container.executor_id, pb.Command(add_container=addition))
        for allocation, message in self._runs.values():
            if allocation.outcome is None or allocation.id in self._kills:
                put(allocation.executor_id, pb.Command(run_allocation=pb.RunAllocation(allocation=message)))
                allocation.sent = True
        for allocation in self._kills.values():
            holder = self._world.containers.get(allocation.container_id)
            if holder is not None and holder.lives:  # else it ends with its container
                kill = pb.KillAllocation(allocation_id=allocation.id)
                put(allocation.executor_id, pb.Command(kill_allocation=kill))
        for snapshot in self._snapshots.values():
            order = pb.SnapshotContainer(
                container_id=snapshot.container_id, snapshot_id=snapshot.id, upload_uri=snapshot.upload_uri
            )
            put(snapshot.executor_id, pb.Command(snapshot_container=order))
        for batch in (self._removals, self._updates, self._additions, self._runs, self._kills, self._snapshots):
            batch.clear()
        for executor in touched.values():
            executor.commands.wake()

    def acknowledged(self, executor: Executor, commands: list[pb.Command]) -> None:
        """The executor applied ``commands``. A dead container whose removal it has seen needs no record any more."""
        for command in commands:
            if command.HasField("run_allocation"):
                order = command.run_allocation.allocation
                container = self._world.containers.get(order.container_id)
                allocation = container.allocations.get(order.allocation_id) if container is not None else None
                if allocation is not None:
                    allocation.accepted = True
                continue
            container = self._world.containers.get(command.remove_container.container_id)
            if container is not None and container.state == "terminated" and container.executor_id == executor.id:
                self.forget(container)


def allows(executor: Executor, namespace: str, application: str, function: str) -> bool:
    """Whether the executor's allowlist admits the function; an empty list admits everything, and the version of an
    entry has no effect (the real server drops it)."""
    entries = executor.identity.allowed_functions
    return not entries or any(
        (not entry.HasField("namespace") or entry.namespace == namespace)
        and (not entry.HasField("application_name") or entry.application_name == application)
        and (not entry.HasField("function_name") or entry.function_name == function)
        for entry in entries
    )


def labels_match(executor: Executor, expressions: Iterable[str]) -> bool:
    """Whether the executor's labels satisfy all of ``key==value`` and ``key!=value``."""
    labels = executor.identity.labels
    for expression in expressions:
        if "!=" in expression:
            key, _, value = expression.partition("!=")
            if labels.get(key.strip()) == value.strip():
                return False
        else:
            key, _, value = expression.partition("==")
            if labels.get(key.strip()) != value.strip():
                return False
    return True
