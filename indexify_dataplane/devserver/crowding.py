"""What is done for a function run when no executor has room for a container of it.

On one machine two waits would hold up an application of a few functions. A caller keeps its container while it waits
for its calls, so the callers of nested calls may fill the machine and then wait for each other for ever: a call for
which somebody waits gets its first container although the machine is full. And containers that nobody uses are kept for
a while, in the way of functions that have none yet: they are ended.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from .state import Amount, Container, Executor, FunctionRun


def make_room(executors: Iterable[Executor], need: Amount, retire: Callable[[Container], None]) -> None:
    """End idle containers, the oldest first, until ``need`` fits somewhere once they are gone; those that are on their
    way out already count. ``retire`` ends an idle container unless it has to stay."""
    for executor in executors:
        if not need.fits_into(executor.capacity):
            continue
        soon = executor.free
        for container in executor.containers.values():
            if not container.lives:
                soon.add(Amount.of_container(container.description.resources))
        if need.fits_into(soon):
            return
        idle = [one for one in executor.containers.values() if one.lives and not one.is_sandbox and not one.allocations]
        for container in sorted(idle, key=lambda one: one.created_at_clock):
            retire(container)
            if not container.lives:
                soon.add(Amount.of_container(container.description.resources))
            if need.fits_into(soon):
                return


def is_waited_for(run: FunctionRun, siblings: Iterable[Container]) -> bool:
    """Whether a caller of the run still runs, and the containers that could take it are busy with its callers alone."""
    callers = set()
    parent_id = run.parent_id
    while parent_id is not None:
        parent = run.request.runs[parent_id]
        callers.add(parent)
        parent_id = parent.parent_id
    return any(caller.status == "running" for caller in callers) and all(
        allocation.run in callers for container in siblings for allocation in container.allocations.values()
    )


def crowded(executors: Iterable[Executor], need: Amount) -> Executor | None:
    """Where a container goes for which there is no room: the least loaded executor that could take it if it were
    empty. GPUs are never shared."""
    able = [
        executor
        for executor in executors
        if need.fits_into(executor.capacity) and (not need.gpus or need.gpus <= executor.free.gpus)
    ]
    return min(able, key=lambda executor: (len(executor.containers), executor.id), default=None)
