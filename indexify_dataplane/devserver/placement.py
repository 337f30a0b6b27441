"""Where function runs go, and how many function containers there are."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from twisted.logger import Logger

from indexify_dataplane.wireproto import executor_api_pb2 as pb

from .crowding import (
    are_stuck,
    crowded,
    has_room,
    held_by_callers,
    is_awaited,
    is_stuck,
    make_room,
    may_be_awaited,
)
from .events import Story
from .fleet import Fleet, labels_match
from .runs import Runs
from .sandboxes import wire_resources
from .state import Allocation, Amount, Application, Container, FunctionRun, World

log = Logger()


class Placement:
    """Places runs on function containers, starts containers for those that find no slot, and ends idle ones.

    A container beyond its pool's floor is removed ``idle_secs`` after its last allocation; the real server removes it
    at once (0). ``settle`` is called after a removal that no request caused.

    A container has at most ``queue_size`` times its ``max_concurrency`` allocations. With more than 1 a run that would
    have to wait here waits in a container instead, which then goes on without a round trip when a slot gets free.
    """

    def __init__(
        self,
        *,
        world: World,
        fleet: Fleet,
        runs: Runs,
        story: Story,
        idle_secs: float,
        queue_size: int,
        settle: Callable[[], None],
    ) -> None:
        self._world = world
        self._fleet = fleet
        self._runs = runs
        self._story = story
        self._idle_secs = idle_secs
        self._queue_size = queue_size
        self._settle = settle
        self._ahead_of_nobody = False
        self._told_of_limit: set[tuple[str, str]] = set()
        self._told_of_gpus: dict[tuple[str, str], str] = {}

    def schedule(self) -> None:
        if self._queue_size > 1:
            # A function that has no container gets one when one of another gets idle; with runs at hand none would.
            self._ahead_of_nobody = all(self._fleet.members(*key) for key in self._world.unplaced_runs)
        for key, waiting in list(self._world.unplaced_runs.items()):
            blocked = False
            for run in waiting:
                awaited = is_awaited(run)
                if blocked and not awaited:
                    # Places are the same for all of them, but an awaited run may get one where others have to wait.
                    if not run.depth:
                        break
                    continue
                if self._place(run, key[1], awaited):
                    waiting.leave(run)
                elif awaited:
                    break
                else:
                    blocked = True
            if not waiting:
                self._world.unplaced_runs.pop(key, None)
        for application in self._world.applications.values():
            self._keep_floor(application)
        idle, self._world.idle = self._world.idle, {}
        for container in idle.values():
            self._consider_idle(container)

    def _function(self, namespace: str, application: str, version: str, name: str) -> tuple[Application, Any] | None:
        found = self._world.applications.get((namespace, application))
        deployed = found.versions.get(version) if found is not None else None
        function = deployed.manifest["functions"].get(name) if deployed is not None else None
        return None if found is None or function is None else (found, function)

    def _place(self, run: FunctionRun, pool_id: str, awaited: bool) -> bool:
        request = run.request
        found = self._function(request.namespace, request.application, request.version, run.function)
        if found is None:
            return False
        application, function = found
        siblings = self._fleet.members(request.namespace, pool_id)
        limit = function["max_containers"]
        slots = [c for c in siblings if len(c.allocations) < c.description.max_concurrency and self._admits(c, awaited)]
        if limit is not None and len(siblings) > limit and not awaited:
            # As with the containers beyond the machine's room: those beyond the limit are for awaited calls alone, and
            # while there are such, nothing is handed ahead.
            if sum(1 for c in siblings if c.allocations) >= limit:
                slots = [c for c in slots if c.allocations]
            if not slots:
                return False
        if slots:
            self._assign(run, min(slots, key=lambda c: (c.state != "running", len(c.allocations), c.created_at_clock)))
            return True
        needed = awaited and are_stuck(siblings)
        container = None
        if limit is None or len(siblings) < limit or needed:
            description = self._describe(application, request.version, run.function, function)
            container = self._start(description, function) or self._squeeze(
                run, siblings, description, function, needed
            )
            if container is not None and limit is not None and len(siblings) >= limit:
                self._tell_of_limit(run, pool_id, limit)
        container = container or self._ahead(run, siblings)
        if container is None:
            return False
        self._assign(run, container)
        return True

    def _ahead(self, run: FunctionRun, siblings: list[Container]) -> Container | None:
        """Where the run waits for a slot when there is none: the container with the fewest allocations of those whose
        slots get free by themselves. Not a run that a caller may wait for, which might end up behind that very caller;
        nor in a container that is yet to start or to be adopted, since a start that fails counts for all runs that were
        handed to it; nor while a function waits that has no container at all.
        """
        if self._queue_size == 1 or not self._ahead_of_nobody or may_be_awaited(run):
            return None
        able = [
            container
            for container in siblings
            if container.state == "running"
            and not container.adopting
            and len(container.allocations) < self._queue_size * container.description.max_concurrency
            and (executor := self._fleet.known(container.executor_id)) is not None
            and has_room(executor, container, ahead=True)
            and not is_stuck(container)
        ]
        return min(able, key=lambda c: (len(c.allocations), c.created_at_clock), default=None)

    def _admits(self, container: Container, awaited: bool) -> bool:
        executor = self._fleet.known(container.executor_id)
        return executor is not None and (awaited or has_room(executor, container))

    def _tell_of_limit(self, run: FunctionRun, pool_id: str, limit: int) -> None:
        """Once per deployed function: its author may want to know before it runs where nobody helps."""
        key = (run.request.namespace, pool_id)
        if key not in self._told_of_limit:
            self._told_of_limit.add(key)
            log.warn(
                "all containers of a function wait for calls of it; one beyond max_containers is started",
                namespace=run.request.namespace,
                app=run.request.application,
                fn=run.function,
                max_containers=limit,
            )

    def _tell_of_gpus(self, run: FunctionRun, pool_id: str, need: Amount, holders: list[Container]) -> None:
        """Once per call that waits: no other call helps it, and a caller that waits for its value never ends."""
        key = (run.request.namespace, pool_id)
        if self._told_of_gpus.get(key) != run.id:
            self._told_of_gpus[key] = run.id
            log.warn(
                "a call waits for GPUs that only callers hold; if they wait for their calls it will wait for ever",
                namespace=run.request.namespace,
                app=run.request.application,
                fn=run.function,
                request_id=run.request.id,
                function_call_id=run.id,
                gpus_asked=need.gpus,
                held_by=", ".join(f"{each.description.function.function_name} in {each.id}" for each in holders),
            )

    def _squeeze(
        self,
        run: FunctionRun,
        siblings: list[Container],
        description: pb.ContainerDescription,
        function: Any,
        needed: bool,
    ) -> Container | None:
        """There is no room: do without for a call that would wait for ever, else make some, which takes a while."""
        reference = description.function
        may = [
            executor
            for executor in self._fleet.permitted(
                reference.namespace, reference.application_name, reference.function_name
            )
            if labels_match(executor, function["placement_constraints"]["filter_expressions"])
        ]
        need = Amount.of_container(description.resources)
        executor = crowded(may, need) if needed else None
        if executor is not None:
            return self._fleet.place(executor, description)
        if needed and (holders := held_by_callers(may, need)):
            self._tell_of_gpus(run, description.pool_id, need, holders)
        if needed or not siblings:
            make_room(may, need, self._retire)
        return None

    def _assign(self, run: FunctionRun, container: Container) -> None:
        allocation = Allocation(
            self._world.fresh_id(),
            run,
            container.executor_id,
            container.id,
            len(run.allocations),
            self._world.now_ms(),
        )
        run.allocations.append(allocation)
        run.request.allocations[allocation.id] = allocation
        run.status = "running"
        container.allocations[allocation.id] = allocation
        container.idle.stop()
        self._story.allocation("AllocationCreated", allocation)
        self._fleet.touch(container)
        self._fleet.run(allocation, self.message(allocation))

    def message(self, allocation: Allocation) -> pb.Allocation:
        """The allocation as RunAllocation carries it."""
        return self._runs.order(allocation)

    def _describe(self, application: Application, version: str, name: str, function: Any) -> pb.ContainerDescription:
        return pb.ContainerDescription(
            id=self._world.fresh_id(),
            function=pb.FunctionRef(
                namespace=application.namespace,
                application_name=application.name,
                function_name=name,
                application_version=version,
            ),
            secret_names=function["secret_names"],
            initialization_timeout_ms=function["initialization_timeout_sec"] * 1000,
            allocation_timeout_ms=function["timeout_sec"] * 1000,
            application=application.versions[version].code,
            resources=wire_resources(function["resources"]),
            max_concurrency=function["max_concurrency"],
            container_type=pb.CONTAINER_TYPE_FUNCTION,
            pool_id=f"{application.name}|{name}|{version}",
        )

    def _start(self, description: pb.ContainerDescription, function: Any) -> Container | None:
        need = Amount.of_container(description.resources)
        reference = description.function
        names = (reference.namespace, reference.application_name, reference.function_name)
        for executor in self._fleet.candidates(need, *names):
            if labels_match(executor, function["placement_constraints"]["filter_expressions"]):
                return self._fleet.place(executor, description)
        return None

    def _floor(self, function: Any) -> int:
        floor: int = max(function["min_containers"] or 0, function["warm_containers"] or 0)
        return floor

    def _keep_floor(self, application: Application) -> None:
        for name, function in application.manifest["functions"].items():
            key = (application.namespace, f"{application.name}|{name}|{application.current}")
            if not self._floor(function) or not self._fleet.refill.may(key):
                continue
            members = self._fleet.members(*key)
            free = sum(1 for container in members if not container.allocations)
            missing = max((function["min_containers"] or 0) - len(members), (function["warm_containers"] or 0) - free)
            limit = function["max_containers"]
            room = math.inf if limit is None else limit - len(members)
            for _ in range(int(min(missing, room))):
                description = self._describe(application, application.current, name, function)
                if self._start(description, function) is None:
                    return

    def _consider_idle(self, container: Container) -> None:
        if not container.lives or container.allocations or container.is_sandbox:
            return
        if self._idle_secs <= 0:
            self._retire(container)
            return
        if not container.idle.is_set:

            def idle_for_long() -> None:
                if container.lives and not container.allocations:
                    self._retire(container)
                    self._settle()

            container.idle.set(self._idle_secs, idle_for_long)

    def _retire(self, container: Container) -> None:
        """End an idle container unless its pool needs it for its floor."""
        reference = container.description.function
        application = self._world.applications.get((reference.namespace, reference.application_name))
        if application is not None and reference.application_version == application.current:
            function = application.manifest["functions"].get(reference.function_name)
            members = self._fleet.members(*container.pool_key)
            free = sum(1 for member in members if not member.allocations)
            if function is not None and (
                len(members) <= (function["min_containers"] or 0) or free <= (function["warm_containers"] or 0)
            ):
                return
        self._fleet.unwant(container)
