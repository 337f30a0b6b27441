"""The life of a container, one table row at a time."""

from __future__ import annotations

from attrs import evolve
from immutables import Map
from twisted.trial.unittest import SynchronousTestCase

from indexify_dataplane.core import effects as fx
from indexify_dataplane.core import events as ev
from indexify_dataplane.core.containers import reason_of_exit
from indexify_dataplane.core.model import (
    Aborting,
    AllocationEnded,
    ContainerStarted,
    ContainerTerminated,
    ExitStatus,
    Failed,
    FailureReason,
    FunctionRef,
    Killing,
    Kind,
    NetworkPolicy,
    Running,
    SandboxSpec,
    SnapshotFailed,
    Starting,
    Stopping,
    Terminated,
)
from indexify_dataplane.core.model import TerminationReason as Reason
from indexify_dataplane.core.node import DriverRules

from .build import Play, allocation, function, handle, sandbox


class Start(SynchronousTestCase):
    def test_the_record_is_written_before_the_driver_is_told(self) -> None:
        play = Play()
        play.add(sandbox())
        kinds = [type(effect) for effect in play.effects]
        self.assertLess(kinds.index(fx.Save), kinds.index(fx.Start))
        self.assertEqual(play.state(), Starting(0.0))

    def test_a_healthy_start_is_watched_and_reported(self) -> None:
        play = Play()
        play.running(sandbox())
        self.assertEqual(play.state(), Running(handle(), 0.0))
        self.assertEqual(play.reports, [ContainerStarted("sb")])
        self.assertEqual(len(play.of(fx.Watch)), 1)

    def test_a_repeat_starts_nothing(self) -> None:
        play = Play()
        play.add(sandbox())
        self.assertEqual(play.add(sandbox()), ())
        play.started("sb")
        self.assertEqual(play.add(sandbox()), ())

    def test_a_failed_start_is_reported_once_with_its_reason(self) -> None:
        play = Play()
        play.add(sandbox())
        event = ev.StartFailed("sb", play.node.containers["sb"].op, Reason.STARTUP_FAILED_BAD_IMAGE, "no such image")
        play(event)
        self.assertEqual(play.reports, [ContainerTerminated("sb", Reason.STARTUP_FAILED_BAD_IMAGE)])
        self.assertEqual(play(event), ())

    def test_a_repeat_that_crosses_with_our_report_runs_no_constructor_again(self) -> None:
        play = Play()
        play.add(function())
        op = play.node.containers["fn"].op
        play(ev.StartFailed("fn", op, Reason.STARTUP_FAILED_FUNCTION_ERROR, "boom"))
        self.assertEqual(play.add(function()), ())
        play.deliver_all()
        play.add(function())
        self.assertEqual(play.of(fx.Start), [])
        self.assertEqual(play.reports, [ContainerTerminated("fn", Reason.STARTUP_FAILED_FUNCTION_ERROR)])

    def test_after_its_removal_the_id_starts_anew(self) -> None:
        play = Play()
        play.running(sandbox())
        play(ev.Exited("sb", handle().id, ExitStatus(code=1)))
        play.killed("sb")
        play.command(ev.RemoveContainer("sb"))
        self.assertNotIn("sb", play.node.containers)
        play.add(sandbox())
        self.assertEqual(len(play.of(fx.Start)), 1)

    def test_a_late_result_of_an_older_operation_is_killed(self) -> None:
        play = Play()
        play.running(sandbox())
        play(ev.Started("sb", 999, handle(life=7)))
        self.assertEqual(play.effects, (fx.KillOrphan(handle(life=7)),))

    def test_refusals_are_answered(self) -> None:
        cases = {
            "no driver": (Play(drivers=Map()), sandbox()),
            "policy without enforcement": (Play(), sandbox(policy=True)),
            "not allowed": (Play(allowed=(FunctionRef("ns", "app", "other"),)), function()),
            "wrong version": (Play(allowed=(FunctionRef("ns", "app", "f", "v2"),)), function()),
            "too few GPUs": (Play(), function(gpus=3)),
        }
        for name, (play, spec) in cases.items():
            play.add(spec)
            answer = [ContainerTerminated(spec.id, Reason.STARTUP_FAILED_INTERNAL_ERROR)]
            self.assertEqual((name, play.reports), (name, answer))
            self.assertEqual((name, play.of(fx.Start)), (name, []))
            if spec.kind is Kind.SANDBOX:
                self.assertNotIn(spec.id, play.node.containers, name)

    def test_allocations_of_a_refused_function_fail_as_its_start_did(self) -> None:
        play = Play(allowed=(FunctionRef("ns", "app", "other"),))
        play.add(function())
        play.command(ev.RunAllocation(allocation()))
        (ended,) = [each for each in play.reports if isinstance(each, AllocationEnded)]
        self.assertEqual(ended.outcome, Failed(FailureReason.STARTUP_FAILED_INTERNAL_ERROR, blame_container=True))
        self.assertEqual(ended.container_id, "fn")
        play.deliver_all()
        play.command(ev.RemoveContainer("fn"))
        self.assertEqual(play.node.containers, Map())

    def test_a_policy_is_accepted_where_it_can_be_enforced(self) -> None:
        play = Play(drivers=Map({Kind.SANDBOX: DriverRules(enforces_policies=True)}))
        play.add(sandbox(policy=True))
        self.assertEqual(len(play.of(fx.Start)), 1)


