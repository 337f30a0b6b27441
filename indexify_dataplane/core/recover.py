"""What to do with the records of an earlier life of this node, given what its drivers still have.

The record is written before the driver acts and the driver marks a container before it exists, so:

    record        driver has it alive      driver has its remains      driver knows nothing
    Queued        kill                     kill                        goes on waiting, in its old place
    Starting      finish the start         kill, start failed; start   start it (a function that dies with its node
                                           it if it never ran, or is   may have run its constructor: dead)
                                           being removed
    Aborting      kill                     kill                        dead
    Running       keep; rules and rest     keep; its exit is told      dead, reason unknown
                  are put back
    Snapshotting  take it again            take it from them          dead, the snapshot failed
    Stopping      go on stopping           go on; its exit is told     dead, with the reason it was stopped for
    Killing       kill again               kill again                  kill again (idempotent)
    Terminated    an orphan: kill          kill                        -
    no record     an orphan: kill          kill                        -

A container whose start had failed may come back with an engine that was away while it was to be cleaned up.

Only containers that carry this node's executor id (or the one it had before) are touched.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from types import MappingProxyType

from attrs import evolve, frozen

from . import claims, containers, gpus, snapshots
from .effects import Adopt, CountDeath, Effect, Finalize, KillOrphan, Start, Terminate, Watch
from .events import Due
from .model import (
    Aborting,
    Allocation,
    Container,
    Done,
    Failed,
    FailureReason,
    Finalizing,
    Handle,
    Killing,
    Kind,
    Preparing,
    Queued,
    Running,
    Snapshotting,
    Starting,
    Stopping,
    Terminated,
    TerminationReason,
)
from .node import AllocationWaits, ContainerWaits, Node
from .turn import Turn

Reason = TerminationReason

FATAL_DEATHS = 3
"""A call that was running each of so many times when the node died fails as the function's own error."""


@frozen
class Present:
    """A container that a driver has: its id, the executor that started it, where it is, whether it runs, and whether it
    ever ran; as good as that is one that is being removed."""

    container_id: str
    executor_id: str
    handle: Handle
    alive: bool
    started: bool = True


def recover(
    node: Node,
    records: Iterable[Container],
    allocation_rows: Iterable[Allocation],
    undelivered: Collection[int],
    present: Iterable[Present],
    now: float,
    earlier_executor_ids: Collection[str] = (),
    renamed: bool = False,
    deaths: Mapping[str, int] = MappingProxyType({}),
) -> tuple[Node, tuple[Effect, ...]]:
    """Rebuild ``node`` (empty but for its rules, GPUs and counters). ``undelivered``: ids of the reports in the outbox.

    ``earlier_executor_ids``: ids this node had under other configurations. ``renamed``: it has a new one since the
    records were written; their containers are stopped and reported. ``deaths``: how often each function call was
    running when the node died; the third time it is taken to be the cause.
    """
    mine = {node.executor_id, *earlier_executor_ids}
    found = {each.container_id: each for each in present if each.executor_id in mine}
    turn = Turn(evolve(node, gpus=frozenset(node.free_gpus)), now)
    rows = tuple(allocation_rows)
    # The report of their end says of these that they are dead, so they must be.
    blamed = {each.spec.container_id for each in rows if not isinstance(each.state, Done)}
    # Their functions were loaded, or not yet asked for: a call that waits there is no suspect.
    harmless: set[str] = set()
    queued: list[Container] = []
    for container in records:
        if isinstance(container.state, Running | Queued):
            harmless.add(container.id)
        taken = set(container.gpus)
        turn.node = evolve(turn.node, free_gpus=tuple(gpu for gpu in turn.node.free_gpus if gpu not in taken))
        _container(turn, container, found.pop(container.id, None), undelivered, container.id in blamed)
        if isinstance(turn.node.containers[container.id].state, Queued):
            queued.append(container)
    _queue(turn, queued)
    for orphan in found.values():
        turn.do(KillOrphan(orphan.handle))
    for allocation in rows:
        _allocation(turn, allocation, undelivered, deaths, allocation.spec.container_id in harmless)
    if renamed:
        containers.end_all(turn)
    return turn.node, tuple(turn.effects)


def _queue(turn: Turn, queued: list[Container]) -> None:
    """Those that wait for GPUs take their places again. The host may have fewer devices than before: who would wait for
    nothing is refused."""
    for container in sorted(queued, key=lambda each: each.op):
        if gpus.shortage(turn.node, container.spec) is None:
            gpus.enqueue(turn, container.id)
        else:
            containers.terminated(turn, container, Reason.STARTUP_FAILED_INTERNAL_ERROR)
    containers.serve(turn)


