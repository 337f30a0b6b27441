"""Claims, changed policies and the rest of warm containers, row by row."""

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
    Starting,
    TerminationReason,
)
from indexify_dataplane.core.node import DriverRules, Node, Rules
from indexify_dataplane.core.recover import Present, recover

from .build import Play, handle, sandbox

Reason = TerminationReason
CLOSED = NetworkPolicy(allow_internet=False)
DRIVERS = Map({Kind.SANDBOX: DriverRules(enforces_policies=True, survives_node=True, freezes=True)})
WARM = evolve(sandbox(claimed=False), pool_id="pool")
CLAIM = SandboxSpec(image="img", sandbox_id="x")


class Claims(SynchronousTestCase):
    def setUp(self) -> None:
        self.play = Play(drivers=DRIVERS)

    @property
    def op(self) -> int:
        return self.play.node.containers["sb"].op

    def warm(self) -> None:
        self.play.running(WARM)

    def frozen(self) -> None:
        self.warm()
        self.play.now = 10.0
        self.play(ev.Due("sb"))
        self.play(ev.Conformed("sb", self.op, True))

    def claim(self, **changes: object) -> None:
        self.play.command(ev.UpdateContainer("sb", evolve(CLAIM, **changes)))

    def test_a_claim_that_changes_nothing_is_answered_at_once(self) -> None:
        self.warm()
        self.claim()
        self.assertEqual(self.play.reports, [ContainerStarted("sb")])
        self.assertEqual(self.play.of(fx.Conform), [])

    def test_a_policy_that_nobody_can_enforce_ends_the_sandbox_that_was_to_have_it(self) -> None:
        bad = ev.Invalid("UpdateContainerDescription", "invalid", "allow_out[0]: 'example.com'", unprotected="sb")
        self.play.command(bad)
        self.assertEqual(self.play.effects, (), "there is no such sandbox")
        self.warm()
        self.play.command(bad)
        self.assertEqual(self.play.state().reason, Reason.STARTUP_FAILED_INTERNAL_ERROR)
        self.assertEqual(self.play.command(bad), (), "it is ending already")
        self.play(ev.Exited("sb", handle().id, ExitStatus(code=0)))
        self.play.killed("sb")
        self.assertEqual(self.play.reports, [ContainerTerminated("sb", Reason.STARTUP_FAILED_INTERNAL_ERROR)])

    def test_a_start_whose_policy_became_impossible_is_cancelled(self) -> None:
        self.play.add(sandbox())
        self.play.command(ev.Invalid("AddContainer", "invalid", "?", container_id="sb", unprotected="sb"))
        self.assertEqual((len(self.play.of(fx.CancelStart)), self.play.reports), (1, []))

    def test_a_claim_with_another_policy_is_answered_when_it_is_in_force(self) -> None:
        self.warm()
        self.claim(network_policy=CLOSED)
        self.assertEqual(self.play.reports, [])
        self.assertEqual(self.play.of(fx.Conform), [fx.Conform("sb", self.op, handle(), CLOSED, False)])
        self.assertEqual(self.play.state(), Running(handle(), 0.0, claiming=True))
        self.play(ev.Conformed("sb", self.op - 1, False))
        self.assertEqual(self.play.reports, [], "an old answer")
        self.play(ev.Conformed("sb", self.op, False))
        self.assertEqual(self.play.reports, [ContainerStarted("sb")])
        self.assertEqual(self.play.state(), Running(handle(), 0.0))
        self.play(ev.Conformed("sb", self.op, False))
        self.assertEqual(self.play.reports, [], "once")

    def test_a_policy_that_cannot_be_in_force_kills(self) -> None:
        for claimed, reason in ((True, Reason.STARTUP_FAILED_INTERNAL_ERROR), (False, Reason.INTERNAL_ERROR)):
            self.play = Play(drivers=DRIVERS)
            self.play.running(WARM if claimed else sandbox())
            self.play.command(ev.UpdateContainer("sb", SandboxSpec(sandbox_id="sb", network_policy=CLOSED)))
            self.play(ev.ConformFailed("sb", self.op - 1, "old"))
            self.assertIsInstance(self.play.state(), Running)
            self.play(ev.ConformFailed("sb", self.op, "the filter is busy"))
            self.assertEqual(self.play.state(), Killing(handle(), reason))
            self.assertEqual(self.play.reports, [], "not before it is dead")

    def test_a_policy_that_changes_during_the_start_comes_before_the_report(self) -> None:
        self.play.add(WARM)
        self.claim(network_policy=CLOSED)
        self.assertEqual(self.play.state(), Starting(0.0, outdated=True))
        self.play.started("sb")
        self.assertEqual(self.play.reports, [])
        self.assertEqual([each.policy for each in self.play.of(fx.Conform)], [CLOSED])
        self.play(ev.Conformed("sb", self.op, False))
        self.assertEqual(self.play.reports, [ContainerStarted("sb")])

    def test_a_removed_policy_is_taken_out_of_force(self) -> None:
        self.play.running(sandbox(policy=True))
        self.play.command(ev.UpdateContainer("sb", SandboxSpec(image="img", sandbox_id="sb")))
        self.assertEqual([each.policy for each in self.play.of(fx.Conform)], [None])
        self.assertFalse(self.play.state().claiming)

    def test_an_idle_warm_container_rests_and_is_woken_by_a_claim(self) -> None:
        self.warm()
        self.assertIn(fx.Alarm(10.0, ev.Due("sb")), self.play.effects)
        self.play.now = 9.9
        self.assertEqual(self.play(ev.Due("sb")), ())
        self.play.now = 10.0
        self.play(ev.Due("sb"))
        self.assertEqual(self.play.of(fx.Conform), [fx.Conform("sb", self.op, handle(), None, True)])
        self.assertEqual([each.frozen for each in self.play.of(fx.Watch)], [True], "nobody asks for its health")
        self.assertEqual(self.play(ev.Due("sb")), ())
        self.assertEqual(self.play(ev.Conformed("sb", self.op, True)), ())
        self.claim()
        self.assertEqual(self.play.reports, [])
        self.assertEqual([each.frozen for each in self.play.of(fx.Conform)], [False])
        self.play(ev.Conformed("sb", self.op, False))
        self.assertEqual([each.frozen for each in self.play.of(fx.Watch)], [False])
        self.assertEqual(self.play.reports, [ContainerStarted("sb")])

    def test_a_claim_overtakes_the_order_to_rest(self) -> None:
        self.warm()
        self.play.now = 10.0
        self.play(ev.Due("sb"))
        rest = self.op
        self.claim()
        self.play(ev.Conformed("sb", rest, True))
        self.assertEqual(self.play.effects, ())
        self.play(ev.Conformed("sb", self.op, False))
        self.assertEqual(self.play.state(), Running(handle(), 0.0))

    def test_one_that_cannot_be_frozen_is_asked_for_its_health_again(self) -> None:
        self.warm()
        self.play.now = 10.0
        self.play(ev.Due("sb"))
        self.play(ev.Conformed("sb", self.op, False))
        self.assertEqual([each.frozen for each in self.play.of(fx.Watch)], [False])
        self.assertEqual(self.play.state(), Running(handle(), 0.0))

    def test_who_never_rests(self) -> None:
        rows = {
            "claimed": (DRIVERS, evolve(sandbox(), pool_id="pool")),
            "of no pool": (DRIVERS, sandbox(claimed=False)),
            "the driver does not freeze": (Map({Kind.SANDBOX: DriverRules(enforces_policies=True)}), WARM),
        }
        for name, (drivers, spec) in rows.items():
            self.play = Play(drivers=drivers)
            self.play.running(spec)
            self.play.now = 1000.0
            self.assertEqual(self.play(ev.Due("sb")), (), name)

    def test_a_frozen_one_dies_and_is_removed_like_any_other(self) -> None:
        self.frozen()
        self.play.command(ev.RemoveContainer("sb"))
        self.assertEqual(len(self.play.of(fx.Terminate)), 1)

    def test_recovery_puts_rules_and_rest_back(self) -> None:
        no = Map({Kind.SANDBOX: DriverRules(survives_node=True)})
        rows = [
            ("running", DRIVERS, sandbox(policy=True), Running(handle(), 1.0), (CLOSED, False), False),
            ("resting", DRIVERS, WARM, Running(handle(), 1.0, frozen=True), (None, True), False),
            ("claiming", DRIVERS, sandbox(policy=True), Running(handle(), 1.0, claiming=True), (CLOSED, False), True),
            ("freezes no more", no, WARM, Running(handle(), 1.0, frozen=True), (None, False), False),
            ("neither", no, sandbox(), Running(handle(), 1.0), None, False),
        ]
        for name, drivers, spec, state, wanted, reported in rows:
            with self.subTest(name):
                node = Node("exec", rules=Rules(drivers=drivers), next_op=5)
                present = [Present("sb", "exec", handle(), True)]
                self.play = Play(node)
                self.play.node, effects = recover(node, [Container(spec, state, op=4)], [], (), present, 100.0)
                conforms = [each for each in effects if isinstance(each, fx.Conform)]
                self.assertEqual([(each.policy, each.frozen) for each in conforms], [wanted] if wanted else [], name)
                if wanted:
                    self.play(ev.Conformed("sb", self.op, wanted[1]))
                    self.assertEqual(self.play.reports, [ContainerStarted("sb")] if reported else [], name)
