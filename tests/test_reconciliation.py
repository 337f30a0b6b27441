"""The owner of the Node: nothing is done or acknowledged before it is written, and a stop always ends."""

from __future__ import annotations

from typing import Any

from attrs import evolve
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from indexify_dataplane.core import effects as fx
from indexify_dataplane.core.events import (
    AddContainer,
    Commanded,
    Due,
    KillAllocation,
    RemoveContainer,
    RunAllocation,
)
from indexify_dataplane.core.node import Node, Rules
from indexify_dataplane.core.outbox import Outbox
from indexify_dataplane.metrics import Metrics
from indexify_dataplane.perform.work import Work
from indexify_dataplane.reconciliation import Reconciliation
from indexify_dataplane.store import StoreError
from tests.core.build import BOTH, Play, allocation, function, sandbox


class SlowStore:
    """Commits end when the test says so."""

    path = "memory"

    def __init__(self) -> None:
        self.commits: list[tuple[Any, Deferred[None]]] = []

    def wall_offset(self) -> float:
        return 0.0

    def commit(self, changes: Any) -> Deferred[None]:
        done: Deferred[None] = Deferred()
        self.commits.append((changes, done))
        return done


class Hands:
    """Notes what it is told to do; nothing ever ends by itself."""

    def __init__(self) -> None:
        self.started: list[fx.Start] = []

    def start(self, effect: fx.Start) -> Deferred[Any]:
        self.started.append(effect)
        return Deferred()

    def cancel_start(self, op: int) -> None:
        """The start goes on until the test ends."""


class Calls:
    """Notes in which order allocations are prepared and finalized."""

    def __init__(self) -> None:
        self.done: list[str] = []

    async def prepare(self, effect: fx.Prepare) -> Any:
        self.done.append("prepare")
        await Deferred()

    async def finalize(self, effect: fx.Finalize) -> Any:
        self.done.append("finalize")
        await Deferred()


class Owner(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock, self.store, self.hands = Clock(), SlowStore(), Hands()
        self.owner = Reconciliation(
            clock=self.clock,
            store=self.store,  # type: ignore[arg-type]
            outbox=Outbox(),
            node=Node("exec", rules=evolve(Rules(), drivers=BOTH)),
            metrics=Metrics(),
            health_interval=5.0,
            health_threshold=3,
        )
        self.owner.work = Work(self.hands, None)  # type: ignore[arg-type]
        self.owner.startService()

    def add(self, seq: int = 1, name: str = "sb") -> Deferred[None]:
        return self.owner.submit(Commanded(seq, AddContainer(sandbox(name))))

    def test_the_end_of_a_call_does_not_overtake_its_beginning(self) -> None:
        """Both orders come in one answer of the server, and the commit of the first is still to come."""
        calls = Calls()
        self.owner.work = Work(self.hands, calls)  # type: ignore[arg-type]
        play = Play(evolve(self.owner.node, rules=Rules(drivers=BOTH)))
        play.running(function())
        self.owner.node = play.node
        self.owner.submit(Commanded(9, RunAllocation(allocation())))
        self.owner.submit(Commanded(10, KillAllocation("a1")))
        self.assertEqual(calls.done, [])
        self.clock.advance(0)
        for _, commit in self.store.commits:
            commit.callback(None)
        self.assertEqual(calls.done, ["prepare", "finalize"])

    def test_nothing_is_done_or_acknowledged_before_it_is_written(self) -> None:
        stored = self.add()
        self.clock.advance(0)
        self.assertEqual((len(self.store.commits), self.hands.started), (1, []))
        self.assertNoResult(stored)
        self.store.commits[0][1].callback(None)
        self.assertEqual(len(self.hands.started), 1)
        self.successResultOf(stored)

    def test_one_transaction_a_turn(self) -> None:
        for seq in range(1, 4):
            self.add(seq, f"s{seq}")
        self.clock.advance(0)
        self.assertEqual(len(self.store.commits), 1)
        self.assertEqual(len(self.store.commits[0][0]), 3)

    def test_a_store_that_fails_is_tried_again_and_takes_no_new_commands_meanwhile(self) -> None:
        stored = self.add()
        self.clock.advance(0)
        self.store.commits[0][1].errback(Failure(StoreError("the disk is full")))
        self.assertFalse(self.owner.accepting)
        self.assertNoResult(stored)
        self.clock.advance(1.0)
        self.store.commits[1][1].callback(None)
        self.assertTrue(self.owner.accepting)
        self.successResultOf(stored)
        self.assertEqual(len(self.hands.started), 1)
        self.assertEqual(self.store.commits[0][0], self.store.commits[1][0])

    def test_a_stop_ends_whatever_is_under_way(self) -> None:
        """A commit under way, and behind it an event that changes nothing: the stop waits for the one and not for
        ever for the other."""
        self.add()
        self.clock.advance(0)
        self.owner.submit(Due("sb"))
        stopped = self.owner.stopService()
        self.assertNoResult(stopped)
        self.store.commits[0][1].callback(None)
        self.clock.advance(1)
        self.successResultOf(stopped)
        self.assertEqual(self.hands.started, [], "nothing is begun by a node that stops")

    def test_a_stop_writes_what_is_decided(self) -> None:
        self.add()
        stopped = self.owner.stopService()
        self.assertEqual(len(self.store.commits), 1)
        self.store.commits[0][1].callback(None)
        self.successResultOf(stopped)
        late = self.owner.submit(Commanded(2, RemoveContainer("sb")))
        self.assertNoResult(late)

    def test_a_step_that_fails_ends_the_node(self) -> None:
        def broken(node: Node, event: Any, now: float) -> Any:
            raise ZeroDivisionError("a bug")

        self.owner._decide = broken
        self.assertRaises(ZeroDivisionError, self.add)
        self.failureResultOf(self.owner.died, ZeroDivisionError)
        self.flushLoggedErrors(ZeroDivisionError)