class End(SynchronousTestCase):
    def test_removal_gives_a_sandbox_its_grace_then_kills(self) -> None:
        play = Play(stop_grace=10.0)
        play.running(sandbox())
        play.command(ev.RemoveContainer("sb"))
        self.assertEqual(play.state(), Stopping(handle(), Reason.FUNCTION_CANCELLED, 10.0))
        self.assertEqual(len(play.of(fx.Terminate)), 1)
        play.now = 9.9
        self.assertEqual(play(ev.Due("sb")), ())
        play.now = 10.0
        play(ev.Due("sb"))
        self.assertIsInstance(play.state(), Killing)
        play.killed("sb")
        self.assertEqual(play.reports, [ContainerTerminated("sb", Reason.FUNCTION_CANCELLED)])
        play.command(ev.RemoveContainer("sb"))
        self.assertNotIn("sb", play.node.containers)

    def test_a_sandbox_that_ends_in_its_grace_keeps_the_stop_reason(self) -> None:
        play = Play()
        play.running(sandbox())
        play.command(ev.RemoveContainer("sb"))
        play(ev.Exited("sb", handle().id, ExitStatus(code=0)))
        play.killed("sb")
        self.assertEqual(play.reports, [ContainerTerminated("sb", Reason.FUNCTION_CANCELLED)])

    def test_a_function_is_killed_without_grace(self) -> None:
        play = Play()
        play.running(function())
        play.command(ev.RemoveContainer("fn"))
        self.assertEqual(len(play.of(fx.Kill)), 1)

    def test_nothing_is_reported_before_the_kill_is_done(self) -> None:
        play = Play()
        play.running(sandbox())
        play(ev.Exited("sb", handle().id, ExitStatus(code=3)))
        self.assertEqual(play.reports, [])
        play.killed("sb")
        self.assertEqual(play.reports, [ContainerTerminated("sb", Reason.PROCESS_CRASH)])

    def test_a_kill_that_fails_is_tried_until_it_succeeds(self) -> None:
        play = Play()
        play.running(sandbox())
        play(ev.Exited("sb", handle().id, ExitStatus(code=3)))
        for attempt in range(2, 9):
            play(ev.KillFailed("sb", play.node.containers["sb"].op, "busy"))
            alarm = play.of(fx.Alarm)[0]
            self.assertEqual(play.node.containers["sb"].state.attempt, attempt)
            play.now = alarm.at
            play(alarm.event)
            self.assertEqual(len(play.of(fx.Kill)), 1)
        play.killed("sb")
        self.assertEqual(len(play.reports), 1)

    def test_removal_during_the_start_waits_for_the_driver(self) -> None:
        play = Play()
        play.add(sandbox())
        op = play.node.containers["sb"].op
        play.command(ev.RemoveContainer("sb"))
        self.assertEqual(play.of(fx.CancelStart), [fx.CancelStart("sb", op)])
        self.assertIsInstance(play.state(), Aborting)
        play(ev.Started("sb", op, handle()))
        self.assertEqual(len(play.of(fx.Kill)), 1)
        play.killed("sb")
        self.assertEqual(play.reports, [ContainerTerminated("sb", Reason.FUNCTION_CANCELLED)])

    def test_removal_during_the_start_that_then_fails(self) -> None:
        play = Play()
        play.add(sandbox())
        op = play.node.containers["sb"].op
        play.command(ev.RemoveContainer("sb"))
        play(ev.StartFailed("sb", op, Reason.STARTUP_FAILED_INTERNAL_ERROR, "cancelled"))
        self.assertEqual(play.reports, [ContainerTerminated("sb", Reason.FUNCTION_CANCELLED)])

    def test_an_unknown_removal_is_harmless(self) -> None:
        self.assertEqual(Play().command(ev.RemoveContainer("never")), ())

    def test_added_again_while_it_goes_down(self) -> None:
        """A server that registers us anew takes a dying container over and adds it; that is no order to start."""
        play = Play()
        play.running(sandbox())
        play.command(ev.RemoveContainer("sb"))
        self.assertEqual(play.add(sandbox(timeout=5)), ())
        play(ev.Exited("sb", handle().id, ExitStatus(code=0)))
        play.killed("sb")
        play.add(sandbox(timeout=5))
        self.assertEqual(play.of(fx.Start), [])

    def test_a_dead_container_is_forgotten_after_the_server_knows_for_a_while(self) -> None:
        play = Play(forget_after=300.0)
        play.running(sandbox())
        play(ev.Unhealthy("sb", handle().id, "no answer"))
        play.killed("sb")
        self.assertEqual(play.reports, [ContainerTerminated("sb", Reason.UNHEALTHY)])
        play.now = 1000.0
        play(ev.Due("sb"))
        self.assertIn("sb", play.node.containers, "the server does not know yet")
        play.deliver_all()
        alarm = play.of(fx.Alarm)[0]
        play.now = max(play.now, alarm.at)
        play(alarm.event)
        self.assertEqual(len(play.node.containers), 0)
        self.assertEqual(len(play.node.sandboxes), 0)

    def test_exits_by_reason(self) -> None:
        table = [
            (Kind.SANDBOX, ExitStatus(code=0), Reason.FUNCTION_TIMEOUT),
            (Kind.SANDBOX, ExitStatus(code=137, oom=True), Reason.OOM),
            (Kind.SANDBOX, ExitStatus(code=137), Reason.PROCESS_CRASH),
            (Kind.SANDBOX, ExitStatus(code=143), Reason.FUNCTION_CANCELLED),
            (Kind.SANDBOX, ExitStatus(signal=15), Reason.FUNCTION_CANCELLED),
            (Kind.SANDBOX, ExitStatus(signal=9), Reason.PROCESS_CRASH),
            (Kind.SANDBOX, ExitStatus(), Reason.UNKNOWN),
            (Kind.FUNCTION, ExitStatus(code=0), Reason.PROCESS_CRASH),
            (Kind.FUNCTION, ExitStatus(signal=9, oom=True), Reason.OOM),
        ]
        for kind, status, reason in table:
            self.assertIs(reason_of_exit(kind, status), reason, (kind, status))

    def test_news_of_an_earlier_life_is_ignored(self) -> None:
        play = Play()
        play.running(sandbox())
        self.assertEqual(play(ev.Exited("sb", "sb#0", ExitStatus(code=1))), ())
        self.assertEqual(play(ev.Unhealthy("sb", "sb#0", "?")), ())


