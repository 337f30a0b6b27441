"""Snapshots, one row of their life at a time: every order is answered once, and the sandbox is never lost before."""

from __future__ import annotations

from attrs import evolve
from immutables import Map
from twisted.trial.unittest import SynchronousTestCase

from indexify_dataplane.core import effects as fx
from indexify_dataplane.core import events as ev
from indexify_dataplane.core.model import (
    Container,
    ContainerStarted,
    ContainerTerminated,
    ExitStatus,
    Killing,
    Kind,
    NetworkPolicy,
    Running,
    SandboxSpec,
    SnapshotCompleted,
    SnapshotFailed,
    Snapshotting,
    Stopping,
    Terminated,
)
from indexify_dataplane.core.model import TerminationReason as Reason
from indexify_dataplane.core.node import DriverRules, Node, Rules
from indexify_dataplane.core.recover import Present, recover
from indexify_dataplane.records import decode_container, encode_container

from .build import Play, function, handle, sandbox

DRIVERS = Map({Kind.SANDBOX: DriverRules(survives_node=True, takes_snapshots=True), Kind.FUNCTION: DriverRules()})
ORDER = ev.SnapshotContainer("sb", "s1", "file:///s1")
DONE = SnapshotCompleted("sb", "s1", "file:///s1", 7)


class Snapshot(Play):
    """A running sandbox on a node that takes snapshots; ``begin`` orders one."""

    def __init__(self, timeout: int | None = None, **rules: object) -> None:
        super().__init__(**{"drivers": DRIVERS, **rules})
        self.running(sandbox(timeout=timeout))

    def begin(self) -> fx.TakeSnapshot:
        self.command(ORDER)
        (effect,) = self.of(fx.TakeSnapshot)
        assert isinstance(effect, fx.TakeSnapshot)
        return effect

    @property
    def op(self) -> int:
        return self.node.containers["sb"].op

    def taken(self) -> None:
        self(ev.Snapshotted("sb", self.op, 7, "abc"))

    def fails(self, retryable: bool = True) -> None:
        self(ev.SnapshotAttemptFailed("sb", self.op, "store down", retryable))

    def under_way(self) -> Snapshotting:
        state = self.state()
        assert isinstance(state, Snapshotting)
        return state


class Taken(SynchronousTestCase):
    def test_it_is_taken_then_the_sandbox_ends_then_both_are_reported_in_order(self) -> None:
        play = Snapshot()
        play.now = 5.0
        effect = play.begin()
        self.assertEqual(effect, fx.TakeSnapshot("sb", play.op, handle(), "s1", "file:///s1", 1, 3600.0))
        self.assertEqual(play.reports, [])
        kinds = [type(each) for each in play.effects]
        self.assertLess(kinds.index(fx.Save), kinds.index(fx.TakeSnapshot))
        play.taken()
        self.assertEqual(play.reports, [])
        self.assertEqual(play.state(), Killing(handle(), Reason.FUNCTION_CANCELLED, answer=DONE))
        play.killed("sb")
        self.assertEqual(play.reports, [ContainerTerminated("sb", Reason.FUNCTION_CANCELLED), DONE])

    def test_a_repeated_order_is_ignored_at_every_step_and_answered_alike_at_the_end(self) -> None:
        play = Snapshot()
        play.begin()
        self.assertEqual(play.command(ORDER), ())
        play.fails()
        self.assertEqual(play.command(ORDER), ())
        play.now = play.under_way().retry_at or 0.0
        play(ev.Due("sb"))
        play.taken()
        self.assertEqual(play.command(ORDER), ())
        play.killed("sb")
        self.assertEqual(play.command(ORDER), (), "the answer is in the outbox")
        play.deliver_all()
        play.command(ORDER)
        self.assertEqual(play.reports, [DONE], "should the server have lost it")

    def test_an_order_that_crosses_with_the_removal_gets_the_same_answer(self) -> None:
        play = Snapshot()
        play.begin()
        play.taken()
        play.killed("sb")
        play.deliver_all()
        play.command(ev.RemoveContainer("sb"))
        self.assertNotIn("sb", play.node.containers)
        play.command(ORDER)
        self.assertEqual(play.reports, [DONE])
        play(ev.ForgetAnswer("s1"))
        play.command(ORDER)
        self.assertEqual(play.reports, [SnapshotFailed("sb", "s1", "container not found")])

    def test_another_order_meanwhile_is_refused_and_the_first_goes_on(self) -> None:
        play = Snapshot()
        play.begin()
        play.command(evolve(ORDER, snapshot_id="s2"))
        self.assertEqual(play.reports, [SnapshotFailed("sb", "s2", "another snapshot of the container is being taken")])
        self.assertIsInstance(play.state(), Snapshotting)

    def test_an_old_result_changes_nothing(self) -> None:
        play = Snapshot()
        play.begin()
        self.assertEqual(play(ev.Snapshotted("sb", play.op - 1, 7, "abc")), ())
        self.assertEqual(play(ev.SnapshotAttemptFailed("sb", play.op - 1, "", True)), ())
        play.taken()
        self.assertEqual(play(ev.SnapshotAttemptFailed("sb", 1, "", True)), ())

    def test_a_kill_that_fails_delays_the_answer_and_loses_nothing(self) -> None:
        play = Snapshot()
        play.begin()
        play.taken()
        play(ev.KillFailed("sb", play.op, "busy"))
        self.assertEqual(play.reports, [])
        play.now += 1
        play(ev.Due("sb"))
        play.killed("sb")
        self.assertEqual(play.reports[-1], DONE)


