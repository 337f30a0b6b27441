"""What is done for a function run when no executor has room for a container of it.

On one machine two waits would hold up an application of a few functions. A caller keeps its container while it waits
for its calls, so callers may fill the machine, or their function's ``max_containers``, and then wait for ever: a call
for which somebody waits gets a container although there is no room when no container that could take it gets free by
itself. And containers that nobody uses are kept for a while, in the way of functions that have none: they are ended.

A container may be handed more runs than it has slots; the others wait for a slot on its node. No caller that is known
here waits for them, so they hold up nobody who has a container, and a container waits for calls no less for them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

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


def is_awaited(run: FunctionRun) -> bool:
    """Whether a caller of the run, at any distance, still runs: it may wait for the run's value."""
    return any(caller.status == "running" for caller in _callers(run))


def may_be_awaited(run: FunctionRun) -> bool:
    """Whether a caller of the run, at any distance, is not over: it may wait for the run's value, or will when it is
    tried again, perhaps in the same container."""
    return any(caller.status != "completed" for caller in _callers(run))


def _callers(run: FunctionRun) -> Iterator[FunctionRun]:
    while run.parent_id is not None:
        run = run.request.runs[run.parent_id]
        yield run


def are_stuck(containers: Iterable[Container]) -> bool:
    """Whether no slot of the containers, all of which are taken, gets free by itself."""
    return all(is_stuck(container) for container in containers)


def is_stuck(container: Container) -> bool:
    """Whether everything that runs in the container, of whatever request, is a caller whose calls are not over. One
    that was called off does not wait any more.

    Which of more runs than slots do run is up to the node. With as many such callers as slots the others are taken to
    wait behind them: a mistake costs a container too many, the opposite one might hold up a call for ever.
    """
    missing = min(len(container.allocations), container.description.max_concurrency)
    for each in container.allocations.values():
        if not missing:
            break
        missing -= each.outcome is None and _waits(each.run)
    return not missing


def _waits(run: FunctionRun) -> bool:
    """Whether a call of the run has no value yet. The newest is looked at first: with many calls it ends last."""
    children = (run.request.runs[child_id] for child_id in reversed(run.children))
    return any(child.value is None and child.outcome != "failure" for child in children)


def has_room(executor: Executor, container: Container, *, ahead: bool = False) -> bool:
    """Whether a run for which nobody waits may go into the container. The idle ones beyond the executor's capacity are
    kept for awaited calls: taken by callers, they would bring ever more of them. A busy one that is handed a run
    ``ahead`` of a slot is judged as if it were idle already, else it would never get so."""
    free = executor.free
    if Amount().fits_into(free) or (container.allocations and not ahead):
        return True
    for other in executor.containers.values():
        if other.lives and not other.is_sandbox and (other is container or not other.allocations):
            free.add(Amount.of_container(other.description.resources))
    return Amount.of_container(container.description.resources).fits_into(free)


def crowded(executors: Iterable[Executor], need: Amount) -> Executor | None:
    """Where a container goes for which there is no room: the least loaded executor that could take it if it were
    empty. GPUs are never shared."""
    able = [
        executor
        for executor in executors
        if need.fits_into(executor.capacity) and (not need.gpus or need.gpus <= executor.free.gpus)
    ]
    return min(able, key=lambda executor: (len(executor.containers), executor.id), default=None)


def held_by_callers(executors: Iterable[Executor], need: Amount) -> list[Container]:
    """The containers that hold the GPUs which ``need`` lacks, on every executor that has so many, if none of them gets
    free by itself: each runs nothing but callers whose calls are not over. Else none."""
    holders: list[Container] = []
    for executor in executors:
        if not need.gpus or not need.fits_into(executor.capacity):
            continue
        for container in executor.containers.values():
            if not container.description.resources.gpu.count:
                continue
            if not container.lives or not container.allocations or not is_stuck(container):
                return []
            holders.append(container)
    return holders