class Lifetime(SynchronousTestCase):
    def test_the_clock_of_a_direct_sandbox_starts_with_its_command(self) -> None:
        play = Play()
        play.add(sandbox(timeout=60))
        self.assertEqual(play.of(fx.Alarm), [fx.Alarm(60.0, ev.Due("sb"))])
        play.now = 30.0
        play.started("sb")
        play.now = 60.0
        play(ev.Due("sb"))
        self.assertEqual(play.state().reason, Reason.FUNCTION_TIMEOUT)

    def test_a_start_slower_than_the_lifetime_ends_at_once(self) -> None:
        play = Play()
        play.add(sandbox(timeout=5))
        play.now = 6.0
        play.started("sb")
        self.assertIsInstance(play.state(), Stopping)

    def test_zero_means_no_limit(self) -> None:
        play = Play()
        play.running(sandbox(timeout=0))
        play.now = 1e9
        self.assertEqual(play(ev.Due("sb")), ())

    def test_a_warm_container_never_expires_until_it_is_claimed(self) -> None:
        play = Play()
        play.running(sandbox(claimed=False, timeout=60))
        play.now = 1000.0
        self.assertEqual(play(ev.Due("sb")), ())
        claim = SandboxSpec(image="img", timeout_secs=60, sandbox_id="claimed")
        play.command(ev.UpdateContainer("sb", claim))
        self.assertEqual(play.reports, [ContainerStarted("sb")])
        self.assertEqual(play.of(fx.Alarm), [fx.Alarm(1060.0, ev.Due("sb"))])
        self.assertEqual(len(play.of(fx.Save)), 1, "a claim survives a restart")
        self.assertEqual(play.node.find("claimed").id, "sb")
        self.assertEqual(play.command(ev.UpdateContainer("sb", claim)), (), "the repeat is no second claim")

    def test_a_claim_while_it_starts_is_answered_by_the_start(self) -> None:
        play = Play()
        play.add(sandbox(claimed=False))
        play.command(ev.UpdateContainer("sb", SandboxSpec(sandbox_id="x")))
        self.assertEqual(play.reports, [])
        play.started("sb")
        self.assertEqual(play.reports, [ContainerStarted("sb")])

    def test_a_claim_with_a_policy_that_cannot_be_enforced_ends_the_container(self) -> None:
        play = Play()
        play.running(sandbox(claimed=False))
        play.command(ev.UpdateContainer("sb", SandboxSpec(sandbox_id="x", network_policy=NetworkPolicy())))
        self.assertEqual(play.reports, [])
        self.assertIsInstance(play.state(), Stopping)

    def test_an_update_without_content_or_of_an_unknown_container_does_nothing(self) -> None:
        play = Play()
        play.running(sandbox())
        self.assertEqual(play.command(ev.UpdateContainer("sb", None)), ())
        self.assertEqual(play.command(ev.UpdateContainer("no", SandboxSpec(sandbox_id="x"))), ())

    def test_the_index_follows_the_sandbox_id(self) -> None:
        play = Play()
        play.running(sandbox())
        play.command(ev.UpdateContainer("sb", evolve(sandbox().sandbox, sandbox_id="other")))
        self.assertIsNone(play.node.sandboxes.get("sb"))
        self.assertEqual(play.node.find("other").id, "sb")

    def test_a_sandbox_that_another_container_serves_is_refused(self) -> None:
        play = Play()
        play.running(sandbox())
        play.add(evolve(sandbox("second"), sandbox=sandbox("sb").sandbox))
        self.assertEqual(play.reports, [ContainerTerminated("second", Reason.STARTUP_FAILED_INTERNAL_ERROR)])
        self.assertEqual(play.node.find("sb").id, "sb")