def _container(
    turn: Turn, container: Container, present: Present | None, undelivered: Collection[int], blamed: bool
) -> None:
    driver = turn.node.rules.drivers.get(container.spec.kind)
    dies_with_node = driver is not None and not driver.survives_node
    function = container.spec.kind is Kind.FUNCTION
    alive = present is not None and present.alive
    turn.put(container)
    for upload_uri in container.unswept:
        turn.sweep(container, upload_uri)
    match container.state:
        case Terminated(_, at, report):
            if present is not None:
                turn.do(KillOrphan(present.handle))
            if report is not None and report in undelivered:
                waiting = turn.node.unacknowledged.set(report, ContainerWaits(container.id))
                turn.node = evolve(turn.node, unacknowledged=waiting)
            else:
                turn.put(evolve(container, state=evolve(container.state, report=None)))
                turn.alarm(max(turn.now, at + turn.node.rules.forget_after), Due(container.id))
        case Queued(_, until):
            if present is not None:
                containers.kill(turn, container, present.handle, Reason.UNKNOWN)
            elif blamed:
                containers.terminated(turn, container, Reason.UNKNOWN)
            else:
                turn.alarm(max(turn.now, until), Due(container.id))
        case Starting():
            over = function and (dies_with_node or blamed)
            if present is None and over:
                containers.terminated(turn, container, Reason.UNKNOWN)
            elif present is None or not (over or present.started):
                op = turn.next_op()
                turn.put(evolve(container, op=op))
                turn.do(Start(container.id, op, container.spec, container.gpus))
            elif alive and not over:
                op = turn.next_op()
                turn.put(evolve(container, op=op))
                turn.do(Adopt(container.id, op, container.spec, present.handle, container.gpus))
            else:
                died = Reason.UNKNOWN if over else Reason.STARTUP_FAILED_INTERNAL_ERROR
                containers.kill(turn, container, present.handle, died)
            _expiry(turn, container)
        case Aborting(reason):
            if present is None:
                containers.terminated(turn, container, reason)
            else:
                containers.kill(turn, container, present.handle, reason)
        case Running(handle) as running:
            if (function and (dies_with_node or blamed)) or present is None:
                containers.kill(turn, container, handle, Reason.UNKNOWN)
            elif function and alive:
                # Its executor has to be connected to, and asked whether it is free, before it is given anything.
                op = turn.next_op()
                turn.put(evolve(container, op=op, state=Starting(turn.now)))
                turn.do(Adopt(container.id, op, container.spec, handle))
            else:
                claims.resumed(turn, container, running)
                _expiry(turn, container)
                if container.stop_by is not None:
                    turn.alarm(container.stop_by, Due(container.id))
        case Snapshotting(handle):
            if present is None:
                snapshots.lost(turn, container)
            else:
                turn.do(Watch(container.id, container.spec, handle))
                claims.reapply(turn, container, handle)
                snapshots.resume(turn, container)
                _expiry(turn, container)
        case Stopping(handle, reason, kill_at):
            if present is None:
                containers.kill(turn, container, handle, reason)
            else:
                turn.do(Watch(container.id, container.spec, handle))
                turn.do(Terminate(container.id, handle))
                turn.alarm(min(kill_at, turn.now + turn.node.rules.stop_grace), Due(container.id))
        case Killing(handle, reason, answer=answer):
            containers.kill(turn, container, handle, reason, answer)


def _allocation(
    turn: Turn, allocation: Allocation, undelivered: Collection[int], deaths: Mapping[str, int], container_ran: bool
) -> None:
    match allocation.state:
        case Done(report):
            if report in undelivered:
                waiting = turn.node.unacknowledged.set(report, AllocationWaits(allocation.id))
                finished = turn.node.finished.set(allocation.id, None)
                turn.node = evolve(turn.node, unacknowledged=waiting, finished=finished)
            else:
                turn.forget_allocation(allocation.id)
        case _:
            # It died with the node. Retried for free, unless it seems to be what kills the node: by running, or by
            # what its function does while it is loaded. One that waited beside others is no suspect.
            reason = FailureReason.CONTAINER_TERMINATED
            if not (isinstance(allocation.state, Preparing) and container_ran):
                call = allocation.spec.function_call_id
                count = deaths.get(call, 0) + 1
                turn.do(CountDeath(call, count))
                if count >= FATAL_DEATHS:
                    reason = FailureReason.FUNCTION_ERROR
            outcome = Failed(reason, blame_container=True)
            turn.put_allocation(evolve(allocation, state=Finalizing(outcome)))
            turn.do(Finalize(evolve(allocation, state=Finalizing(outcome)), outcome))


def _expiry(turn: Turn, container: Container) -> None:
    if container.expires_at is not None:
        turn.alarm(container.expires_at, Due(container.id))
