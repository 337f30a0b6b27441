"""GPUs have one owner; an AddContainer that comes while its devices' owners still die waits for them."""

from __future__ import annotations

from attrs import evolve
from immutables import Map
from twisted.trial.unittest import SynchronousTestCase

from indexify_dataplane.core import effects as fx
from indexify_dataplane.core import events as ev
from indexify_dataplane.core.containers import refusal
from indexify_dataplane.core.model import (
    Allocation,
    AllocationEnded,
    Completed,
    Container,
    ContainerTerminated,
    Executing,
    Failed,
    FailureReason,
    Killing,
    Kind,
    Preparing,
    Queued,
    Running,
    Starting,
    Terminated,
)
from indexify_dataplane.core.model import TerminationReason as Reason
from indexify_dataplane.core.node import DriverRules, Node, Rules
from indexify_dataplane.core.recover import Present, recover

from .build import BOTH, Play, allocation, function, handle, sandbox

SURVIVES = Map({Kind.FUNCTION: DriverRules(survives_node=True)})


class TwoGpus(SynchronousTestCase):
    """A node with two devices, both with one container."""

    def setUp(self) -> None:
        self.play = Play()
        self.play.running(function("old", gpus=2))

    def starts(self) -> list[tuple[str, tuple[str, ...]]]:
        return [(each.container_id, each.gpus) for each in self.play.of(fx.Start)]

    def queued(self, id: str, gpus: int = 1, **more: object) -> None:
        self.play.add(evolve(function(id, gpus=gpus), **more))
        self.assertIsInstance(self.play.state(id), Queued)


class Waiting(TwoGpus):
    def test_devices_of_containers_that_live_on_are_not_waited_for(self) -> None:
        self.play.add(function("new", gpus=1))
        self.assertEqual(self.play.reports, [ContainerTerminated("new", Reason.STARTUP_FAILED_INTERNAL_ERROR)])
        self.assertEqual(refusal(self.play.node, function("new", gpus=1)), "1 GPUs are asked for, 0 are free")

    def test_it_waits_for_a_container_that_was_removed_and_starts_when_that_is_dead(self) -> None:
        self.play.command(ev.RemoveContainer("old"))
        self.play.add(function("new", gpus=1))
        self.assertEqual((self.play.state("new"), self.play.reports), (Queued(0.0, 60.0), []))
        self.assertEqual(self.play.of(fx.Start), [])
        self.assertEqual(self.play.of(fx.Alarm), [fx.Alarm(60.0, ev.Due("new"))])
        self.assertEqual(self.play.add(function("new", gpus=1)), (), "a repeat changes nothing")
        self.play.now = 2.0
        self.play.killed("old")
        self.assertEqual((self.play.state("new"), self.starts()), (Starting(2.0), [("new", ("g1",))]))
        saved = [each.container.id for each in self.play.of(fx.Save)]
        self.assertEqual((saved, self.play.node.free_gpus), (["old", "new"], ("g2",)))
        self.play.now = 60.0
        self.assertEqual(self.play(ev.Due("new")), (), "the end of its patience is nothing to one that starts")

    def test_it_waits_behind_an_outcome_that_blames_its_container(self) -> None:
        """The outcome is what tells the server that the devices are free."""
        play = self.play
        play.command(ev.RunAllocation(allocation("a1", "old")))
        play(ev.Prepared("a1"))
        outcome = Failed(FailureReason.FUNCTION_TIMEOUT, blame_container=True)
        play(ev.Ended("a1", outcome))
        play(ev.Finalized("a1", outcome))
        self.assertEqual([each.container_id for each in play.reports], ["old"])
        self.assertIsInstance(play.state("old"), Killing)
        self.queued("new")
        play.killed("old")
        self.assertEqual(self.starts(), [("new", ("g1",))])

    def test_it_waits_for_a_start_that_is_being_cancelled(self) -> None:
        play = Play()
        play.add(function("old", gpus=2))
        play.command(ev.RemoveContainer("old"))
        play.add(function("new", gpus=2))
        play(ev.StartFailed("old", play.node.containers["old"].op, Reason.STARTUP_FAILED_INTERNAL_ERROR, "cancelled"))
        self.assertEqual([(each.container_id, each.gpus) for each in play.of(fx.Start)], [("new", ("g1", "g2"))])

    def test_a_kill_that_fails_frees_nothing(self) -> None:
        self.play.command(ev.RemoveContainer("old"))
        self.queued("new")
        self.play(ev.KillFailed("old", self.play.node.containers["old"].op, "busy"))
        self.assertIsInstance(self.play.state("new"), Queued)
        self.play.now = 1.0
        self.play(ev.Due("old"))
        self.play.killed("old")
        self.assertEqual(self.starts(), [("new", ("g1",))])

    def test_allocations_for_it_wait_with_it(self) -> None:
        play = self.play
        play.command(ev.RemoveContainer("old"))
        self.queued("new")
        play.command(ev.RunAllocation(allocation("a1", "new")))
        play(ev.Prepared("a1"))
        self.assertEqual(play.of(fx.Run), [])
        play.killed("old")
        play.started("new")
        self.assertEqual([each.allocation.id for each in play.of(fx.Run)], ["a1"])
        play(ev.Ended("a1", Completed()))
        play(ev.Finalized("a1", Completed()))
        self.assertEqual([each.outcome for each in play.reports], [Completed()])

    def test_what_needs_no_gpu_does_not_wait(self) -> None:
        self.play.command(ev.RemoveContainer("old"))
        self.queued("new")
        for spec in (function("plain"), sandbox("sb")):
            self.play.add(spec)
            self.assertEqual(self.starts(), [(spec.id, ())])


