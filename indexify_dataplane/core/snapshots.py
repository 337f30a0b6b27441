"""Snapshots: the copy of a sandbox's file system, with which its life ends.

    Running ─ ordered ─▶ Snapshotting ─ taken ──▶ Killing ─▶ Terminated, then SnapshotCompleted
       ▲                   │  ▲ └ failed, may be tried again: after a pause
       └── failed for good ┘

Each order is answered once, and a repeated order with the same answer. The server ends the sandbox on either answer;
after a failure it is kept until the server removes it, or for ``abandoned_grace``, so that nothing is lost at once.

Interleavings that matter: the sandbox exits while it is copied (what it wrote is still there: the copy goes on, but is
not tried again); it is removed or its lifetime ends (the copy that was ordered before goes on, not tried again
either); the node dies (the next one takes the snapshot again, from the same frozen file system); it dies while it
tidies up after a snapshot that was given up (the record is kept, with the place, until that is done).
"""

from __future__ import annotations

from attrs import evolve

from . import claims, containers
from .effects import TakeSnapshot
from .events import Due, ForgetAnswer, SnapshotAttemptFailed, SnapshotContainer, Snapshotted, Swept
from .model import (
    Container,
    Killing,
    Kind,
    Running,
    SnapshotCompleted,
    SnapshotFailed,
    Snapshotting,
    Terminated,
    TerminationReason,
)
from .turn import Turn

Reason = TerminationReason


def order(turn: Turn, command: SnapshotContainer) -> None:
    """SnapshotContainer. The server repeats it after a full sync for every snapshot that it has no answer to."""
    container = turn.node.containers.get(command.container_id)
    if _is_repeat(turn, container, command):
        return
    if container is None:
        turn.answer(SnapshotFailed(command.container_id, command.snapshot_id, "container not found"))
    else:
        match container.state:
            case Running(claiming=True, ordered=None) as claiming if _possible(turn, container):
                # To the server a claimed sandbox runs at once, so this may come right behind its claim.
                waits = evolve(claiming, ordered=(command.snapshot_id, command.upload_uri))
                turn.put(evolve(container, state=waits))
            case Running(claiming=True, ordered=other) if other is not None:
                message = "another snapshot of the container is being taken"
                turn.answer(SnapshotFailed(container.id, command.snapshot_id, message))
            case Running(handle, since) if _possible(turn, container):
                state = Snapshotting(handle, since, turn.now, command.snapshot_id, command.upload_uri)
                _take(turn, evolve(container, state=state, stop_by=None))
            case Running():
                _answer_failure(turn, container, command.snapshot_id, "snapshots not configured on this dataplane")
            case Snapshotting():
                message = "another snapshot of the container is being taken"
                turn.answer(SnapshotFailed(container.id, command.snapshot_id, message))
            case _:
                turn.answer(SnapshotFailed(container.id, command.snapshot_id, "container not in running state"))


def claimed(turn: Turn, container_id: str) -> None:
    """The claim of a sandbox is carried out: take the snapshot that waited for it."""
    container = turn.node.containers[container_id]
    if isinstance(container.state, Running) and container.state.ordered is not None:
        snapshot_id, upload_uri = container.state.ordered
        turn.put(evolve(container, state=evolve(container.state, ordered=None)))
        order(turn, SnapshotContainer(container_id, snapshot_id, upload_uri))


def _is_repeat(turn: Turn, container: Container | None, command: SnapshotContainer) -> bool:
    """Whether the order is known; then its answer is, or will be, in the outbox."""
    snapshot_id = command.snapshot_id
    state = container.state if container is not None else None
    match state:
        case Snapshotting(snapshot_id=under_way) | Running(ordered=(under_way, _)):
            if under_way == snapshot_id:
                return True
        case Killing(answer=answer):
            if answer is not None and answer.snapshot_id == snapshot_id:
                return True
    answered = turn.node.answers.get(snapshot_id)
    if answered is None and container is not None and container.answered is not None:
        answered = container.answered if container.answered.snapshot_id == snapshot_id else None
    if answered is None or answered.container_id != command.container_id:
        return False
    if not (isinstance(state, Terminated) and state.report is not None):
        turn.report(answered)  # should the server have lost it
    return True


def forget_answer(turn: Turn, event: ForgetAnswer) -> None:
    if event.snapshot_id in turn.node.answers:
        turn.node = evolve(turn.node, answers=turn.node.answers.delete(event.snapshot_id))


def _possible(turn: Turn, container: Container) -> bool:
    driver = turn.node.rules.drivers.get(container.spec.kind)
    return container.spec.kind is Kind.SANDBOX and driver is not None and driver.takes_snapshots


def _take(turn: Turn, container: Container) -> None:
    """Begin the attempt that the state describes."""
    state = container.state
    assert isinstance(state, Snapshotting)
    op = turn.next_op()
    container = turn.put(evolve(container, state=evolve(state, retry_at=None), op=op))
    left = state.began + turn.node.rules.snapshot_timeout - turn.now
    turn.do(TakeSnapshot(container.id, op, state.handle, state.snapshot_id, state.upload_uri, state.attempt, left))


