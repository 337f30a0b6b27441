"""One log line and one count per transition of a container or an allocation, from (event, old, new)."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from twisted.logger import Logger

from .core import containers, gpus
from .core.events import (
    AddContainer,
    Commanded,
    Delivered,
    DrainAll,
    Due,
    Ended,
    Event,
    Exited,
    RunAllocation,
    SnapshotAttemptFailed,
    Snapshotted,
    UpdateContainer,
)
from .core.model import (
    Allocation,
    Completed,
    Container,
    ExitStatus,
    Failed,
    Finalizing,
    Kind,
    Queued,
    Running,
    Snapshotting,
    Starting,
    Terminated,
)
from .core.node import ContainerWaits, Node
from .metrics import Metrics
from .records import state_name

log = Logger()

MESSAGES = {
    "queued": "container waits for GPUs",
    "starting": "container starting",
    "aborting": "container start is being cancelled",
    "running": "container running",
    "snapshotting": "snapshot of a container is being taken",
    "stopping": "container stopping",
    "killing": "container is being killed",
    "terminated": "container terminated",
}


class Transitions:
    """An observer of the reconciliation. ``left_running`` hears of every container that is not Running any more."""

    def __init__(self, *, metrics: Metrics, left_running: Callable[[str], None]) -> None:
        self._metrics = metrics
        self._left_running = left_running

    def __call__(self, before: Node, event: Event, after: Node, now: float) -> None:
        if isinstance(event, Commanded):
            self._command(before, event, after)
        if before.containers is not after.containers:
            for container_id in touched(before, event, after):
                old, new = before.containers.get(container_id), after.containers.get(container_id)
                if old is not new:
                    self._container(event, old, new, now, after)
        if before.allocations is not after.allocations:
            allocation_id = getattr(event, "allocation_id", None)
            if allocation_id is not None:
                self._allocation(before.allocations.get(allocation_id), after.allocations.get(allocation_id))

    def _command(self, before: Node, event: Commanded, after: Node) -> None:
        count = self._metrics.counter
        count("desired_state.received").add()
        match event.command:
            case AddContainer(spec):
                count("desired_state.containers").add()
                if spec.kind is Kind.FUNCTION:
                    count("desired_state.function_executors").add()
                made = after.containers.get(spec.id)
                if spec.id not in before.containers and (made is None or isinstance(made.state, Terminated)):
                    why = containers.refusal(before, spec)
                    log.warn("container refused", container_id=spec.id, reason=why)
            case UpdateContainer(container_id, sandbox):
                sandbox_id = sandbox.sandbox_id if sandbox else None
                old, new = before.containers.get(container_id), after.containers.get(container_id)
                if old is not None and new is not None and old.claimed_at != new.claimed_at:
                    count("sandbox.warm_pool_claims").add()
                    log.info("warm container claimed", container_id=container_id, sandbox_id=sandbox_id)
            case RunAllocation(allocation):
                count("desired_state.allocations").add()
                if allocation.id in after.allocations and allocation.id not in before.allocations:
                    count("allocations_fetched").add()

    def _container(self, event: Event, old: Container | None, new: Container | None, now: float, node: Node) -> None:
        if old is not None and isinstance(old.state, Running) and not (new and isinstance(new.state, Running)):
            self._left_running(old.id)
        shown = new or old
        assert shown is not None
        if new is None:
            log.debug("container forgotten", **ids(shown))
            return
        if old is not None and type(old.state) is type(new.state):
            if isinstance(event, SnapshotAttemptFailed):
                self._metrics.counter("snapshots.attempt_errors").add()
                log.warn("snapshot will be tried again", error=event.message, **ids(new))
            if isinstance(event, Exited) and isinstance(new.state, Snapshotting):
                log.warn("container ended while its snapshot is being taken", **cause(event.status), **ids(new))
            return
        state = state_name(new.state)
        fields: dict[str, Any] = {**ids(new), "event": type(event).__name__}
        fields["from_state"] = state_name(old.state) if old else None
        # What ended one container may be what another one waited for: the story of the end is not the other's.
        own = getattr(event, "container_id", new.id) == new.id
        message = getattr(event, "message", None) if own else None
        if isinstance(event, Due) and own and old is not None and isinstance(old.state, Queued):
            held = ", ".join(each.id for each in gpus.leaving(node)) or "nobody"
            message = f"{len(node.free_gpus)} GPUs are free after {now - old.state.since:.0f} s, others held by {held}"
        if message:
            fields["error"] = message
        if isinstance(event, Exited) and own:
            fields |= cause(event.status)
        by_itself = isinstance(event, Exited) and old is not None and isinstance(old.state, Running)
        reason = getattr(new.state, "reason", None)
        if reason is not None:
            fields["reason"] = reason.name
        kind = new.spec.kind.value
        match new.state:
            case Queued(since, until):
                fields |= waits(node, new) | {"gives_up_after_secs": until - since}
            case Snapshotting():
                fields |= {"snapshot_id": new.state.snapshot_id, "upload_uri": new.state.upload_uri}
            case Running() if old is not None and isinstance(old.state, Snapshotting):
                """It ran before."""
            case Running(handle):
                self._metrics.counter("containers.started", container_type=kind).add()
                fields |= {"handle_id": handle.id, "http_addr": handle.http_address}
                if old is not None and isinstance(old.state, Starting):
                    fields["startup_duration_ms"] = round((now - old.state.since) * 1000, 1)
            case Terminated():
                self._metrics.counter(
                    "containers.terminated", container_type=kind, reason=fields["reason"].lower()
                ).add()
        if old is not None and isinstance(old.state, Snapshotting):
            self._snapshot_ended(event, old.state, now, fields)
        (log.warn if message or by_itself else log.info)(MESSAGES[state], **fields)

    def _snapshot_ended(self, event: Event, state: Snapshotting, now: float, fields: dict[str, Any]) -> None:
        fields |= {"snapshot_id": state.snapshot_id, "attempt": state.attempt}
        outcome = "success" if isinstance(event, Snapshotted) else "failure"
        self._metrics.counter("snapshots.ended", outcome=outcome).add()
        self._metrics.histogram("snapshots.duration_seconds", outcome=outcome).observe(now - state.began)
        if isinstance(event, Snapshotted):
            fields |= {"snapshot_uri": state.upload_uri, "size_bytes": event.size_bytes, "sha256": event.sha256}

    def _allocation(self, old: Allocation | None, new: Allocation | None) -> None:
        if old is None or type(old.state) is type(new.state if new else None):
            return
        if new is not None:
            log.debug("allocation advanced", allocation_id=new.id, state=type(new.state).__name__)
            return
        outcome = old.state.outcome if isinstance(old.state, Finalizing) else None
        labels = {"outcome": "success"} if isinstance(outcome, Completed) else {"outcome": "failure"}
        if isinstance(outcome, Failed):
            labels["failure_reason"] = "".join(part.title() for part in outcome.reason.name.split("_"))
        self._metrics.counter("allocations.completed", **labels).add()
        duration = getattr(outcome, "duration_ms", None)
        if duration is not None:
            self._metrics.histogram("allocations.duration_ms", None, **labels).observe(duration)
        log.info(
            "allocation finished",
            allocation_id=old.id,
            request_id=old.spec.request_id,
            container_id=old.spec.container_id,
            **labels,
        )


def touched(before: Node, event: Event, after: Node) -> Iterable[str]:
    """Ids of the containers that ``event`` can have changed: those it names, and those that have waited for GPUs."""
    named = _named(before, event)
    if before.gpu_queue is after.gpu_queue:
        return named
    return dict.fromkeys((*named, *(each for each in before.gpu_queue if each not in after.gpu_queue)))


def waits(node: Node, container: Container) -> dict[str, Any]:
    """What a queued container waits for: how many GPUs, whose they are, and who is served before it."""
    queue = node.gpu_queue
    return {
        "gpus_asked": gpus.wanted(container.spec),
        "gpus_free": len(node.free_gpus),
        "waits_for": ", ".join(each.id for each in gpus.leaving(node)),
        "behind": ", ".join(queue[: queue.index(container.id)]),
    }


def _named(before: Node, event: Event) -> Iterable[str]:
    match event:
        case Commanded(_, AddContainer(spec)):
            return (spec.id,)
        case Commanded(_, command):
            container_id = getattr(command, "container_id", None)
            return (container_id,) if container_id else ()
        case Delivered(report_ids):
            waiters = (before.unacknowledged.get(each) for each in report_ids)
            return [waiter.container_id for waiter in waiters if isinstance(waiter, ContainerWaits)]
        case DrainAll():
            return list(before.containers)
        case Ended(allocation_id):
            allocation = before.allocations.get(allocation_id)
            return (allocation.spec.container_id,) if allocation is not None else ()
    container_id = getattr(event, "container_id", None)
    return (container_id,) if container_id else ()


def cause(status: ExitStatus) -> dict[str, Any]:
    """How it ended; nothing in all three means that nobody could tell."""
    return {"exit_code": status.code, "signal": status.signal, "oom": status.oom}


def ids(container: Container) -> dict[str, Any]:
    """The fields by which a container's story is found in the log."""
    function = container.spec.function
    return {
        "container_id": container.id,
        "container_type": container.spec.kind.value,
        "sandbox_id": container.spec.sandbox_id,
        "pool_id": container.spec.pool_id,
        "namespace": function.namespace if function else None,
        "app": function.application if function else None,
        "fn": function.function if function else None,
        "version": function.version if function else None,
    }