class Refused(SynchronousTestCase):
    def test_what_is_not_there_or_does_not_run(self) -> None:
        play = Snapshot()
        play.command(evolve(ORDER, container_id="none"))
        self.assertEqual(play.reports, [SnapshotFailed("none", "s1", "container not found")])
        play.add(sandbox("new"))
        play.command(evolve(ORDER, container_id="new"))
        self.assertEqual(play.reports, [SnapshotFailed("new", "s1", "container not in running state")])

    def test_functions_and_drivers_without_snapshots(self) -> None:
        play = Snapshot()
        play.running(function())
        play.command(evolve(ORDER, container_id="fn"))
        self.assertEqual(play.reports, [SnapshotFailed("fn", "s1", "snapshots not configured on this dataplane")])


class RightBehindAClaim(SynchronousTestCase):
    """To the server a claimed sandbox runs at once, so an order may come before the claim is carried out."""

    def setUp(self) -> None:
        drivers = DRIVERS.set(Kind.SANDBOX, evolve(DRIVERS[Kind.SANDBOX], enforces_policies=True))
        self.play = Snapshot(drivers=drivers)
        warm = evolve(sandbox("warm", claimed=False), pool_id="pool")
        self.play.running(warm)
        claimed = evolve(warm.sandbox, sandbox_id="claimed", network_policy=NetworkPolicy(allow_internet=False))
        self.play.command(ev.UpdateContainer("warm", claimed))
        self.order = evolve(ORDER, container_id="warm")
        self.play.command(self.order)

    def conformed(self) -> None:
        self.play(ev.Conformed("warm", self.play.node.containers["warm"].op, False))

    def test_it_waits_for_the_claim(self) -> None:
        self.play.command(self.order)
        self.assertEqual((self.play.reports, self.play.of(fx.TakeSnapshot)), ([], []))
        self.conformed()
        self.assertEqual(self.play.reports, [ContainerStarted("warm")])
        self.assertIsInstance(self.play.node.containers["warm"].state, Snapshotting)
        self.assertEqual(len(self.play.of(fx.TakeSnapshot)), 1)

    def test_a_second_one_is_refused(self) -> None:
        self.play.command(evolve(self.order, snapshot_id="s2"))
        self.assertEqual(
            self.play.reports, [SnapshotFailed("warm", "s2", "another snapshot of the container is being taken")]
        )

    def test_a_sandbox_that_ends_before_answers_it_once(self) -> None:
        refused = SnapshotFailed("warm", "s1", "container not in running state")
        self.play.command(ev.RemoveContainer("warm"))
        self.assertEqual(self.play.reports, [refused])
        self.conformed()
        self.play(ev.Exited("warm", handle("warm").id, ExitStatus(code=0)))
        self.assertNotIn(refused, self.play.reports)
        self.assertEqual(self.play.of(fx.TakeSnapshot), [])

    def test_a_claim_that_fails_answers_it(self) -> None:
        self.play(ev.ConformFailed("warm", self.play.node.containers["warm"].op, "no rules"))
        self.assertIn(SnapshotFailed("warm", "s1", "container not in running state"), self.play.reports)

    def test_the_next_life_waits_for_the_servers_repeat(self) -> None:
        container = self.play.node.containers["warm"]
        again = decode_container(encode_container(container, 0.0), 0.0)
        assert isinstance(container.state, Running)
        self.assertEqual(again, evolve(container, state=evolve(container.state, ordered=None)))


