"""The heartbeat against a scripted server, on a clock."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

from attrs import evolve
from twisted.internet.defer import Deferred, fail
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from indexify_dataplane.control.full_state import FullState
from indexify_dataplane.control.transport import ControlError
from indexify_dataplane.core.model import SandboxSpec, Terminated, TerminationReason
from indexify_dataplane.core.outbox import ReportKind
from indexify_dataplane.core.session import Link
from indexify_dataplane.wireproto import executor_api_pb2 as pb

from .scripted import OK, WANTED, Call, Client, sandbox


def started(call: Call) -> list[str]:
    return [response.container_started.container_id for response in call.request.command_responses]


def outcomes(call: Call) -> list[pb.AllocationOutcome]:
    return list(call.request.allocation_outcomes)


def outcome(id: str) -> bytes:
    done = pb.AllocationCompleted(
        allocation_id=id, function=pb.FunctionRef(namespace="n"), function_call_id="f", request_id="r"
    )
    return pb.AllocationOutcome(completed=done).SerializeToString()


class HeartbeatTest(SynchronousTestCase):
    def setUp(self) -> None:
        self.client = Client()
        self.server = self.client.server
        self.clock = self.client.clock
        self.addCleanup(self.check_nothing_left)
        self.addCleanup(self.client.close)

    def check_nothing_left(self) -> None:
        self.assertEqual(self.clock.getDelayedCalls(), [])
        self.assertNoResult(self.client.heartbeat.died)

    def test_l24_the_first_heartbeat_carries_full_state_and_the_reports_and_is_asked_for_by_nobody(self) -> None:
        self.client.containers.append(sandbox("box"))
        self.client.report(1)
        self.client.start()
        (first,) = self.server.heartbeats
        self.assertEqual(first.request.executor_id, "ex")
        self.assertEqual(first.request.status, pb.EXECUTOR_STATUS_RUNNING)
        self.assertEqual(first.request.full_state.hostname, "host")
        self.assertEqual(first.request.full_state.container_states[0].description.id, "box")
        self.assertEqual(first.request.full_state.container_states[0].status, pb.CONTAINER_STATUS_RUNNING)
        self.assertEqual((started(first), self.client.delivered), (["c1"], [1]))
        self.assertIs(self.client.session.link, Link.READY)
        self.assertIn("executor_id=ex full_state=true command_responses=1 ", self.client.heartbeat.last_report_summary)

    def test_every_five_seconds_with_a_deadline_of_ten(self) -> None:
        self.client.start()
        self.client.advance(60)
        calls = self.server.heartbeats
        gaps = [b.at - a.at for a, b in pairwise(calls)]
        self.assertTrue(all(4.4 <= gap <= 5.02 for gap in gaps), gaps)
        self.assertGreater(len(set(gaps)), 3)
        self.assertFalse(any(call.request.HasField("full_state") for call in calls[1:]))
        self.assertEqual({call.timeout for call in calls}, {10.0})

    def test_l10_reports_wake_it_and_go_together_with_those_of_the_next_moment(self) -> None:
        self.client.start()
        self.client.advance(1)
        for n in range(20):
            self.client.report(n)
            self.clock.advance(0.001)
        self.client.advance(0.1)
        self.assertEqual(len(self.server.heartbeats), 2)
        self.assertEqual(len(started(self.server.heartbeats[1])), 20)
        self.assertTrue(1.02 <= self.server.heartbeats[1].at <= 1.06)

    def test_what_somebody_waits_for_goes_at_once_and_takes_along_what_is_there(self) -> None:
        self.client.start()
        self.client.advance(1)
        self.client.report(1)
        self.client.advance(0.01)
        self.client.report(2, ReportKind.OUTCOME, outcome("a1"))
        self.clock.advance(0)
        self.assertEqual(self.client.delivered, [1, 2])
        self.assertEqual(len(self.server.heartbeats), 2)
        self.client.advance(1)
        self.assertEqual(len(self.server.heartbeats), 2)

    def test_time_goes_on_while_a_heartbeat_is_arranged(self) -> None:
        class Ticking(Clock):
            def seconds(self) -> float:
                self.rightNow += 1e-6
                return super().seconds()

            def callLater(self, delay: float, *call: Any, **kwargs: Any) -> Any:
                assert delay >= 0, delay
                return super().callLater(delay, *call, **kwargs)

        client = Client(clock=Ticking())
        self.addCleanup(client.close)
        client.start()
        client.advance(1)
        client.report(1, ReportKind.OUTCOME, outcome("a1"))
        client.advance(0.1)
        self.assertEqual(client.delivered, [1])

    def test_heartbeats_keep_their_distance_however_many_outcomes_there_are(self) -> None:
        self.client.start()
        self.client.advance(1)
        for n in range(500):
            self.client.report(n, ReportKind.OUTCOME, outcome(f"a{n}"))
            self.clock.advance(0.002)
        self.client.advance(0.1)
        calls = self.server.heartbeats[1:]
        self.assertEqual(self.client.delivered, list(range(500)))
        self.assertTrue(all(b.at - a.at >= 0.0099 for a, b in pairwise(calls)))
        self.assertGreater(len(calls), 80)

    def test_l10_a_server_that_always_asks_for_state_is_not_hammered(self) -> None:
        self.server.heartbeat = lambda request: WANTED
        self.client.report(1)
        self.client.start()
        self.client.advance(60)
        self.assertLess(len(self.server.heartbeats), 20)
        self.assertEqual((len(self.client.outbox), self.client.delivered), (1, []))
        self.assertIs(self.client.session.link, Link.REGISTERING)
        self.assertTrue(self.client.heartbeat.ever_answered)
        self.assertFalse(self.client.heartbeat.healthy)

    def test_a_server_that_forgot_the_node_gets_the_state_at_once_and_every_report_again(self) -> None:
        self.client.start()
        self.client.advance(1)
        answers = [WANTED]
        self.server.heartbeat = lambda request: answers.pop() if answers else OK
        self.client.report(1)
        self.client.advance(0.1)
        asked, synced = self.server.heartbeats[1:]
        self.assertEqual((started(asked), started(synced)), (["c1"], ["c1"]))
        self.assertTrue(synced.request.HasField("full_state"))
        self.assertEqual(self.client.delivered, [1])

    def test_l2d_send_state_in_a_later_fragment_keeps_its_items(self) -> None:
        self.client.start()
        self.client.advance(1)
        answers = [OK, WANTED]
        self.server.heartbeat = lambda request: answers.pop(0) if answers else OK
        size = 6 * 2**20
        for n in range(3):
            self.client.report(n, ReportKind.OUTCOME, outcome(f"a{n}-" + "x" * size))
        self.client.advance(1)
        sent = [
            (
                call.request.HasField("full_state"),
                [o.completed.allocation_id[:2] for o in call.request.allocation_outcomes],
            )
            for call in self.server.heartbeats[1:]
        ]
        self.assertEqual(sent, [(False, ["a0"]), (False, ["a1"]), (True, ["a1"]), (False, ["a2"])])
        self.assertEqual(self.client.delivered, [0, 1, 2])

    def test_a_lost_reply_sends_the_same_items_in_the_same_order_again(self) -> None:
        self.client.start()
        self.client.advance(1)
        answers: list[Any] = [None]
        self.server.heartbeat = lambda request: answers.pop() if answers else OK
        self.client.report(1)
        self.client.report(2)
        self.client.advance(10.5)
        self.client.report(3)
        self.client.advance(2)
        lost, again = self.server.heartbeats[1:3]
        self.assertEqual((started(lost), started(again)), (["c1", "c2"], ["c1", "c2", "c3"]))
        self.assertEqual(self.client.delivered, [1, 2, 3])

    def test_never_two_heartbeats_at_a_time(self) -> None:
        self.server.heartbeat = lambda request: None
        self.client.start()
        for n in range(500):
            self.client.report(n)
            self.clock.advance(0.05)
            self.assertLessEqual(sum(call.open for call in self.server.heartbeats), 1)

    def test_l6_a_hung_server_is_noticed_by_the_deadline(self) -> None:
        self.server.heartbeat = lambda request: None
        self.client.start()
        self.client.advance(11)
        self.assertIs(self.client.session.link, Link.UNHEALTHY)

    def test_away_for_a_minute_retries_at_1_2_4_5_5_with_jitter_and_is_back_with_everything(self) -> None:
        self.client.start()
        self.client.advance(0.5)
        self.server.heartbeat = lambda request: ControlError("UNAVAILABLE", "gone")
        self.client.advance(5)
        first = len(self.server.heartbeats)
        began = self.server.heartbeats[-1].at
        self.client.report(1)
        self.client.advance(60)
        times = [began] + [call.at for call in self.server.heartbeats[first:]]
        gaps = [b - a for a, b in pairwise(times)]
        for gap, nominal in zip(gaps, [1, 2, 4] + [5] * 20, strict=False):
            self.assertTrue(0.79 * nominal <= gap <= 1.21 * nominal + 0.02, gaps)
        self.assertFalse(self.client.heartbeat.healthy)
        self.assertFalse(self.server.polling())
        self.server.heartbeat = lambda request: OK
        self.client.advance(6.1)
        self.assertTrue(self.client.heartbeat.healthy)
        self.assertEqual(self.client.delivered, [1])
        self.assertTrue(self.server.polling())

    def test_l9_a_full_sync_now_and_then_but_only_when_idle(self) -> None:
        self.client.start()
        self.client.advance(4000, step=0.5)
        self.assertEqual(sum(call.request.HasField("full_state") for call in self.server.heartbeats), 1)
        self.client.idle = True
        self.client.advance(4000, step=0.5)
        self.assertIn(sum(call.request.HasField("full_state") for call in self.server.heartbeats), (2, 3, 4))
        self.assertIs(self.client.session.link, Link.READY)

    def test_a_store_that_cannot_note_the_delivery_does_not_stop_it(self) -> None:
        self.client.heartbeat._delivered = lambda ids: fail(OSError("disk full"))
        self.client.report(1)
        self.client.start()
        self.client.advance(6)
        self.assertEqual(len(self.server.heartbeats), 2)

    def test_a_loop_that_dies_is_noticed(self) -> None:
        client = Client()
        client.containers = None  # type: ignore[assignment]
        client.start()
        self.failureResultOf(client.heartbeat.died, TypeError)
        self.assertFalse(client.heartbeat.alive)
        client.close()

    def test_metrics(self) -> None:
        self.client.start()
        self.server.heartbeat = lambda request: ControlError("UNAVAILABLE", "gone")
        self.client.advance(5.1)
        names = ("heartbeat.success", "heartbeat.failures", "state_report_rpcs", "state_report_rpc_errors")
        self.assertEqual([self.client.metrics.counter(name).value for name in names], [1, 1, 2, 1])

    def test_a_full_state_shows_what_has_changed_since_the_last_one(self) -> None:
        box, other = sandbox("box"), sandbox("other")
        self.client.containers = [box, other]
        self.client.start()
        claimed = evolve(other.spec, sandbox=SandboxSpec(sandbox_id="claimed"))
        self.client.containers = [
            evolve(box, state=Terminated(TerminationReason.OOM, 1.0)),
            evolve(other, spec=claimed),
        ]
        self.client.session.require_full_state("again")
        self.client.advance(0.1)
        dead, live = self.server.heartbeats[-1].request.full_state.container_states
        self.assertEqual((dead.status, dead.termination_reason), (pb.CONTAINER_STATUS_TERMINATED, 8))
        self.assertEqual(live.description.sandbox_metadata.sandbox_id, "claimed")
        self.client.containers.pop()
        self.client.session.require_full_state("again")
        self.client.advance(0.1)
        self.assertEqual(len(self.server.heartbeats[-1].request.full_state.container_states), 1)

    def test_a_full_state_is_built_anew_only_where_it_changed(self) -> None:
        states, boxes = FullState(), [sandbox(f"box-{n}") for n in range(10)]
        identity = pb.DataplaneStateFullSync(hostname="h")
        states.build(identity, boxes)
        before = {id: entry[2] for id, entry in states._known.items()}
        boxes[3] = evolve(boxes[3], state=Terminated(TerminationReason.OOM, 1.0))
        boxes[4] = evolve(boxes[4], claimed_at=1.0)
        self.assertEqual(len(states.build(identity, boxes).container_states), 10)
        rebuilt = {id for id, entry in states._known.items() if entry[2] is not before[id]}
        self.assertEqual(rebuilt, {"box-3"})
        self.assertEqual(identity.container_states[:], [])


class Poison(SynchronousTestCase):
    def setUp(self) -> None:
        self.client = Client()
        self.server = self.client.server
        self.addCleanup(self.client.close)

    def refuse(self, bad: set[str]) -> None:
        def answer(request: pb.HeartbeatRequest) -> Any:
            ids = {o.completed.allocation_id for o in request.allocation_outcomes if o.HasField("completed")}
            ids |= {r.container_started.container_id for r in request.command_responses}
            return ControlError("INTERNAL", "ingestion failed") if ids & bad else OK

        self.server.heartbeat = answer

    def test_l3_a_bad_outcome_is_replaced_and_the_others_arrive_while_polls_go_on(self) -> None:
        self.client.start()
        self.client.advance(0.1)
        self.refuse({"a13"})
        for n in range(40):
            self.client.report(n, ReportKind.OUTCOME, outcome(f"a{n}"))
        for _ in range(3000):
            self.client.clock.advance(0.01)
            self.assertIs(self.client.session.link, Link.READY)
            self.assertTrue(self.server.polling())
        self.assertEqual((sorted(self.client.delivered), self.client.replaced), (list(range(40)), [13]))
        failed = [
            o.failed
            for call in self.server.heartbeats
            for o in call.request.allocation_outcomes
            if o.HasField("failed")
        ]
        self.assertEqual([(f.allocation_id, f.reason, f.request_id) for f in failed],
                         [("a13", pb.ALLOCATION_FAILURE_REASON_INTERNAL_ERROR, "r")])  # fmt: skip
        bare = [call for call in self.server.heartbeats if not call.request.allocation_outcomes]
        self.assertGreater(len(bare), 3)

    def test_l3_a_report_that_nothing_can_replace_is_given_up_and_its_row_freed(self) -> None:
        self.client.start()
        self.refuse({"c2"})
        for n in range(4):
            self.client.report(n)
        self.client.advance(20)
        self.assertEqual(sorted(self.client.delivered), [0, 1, 2, 3])
        self.assertEqual(len(self.client.outbox), 0)

    def test_l3_in_the_first_full_sync_too(self) -> None:
        self.refuse({"c1"})
        self.client.report(0)
        self.client.report(1)
        self.client.start()
        self.assertIs(self.client.session.link, Link.READY)
        self.client.advance(20)
        self.assertEqual(sorted(self.client.delivered), [0, 1])

    def test_l3_a_server_that_refuses_everything_accuses_no_item(self) -> None:
        self.client.start()
        self.server.heartbeat = lambda request: ControlError("INTERNAL", "no database")
        self.client.report(1, ReportKind.OUTCOME, outcome("a"))
        self.client.advance(60)
        self.assertIs(self.client.session.link, Link.UNHEALTHY)
        self.server.heartbeat = lambda request: OK
        self.client.advance(6.1)
        self.assertEqual((self.client.delivered, self.client.replaced), ([1], []))


class Stop(SynchronousTestCase):
    def setUp(self) -> None:
        self.client = Client()
        self.server = self.client.server
        self.clock = self.client.clock
        self.client.start()
        self.client.advance(1)
        self.addCleanup(lambda: self.assertEqual(self.clock.getDelayedCalls(), []))
        self.addCleanup(self.client.close)

    def stop(self, stopped: bool, within: float = 5.0) -> Deferred[None]:
        return Deferred.fromCoroutine(
            self.client.heartbeat.stop(stopped=stopped, deadline=self.clock.seconds() + within)
        )

    def test_l1_reports_go_first_and_stopped_is_the_last_call(self) -> None:
        self.client.report(1)
        done = self.stop(True)
        self.client.advance(0.1)
        self.successResultOf(done)
        last, stopped = self.server.heartbeats[-2:]
        self.assertEqual((started(last), last.request.status), (["c1"], pb.EXECUTOR_STATUS_RUNNING))
        self.assertEqual((stopped.request.status, stopped.timeout), (pb.EXECUTOR_STATUS_STOPPED, 3.0))
        self.assertFalse(stopped.request.HasField("full_state"))
        self.assertFalse(self.server.polling() or self.server.polling("poll_allocation_results"))
        count = len(self.server.calls)
        self.client.report(2)
        self.client.advance(60)
        self.assertEqual(len(self.server.calls), count)
        self.assertIs(self.server.calls[-1], stopped)

    def test_detaching_says_nothing(self) -> None:
        count = len(self.server.calls)
        self.successResultOf(self.stop(False))
        self.client.advance(60)
        self.assertEqual(len(self.server.calls), count)

    def test_l1_a_heartbeat_under_way_is_finished_not_cut(self) -> None:
        self.server.heartbeat = lambda request: None
        self.client.report(1)
        self.client.advance(0.1)
        under_way = self.server.heartbeats[-1]
        done = self.stop(True)
        self.server.heartbeat = lambda request: OK
        self.assertNoResult(done)
        under_way.answer(OK)
        self.successResultOf(done)
        self.assertEqual((self.client.delivered, under_way.cancelled), ([1], False))

    def test_l1_a_dead_server_costs_the_deadline_and_no_more_and_nothing_is_taken_as_delivered(self) -> None:
        self.server.heartbeat = lambda request: None
        self.client.report(1)
        done = self.stop(True, within=5)
        self.client.advance(4.9)
        self.assertNoResult(done)
        self.client.advance(3.2)
        self.successResultOf(done)
        self.assertEqual((self.client.delivered, len(self.client.outbox)), ([], 1))
        self.assertEqual(self.server.heartbeats[-1].request.status, pb.EXECUTOR_STATUS_STOPPED)
        self.assertEqual(started(self.server.heartbeats[-1]), ["c1"])

    def test_l1_a_server_that_restarts_meanwhile_is_given_the_state_first(self) -> None:
        answers = [WANTED]
        self.server.heartbeat = lambda request: answers.pop() if answers else OK
        self.client.report(1)
        done = self.stop(True)
        self.client.advance(0.1)
        self.successResultOf(done)
        self.assertEqual(self.client.delivered, [1])
        self.assertTrue(self.server.heartbeats[-2].request.HasField("full_state"))

    def test_twice_is_once(self) -> None:
        self.successResultOf(self.stop(True))
        count = len(self.server.calls)
        self.successResultOf(self.stop(True))
        self.assertEqual(len(self.server.calls), count)
