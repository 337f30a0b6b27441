"""The one function that decides: ``step(node, event, now) -> (node, effects)``. Pure and total."""

from __future__ import annotations

from attrs import evolve

from . import allocations, claims, containers, snapshots
from .effects import Discard, Effect
from .events import (
    AddContainer,
    Called,
    ChildResult,
    Command,
    Commanded,
    Conformed,
    ConformFailed,
    Delivered,
    DrainAll,
    Due,
    Ended,
    Event,
    Exited,
    Finalized,
    ForgetAnswer,
    ForgetDue,
    Invalid,
    KillAllocation,
    Killed,
    KillFailed,
    Prepared,
    PrepareFailed,
    RemoveContainer,
    RunAllocation,
    SnapshotAttemptFailed,
    SnapshotContainer,
    Snapshotted,
    Started,
    StartFailed,
    Swept,
    Unhealthy,
    UpdateContainer,
    UploadBegun,
)
from .model import (
    Allocation,
    ContainerTerminated,
    Failed,
    FailureReason,
    Preparing,
    SnapshotFailed,
    TerminationReason,
)
from .node import AllocationWaits, ContainerWaits, Node
from .turn import Turn


def step(node: Node, event: Event, now: float) -> tuple[Node, tuple[Effect, ...]]:
    """Decide on one event. ``now``: seconds on the node's monotonic clock."""
    turn = Turn(node, now)
    match event:
        case Commanded(seq, command):
            _command(turn, seq, command)
        case ChildResult():
            allocations.child_result(turn, event)
        case Delivered(report_ids):
            _delivered(turn, report_ids)
        case Started():
            containers.started(turn, event)
        case StartFailed():
            containers.start_failed(turn, event)
        case Killed():
            containers.killed(turn, event)
        case KillFailed():
            containers.kill_failed(turn, event)
        case Exited():
            containers.exited(turn, event)
        case Unhealthy():
            containers.unhealthy(turn, event)
        case Snapshotted():
            snapshots.taken(turn, event)
        case SnapshotAttemptFailed():
            snapshots.failed(turn, event)
        case Swept():
            snapshots.swept(turn, event)
        case Conformed():
            claims.conformed(turn, event)
        case ConformFailed():
            claims.conform_failed(turn, event)
        case Due(container_id):
            containers.due(turn, container_id)
            snapshots.due(turn, container_id)
        case Prepared():
            allocations.prepared(turn, event)
        case PrepareFailed():
            allocations.prepare_failed(turn, event)
        case Ended():
            allocations.ended(turn, event)
        case Called():
            allocations.called(turn, event)
        case UploadBegun():
            allocations.upload_begun(turn, event)
        case Finalized():
            allocations.finalized(turn, event)
        case ForgetDue():
            allocations.forget_due(turn, event)
        case ForgetAnswer():
            snapshots.forget_answer(turn, event)
        case DrainAll():
            turn.node = evolve(turn.node, draining=True)
            containers.end_all(turn)
    if turn.condemned is not None:
        container_id, reason = turn.condemned
        condemned = turn.node.containers.get(container_id)
        if condemned is not None:
            containers.end(turn, condemned, reason)
    return turn.node, tuple(turn.effects)


def _command(turn: Turn, seq: int, command: Command) -> None:
    match command:
        case AddContainer(spec):
            containers.add(turn, spec)
        case RemoveContainer(container_id):
            containers.remove(turn, container_id)
        case UpdateContainer(container_id, sandbox):
            containers.update(turn, container_id, sandbox)
        case SnapshotContainer():
            snapshots.order(turn, command)
        case RunAllocation(spec):
            allocations.run(turn, seq, spec)
        case KillAllocation(allocation_id):
            allocations.kill(turn, allocation_id)
        case Invalid():
            _invalid(turn, command)


def _invalid(turn: Turn, command: Invalid) -> None:
    """Answer what cannot be carried out, so that the server does not wait for ever. A container that is here is not
    harmed by a bad command about it."""
    node = turn.node
    if command.container_id and command.container_id not in node.containers:
        turn.report(ContainerTerminated(command.container_id, TerminationReason.STARTUP_FAILED_INTERNAL_ERROR))
    spec = command.allocation
    if spec is not None and spec.id and spec.id not in node.allocations and spec.id not in node.finished:
        allocation = Allocation(spec, Preparing(turn.now))
        allocations.finish(turn, allocation, Failed(FailureReason.INTERNAL_ERROR))
    if command.unprotected is not None:
        claims.refuse_policy(turn, command.unprotected)
    if command.snapshot is not None:
        order = command.snapshot
        turn.report(SnapshotFailed(order.container_id, order.snapshot_id, command.detail))


def _delivered(turn: Turn, report_ids: tuple[int, ...]) -> None:
    turn.do(Discard(report_ids))
    for report in report_ids:
        waiter = turn.node.unacknowledged.get(report)
        if waiter is None:
            continue
        turn.node = evolve(turn.node, unacknowledged=turn.node.unacknowledged.delete(report))
        match waiter:
            case AllocationWaits(allocation_id):
                allocations.delivered(turn, allocation_id)
            case ContainerWaits(container_id):
                containers.delivered(turn, container_id, report)