class Failed(SynchronousTestCase):
    def test_it_is_tried_again_while_the_sandbox_runs(self) -> None:
        play = Snapshot()
        first = play.begin()
        for attempt, pause in ((2, 1.0), (3, 2.0), (4, 4.0), (5, 8.0)):
            play.fails()
            self.assertEqual(play.reports, [])
            self.assertEqual(play.under_way().retry_at, play.now + pause)
            play(ev.Due("sb"))
            self.assertEqual(play.of(fx.TakeSnapshot), [], "an early alarm")
            play.now += pause
            play(ev.Due("sb"))
            (again,) = play.of(fx.TakeSnapshot)
            assert isinstance(again, fx.TakeSnapshot)
            self.assertEqual((again.attempt, again.timeout), (attempt, first.timeout - play.now))
            self.assertEqual(play(ev.Due("sb")), ())
        play.fails()
        self.assertEqual(play.reports, [SnapshotFailed("sb", "s1", "store down")])

    def test_after_the_failure_it_is_kept_for_a_minute(self) -> None:
        play = Snapshot()
        play.begin()
        play.fails(retryable=False)
        self.assertEqual(play.reports, [SnapshotFailed("sb", "s1", "store down")])
        self.assertEqual(play.state(), Running(handle(), 0.0))
        self.assertEqual(play.of(fx.SweepUploads), [fx.SweepUploads("sb", "file:///s1")])
        self.assertEqual(len(play.of(fx.Watch)), 1, "its health is asked again")
        play.now = 59.0
        play(ev.Due("sb"))
        self.assertIsInstance(play.state(), Running)
        play.now = 60.0
        play(ev.Due("sb"))
        self.assertIsInstance(play.state(), Stopping)

    def test_the_same_order_after_the_failure_gets_the_same_answer(self) -> None:
        play = Snapshot()
        play.begin()
        play.fails(retryable=False)
        play.command(ORDER)
        self.assertEqual(play.reports, [SnapshotFailed("sb", "s1", "store down")])
        self.assertIsInstance(play.state(), Running)

    def test_another_order_after_the_failure_is_a_new_one(self) -> None:
        play = Snapshot()
        play.begin()
        play.fails(retryable=False)
        play.command(evolve(ORDER, snapshot_id="s2"))
        self.assertEqual(len(play.of(fx.TakeSnapshot)), 1)
        play.now = 61.0
        play(ev.Due("sb"))
        self.assertIsInstance(play.state(), Snapshotting, "the minute of the first is over, the second is taken")

    def test_its_removal_after_the_failure_is_an_ordinary_one(self) -> None:
        play = Snapshot()
        play.begin()
        play.fails(retryable=False)
        play.command(ev.RemoveContainer("sb"))
        play(ev.Exited("sb", handle().id, ExitStatus(code=0)))
        play.killed("sb")
        self.assertEqual(play.reports, [ContainerTerminated("sb", Reason.FUNCTION_CANCELLED)])

    def test_time_is_bounded(self) -> None:
        play = Snapshot(snapshot_timeout=10.0)
        play.begin()
        play.now = 9.5
        play.fails()
        self.assertEqual(play.reports, [SnapshotFailed("sb", "s1", "store down")])


