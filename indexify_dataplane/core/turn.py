"""The scratch pad of one step: the next node value and the effects so far. It never leaves ``step``."""

from __future__ import annotations

from attrs import evolve

from .effects import Alarm, Effect, Forget, ForgetAllocation, Save, SaveAllocation, Send, SweepUploads
from .events import Event, ForgetAnswer
from .model import Allocation, Container, Report, ReportBody, SnapshotAnswer, TerminationReason
from .node import Node, Waiter


class Turn:
    """Collects what one event changes; everything written is saved by an effect of the same step.

    ``condemned`` is a container that has to end because of the event, and why.
    """

    def __init__(self, node: Node, now: float) -> None:
        self.node = node
        self.now = now
        self.effects: list[Effect] = []
        self.condemned: tuple[str, TerminationReason] | None = None

    def do(self, effect: Effect) -> None:
        self.effects.append(effect)

    def alarm(self, at: float, event: Event) -> None:
        self.effects.append(Alarm(at, event))

    def next_op(self) -> int:
        op = self.node.next_op
        self.node = evolve(self.node, next_op=op + 1)
        return op

    def report(self, body: ReportBody, waiter: Waiter | None = None) -> int:
        """Put a report into the outbox; ``waiter`` hears of its delivery."""
        node = self.node
        number = node.next_report
        waiting = node.unacknowledged if waiter is None else node.unacknowledged.set(number, waiter)
        self.node = evolve(node, next_report=number + 1, unacknowledged=waiting)
        self.effects.append(Send(Report(number, body)))
        return number

    def answer(self, answer: SnapshotAnswer) -> None:
        """Report how a snapshot ended, and remember it for an order that crosses with the report."""
        self.node = evolve(self.node, answers=self.node.answers.set(answer.snapshot_id, answer))
        self.report(answer)
        self.alarm(self.now + self.node.rules.outcome_grace, ForgetAnswer(answer.snapshot_id))

    def put(self, container: Container) -> Container:
        """Store a container and keep the index of sandboxes true."""
        node = self.node
        old = node.containers.get(container.id)
        sandboxes = node.sandboxes
        before, after = old.spec.sandbox_id if old else None, container.spec.sandbox_id
        if before is not None and before != after and sandboxes.get(before) == container.id:
            sandboxes = sandboxes.delete(before)
        if after is not None and sandboxes.get(after) != container.id:
            sandboxes = sandboxes.set(after, container.id)
        self.node = evolve(node, containers=node.containers.set(container.id, container), sandboxes=sandboxes)
        self.effects.append(Save(container))
        return container

    def sweep(self, container: Container, upload_uri: str) -> Container:
        """Tidy up after a snapshot that was given up; a node that dies meanwhile does it in its next life."""
        self.do(SweepUploads(container.id, upload_uri))
        if upload_uri in container.unswept:
            return container
        return self.put(evolve(container, unswept=(*container.unswept, upload_uri)))

    def forget(self, container: Container) -> None:
        node = self.node
        sandboxes = node.sandboxes
        sandbox_id = container.spec.sandbox_id
        if sandbox_id is not None and sandboxes.get(sandbox_id) == container.id:
            sandboxes = sandboxes.delete(sandbox_id)
        self.node = evolve(node, containers=node.containers.delete(container.id), sandboxes=sandboxes)
        self.effects.append(Forget(container.id))

    def put_allocation(self, allocation: Allocation, save: bool = False) -> None:
        """Keep an allocation. Stored are its acceptance, that it runs, and its outcome: the rest dies with the node."""
        node = self.node
        container_id = allocation.spec.container_id
        assigned = node.assigned
        if allocation.id not in node.allocations:
            assigned = assigned.set(container_id, assigned.get(container_id, frozenset()) | {allocation.id})
        self.node = evolve(node, allocations=node.allocations.set(allocation.id, allocation), assigned=assigned)
        if save:
            self.effects.append(SaveAllocation(allocation))

    def drop_allocation(self, allocation: Allocation) -> None:
        """Take a finished allocation out of the working set; its stored row stays until the outcome is delivered."""
        node = self.node
        container_id = allocation.spec.container_id
        rest = node.assigned.get(container_id, frozenset()) - {allocation.id}
        assigned = node.assigned.set(container_id, rest) if rest else node.assigned
        if not rest and container_id in assigned:
            assigned = assigned.delete(container_id)
        self.node = evolve(node, allocations=node.allocations.delete(allocation.id), assigned=assigned)

    def put_done(self, done: Allocation) -> None:
        self.effects.append(SaveAllocation(done))

    def forget_allocation(self, allocation_id: str) -> None:
        self.effects.append(ForgetAllocation(allocation_id))