class Order(TwoGpus):
    def test_first_come_first_served(self) -> None:
        self.play.command(ev.RemoveContainer("old"))
        self.queued("z-first")
        self.queued("a-second")
        self.play.killed("old")
        self.assertEqual(self.starts(), [("z-first", ("g1",)), ("a-second", ("g2",))])
        self.assertEqual((self.play.node.gpu_queue, self.play.node.free_gpus), ((), ()))

    def test_a_small_demand_does_not_overtake_a_large_one(self) -> None:
        play = Play(Node("exec", rules=Rules(drivers=BOTH), free_gpus=("g1", "g2", "g3")))
        play.running(function("old", gpus=2))
        play.command(ev.RemoveContainer("old"))
        play.add(function("large", gpus=2))
        play.add(function("small", gpus=1))
        self.assertEqual(play.of(fx.Start), [], "one device is free, but somebody waits already")
        play.killed("old")
        self.assertEqual([each.container_id for each in play.of(fx.Start)], ["large", "small"])

    def test_devices_are_promised_once(self) -> None:
        self.play.command(ev.RemoveContainer("old"))
        self.queued("new", 2)
        why = refusal(self.play.node, function("third", gpus=1))
        self.assertEqual(
            why,
            "1 GPUs are asked for, 0 are free, 2 will be when their containers are dead, 2 are promised to containers"
            " that wait",
        )
        self.play.add(function("third", gpus=1))
        self.assertEqual(self.play.reports, [ContainerTerminated("third", Reason.STARTUP_FAILED_INTERNAL_ERROR)])
        self.assertEqual(self.play.node.gpu_queue, ("new",))

    def test_the_first_ones_end_lets_the_next_one_in(self) -> None:
        play = Play()
        play.running(function("one", gpus=1))
        play.command(ev.RemoveContainer("one"))
        play.add(function("large", gpus=2))
        self.assertEqual(refusal(play.node, function("small", gpus=1)) is None, False)
        play.command(ev.RemoveContainer("large"))
        play.add(function("small", gpus=1))
        self.assertEqual([(each.container_id, each.gpus) for each in play.of(fx.Start)], [("small", ("g2",))])


class Ends(TwoGpus):
    def setUp(self) -> None:
        super().setUp()
        self.play.command(ev.RemoveContainer("old"))
        self.queued("new")
        self.play.command(ev.RunAllocation(allocation("a1", "new")))

    def ended(self, reason: Reason, failure: FailureReason) -> None:
        """It is dead for ``reason``, its call has failed with ``failure``, and the devices are still the old one's."""
        self.assertIn(ContainerTerminated("new", reason), self.play.reports)
        self.assertIsInstance(self.play.state("new"), Terminated)
        self.assertEqual((self.play.of(fx.CancelStart), self.play.of(fx.Kill)), ([], []))
        [finalize] = self.play.of(fx.Finalize)
        self.play(ev.Finalized("a1", finalize.outcome))
        [end] = [each for each in self.play.reports if isinstance(each, AllocationEnded)]
        self.assertEqual((end.outcome.reason, end.container_id), (failure, "new"))
        self.play.killed("old")
        self.assertEqual((self.starts(), self.play.node.free_gpus), ([], ("g1", "g2")))

    def test_a_removal(self) -> None:
        self.play.command(ev.RemoveContainer("new"))
        self.ended(Reason.FUNCTION_CANCELLED, FailureReason.CONTAINER_TERMINATED)

    def test_a_drain(self) -> None:
        self.play(ev.DrainAll())
        self.ended(Reason.FUNCTION_CANCELLED, FailureReason.CONTAINER_TERMINATED)

    def test_patience(self) -> None:
        self.play.now = 59.0
        self.assertEqual(self.play(ev.Due("new")), ())
        self.play.now = 60.0
        self.play(ev.Due("new"))
        self.ended(Reason.STARTUP_FAILED_INTERNAL_ERROR, FailureReason.STARTUP_FAILED_INTERNAL_ERROR)

    def test_patience_is_as_long_as_the_start_may_take(self) -> None:
        self.queued("long", initialization_timeout_ms=90_000)
        self.queued_until("long", 90.0)

    def queued_until(self, id: str, until: float) -> None:
        self.assertEqual(self.play.state(id), Queued(0.0, until))

    def test_a_drain_starts_none_of_those_that_wait(self) -> None:
        self.queued("later")
        self.play(ev.DrainAll())
        self.assertEqual(self.starts(), [])
        self.assertIsInstance(self.play.state("later"), Terminated)


