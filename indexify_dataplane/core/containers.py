"""The life of a container, function or sandbox alike.

    AddContainer ─▶ Starting ─▶ Running ─▶ Stopping ─▶ Killing ─▶ Terminated ─▶ (forgotten)
                       │           └──── died, unhealthy ──▲
                       └▶ Aborting ─ started late ─────────┘   (start failed ─▶ Terminated)

Before Starting there may be Queued, for GPUs that others still hold (``gpus``); it ends in Starting or Terminated.
(From Running also to Snapshotting, which ends in Killing or back in Running: ``snapshots``.)

A start that is under way is never abandoned: a removal makes it Aborting, and only the driver's answer, whatever it
is, ends that state. So a record exists as long as something may be alive, and a late result always finds its record.
Interleaving: RemoveContainer, CancelStart, Started (the driver was faster) -> Aborting + Started -> Killing.
"""

from __future__ import annotations

from attrs import evolve

from . import allocations, claims, gpus
from .effects import (
    CancelSnapshot,
    CancelStart,
    Kill,
    KillOrphan,
    Start,
    Terminate,
    Unwatch,
    Watch,
)
from .events import Due, Exited, Killed, KillFailed, Started, StartFailed, Unhealthy
from .model import (
    Aborting,
    Container,
    ContainerSpec,
    ContainerTerminated,
    ExitStatus,
    Handle,
    Killing,
    Kind,
    Queued,
    Running,
    SandboxSpec,
    SnapshotAnswer,
    SnapshotFailed,
    Snapshotting,
    Starting,
    Stopping,
    Terminated,
    TerminationReason,
)
from .node import ContainerWaits, Node
from .turn import Turn

Reason = TerminationReason


def add(turn: Turn, spec: ContainerSpec) -> None:
    """AddContainer. The server repeats it for every container it believes to be starting, and after a full sync."""
    container = turn.node.containers.get(spec.id)
    if container is None:
        begin(turn, spec)
        return
    match container.state:
        case Starting() | Running():
            if spec.sandbox is not None and container.spec.kind is Kind.SANDBOX:
                claims.redescribe(turn, container, spec.sandbox)
        case Terminated(reason, _, report):
            # A repeat that crossed with our report, or a server that took a dying container over in a full sync.
            # It starts nothing; should the server have lost the report, it gets it again.
            if report is None:
                number = turn.report(ContainerTerminated(container.id, reason), ContainerWaits(container.id))
                turn.put(evolve(container, state=evolve(container.state, report=number)))


def begin(turn: Turn, spec: ContainerSpec) -> None:
    """Start a container that is not here, or refuse it with a report."""
    if refusal(turn.node, spec) is not None:
        if spec.kind is Kind.FUNCTION and not turn.node.draining:
            # Allocations for it may be on their way. They fail as a start that failed, which costs an attempt: retried
            # for free they would come back for ever.
            refused = Container(spec, Starting(turn.now), op=turn.next_op())
            terminated(turn, refused, Reason.STARTUP_FAILED_INTERNAL_ERROR)
        else:
            turn.report(ContainerTerminated(spec.id, Reason.STARTUP_FAILED_INTERNAL_ERROR))
        return
    if not gpus.must_wait(turn.node, spec):
        _start(turn, spec)
        return
    until = turn.now + gpus.patience(turn.node, spec)
    turn.put(Container(spec, Queued(turn.now, until), op=turn.next_op()))
    gpus.enqueue(turn, spec.id)
    turn.alarm(until, Due(spec.id))


def _start(turn: Turn, spec: ContainerSpec) -> None:
    held = gpus.take(turn, spec)
    op = turn.next_op()
    claimed_at = turn.now if spec.sandbox_id is not None else None
    container = turn.put(Container(spec, Starting(turn.now), op=op, claimed_at=claimed_at, gpus=held))
    turn.do(Start(spec.id, op, spec, held))
    set_expiry_alarm(turn, container)


def serve(turn: Turn) -> None:
    """Start those that wait for GPUs, in their order, as far as the devices go."""
    while (first := gpus.next_served(turn.node)) is not None:
        gpus.dequeue(turn, first.id)
        _start(turn, first.spec)


def refusal(node: Node, spec: ContainerSpec) -> str | None:
    """Why this node will not start ``spec``, in words for the log; None if it will."""
    rules = node.rules
    driver = rules.drivers.get(spec.kind)
    if node.draining:
        return "the node is being drained"
    if driver is None:
        return f"this node runs no {spec.kind.value} containers"
    if spec.kind is Kind.FUNCTION and not rules.allows(spec.function):
        return "the function is not in this node's allow-list"
    if spec.sandbox is not None and spec.sandbox.network_policy is not None and not driver.enforces_policies:
        return "the driver cannot enforce a network policy here"
    shortage = gpus.shortage(node, spec)
    if shortage is not None:
        return shortage
    if spec.sandbox_id is not None:
        other = node.sandboxes.get(spec.sandbox_id)
        if other is not None and other != spec.id and _is_live(node.containers[other]):
            return f"sandbox {spec.sandbox_id} is served by container {other} already"
    return None


