"""Faults that the simulation must find: each one is a mistake that somebody could make in the product."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from attrs import evolve
from twisted.internet.defer import Deferred, succeed

from indexify_dataplane.core import effects as fx
from indexify_dataplane.core import events as ev
from indexify_dataplane.core.model import (
    Aborting,
    AllocationEnded,
    Container,
    ContainerStarted,
    ContainerTerminated,
    Done,
    Killing,
    Running,
    SnapshotCompleted,
    Snapshotting,
    Starting,
    Stopping,
)
from indexify_dataplane.core.node import Node
from indexify_dataplane.core.outbox import Batch, Outbox
from indexify_dataplane.core.session import Session
from indexify_dataplane.core.step import step
from indexify_dataplane.core.turn import Turn
from indexify_dataplane.testing.memory_driver import MemoryDriver

from .world import Dice, Parts, SimStore, calm

Keep = Callable[[Node, ev.Event, Node, fx.Effect], bool]


def ignoring(condition: Callable[[Node, ev.Event], bool]) -> Parts:
    """A row of ``step`` is missing: events that meet ``condition`` change nothing."""

    def decide(node: Node, event: ev.Event, now: float) -> tuple[Node, tuple[fx.Effect, ...]]:
        return (node, ()) if condition(node, event) else step(node, event, now)

    return Parts(decide=decide)


def without(condition: Callable[[Node, ev.Event, fx.Effect], bool]) -> Parts:
    """``step`` forgets to ask for the effects that meet ``condition``."""

    def decide(node: Node, event: ev.Event, now: float) -> tuple[Node, tuple[fx.Effect, ...]]:
        after, effects = step(node, event, now)
        return after, tuple(effect for effect in effects if not condition(node, event, effect))

    return Parts(decide=decide)


def _state(node: Node, event: ev.Event) -> Any:
    container: Container | None = node.containers.get(getattr(event, "container_id", ""))
    return container.state if container else None


class LateStore(SimStore):
    """Says that it has written while it has not: the last commits are lost when the node dies."""

    def commit(self, changes: Any) -> Deferred[None]:
        held: list[Any] = self.__dict__.setdefault("held", [])
        held.append(changes)
        if self.world.node_dies():
            return Deferred()
        if len(held) > 3:
            super().commit(held.pop(0))
        return succeed(None)


class ForgetfulOutbox(Outbox):
    """Gives up what a heartbeat carried although the server asked for state and threw it away."""

    def take(self, *args: Any, **kwargs: Any) -> Batch:
        batch = super().take(*args, **kwargs)
        self._remove(set(batch.ids))
        return batch


class StickySession(Session):
    """Keeps its cursors over a full sync, so that the fresh commands of the server are taken for repeats."""

    def heartbeat_accepted(self, *, full_state: bool) -> None:
        commands, results = self.commands.applied, self.results.applied
        super().heartbeat_accepted(full_state=full_state)
        if full_state:
            self.commands.applied, self.results.applied = commands, results


def _runs_twice(node: Node, event: ev.Event, now: float) -> tuple[Node, tuple[fx.Effect, ...]]:
    """Forgets a finished allocation at once instead of after its grace."""
    after, effects = step(node, event, now)
    for allocation_id in set(after.finished) - set(node.finished):
        after = step(after, ev.ForgetDue(allocation_id), now)[0]
    kept = tuple(each for each in effects if not _is_done_row(each))
    return after, kept


def _is_done_row(effect: fx.Effect) -> bool:
    return isinstance(effect, fx.SaveAllocation) and isinstance(effect.allocation.state, Done)


def _answers_early(node: Node, event: ev.Event, now: float) -> tuple[Node, tuple[fx.Effect, ...]]:
    """Reports a snapshot as complete when it is stored, not when its container has ended."""
    after, effects = step(node, event, now)
    state = _state(after, event)
    if isinstance(event, ev.Snapshotted) and isinstance(state, Killing) and state.answer is not None:
        turn = Turn(after, now)
        turn.answer(state.answer)
        return turn.node, (*turn.effects, *effects)
    return after, effects


class TrustingDriver(MemoryDriver):
    """Takes it for granted that what it finds has its rules."""

    async def list_containers(self) -> Any:
        self.found = await super().list_containers()
        return self.found

    async def apply_policy(self, handle: Any, container_id: str, policy: Any) -> None:
        if handle not in [each.handle for each in self.found]:
            await super().apply_policy(handle, container_id, policy)


def _rewritten(change: Callable[[fx.Effect], fx.Effect]) -> Any:
    def decide(node: Node, event: ev.Event, now: float) -> tuple[Node, tuple[fx.Effect, ...]]:
        after, effects = step(node, event, now)
        return after, tuple(change(effect) for effect in effects)

    return decide


def _sleep_on(effect: fx.Effect) -> fx.Effect:
    claimed = isinstance(effect, fx.Conform) and not effect.frozen
    return evolve(effect, frozen=True) if claimed else effect  # type: ignore[type-var]


def _ask(effect: fx.Effect) -> fx.Effect:
    return evolve(effect, frozen=False) if isinstance(effect, fx.Watch) else effect


_sleeps_on, _asks_the_frozen = _rewritten(_sleep_on), _rewritten(_ask)


def _reports_at_once(node: Node, event: ev.Event, now: float) -> tuple[Node, tuple[fx.Effect, ...]]:
    """The answer to a claim goes out with the order to carry it out."""
    after, effects = step(node, event, now)
    early = [effect for effect in effects if isinstance(effect, fx.Conform)]
    if early and isinstance(event, ev.Commanded):
        [conform] = early
        number = after.next_report
        report = fx.Report(number, ContainerStarted(conform.container_id))
        container = after.containers[conform.container_id]
        told = evolve(container, state=evolve(container.state, claiming=False))
        after = evolve(after, next_report=number + 1, containers=after.containers.set(told.id, told))
        return after, (*effects, fx.Save(told), fx.Send(report))
    return after, effects


STORM = Dice(lose_request=0.05, lose_reply=0.1, crash=0.01, start_fails=0.1, kill_fails=0.3, daemon_silent=0.05)

PLANTED: dict[str, tuple[Parts, Dice]] = {
    "a start that ends after its removal is forgotten": (
        ignoring(
            lambda node, event: (
                isinstance(event, ev.Started | ev.StartFailed) and isinstance(_state(node, event), Aborting)
            )
        ),
        calm(),
    ),
    "a failed start is not noticed": (
        ignoring(lambda node, event: isinstance(event, ev.StartFailed) and isinstance(_state(node, event), Starting)),
        calm(start_fails=0.3),
    ),
    "an exit is not noticed": (
        ignoring(lambda node, event: isinstance(event, ev.Exited) and isinstance(_state(node, event), Running)),
        calm(),
    ),
    "the grace of a stop never ends": (
        ignoring(lambda node, event: isinstance(event, ev.Due) and isinstance(_state(node, event), Stopping)),
        calm(),
    ),
    "a failed kill is not tried again": (
        ignoring(lambda node, event: isinstance(event, ev.Due) and isinstance(_state(node, event), Killing)),
        calm(kill_fails=0.5),
    ),
    "a sandbox's lifetime is not watched": (
        ignoring(lambda node, event: isinstance(event, ev.Due) and isinstance(_state(node, event), Running)),
        calm(),
    ),
    "RemoveContainer is acknowledged and dropped": (
        ignoring(lambda node, event: isinstance(event, ev.Commanded) and isinstance(event.command, ev.RemoveContainer)),
        calm(),
    ),
    "the end of a container is not reported": (
        without(
            lambda node, event, effect: (
                isinstance(effect, fx.Send) and isinstance(effect.report.body, ContainerTerminated)
            )
        ),
        calm(),
    ),
    "an outcome is not reported": (
        without(
            lambda node, event, effect: (
                isinstance(effect, fx.Send)
                and isinstance(effect.report.body, AllocationEnded)
                and effect.report.id % 5 == 0
            )
        ),
        calm(),
    ),
    "a container is started before its record is written": (
        without(
            lambda node, event, effect: isinstance(effect, fx.Save) and isinstance(effect.container.state, Starting)
        ),
        calm(crash=0.03),
    ),
    "a running container is not written down": (
        without(
            lambda node, event, effect: isinstance(effect, fx.Save) and isinstance(effect.container.state, Running)
        ),
        calm(crash=0.03),
    ),
    "the store is written too late": (Parts(store=LateStore), calm(crash=0.05)),
    "reports are dropped when the server asks for state": (
        Parts(outbox=ForgetfulOutbox),
        calm(lose_reply=0.2, internal=0.1),
    ),
    "cursors survive a full sync": (Parts(session=StickySession), calm()),
    "a finished allocation is forgotten at once": (Parts(decide=_runs_twice), STORM),
    "delivered reports stay in the store": (
        without(lambda node, event, effect: isinstance(effect, fx.Discard)),
        calm(),
    ),
    "a snapshot that failed is not tried again": (
        ignoring(lambda node, event: isinstance(event, ev.Due) and isinstance(_state(node, event), Snapshotting)),
        calm(snapshot_fails=0.5),
    ),
    "the answer to a snapshot is not reported": (
        without(
            lambda node, event, effect: (
                isinstance(effect, fx.Send) and isinstance(effect.report.body, SnapshotCompleted)
            )
        ),
        calm(),
    ),
    "a claim is reported before its rules are in force": (
        Parts(decide=_reports_at_once),
        calm(),
    ),
    "a claim does not change the rules": (
        without(
            lambda node, event, effect: (
                isinstance(effect, fx.Conform)
                and isinstance(event, ev.Commanded)
                and not isinstance(_state(node, event.command), Starting)
            )
        ),
        calm(),
    ),
    "a snapshot is complete before its sandbox has ended": (Parts(decide=_answers_early), calm()),
    "a slot is not given back": (
        without(
            lambda node, event, effect: (
                isinstance(event, ev.Ended) and isinstance(effect, fx.Finalize) and effect.allocation.id[0] in "abcdef"
            )
        ),
        calm(),
    ),
}
"""Name of the mistake, the product with it, and the weather in which it shows."""