class Recovery(SynchronousTestCase):
    """The node dies while containers wait."""

    def go(self, *records: Container, devices: tuple[str, ...] = ("g1", "g2"), **more: object) -> None:
        drivers = more.pop("drivers", BOTH)
        node = Node("exec", rules=Rules(drivers=drivers), free_gpus=devices, next_op=50, next_report=90)
        present, rows = more.pop("present", ()), more.pop("allocations", ())
        self.play = Play(node)
        self.play.node, self.play.effects = recover(node, records, rows, (), present, 100.0, **more)
        self.play.now = 100.0

    def dying(self, id: str = "old") -> Container:
        state = Killing(handle(id), Reason.FUNCTION_CANCELLED)
        return Container(function(id, gpus=2), state, op=1, gpus=("g1", "g2"))

    def waits(self, id: str, op: int, gpus: int = 1, until: float = 150.0) -> Container:
        return Container(function(id, gpus=gpus), Queued(90.0, until), op=op)

    def started(self) -> list[str]:
        return [each.container_id for each in self.play.of(fx.Start)]

    def test_they_keep_their_places(self) -> None:
        records = self.waits("a-second", 3), self.dying(), self.waits("z-first", 2)
        self.go(*records)
        self.assertEqual((self.play.node.gpu_queue, self.started()), (("z-first", "a-second"), []))
        self.assertIn(fx.Alarm(150.0, ev.Due("z-first")), self.play.effects)
        self.play.killed("old")
        self.assertEqual(self.started(), ["z-first", "a-second"])

    def test_devices_that_came_free_with_the_node_are_handed_out(self) -> None:
        dead = Container(function("old", gpus=2), Starting(80.0), op=1, gpus=("g1", "g2"))
        self.go(self.waits("new", 2), dead)
        self.assertEqual((self.started(), self.play.node.free_gpus), (["new"], ("g2",)))

    def test_the_time_it_waited_before_counts(self) -> None:
        self.go(self.dying(), self.waits("new", 2, until=99.0))
        self.play(ev.Due("new"))
        self.assertEqual(self.play.reports, [ContainerTerminated("new", Reason.STARTUP_FAILED_INTERNAL_ERROR)])

    def test_one_whose_calls_fail_with_the_node_is_dead(self) -> None:
        row = Allocation(allocation("a1", "new"), Preparing(0.0))
        self.go(self.dying(), self.waits("new", 2), allocations=(row,), deaths={"call-a1": 2})
        self.assertIn(ContainerTerminated("new", Reason.UNKNOWN), self.play.reports)
        self.assertEqual(self.play.node.gpu_queue, ())
        [finalize] = self.play.of(fx.Finalize)
        self.assertEqual(
            finalize.outcome.reason, FailureReason.CONTAINER_TERMINATED, "it has not run, so it is innocent"
        )
        self.assertEqual(self.play.of(fx.CountDeath), [])

    def test_a_call_that_ran_in_one_that_died_is_a_suspect_still(self) -> None:
        row = Allocation(allocation("a1", "old"), Executing(0.0))
        running = Container(function("old", gpus=2), Running(handle("old"), 80.0), gpus=("g1", "g2"))
        self.go(running, allocations=(row,), deaths={"call-a1": 2})
        self.assertEqual(self.play.of(fx.CountDeath), [fx.CountDeath("call-a1", 3)])

    def test_a_host_with_fewer_devices_refuses_who_would_wait_for_nothing(self) -> None:
        held = evolve(self.dying(), spec=function("old", gpus=1), gpus=("g1",))
        self.go(held, self.waits("first", 2), self.waits("second", 3), devices=("g1",))
        self.assertEqual(self.play.reports, [ContainerTerminated("second", Reason.STARTUP_FAILED_INTERNAL_ERROR)])
        self.assertEqual(self.play.node.gpu_queue, ("first",))

    def test_a_new_executor_id_ends_them(self) -> None:
        self.go(self.dying(), self.waits("new", 2), renamed=True)
        self.assertEqual(self.play.reports, [ContainerTerminated("new", Reason.FUNCTION_CANCELLED)])

    def test_something_with_its_id_that_lives_is_killed_first(self) -> None:
        self.go(self.waits("new", 2), present=(Present("new", "exec", handle("new"), True),), drivers=SURVIVES)
        self.assertEqual([each.handle for each in self.play.of(fx.Kill)], [handle("new")])
        self.assertEqual((self.started(), self.play.node.gpu_queue), ([], ()))