def _is_live(container: Container) -> bool:
    return not isinstance(container.state, Terminated)


def remove(turn: Turn, container_id: str) -> None:
    """RemoveContainer. Sandboxes get their grace, functions are killed at once."""
    container = turn.node.containers.get(container_id)
    if container is None:
        return
    if isinstance(container.state, Terminated) and not container.unswept:
        turn.forget(container)
        return
    container = turn.put(evolve(container, removal_ordered=True))
    if not isinstance(container.state, Snapshotting):  # a snapshot that was ordered before is taken before
        end(turn, container, Reason.FUNCTION_CANCELLED)


def end(turn: Turn, container: Container, reason: TerminationReason) -> None:
    """Bring a container down for ``reason``, unless it is going down already."""
    match container.state:
        case Queued():
            terminated(turn, container, reason)
        case Starting():
            turn.put(evolve(container, state=Aborting(reason, turn.now)))
            turn.do(CancelStart(container.id, container.op))
            allocations.container_lost(turn, container.id, reason)
        case Running(handle):
            if container.spec.kind is Kind.FUNCTION:
                kill(turn, container, handle, reason)
                return
            _refuse_ordered(turn, container)
            kill_at = turn.now + turn.node.rules.stop_grace
            turn.put(evolve(container, state=Stopping(handle, reason, kill_at)))
            turn.do(Terminate(container.id, handle))
            turn.alarm(kill_at, Due(container.id))
        case Snapshotting(handle, snapshot_id=snapshot_id, upload_uri=upload_uri):
            turn.do(CancelSnapshot(container.id, container.op))
            container = turn.sweep(container, upload_uri)
            message = "the node stops all its containers, the snapshot was given up"
            kill(turn, container, handle, reason, SnapshotFailed(container.id, snapshot_id, message))


def end_all(turn: Turn) -> None:
    """Bring every container down. One's end may change another, so each is looked at when it has its turn."""
    for container_id in sorted(turn.node.containers):
        end(turn, turn.node.containers[container_id], Reason.FUNCTION_CANCELLED)


def _refuse_ordered(turn: Turn, container: Container) -> None:
    """It ends before the claim that a snapshot waits for is carried out."""
    if isinstance(container.state, Running) and container.state.ordered is not None:
        turn.answer(SnapshotFailed(container.id, container.state.ordered[0], "container not in running state"))


def kill(
    turn: Turn, container: Container, handle: Handle, reason: TerminationReason, answer: SnapshotAnswer | None = None
) -> None:
    """End its whole tree. Also for one that is dead by itself: only then is all that it held released. ``answer`` is
    reported after its end."""
    _refuse_ordered(turn, container)
    op = turn.next_op()
    turn.put(evolve(container, state=Killing(handle, reason, answer=answer), op=op))
    turn.do(Unwatch(container.id))
    turn.do(Kill(container.id, op, handle))
    allocations.container_lost(turn, container.id, reason)


def update(turn: Turn, container_id: str, sandbox: SandboxSpec | None) -> None:
    """UpdateContainerDescription: a claim, or (after every sandbox start) a repeat without a change."""
    container = turn.node.containers.get(container_id)
    if container is not None and sandbox is not None and container.spec.kind is Kind.SANDBOX:
        claims.redescribe(turn, container, sandbox)


def started(turn: Turn, event: Started) -> None:
    container = turn.node.containers.get(event.container_id)
    if container is None or container.op != event.op:
        turn.do(KillOrphan(event.handle))
        return
    match container.state:
        case Starting(_, outdated):
            running = Running(event.handle, turn.now, claiming=outdated)
            container = turn.put(evolve(container, state=running))
            turn.do(Watch(container.id, container.spec, event.handle))
            claims.started(turn, container, running)
            due(turn, container.id)
            allocations.container_running(turn, container.id)
        case Aborting(reason):
            kill(turn, container, event.handle, reason)
        case _:
            turn.do(KillOrphan(event.handle))


def start_failed(turn: Turn, event: StartFailed) -> None:
    container = turn.node.containers.get(event.container_id)
    if container is None or container.op != event.op:
        return
    match container.state:
        case Starting():
            terminated(turn, container, event.reason)
        case Aborting(reason):
            terminated(turn, container, reason)


def killed(turn: Turn, event: Killed) -> None:
    container = turn.node.containers.get(event.container_id)
    if container is not None and container.op == event.op and isinstance(container.state, Killing):
        terminated(turn, container, container.state.reason, container.state.answer)


