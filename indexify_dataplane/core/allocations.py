"""The life of an allocation: one-shot, always exactly one outcome.

    RunAllocation ─▶ Preparing ─▶ Waiting ─▶ Executing ─▶ Finalizing ─▶ Done (outcome in the outbox)
                         └── killed, container lost ───────────▲
                                               Executing ─▶ Cancelling ┘

Interleaving that the states decide: an executor's own result and the order to stop race; whoever comes first is
written down, and Cancelling keeps a success that the executor had ready.
"""

from __future__ import annotations

from attrs import evolve

from .effects import CancelRun, Deliver, Finalize, Prepare, Run
from .events import Called, ChildResult, Ended, Finalized, ForgetDue, Prepared, PrepareFailed, UploadBegun
from .model import (
    Aborting,
    Allocation,
    AllocationEnded,
    AllocationScheduled,
    AllocationSpec,
    Cancelling,
    Done,
    Executing,
    Failed,
    FailureReason,
    Finalizing,
    FunctionCalled,
    Killing,
    Kind,
    Outcome,
    Preparing,
    Running,
    Stopping,
    Terminated,
    TerminationReason,
    Waiting,
)
from .node import AllocationWaits, Slots
from .turn import Turn

BLAME = {
    TerminationReason.UNKNOWN: FailureReason.CONTAINER_TERMINATED,
    TerminationReason.STARTUP_FAILED_INTERNAL_ERROR: FailureReason.STARTUP_FAILED_INTERNAL_ERROR,
    TerminationReason.STARTUP_FAILED_FUNCTION_ERROR: FailureReason.STARTUP_FAILED_FUNCTION_ERROR,
    TerminationReason.STARTUP_FAILED_FUNCTION_TIMEOUT: FailureReason.STARTUP_FAILED_FUNCTION_TIMEOUT,
    TerminationReason.STARTUP_FAILED_BAD_IMAGE: FailureReason.STARTUP_FAILED_BAD_IMAGE,
    TerminationReason.UNHEALTHY: FailureReason.FUNCTION_ERROR,
    TerminationReason.PROCESS_CRASH: FailureReason.FUNCTION_ERROR,
    TerminationReason.INTERNAL_ERROR: FailureReason.INTERNAL_ERROR,
    TerminationReason.FUNCTION_TIMEOUT: FailureReason.FUNCTION_TIMEOUT,
    TerminationReason.FUNCTION_CANCELLED: FailureReason.CONTAINER_TERMINATED,
    TerminationReason.OOM: FailureReason.OOM,
}
"""The failure of an allocation whose container ended for this reason while it ran."""

ENDS = {
    FailureReason.FUNCTION_TIMEOUT: TerminationReason.FUNCTION_TIMEOUT,
    FailureReason.ALLOCATION_CANCELLED: TerminationReason.FUNCTION_CANCELLED,
}
"""Why a container ends that would not let go of a run with this failure; UNHEALTHY for any other."""

STARTUP = frozenset(reason for reason in TerminationReason if reason.name.startswith("STARTUP_FAILED"))


def run(turn: Turn, seq: int, spec: AllocationSpec) -> None:
    """RunAllocation. A repeat of a known one, finished or not, does nothing."""
    node = turn.node
    if spec.id in node.allocations or spec.id in node.finished:
        return
    turn.report(AllocationScheduled(spec.id, seq))
    container = node.containers.get(spec.container_id)
    allocation = Allocation(spec, Preparing(turn.now))
    if container is None:
        finish(turn, allocation, Failed(FailureReason.CONTAINER_TERMINATED, blame_container=True))
        return
    match container.state:
        case Terminated(reason) | Killing(_, reason) | Stopping(_, reason) | Aborting(reason):
            # It never began, and the container's end may not have been reported yet: only a failed start counts for it.
            why = BLAME[reason] if reason in STARTUP else FailureReason.CONTAINER_TERMINATED
            finish(turn, allocation, Failed(why, blame_container=True))
            return
    if container.spec.kind is not Kind.FUNCTION:
        finish(turn, allocation, Failed(FailureReason.INTERNAL_ERROR))
        return
    if node.draining:
        finish(turn, allocation, Failed(FailureReason.CONTAINER_TERMINATED))
        return
    turn.put_allocation(allocation, save=True)
    turn.do(Prepare(allocation))