def taken(turn: Turn, event: Snapshotted) -> None:
    container = _under_way(turn, event)
    if container is None:
        return
    state = container.state
    assert isinstance(state, Snapshotting)
    answer = SnapshotCompleted(container.id, state.snapshot_id, state.upload_uri, event.size_bytes)
    containers.kill(turn, container, state.handle, Reason.FUNCTION_CANCELLED, answer)


def failed(turn: Turn, event: SnapshotAttemptFailed) -> None:
    container = _under_way(turn, event)
    if container is None:
        return
    state, rules = container.state, turn.node.rules
    assert isinstance(state, Snapshotting)
    retry_at = turn.now + min(rules.snapshot_retry_most, rules.snapshot_retry_first * 2 ** min(state.attempt - 1, 16))
    if event.retryable and _may_go_on(turn, container, retry_at):
        turn.put(evolve(container, state=evolve(state, attempt=state.attempt + 1, retry_at=retry_at)))
        turn.alarm(retry_at, Due(container.id))
    else:
        _give_up(turn, container, event.message)


def _under_way(turn: Turn, event: Snapshotted | SnapshotAttemptFailed) -> Container | None:
    container = turn.node.containers.get(event.container_id)
    if container is None or container.op != event.op or not isinstance(container.state, Snapshotting):
        return None
    return container


def _may_go_on(turn: Turn, container: Container, at: float) -> bool:
    """Whether one more attempt may begin at ``at``."""
    state, rules = container.state, turn.node.rules
    assert isinstance(state, Snapshotting)
    return (
        state.exited is None
        and not container.removal_ordered
        and state.attempt < rules.snapshot_attempts
        and at < state.began + rules.snapshot_timeout
        and (container.expires_at is None or at < container.expires_at)
    )


def _give_up(turn: Turn, container: Container, message: str) -> None:
    state = container.state
    assert isinstance(state, Snapshotting)
    container = turn.sweep(container, state.upload_uri)
    if state.exited is not None:
        reason = containers.reason_of_exit(container.spec.kind, state.exited)
        answer = SnapshotFailed(container.id, state.snapshot_id, message)
        containers.kill(turn, container, state.handle, reason, answer)
        return
    snapshot_id = state.snapshot_id
    running = Running(state.handle, state.since)
    # Its rules may have been changed while the snapshot was taken, and the answer passed over.
    claims.resumed(turn, turn.put(evolve(container, state=running)), running)
    container = _answer_failure(turn, turn.node.containers[container.id], snapshot_id, message)
    if container.removal_ordered:
        containers.end(turn, container, Reason.FUNCTION_CANCELLED)
    else:
        containers.due(turn, container.id)


def swept(turn: Turn, event: Swept) -> None:
    container = turn.node.containers.get(event.container_id)
    if container is not None and event.upload_uri in container.unswept:
        left = tuple(uri for uri in container.unswept if uri != event.upload_uri)
        turn.put(evolve(container, unswept=left))
        containers.due(turn, container.id)


def _answer_failure(turn: Turn, container: Container, snapshot_id: str, message: str) -> Container:
    """The server ends the sandbox on it; should its removal get lost, the sandbox ends by itself."""
    answer = SnapshotFailed(container.id, snapshot_id, message)
    stop_by = container.stop_by if container.stop_by is not None else turn.now + turn.node.rules.abandoned_grace
    container = turn.put(evolve(container, stop_by=stop_by, answered=answer))
    turn.alarm(stop_by, Due(container.id))
    turn.answer(answer)
    return container


def due(turn: Turn, container_id: str) -> None:
    """The pause between two attempts may be over; or there is no sense any more in waiting for its end."""
    container = turn.node.containers.get(container_id)
    if container is None:
        return
    match container.state:
        case Snapshotting(retry_at=retry_at) if retry_at is not None:
            if turn.now >= retry_at:
                _take(turn, container)


def resume(turn: Turn, container: Container) -> None:
    """The node died during the snapshot and its sandbox, or what is left of it, is still there: take it again."""
    state = container.state
    assert isinstance(state, Snapshotting)
    interrupted = state.retry_at is None
    if not _possible(turn, container):
        _give_up(turn, container, "snapshots not configured on this dataplane")
    elif turn.now >= state.began + turn.node.rules.snapshot_timeout:
        _give_up(
            turn, container, f"not done after {turn.node.rules.snapshot_timeout:g} s, restarts of the node included"
        )
    elif interrupted and state.attempt >= turn.node.rules.snapshot_attempts:
        _give_up(turn, container, f"the node ended during {state.attempt} attempts to take it")
    else:
        _take(turn, evolve(container, state=evolve(state, attempt=state.attempt + interrupted)))


def lost(turn: Turn, container: Container) -> None:
    """The node died during the snapshot and nothing of the sandbox is there any more."""
    state = container.state
    assert isinstance(state, Snapshotting)
    container = turn.sweep(container, state.upload_uri)
    answer = SnapshotFailed(container.id, state.snapshot_id, "the sandbox was lost while the node was down")
    containers.kill(turn, container, state.handle, Reason.UNKNOWN, answer)