def kill_failed(turn: Turn, event: KillFailed) -> None:
    """A kill is tried until it succeeds: what cannot be killed is not reported as dead."""
    container = turn.node.containers.get(event.container_id)
    if container is None or container.op != event.op or not isinstance(container.state, Killing):
        return
    rules = turn.node.rules
    wait = min(rules.kill_retry_most, rules.kill_retry_first * 2 ** min(container.state.attempt - 1, 16))
    retry_at = turn.now + wait
    turn.put(evolve(container, state=evolve(container.state, attempt=container.state.attempt + 1, retry_at=retry_at)))
    turn.alarm(retry_at, Due(container.id))


def exited(turn: Turn, event: Exited) -> None:
    container = turn.node.containers.get(event.container_id)
    if container is None or container.handle is None or container.handle.id != event.handle_id:
        return
    match container.state:
        case Running(handle):
            kill(turn, container, handle, reason_of_exit(container.spec.kind, event.status))
        case Stopping(handle, reason):
            kill(turn, container, handle, reason)
        case Snapshotting():
            # What it wrote is still there: the copy goes on.
            turn.put(evolve(container, state=evolve(container.state, exited=event.status)))


def unhealthy(turn: Turn, event: Unhealthy) -> None:
    container = turn.node.containers.get(event.container_id)
    if container is None or not isinstance(container.state, Running) or container.state.handle.id != event.handle_id:
        return
    kill(turn, container, container.state.handle, Reason.UNHEALTHY)


def due(turn: Turn, container_id: str) -> None:
    """Whatever time has brought about for this container. Early and repeated alarms are harmless."""
    container = turn.node.containers.get(container_id)
    if container is None:
        return
    now = turn.now
    match container.state:
        case Running() as running:
            if container.expires_at is not None and now >= container.expires_at:
                end(turn, container, Reason.FUNCTION_TIMEOUT)
            elif container.stop_by is not None and now >= container.stop_by:
                end(turn, container, Reason.FUNCTION_CANCELLED)
            else:
                claims.rest(turn, container, running)
        case Stopping(handle, reason, kill_at) if now >= kill_at:
            kill(turn, container, handle, reason)
        case Queued(_, until) if now >= until:
            terminated(turn, container, Reason.STARTUP_FAILED_INTERNAL_ERROR)
        case Killing(handle, _, _, retry_at) if retry_at is not None and now >= retry_at:
            op = turn.next_op()
            turn.put(evolve(container, state=evolve(container.state, retry_at=None), op=op))
            turn.do(Kill(container.id, op, handle))
        case Terminated(_, at, report) if report is None and now >= at + turn.node.rules.forget_after:
            if not container.unswept:
                turn.forget(container)


def terminated(
    turn: Turn, container: Container, reason: TerminationReason, answer: SnapshotAnswer | None = None
) -> None:
    """The end: reported exactly once, after everything is gone, before the answer to its snapshot. The record stays,
    so that an AddContainer that crossed with the report is not taken for a new order; the server's RemoveContainer, or
    time, ends it."""
    number = turn.report(ContainerTerminated(container.id, reason), ContainerWaits(container.id))
    gpus.give_back(turn, container.gpus)
    gpus.dequeue(turn, container.id)
    if answer is not None:
        turn.answer(answer)
        container = evolve(container, answered=answer)
    container = evolve(container, state=Terminated(reason, turn.now, number), gpus=())
    turn.put(container)
    allocations.container_lost(turn, container.id, reason)
    serve(turn)


def delivered(turn: Turn, container_id: str, report: int) -> None:
    """The server knows that this container is dead."""
    container = turn.node.containers.get(container_id)
    if container is None or not isinstance(container.state, Terminated) or container.state.report != report:
        return
    turn.put(evolve(container, state=evolve(container.state, report=None)))
    turn.alarm(max(turn.now, container.state.at + turn.node.rules.forget_after), Due(container.id))


def reason_of_exit(kind: Kind, status: ExitStatus) -> TerminationReason:
    """What an exit that nobody ordered means. A sandbox's daemon ends with 0 only when it was told to end."""
    if status.oom:
        return Reason.OOM
    if kind is Kind.FUNCTION:
        return Reason.PROCESS_CRASH
    if status.code == 0:
        return Reason.FUNCTION_TIMEOUT
    if status.code == 143 or status.signal == 15:
        return Reason.FUNCTION_CANCELLED
    if status.code is None and status.signal is None:
        return Reason.UNKNOWN
    return Reason.PROCESS_CRASH


def set_expiry_alarm(turn: Turn, container: Container) -> None:
    if container.expires_at is not None:
        turn.alarm(container.expires_at, Due(container.id))