class Meanwhile(SynchronousTestCase):
    def test_a_removal_waits_for_the_snapshot(self) -> None:
        play = Snapshot()
        play.begin()
        play.command(ev.RemoveContainer("sb"))
        self.assertIsInstance(play.state(), Snapshotting)
        play.taken()
        play.killed("sb")
        self.assertEqual(play.reports, [ContainerTerminated("sb", Reason.FUNCTION_CANCELLED), DONE])

    def test_a_snapshot_of_what_is_to_be_removed_is_not_tried_again(self) -> None:
        play = Snapshot()
        play.begin()
        play.command(ev.RemoveContainer("sb"))
        play.fails()
        self.assertEqual(play.reports, [SnapshotFailed("sb", "s1", "store down")])
        self.assertIsInstance(play.state(), Stopping)

    def test_an_exit_does_not_end_the_copy(self) -> None:
        play = Snapshot()
        play.begin()
        play(ev.Exited("sb", handle().id, ExitStatus(code=1)))
        self.assertEqual(play.of(fx.Kill), [])
        play.taken()
        play.killed("sb")
        self.assertEqual(play.reports, [ContainerTerminated("sb", Reason.FUNCTION_CANCELLED), DONE])

    def test_what_has_exited_is_not_copied_again(self) -> None:
        play = Snapshot()
        play.begin()
        play(ev.Exited("sb", handle().id, ExitStatus(code=137, oom=True)))
        play.fails()
        self.assertEqual(play.reports, [])
        play.killed("sb")
        self.assertEqual(
            play.reports, [ContainerTerminated("sb", Reason.OOM), SnapshotFailed("sb", "s1", "store down")]
        )

    def test_the_end_of_its_lifetime_waits_and_counts_afterwards(self) -> None:
        play = Snapshot(timeout=10)
        play.begin()
        play.now = 11.0
        play(ev.Due("sb"))
        self.assertIsInstance(play.state(), Snapshotting)
        play.fails()
        self.assertEqual(play.reports, [SnapshotFailed("sb", "s1", "store down")])
        state = play.state()
        assert isinstance(state, Stopping)
        self.assertIs(state.reason, Reason.FUNCTION_TIMEOUT)

    def test_it_is_not_forgotten_before_everything_is_swept(self) -> None:
        play = Snapshot()
        play.begin()
        play.fails(retryable=False)
        play.command(ev.RemoveContainer("sb"))
        play(ev.Exited("sb", handle().id, ExitStatus(code=0)))
        play.killed("sb")
        play.command(ev.RemoveContainer("sb"))
        play.deliver_all()
        play.now += 3600.0
        play(ev.Due("sb"))
        self.assertIsInstance(play.state(), Terminated)
        self.assertEqual(play(ev.Swept("sb", "file:///another")), ())
        play(ev.Swept("sb", "file:///s1"))
        self.assertNotIn("sb", play.node.containers)
        self.assertEqual(play(ev.Swept("sb", "file:///s1")), ())

    def test_frozen_is_not_unhealthy(self) -> None:
        play = Snapshot()
        play.begin()
        self.assertEqual(play(ev.Unhealthy("sb", handle().id, "silent")), ())

    def test_a_repeated_description_changes_nothing(self) -> None:
        play = Snapshot()
        play.begin()
        self.assertEqual(play.add(sandbox()), ())
        self.assertEqual(play.command(ev.UpdateContainer("sb", SandboxSpec(image="other", sandbox_id="sb"))), ())

    def test_a_node_that_is_given_up_gives_the_snapshot_up(self) -> None:
        play = Snapshot()
        op = play.begin().op
        play(ev.DrainAll())
        self.assertEqual(play.of(fx.CancelSnapshot), [fx.CancelSnapshot("sb", op)])
        self.assertEqual(len(play.of(fx.SweepUploads)), 1)
        self.assertEqual(len(play.of(fx.Kill)), 1)
        self.assertEqual(play(ev.Snapshotted("sb", op, 7, "abc")), ())
        play.killed("sb")
        terminated, failed = play.reports
        self.assertEqual(terminated, ContainerTerminated("sb", Reason.FUNCTION_CANCELLED))
        assert isinstance(failed, SnapshotFailed)


