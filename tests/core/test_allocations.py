"""The life of an allocation: one outcome, with the reason the table names."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from indexify_dataplane.core import effects as fx
from indexify_dataplane.core import events as ev
from indexify_dataplane.core.model import (
    AllocationEnded,
    AllocationScheduled,
    Cancelling,
    Completed,
    Executing,
    ExitStatus,
    Failed,
    FailureReason,
    FunctionCalled,
    Payload,
    Waiting,
)
from indexify_dataplane.core.model import TerminationReason as Reason

from .build import Play, allocation, function, handle, sandbox

DONE = Completed(value=Payload(uri="file:///v"), duration_ms=5)


class Base(SynchronousTestCase):
    def play(self, slots: int = 1) -> Play:
        play = Play()
        play.running(function(slots=slots))
        return play

    def run_one(self, play: Play, id: str = "a1") -> None:
        play.command(ev.RunAllocation(allocation(id)))
        play(ev.Prepared(id))

    def outcome(self, play: Play, id: str = "a1") -> AllocationEnded:
        """The report that the current step wrote, after finalisation."""
        pending = play.node.allocations[id].state.outcome
        play(ev.Finalized(id, pending))
        (body,) = play.reports
        return body


class Unbegun(Base):
    def test_one_that_waited_for_a_place_in_the_executor_has_no_part_in_its_end(self) -> None:
        play = self.play()
        self.run_one(play)
        play(ev.Exited("fn", handle("fn").id, ExitStatus(code=137, oom=True)))
        play(ev.Ended("a1", Failed(FailureReason.ALLOCATION_CANCELLED, begun=False)))
        expected = Failed(FailureReason.CONTAINER_TERMINATED, blame_container=True)
        self.assertEqual(play.of(fx.Finalize)[0].outcome, expected)

    def test_one_that_is_killed_meanwhile_was_cancelled(self) -> None:
        play = self.play()
        self.run_one(play)
        play.command(ev.KillAllocation("a1"))
        play(ev.Ended("a1", Failed(FailureReason.ALLOCATION_CANCELLED, begun=False)))
        self.assertEqual(play.of(fx.Finalize)[0].outcome.reason, FailureReason.ALLOCATION_CANCELLED)


class Way(Base):
    def test_through_all_states_to_one_outcome(self) -> None:
        play = self.play()
        play.command(ev.RunAllocation(allocation()))
        self.assertEqual(play.reports, [AllocationScheduled("a1", 2)])
        self.assertEqual(len(play.of(fx.SaveAllocation)), 1)
        self.assertEqual(len(play.of(fx.Prepare)), 1)
        play(ev.Prepared("a1"))
        (run,) = play.of(fx.Run)
        self.assertEqual((run.handle, run.timeout_ms), (handle("fn"), 1000))
        play(ev.Ended("a1", DONE))
        self.assertEqual(play.of(fx.Finalize)[0].outcome, DONE)
        self.assertEqual(self.outcome(play), AllocationEnded(allocation(), DONE))
        self.assertEqual(len(play.node.allocations), 0)
        self.assertEqual(len(play.node.slots), 0)
        self.assertEqual(len(play.node.assigned), 0)

    def test_repeats_do_nothing_before_and_after_the_end(self) -> None:
        play = self.play()
        self.run_one(play)
        self.assertEqual(play.command(ev.RunAllocation(allocation())), ())
        play(ev.Ended("a1", DONE))
        self.outcome(play)
        self.assertEqual(play.command(ev.RunAllocation(allocation())), ())
        play.deliver_all()
        self.assertEqual(play.of(fx.ForgetAllocation), [fx.ForgetAllocation("a1")])
        self.assertEqual(play.command(ev.RunAllocation(allocation())), (), "it may have crossed with the outcome")

    def test_it_is_forgotten_after_the_grace(self) -> None:
        play = self.play()
        self.run_one(play)
        play(ev.Ended("a1", DONE))
        self.outcome(play)
        play.deliver_all()
        (alarm,) = play.of(fx.Alarm)
        self.assertEqual(alarm.at, 600.0)
        play(alarm.event)
        self.assertEqual(len(play.node.finished), 0)

    def test_slots_are_filled_in_the_order_of_preparation(self) -> None:
        play = self.play(slots=2)
        for id in ("a1", "a2", "a3", "a4"):
            play.command(ev.RunAllocation(allocation(id)))
        for id in ("a3", "a1", "a4", "a2"):
            play(ev.Prepared(id))
        running = {id for id, each in play.node.allocations.items() if isinstance(each.state, Executing)}
        self.assertEqual(running, {"a3", "a1"})
        play(ev.Ended("a3", DONE))
        self.assertEqual([run.allocation.id for run in play.of(fx.Run)], ["a4"])

    def test_it_waits_for_a_container_that_starts(self) -> None:
        play = Play()
        play.add(function())
        self.run_one(play)
        self.assertIsInstance(play.node.allocations["a1"].state, Waiting)
        play.started("fn")
        self.assertEqual(len(play.of(fx.Run)), 1)

    def test_calls_go_to_the_server_and_results_to_the_run(self) -> None:
        play = self.play()
        self.run_one(play)
        play(ev.Called("a1", b"call"))
        self.assertEqual(play.reports, [FunctionCalled("a1", b"call")])
        play(ev.ChildResult("a1", b"result"))
        self.assertEqual(play.effects, (fx.Deliver("a1", b"result"),))
        self.assertEqual(play(ev.ChildResult("gone", b"result")), ())


class Failures(Base):
    def test_unknown_container(self) -> None:
        play = Play()
        play.command(ev.RunAllocation(allocation()))
        scheduled, ended = play.reports
        self.assertEqual(scheduled, AllocationScheduled("a1", 1))
        failed = Failed(FailureReason.CONTAINER_TERMINATED, blame_container=True)
        self.assertEqual(ended, AllocationEnded(allocation(), failed, "fn"))

    def test_dead_container_by_its_reason(self) -> None:
        table = {
            Reason.STARTUP_FAILED_BAD_IMAGE: FailureReason.STARTUP_FAILED_BAD_IMAGE,
            Reason.STARTUP_FAILED_FUNCTION_ERROR: FailureReason.STARTUP_FAILED_FUNCTION_ERROR,
            Reason.STARTUP_FAILED_FUNCTION_TIMEOUT: FailureReason.STARTUP_FAILED_FUNCTION_TIMEOUT,
            Reason.STARTUP_FAILED_INTERNAL_ERROR: FailureReason.STARTUP_FAILED_INTERNAL_ERROR,
        }
        for reason, expected in table.items():
            play = Play()
            play.add(function())
            self.run_one(play, "waits")
            play(ev.StartFailed("fn", play.node.containers["fn"].op, reason, "x"))
            waited = self.outcome(play, "waits")
            self.assertEqual((waited.outcome.reason, waited.container_id), (expected, "fn"))
            play.command(ev.RunAllocation(allocation("late")))
            late = play.reports[1]
            self.assertEqual((late.outcome.reason, late.container_id), (expected, "fn"))

    def test_a_run_that_comes_while_the_container_ends_never_began(self) -> None:
        """The server may not have been told of the end yet; the run must not pay for it."""
        for status in (ExitStatus(code=1, oom=True), ExitStatus(code=1)):
            play = self.play()
            self.run_one(play, "ran")
            play(ev.Exited("fn", handle("fn").id, status))
            play.command(ev.RunAllocation(allocation("late")))
            [late] = [each for each in play.reports if isinstance(each, AllocationEnded)]
            self.assertEqual((late.outcome.reason, late.container_id), (FailureReason.CONTAINER_TERMINATED, "fn"))

    def test_a_crash_blames_the_one_that_ran_and_not_the_one_that_waited(self) -> None:
        play = self.play()
        self.run_one(play, "ran")
        self.run_one(play, "waited")
        play(ev.Exited("fn", handle("fn").id, ExitStatus(code=1)))
        self.assertEqual(play.of(fx.CancelRun), [fx.CancelRun("ran")])
        waited = self.outcome(play, "waited")
        self.assertEqual((waited.outcome.reason, waited.container_id), (FailureReason.CONTAINER_TERMINATED, "fn"))
        play(ev.Ended("ran", Failed(FailureReason.ALLOCATION_CANCELLED)))
        ran = self.outcome(play, "ran")
        self.assertEqual((ran.outcome.reason, ran.container_id), (FailureReason.FUNCTION_ERROR, None))

    def test_a_success_that_was_ready_survives_the_crash(self) -> None:
        play = self.play()
        self.run_one(play)
        play(ev.Exited("fn", handle("fn").id, ExitStatus(code=1, oom=True)))
        self.assertEqual(play.node.allocations["a1"].state, Cancelling(FailureReason.OOM))
        play(ev.Ended("a1", DONE))
        self.assertEqual(self.outcome(play).outcome, DONE)

    def test_cancellation_in_every_state(self) -> None:
        play = self.play()
        play.command(ev.RunAllocation(allocation("preparing")))
        play.command(ev.KillAllocation("preparing"))
        self.assertEqual(self.outcome(play, "preparing").outcome.reason, FailureReason.ALLOCATION_CANCELLED)
        self.run_one(play, "running")
        self.run_one(play, "waiting")
        play.command(ev.KillAllocation("waiting"))
        self.assertEqual(self.outcome(play, "waiting").outcome.reason, FailureReason.ALLOCATION_CANCELLED)
        play.command(ev.KillAllocation("running"))
        self.assertEqual(play.effects[-1], fx.CancelRun("running"))
        self.assertEqual(play.command(ev.KillAllocation("running")), ())
        play(ev.Ended("running", Failed(FailureReason.FUNCTION_ERROR)))
        self.assertEqual(self.outcome(play, "running").outcome.reason, FailureReason.ALLOCATION_CANCELLED)
        self.assertEqual(play.command(ev.KillAllocation("never")), ())

    def test_failed_preparation_and_wrong_kind(self) -> None:
        play = self.play()
        play.command(ev.RunAllocation(allocation()))
        play(ev.PrepareFailed("a1", "no such blob"))
        self.assertEqual(self.outcome(play).outcome.reason, FailureReason.INTERNAL_ERROR)
        play.running(sandbox())
        play.command(ev.RunAllocation(allocation("a2", "sb")))
        self.assertEqual(play.reports[1].outcome.reason, FailureReason.INTERNAL_ERROR)

    def test_an_invalid_one_fails_instead_of_waiting_for_ever(self) -> None:
        play = self.play()
        play.command(ev.Invalid("RunAllocation", "invalid_run_allocation", "args[0].uri", allocation=allocation()))
        (ended,) = play.reports
        self.assertEqual(ended.outcome.reason, FailureReason.INTERNAL_ERROR)
        self.assertIn("a1", play.node.finished)

    def test_a_run_that_the_executor_does_not_let_go_of_ends_its_container(self) -> None:
        table = [
            (FailureReason.FUNCTION_TIMEOUT, Reason.FUNCTION_TIMEOUT),
            (FailureReason.ALLOCATION_CANCELLED, Reason.FUNCTION_CANCELLED),
            (FailureReason.FUNCTION_ERROR, Reason.UNHEALTHY),
        ]
        for why, end in table:
            play = self.play(slots=2)
            for id in ("stuck", "beside", "waits"):
                self.run_one(play, id)
            play(ev.Ended("stuck", Failed(why, blame_container=True)))
            self.assertEqual(play.of(fx.Run), [], "nothing is started in a container that must go")
            self.assertEqual(play.of(fx.CancelRun), [fx.CancelRun("beside")])
            self.assertEqual(len(play.of(fx.Kill)), 1)
            self.assertIs(play.state("fn").reason, end)
            stuck = self.outcome(play, "stuck")
            self.assertEqual((stuck.outcome.reason, stuck.container_id), (why, "fn"))
            waits = self.outcome(play, "waits")
            self.assertEqual((waits.outcome.reason, waits.container_id), (FailureReason.CONTAINER_TERMINATED, "fn"))
            play(ev.Ended("beside", Failed(FailureReason.ALLOCATION_CANCELLED)))
            self.assertEqual(self.outcome(play, "beside").outcome.reason, FailureReason.CONTAINER_TERMINATED)