def prepared(turn: Turn, event: Prepared) -> None:
    allocation = turn.node.allocations.get(event.allocation_id)
    if allocation is None or not isinstance(allocation.state, Preparing):
        return
    turn.put_allocation(evolve(allocation, state=Waiting(turn.now)))
    container_id = allocation.spec.container_id
    slots = turn.node.slots.get(container_id, Slots())
    _set_slots(turn, container_id, evolve(slots, waiting=(*slots.waiting, allocation.id)))
    schedule(turn, container_id)


def prepare_failed(turn: Turn, event: PrepareFailed) -> None:
    allocation = turn.node.allocations.get(event.allocation_id)
    if allocation is not None and isinstance(allocation.state, Preparing):
        finalize(turn, allocation, Failed(FailureReason.INTERNAL_ERROR))


def schedule(turn: Turn, container_id: str) -> None:
    """Hand prepared allocations to a running container, first come first served, as far as it has slots."""
    container = turn.node.containers.get(container_id)
    slots = turn.node.slots.get(container_id)
    if container is None or slots is None or not isinstance(container.state, Running):
        return
    timeout_ms = container.spec.allocation_timeout_ms or turn.node.rules.default_allocation_timeout_ms
    while slots.waiting and len(slots.running) < container.spec.slots:
        first, *rest = slots.waiting
        slots = Slots(tuple(rest), slots.running | {first})
        allocation = evolve(turn.node.allocations[first], state=Executing(turn.now))
        # From here on it may be what kills the node; one that only waited beside such a call is never taken for it.
        turn.put_allocation(allocation, save=True)
        turn.do(Run(allocation, container.state.handle, timeout_ms))
    _set_slots(turn, container_id, slots)


container_running = schedule


def kill(turn: Turn, allocation_id: str) -> None:
    """KillAllocation."""
    allocation = turn.node.allocations.get(allocation_id)
    if allocation is not None:
        _stop(turn, allocation, FailureReason.ALLOCATION_CANCELLED, blame=False)


def container_lost(turn: Turn, container_id: str, reason: TerminationReason) -> None:
    """The container will not run anything any more. Those that had not run yet are not to blame for its end."""
    for allocation_id in sorted(turn.node.assigned.get(container_id, ())):
        allocation = turn.node.allocations[allocation_id]
        waiting = not isinstance(allocation.state, Executing)
        why = BLAME[reason] if not waiting or reason in STARTUP else FailureReason.CONTAINER_TERMINATED
        _stop(turn, allocation, why, blame=waiting)


def _stop(turn: Turn, allocation: Allocation, reason: FailureReason, blame: bool) -> None:
    match allocation.state:
        case Preparing() | Waiting():
            finalize(turn, allocation, Failed(reason, blame_container=blame))
        case Executing():
            turn.put_allocation(evolve(allocation, state=Cancelling(reason)))
            turn.do(CancelRun(allocation.id))


def ended(turn: Turn, event: Ended) -> None:
    allocation = turn.node.allocations.get(event.allocation_id)
    if allocation is None:
        return
    match allocation.state:
        case Executing() | Cancelling() if isinstance(event.outcome, Failed) and event.outcome.blame_container:
            _blamed(turn, allocation, event.outcome)
        case Executing():
            finalize(turn, allocation, event.outcome)
        case Cancelling(reason):
            outcome = event.outcome
            if isinstance(outcome, Failed):
                if not outcome.begun and reason is not FailureReason.ALLOCATION_CANCELLED:
                    # It waited for a place in an executor whose end it has no part in.
                    outcome = Failed(FailureReason.CONTAINER_TERMINATED, blame_container=True)
                else:
                    outcome = evolve(outcome, reason=reason)
            finalize(turn, allocation, outcome)