class Crashed(SynchronousTestCase):
    """The record goes through the store, the next life decides on it."""

    def next_life(self, play: Play, *, alive: bool | None = True, takes: bool = True) -> Play:
        record = decode_container(encode_container(play.node.containers["sb"], 1000.0), 1000.0)
        self.assertEqual(record, play.node.containers["sb"])
        drivers = DRIVERS if takes else DRIVERS.set(Kind.SANDBOX, DriverRules(survives_node=True))
        present = [] if alive is None else [Present("sb", "exec", handle(), alive)]
        node, effects = recover(
            Node("exec", rules=Rules(drivers=drivers), next_op=100), [record], [], (), present, play.now
        )
        following = Play(node)
        following.now, following.effects = play.now, effects
        return following

    def state_of(self, play: Play) -> Container:
        return play.node.containers["sb"]

    def test_it_is_taken_again_in_the_time_that_is_left(self) -> None:
        play = Snapshot()
        play.begin()
        play.now = 100.0
        following = self.next_life(play)
        (effect,) = following.of(fx.TakeSnapshot)
        assert isinstance(effect, fx.TakeSnapshot)
        self.assertEqual((effect.attempt, effect.timeout), (2, 3500.0))
        self.assertEqual(len(following.of(fx.Watch)), 1)
        self.assertEqual(following.command(ORDER), ())
        following(ev.Snapshotted("sb", effect.op, 7, "abc"))
        following.killed("sb")
        self.assertEqual(following.reports, [ContainerTerminated("sb", Reason.FUNCTION_CANCELLED), DONE])

    def test_between_two_attempts_no_attempt_is_lost(self) -> None:
        play = Snapshot()
        play.begin()
        play.fails()
        (effect,) = self.next_life(play).of(fx.TakeSnapshot)
        assert isinstance(effect, fx.TakeSnapshot)
        self.assertEqual(effect.attempt, 2)

    def test_what_has_exited_meanwhile_is_copied_from_its_remains(self) -> None:
        play = Snapshot()
        play.begin()
        self.assertEqual(len(self.next_life(play, alive=False).of(fx.TakeSnapshot)), 1)

    def test_what_is_gone_is_answered_once(self) -> None:
        play = Snapshot()
        play.begin()
        following = self.next_life(play, alive=None)
        self.assertEqual(len(following.of(fx.SweepUploads)), 1)
        following.killed("sb")
        terminated, failed = following.reports
        self.assertEqual(terminated, ContainerTerminated("sb", Reason.UNKNOWN))
        assert isinstance(failed, SnapshotFailed)

    def test_a_node_that_dies_while_it_tidies_up_does_it_again(self) -> None:
        play: Play = Snapshot()
        assert isinstance(play, Snapshot)
        play.begin()
        play.fails(retryable=False)
        for _ in range(2):
            play = self.next_life(play)
            self.assertEqual(play.of(fx.SweepUploads), [fx.SweepUploads("sb", "file:///s1")])
        play(ev.Swept("sb", "file:///s1"))
        self.assertEqual(self.state_of(play).unswept, ())
        self.assertEqual(self.next_life(play).of(fx.SweepUploads), [])

    def test_a_node_that_dies_of_it_gives_up(self) -> None:
        play: Play = Snapshot()
        assert isinstance(play, Snapshot)
        play.begin()
        attempts = 1
        while self.next_life(play).of(fx.TakeSnapshot):
            play = self.next_life(play)
            attempts += 1
        self.assertEqual(attempts, 5)
        following = self.next_life(play)
        (failed,) = following.reports
        assert isinstance(failed, SnapshotFailed)
        self.assertIsInstance(following.state(), Running)

    def test_time_that_ran_out_meanwhile(self) -> None:
        play = Snapshot()
        play.begin()
        play.now = 3600.0
        following = self.next_life(play)
        self.assertEqual(following.of(fx.TakeSnapshot), [])
        self.assertEqual(len(following.reports), 1)

    def test_a_node_that_takes_none_any_more(self) -> None:
        play = Snapshot()
        play.begin()
        following = self.next_life(play, takes=False)
        self.assertEqual(following.of(fx.TakeSnapshot), [])
        self.assertEqual(following.reports, [SnapshotFailed("sb", "s1", "snapshots not configured on this dataplane")])

    def test_the_answer_survives_until_it_is_reported(self) -> None:
        play = Snapshot()
        play.begin()
        play.taken()
        following = self.next_life(play)
        following.killed("sb")
        self.assertEqual(following.reports, [ContainerTerminated("sb", Reason.FUNCTION_CANCELLED), DONE])
        again = self.next_life(following, alive=None)
        self.assertIsInstance(again.state(), Terminated)
        again.command(ORDER)
        self.assertEqual(again.reports, [DONE])

    def test_every_form_of_the_state_is_written_and_read(self) -> None:
        play = Snapshot()
        play.begin()
        play(ev.Exited("sb", handle().id, ExitStatus(signal=9, oom=True)))
        container = play.node.containers["sb"]
        for state in (
            evolve(play.under_way(), retry_at=4.0),
            Killing(handle(), Reason.OOM, answer=SnapshotFailed("sb", "s1", "why")),
            Killing(handle(), Reason.OOM, answer=DONE),
        ):
            changed = evolve(container, state=state, answered=DONE)
            self.assertEqual(decode_container(encode_container(changed, 50.0), 50.0), changed)

    def test_a_record_from_before_snapshots_is_read(self) -> None:
        import json

        play = Snapshot()
        record = json.loads(encode_container(play.node.containers["sb"], 0.0))
        del record["answered"]
        self.assertEqual(decode_container(json.dumps(record).encode(), 0.0), play.node.containers["sb"])