class Odds(SynchronousTestCase):
    def test_a_snapshot_is_answered_and_the_sandbox_does_not_live_for_ever(self) -> None:
        play = Play(abandoned_grace=60.0)
        order = ev.SnapshotContainer("sb", "snap", "file:///x")
        play.command(evolve(order, snapshot_id="early"))
        self.assertEqual(play.reports, [SnapshotFailed("sb", "early", "container not found")])
        play.running(sandbox())
        play.command(order)
        failed = [SnapshotFailed("sb", "snap", "snapshots not configured on this dataplane")]
        self.assertEqual(play.reports, failed)
        play.now = 60.0
        play(ev.Due("sb"))
        self.assertIsInstance(play.state(), Stopping)

    def test_invalid_commands_are_answered_wherever_an_id_is_known(self) -> None:
        play = Play()
        play.command(ev.Invalid("AddContainer", "invalid_add_container", "no image", container_id="bad"))
        self.assertEqual(play.reports, [ContainerTerminated("bad", Reason.STARTUP_FAILED_INTERNAL_ERROR)])
        play.running(sandbox())
        play.command(ev.Invalid("AddContainer", "invalid_add_container", "no image", container_id="sb"))
        self.assertEqual(play.reports, [], "a bad command about a live container does not harm it")
        order = ev.SnapshotContainer("sb", "snap", "")
        play.command(ev.Invalid("SnapshotContainer", "missing_upload_uri", "upload_uri is empty", snapshot=order))
        self.assertEqual(play.reports, [SnapshotFailed("sb", "snap", "upload_uri is empty")])

    def test_draining_ends_everything_and_accepts_nothing(self) -> None:
        play = Play()
        play.running(sandbox())
        play.running(function())
        play.add(sandbox("late"))
        play(ev.DrainAll())
        self.assertIsInstance(play.state("sb"), Stopping)
        self.assertIsInstance(play.state("fn"), Killing)
        self.assertIsInstance(play.state("late"), Aborting)
        play.add(sandbox("new"))
        self.assertEqual(play.reports, [ContainerTerminated("new", Reason.STARTUP_FAILED_INTERNAL_ERROR)])

    def test_gpus_are_held_until_the_container_is_dead(self) -> None:
        play = Play()
        play.running(function("one", gpus=2))
        self.assertEqual(play.node.free_gpus, ())
        play.command(ev.RemoveContainer("one"))
        self.assertEqual(play.node.free_gpus, (), "the devices of a dying container are not free")
        play.killed("one")
        self.assertEqual(sorted(play.node.free_gpus), ["g1", "g2"])
        play.add(function("three", gpus=1))
        self.assertEqual(play.of(fx.Start)[0].gpus, play.node.containers["three"].gpus)

    def test_terminated_report_is_kept_in_the_state_until_delivered(self) -> None:
        play = Play()
        play.running(sandbox())
        play(ev.Exited("sb", handle().id, ExitStatus(code=1)))
        play.killed("sb")
        self.assertIsNotNone(play.state().report)
        play.deliver_all()
        self.assertEqual(play.state(), Terminated(Reason.PROCESS_CRASH, 0.0, None))