def _blamed(turn: Turn, allocation: Allocation, outcome: Failed) -> None:
    """The executor would not let go of the run, so its container must go before it is given anything else. The others
    that run in it lose their place through no fault of their own and are retried for free."""
    match allocation.state:
        case Cancelling(reason):
            outcome = evolve(outcome, reason=reason)
    finalize(turn, allocation, outcome, reschedule=False)
    container_id = allocation.spec.container_id
    for other in sorted(turn.node.assigned.get(container_id, ())):
        _stop(turn, turn.node.allocations[other], FailureReason.CONTAINER_TERMINATED, blame=True)
    turn.condemned = (container_id, ENDS.get(outcome.reason, TerminationReason.UNHEALTHY))


def called(turn: Turn, event: Called) -> None:
    allocation = turn.node.allocations.get(event.allocation_id)
    if allocation is not None and isinstance(allocation.state, Executing):
        turn.report(FunctionCalled(event.allocation_id, event.request))


def upload_begun(turn: Turn, event: UploadBegun) -> None:
    """Write it down: after a crash nothing else tells that this upload is nobody's any more."""
    allocation = turn.node.allocations.get(event.allocation_id)
    if allocation is not None and isinstance(allocation.state, Executing | Cancelling):
        uploads = (*allocation.uploads, (event.uri, event.upload_id))
        turn.put_allocation(evolve(allocation, uploads=uploads), save=True)


def child_result(turn: Turn, event: ChildResult) -> None:
    """A result for an allocation that is gone is dropped: nobody waits for it."""
    allocation = turn.node.allocations.get(event.allocation_id)
    if allocation is not None and isinstance(allocation.state, Executing):
        turn.do(Deliver(event.allocation_id, event.result))


def finalize(turn: Turn, allocation: Allocation, outcome: Outcome, reschedule: bool = True) -> None:
    """Give its slot to the next, unless its container is not to run anything more, and settle its uploads."""
    container_id = allocation.spec.container_id
    slots = turn.node.slots.get(container_id, Slots())
    waiting = tuple(other for other in slots.waiting if other != allocation.id)
    _set_slots(turn, container_id, Slots(waiting, slots.running - {allocation.id}))
    allocation = evolve(allocation, state=Finalizing(outcome))
    turn.put_allocation(allocation)
    turn.do(Finalize(allocation, outcome))
    if reschedule:
        schedule(turn, container_id)


def finalized(turn: Turn, event: Finalized) -> None:
    allocation = turn.node.allocations.get(event.allocation_id)
    if allocation is not None and isinstance(allocation.state, Finalizing):
        finish(turn, allocation, event.outcome)


def finish(turn: Turn, allocation: Allocation, outcome: Outcome) -> None:
    """Report the one outcome and remember that it was."""
    blamed = allocation.spec.container_id if isinstance(outcome, Failed) and outcome.blame_container else None
    number = turn.report(AllocationEnded(allocation.spec, outcome, blamed), AllocationWaits(allocation.id))
    done = Allocation(allocation.spec, Done(number))
    if allocation.id in turn.node.allocations:
        turn.drop_allocation(allocation)
    turn.node = evolve(turn.node, finished=turn.node.finished.set(allocation.id, None))
    # The row stays until delivery: after a crash a repeated command must still find that it was carried out.
    turn.put_done(done)


def delivered(turn: Turn, allocation_id: str) -> None:
    """The server has the outcome; a command that crossed with it may still come for a while."""
    turn.forget_allocation(allocation_id)
    turn.alarm(turn.now + turn.node.rules.outcome_grace, ForgetDue(allocation_id))


def forget_due(turn: Turn, event: ForgetDue) -> None:
    if event.allocation_id in turn.node.finished:
        turn.node = evolve(turn.node, finished=turn.node.finished.delete(event.allocation_id))


def _set_slots(turn: Turn, container_id: str, slots: Slots) -> None:
    node = turn.node
    if slots.waiting or slots.running:
        turn.node = evolve(node, slots=node.slots.set(container_id, slots))
    elif container_id in node.slots:
        turn.node = evolve(node, slots=node.slots.delete(container_id))
