"""Recovery: every row of the table at the head of ``core.recover``."""

from __future__ import annotations

from attrs import evolve
from immutables import Map
from twisted.trial.unittest import SynchronousTestCase

from indexify_dataplane.core import effects as fx
from indexify_dataplane.core import events as ev
from indexify_dataplane.core.model import (
    Aborting,
    Allocation,
    Container,
    ContainerTerminated,
    Done,
    Executing,
    Failed,
    FailureReason,
    Killing,
    Kind,
    Preparing,
    Running,
    Starting,
    Stopping,
    Terminated,
)
from indexify_dataplane.core.model import TerminationReason as Reason
from indexify_dataplane.core.node import DriverRules, Node, Rules
from indexify_dataplane.core.recover import Present, recover
from indexify_dataplane.core.step import step

from .build import BOTH, allocation, function, handle, sandbox

NOW = 100.0


class Recovery(SynchronousTestCase):
    def go(self, *records, present=(), allocations=(), undelivered=(), drivers=BOTH, **more):  # type: ignore[no-untyped-def]
        node = Node("exec", rules=Rules(drivers=drivers), free_gpus=("g1", "g2"), next_op=50, next_report=90)
        self.node, self.effects = recover(node, records, allocations, undelivered, present, NOW, **more)
        return [effect for effect in self.effects if not isinstance(effect, fx.Save)]

    def there(self, id: str = "sb", alive: bool = True, executor: str = "exec") -> Present:
        return Present(id, executor, handle(id), alive)

    def test_starting(self) -> None:
        record = Container(sandbox(), Starting(90.0), op=3)
        (start,) = self.go(record)
        self.assertIsInstance(start, fx.Start)
        (adopt,) = self.go(record, present=[self.there()])
        self.assertEqual((type(adopt), adopt.handle), (fx.Adopt, handle()))
        self.assertEqual(self.node.containers["sb"].op, adopt.op)
        effects = self.go(record, present=[self.there(alive=False)])
        self.assertIn(fx.Kill("sb", 50, handle()), effects)
        self.assertEqual(self.node.containers["sb"].state.reason, Reason.STARTUP_FAILED_INTERNAL_ERROR)
        (again,) = self.go(record, present=[evolve(self.there(alive=False), started=False)])
        self.assertIsInstance(again, fx.Start)

    def test_a_function_that_dies_with_its_node_never_runs_its_constructor_twice(self) -> None:
        record = Container(function(gpus=1), Starting(90.0), gpus=("g1",))
        effects = self.go(record)
        self.assertEqual([type(each) for each in effects], [fx.Send])
        self.assertEqual(effects[0].report.body, ContainerTerminated("fn", Reason.UNKNOWN))
        self.assertEqual(sorted(self.node.free_gpus), ["g1", "g2"])
        survives = Map({Kind.FUNCTION: DriverRules(survives_node=True)})
        (start,) = self.go(record, drivers=survives)
        self.assertEqual((type(start), start.gpus, self.node.free_gpus), (fx.Start, ("g1",), ("g2",)))

    def test_a_function_that_never_ran_is_not_started_again_once_its_calls_have_failed(self) -> None:
        survives = Map({Kind.FUNCTION: DriverRules(survives_node=True)})
        row, made = (
            Allocation(allocation("a1", "fn"), Preparing(0.0)),
            evolve(self.there("fn", alive=False), started=False),
        )
        effects = self.go(Container(function(), Starting(90.0)), present=[made], allocations=[row], drivers=survives)
        self.assertIn(fx.Kill("fn", 50, handle("fn")), effects)
        self.assertEqual(self.node.containers["fn"].state.reason, Reason.UNKNOWN)

    def test_aborting(self) -> None:
        record = Container(sandbox(), Aborting(Reason.FUNCTION_CANCELLED, 90.0), removal_ordered=True)
        effects = self.go(record)
        self.assertEqual(effects[0].report.body, ContainerTerminated("sb", Reason.FUNCTION_CANCELLED))
        effects = self.go(record, present=[self.there()])
        self.assertIn(fx.Kill("sb", 50, handle()), effects)

    def test_running(self) -> None:
        record = Container(sandbox(timeout=60), Running(handle(), 90.0), claimed_at=95.0)
        watch, alarm = self.go(record, present=[self.there()])
        self.assertEqual(watch, fx.Watch("sb", record.spec, handle()))
        self.assertEqual(alarm, fx.Alarm(155.0, ev.Due("sb")))
        self.assertEqual(self.node.find("sb").state, Running(handle(), 90.0))
        self.assertIsInstance(self.go(record, present=[self.there(alive=False)])[0], fx.Watch)
        effects = self.go(record)
        self.assertIn(fx.Kill("sb", 50, handle()), effects)
        self.assertEqual(self.node.containers["sb"].state.reason, Reason.UNKNOWN)

    def test_a_function_dead_with_the_node_costs_no_retry(self) -> None:
        record = Container(function(), Running(handle("fn"), 90.0))
        self.go(record)
        self.node, effects = step(self.node, ev.Killed("fn", self.node.containers["fn"].op), NOW)
        sent = [each.report.body for each in effects if isinstance(each, fx.Send)]
        self.assertEqual(sent, [ContainerTerminated("fn", Reason.UNKNOWN)])

    def test_a_function_that_outlived_the_node_is_connected_to_before_it_is_given_work(self) -> None:
        record = Container(function(gpus=1), Running(handle("fn"), 90.0), gpus=("g1",))
        survives = Map({Kind.FUNCTION: DriverRules(survives_node=True)})
        (adopt,) = self.go(record, present=[self.there("fn")], drivers=survives)
        self.assertEqual((type(adopt), adopt.handle), (fx.Adopt, handle("fn")))
        self.assertEqual((type(self.node.find("fn").state), self.node.free_gpus), (Starting, ("g2",)))
        self.node, _ = step(self.node, ev.Started("fn", adopt.op, handle("fn")), NOW)
        self.assertIsInstance(self.node.find("fn").state, Running)
        self.assertIsInstance(self.go(record, present=[self.there("fn", alive=False)], drivers=survives)[0], fx.Watch)

    def test_a_function_that_outlived_the_node_in_the_middle_of_something_is_killed(self) -> None:
        survives = Map({Kind.FUNCTION: DriverRules(survives_node=True)})
        row = Allocation(allocation("a1", "fn"), Preparing(0.0))
        for state in (Running(handle("fn"), 90.0), Starting(90.0)):
            record = Container(function(), state)
            effects = self.go(record, present=[self.there("fn")], allocations=[row], drivers=survives)
            self.assertIn(fx.Kill("fn", 50, handle("fn")), effects)
            self.assertEqual(self.node.containers["fn"].state.reason, Reason.UNKNOWN)
            (finalize,) = [each for each in effects if isinstance(each, fx.Finalize)]
            self.assertEqual(finalize.outcome.reason, FailureReason.CONTAINER_TERMINATED)
            self.assertTrue(finalize.outcome.blame_container)
        self.go(Container(function(), Starting(90.0)), allocations=[row], drivers=survives)
        self.assertIsInstance(self.node.find("fn").state, Terminated)

    def test_a_sandbox_with_a_policy_is_asked_about_also_by_a_node_that_can_enforce_none(self) -> None:
        """The answer is a failure, and ends it: it must not go on without."""
        (_, conform) = self.go(Container(sandbox(policy=True), Running(handle(), 90.0)), present=[self.there()])
        self.assertIsInstance(conform, fx.Conform)
        self.node, effects = step(self.node, ev.ConformFailed("sb", conform.op, "no privilege"), NOW)
        self.assertIn(fx.Kill("sb", self.node.containers["sb"].op, handle()), effects)
        (watch,) = self.go(Container(sandbox(), Running(handle(), 90.0)), present=[self.there()])
        self.assertIsInstance(watch, fx.Watch)

    def test_a_device_that_the_host_no_longer_has_is_given_to_nobody(self) -> None:
        self.go(Container(function(gpus=2), Starting(90.0), gpus=("g2", "gone")))
        self.assertEqual(sorted(self.node.free_gpus), ["g1", "g2"])

    def test_stopping_and_killing_go_on(self) -> None:
        record = Container(sandbox(), Stopping(handle(), Reason.FUNCTION_TIMEOUT, 500.0))
        watch, terminate, alarm = self.go(record, present=[self.there()])
        self.assertEqual((type(watch), type(terminate)), (fx.Watch, fx.Terminate))
        self.assertEqual(alarm.at, 110.0, "a deadline from a clock that jumped is capped by the grace")
        self.assertIn(fx.Kill("sb", 50, handle()), self.go(record))
        record = Container(sandbox(), Killing(handle(), Reason.OOM, 4, 2.0), op=9)
        self.assertIn(fx.Kill("sb", 50, handle()), self.go(record))
        self.assertEqual(self.node.containers["sb"].state.reason, Reason.OOM)

    def test_terminated(self) -> None:
        record = Container(sandbox(), Terminated(Reason.OOM, 40.0, report=7))
        self.assertEqual(self.go(record, undelivered={7}), [])
        self.assertIn(7, self.node.unacknowledged)
        (alarm,) = self.go(record)
        self.assertEqual(alarm.at, 340.0)
        self.assertIsNone(self.node.containers["sb"].state.report)
        self.assertIn(fx.KillOrphan(handle()), self.go(record, present=[self.there()]))

    def test_orphans_of_this_executor_only(self) -> None:
        effects = self.go(present=[self.there("mine"), self.there("foreign", executor="other")])
        self.assertEqual(effects, [fx.KillOrphan(handle("mine"))])

    def test_a_new_executor_id_stops_what_the_old_one_left(self) -> None:
        record = Container(sandbox(), Running(handle(), 90.0))
        effects = self.go(
            record, present=[self.there(executor="before")], earlier_executor_ids=("before",), renamed=True
        )
        self.assertIn(fx.Terminate("sb", handle()), effects)
        self.go(record, present=[self.there(executor="before")], earlier_executor_ids=("before",))
        self.assertIsInstance(self.node.containers["sb"].state, Running)

    def test_allocations(self) -> None:
        lost, done = Allocation(allocation("lost"), Executing(0)), Allocation(allocation("done"), Done(7))
        effects = self.go(allocations=[lost, done], undelivered={7})
        counted, finalize = effects
        self.assertEqual(counted, fx.CountDeath("call-lost", 1))
        self.assertEqual(finalize.outcome.reason, FailureReason.CONTAINER_TERMINATED)
        self.assertTrue(finalize.outcome.blame_container)
        self.assertIn("done", self.node.finished)
        effects = self.go(allocations=[done])
        self.assertEqual(effects, [fx.ForgetAllocation("done")])

    def test_a_call_that_dies_with_the_node_again_and_again_is_the_cause(self) -> None:
        lost = Allocation(allocation("lost"), Executing(0))
        for deaths, reason in ((1, FailureReason.CONTAINER_TERMINATED), (2, FailureReason.FUNCTION_ERROR)):
            counted, finalize = self.go(allocations=[lost], deaths={"call-lost": deaths})
            self.assertEqual((counted.count, finalize.outcome.reason), (deaths + 1, reason))

    def test_a_call_that_only_waits_while_others_kill_the_node_is_never_the_cause(self) -> None:
        container = Container(function(), Running(handle("fn"), 1.0))
        waiting = Allocation(allocation("waiting"), Preparing(0))
        effects = self.go(container, allocations=[waiting], deaths={"call-waiting": 2})
        self.assertEqual([each for each in effects if isinstance(each, fx.CountDeath)], [])
        (finalize,) = [each for each in effects if isinstance(each, fx.Finalize)]
        self.assertEqual(finalize.outcome, Failed(FailureReason.CONTAINER_TERMINATED, blame_container=True))

    def test_a_function_that_kills_the_node_while_it_is_loaded_is_the_cause(self) -> None:
        waiting = Allocation(allocation("waiting"), Preparing(0))
        effects = self.go(Container(function(), Starting(1.0)), allocations=[waiting], deaths={"call-waiting": 2})
        (finalize,) = [each for each in effects if isinstance(each, fx.Finalize)]
        self.assertEqual(finalize.outcome.reason, FailureReason.FUNCTION_ERROR)

    def test_recovering_twice_is_the_same(self) -> None:
        records = [
            Container(sandbox("s1"), Starting(1.0)),
            Container(sandbox("s2"), Running(handle("s2"), 1.0), claimed_at=2.0),
            Container(sandbox("s3"), Stopping(handle("s3"), Reason.OOM, 5.0)),
            Container(function("f1"), Running(handle("f1"), 1.0)),
        ]
        self.go(*records, present=[self.there("s2"), self.there("s3")])
        first = self.node
        saved = {each.container.id: each.container for each in self.effects if isinstance(each, fx.Save)}
        self.go(*saved.values(), present=[self.there("s2"), self.there("s3")])
        without_ops = lambda node: {id: evolve(each, op=0) for id, each in node.containers.items()}  # noqa: E731
        self.assertEqual(without_ops(self.node), without_ops(first))
