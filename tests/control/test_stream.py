"""Both polls against a scripted server, on a clock."""

from __future__ import annotations

import itertools
from typing import Any

from twisted.internet.defer import CancelledError, Deferred
from twisted.trial.unittest import SynchronousTestCase

from indexify_dataplane.control.transport import ControlError
from indexify_dataplane.core.events import ChildResult, Commanded, Invalid, KillAllocation, RemoveContainer
from indexify_dataplane.core.outbox import Outbox, ReportKind
from indexify_dataplane.core.session import Link
from indexify_dataplane.wireproto import executor_api_pb2 as pb

from .scripted import OK, WANTED, Client


def commands(*seqs: int) -> pb.PollCommandsResponse:
    return pb.PollCommandsResponse(
        commands=[pb.Command(seq=n, remove_container=pb.RemoveContainer(container_id=f"c{n}")) for n in seqs]
    )


def results(*seqs: int) -> pb.PollAllocationResultsResponse:
    def entry(n: int) -> pb.AllocationLogEntry:
        return pb.AllocationLogEntry(
            allocation_id=f"a{n}", function_call_result=pb.FunctionCallResult(function_call_id="f")
        )

    return pb.PollAllocationResultsResponse(results=[pb.SequencedAllocationResult(seq=n, entry=entry(n)) for n in seqs])


class PollTest(SynchronousTestCase):
    def setUp(self) -> None:
        self.client = Client()
        self.server = self.client.server
        self.clock = self.client.clock
        self.addCleanup(lambda: self.assertEqual(self.clock.getDelayedCalls(), []))
        self.addCleanup(self.client.close)

    def start(self) -> None:
        self.client.start()
        self.clock.advance(0)

    def acks(self, method: str = "poll_commands") -> list[int | None]:
        field = "acked_command_seq" if method == "poll_commands" else "acked_result_seq"
        return [getattr(c.request, field) if c.request.HasField(field) else None for c in self.server.of(method)]

    def applied(self) -> list[int]:
        return [event.seq for event in self.client.submitted if isinstance(event, Commanded)]

    def test_polls_wait_for_ready_and_hold_with_a_deadline(self) -> None:
        self.server.heartbeat = lambda request: None
        self.start()
        self.assertFalse(self.server.polling() or self.server.polling("poll_allocation_results"))
        self.server.heartbeats[0].answer(OK)
        for method in ("poll_commands", "poll_allocation_results"):
            self.assertEqual(self.server.poll(method).timeout, 330.0)
            self.assertEqual(self.server.poll(method).request.executor_id, "ex")
        self.assertEqual((self.acks(), self.acks("poll_allocation_results")), ([None], [None]))

    def test_commands_are_applied_in_order_and_acked_by_the_next_poll(self) -> None:
        self.start()
        self.server.poll().answer(commands(1, 2, 3))
        self.server.poll().answer(commands(3, 4))
        self.assertEqual(self.applied(), [1, 2, 3, 4])
        self.assertEqual(self.client.submitted[0], Commanded(1, RemoveContainer("c1")))
        self.assertEqual(self.acks(), [None, 3, 4])
        self.assertEqual([received.seq for received in self.client.commands.recent], [1, 2, 3, 4])

    def test_an_ack_waits_until_everything_before_it_is_stored(self) -> None:
        self.client.store_at_once = False
        self.start()
        self.server.poll().answer(commands(1, 2))
        self.assertEqual(self.applied(), [1, 2])
        self.client.stores[1].callback(None)
        self.assertFalse(self.server.polling())
        self.client.stores[0].callback(None)
        self.assertEqual(self.acks(), [None, 2])

    def test_a_redelivered_command_is_not_applied_twice(self) -> None:
        self.start()
        self.server.poll().answer(commands(1))
        self.server.poll().answer(commands(1))
        self.assertEqual(self.applied(), [1])

    def test_results_have_their_own_sequence(self) -> None:
        self.start()
        self.server.poll("poll_allocation_results").answer(results(1, 2))
        self.assertEqual(
            [event.allocation_id for event in self.client.submitted if isinstance(event, ChildResult)], ["a1", "a2"]
        )
        self.assertEqual((self.acks("poll_allocation_results"), self.acks()), ([None, 2], [None]))

    def test_l4_a_gap_is_not_acked_is_polled_with_pauses_and_leads_to_a_full_sync(self) -> None:
        self.start()
        self.server.poll().answer(commands(1))
        for _ in range(4):
            while not self.server.polling():
                self.client.advance(0.01)
            if self.client.session.generation == 2:
                break
            self.server.poll().answer(commands(3))
            self.assertFalse(self.server.polling())
        self.assertEqual(self.applied(), [1])
        self.assertEqual(self.acks(), [None, 1, 1, 1, None])
        syncs = [call for call in self.server.heartbeats if call.request.HasField("full_state")]
        self.assertEqual(len(syncs), 2)

    def test_l4_a_server_with_an_eternal_gap_is_not_hammered(self) -> None:
        self.start()
        for _ in range(6000):
            if self.server.polling():
                self.server.poll().answer(commands(5))
            self.clock.advance(0.01)
        self.assertLess(len(self.server.of("poll_commands")), 25)
        self.assertLess(len(self.server.heartbeats), 25)
        self.assertEqual(self.applied(), [])

    def test_l4_items_before_a_gap_are_applied_and_acked(self) -> None:
        self.start()
        self.server.poll().answer(commands(1, 2, 4))
        self.client.advance(1)
        self.assertEqual((self.applied(), self.acks()), ([1, 2], [None, 2]))

    def test_l4_instant_empty_replies_are_not_a_hot_loop(self) -> None:
        self.start()
        for _ in range(6000):
            if self.server.polling():
                self.server.poll().answer(commands())
            self.clock.advance(0.01)
        self.assertLess(len(self.server.of("poll_commands")), 15)

    def test_an_empty_reply_after_a_long_hold_is_followed_by_the_next_poll_at_once(self) -> None:
        self.start()
        for _ in range(5):
            self.client.advance(300, step=1)
            self.server.poll().answer(commands())
        self.assertEqual(len(self.server.of("poll_commands")), 6)

    def test_l2b_a_reply_of_an_older_registration_is_discarded(self) -> None:
        self.start()
        self.server.poll().answer(commands(1, 2))
        self.client.store_at_once = False
        self.server.poll().answer(commands(3))
        answers = [WANTED]
        self.server.heartbeat = lambda request: answers.pop() if answers else OK
        self.client.report(1)
        self.client.advance(0.2)
        self.assertEqual((self.client.session.generation, self.client.session.commands.ack), (2, None))
        self.client.stores[0].callback(None)
        self.assertIsNone(self.acks()[-1])
        self.client.store_at_once = True
        self.server.poll().answer(commands(1))
        self.assertEqual(self.applied(), [1, 2, 3, 1])
        self.assertEqual(self.acks()[-1], 1)

    def lingering(self) -> tuple[Client, list[Deferred[Any]]]:
        """A client whose transport takes its time to end a call; the polls that were cancelled."""
        client = Client()
        self.addCleanup(client.close)
        slow: list[Deferred[Any]] = []

        class Lingering:
            def call(self, method: str, request: Any, timeout: float) -> Deferred[Any]:
                if method == "heartbeat":
                    return client.server.call(method, request, timeout)
                poll: Deferred[Any] = Deferred()
                poll.cancel = lambda: slow.append(poll)  # type: ignore[method-assign]
                return poll

        client.build(Lingering())
        client.start()
        answers = [WANTED]
        client.server.heartbeat = lambda request: answers.pop() if answers else OK
        client.report(1)
        client.advance(0.2)
        return client, slow

    def test_l2c_no_poll_is_under_way_when_the_full_state_goes_out(self) -> None:
        client, slow = self.lingering()
        self.assertEqual((len(slow), client.session.quiet), (2, False))
        self.assertEqual(len(client.server.heartbeats), 2)
        slow[0].errback(CancelledError())
        client.advance(0.1)
        self.assertEqual(len(client.server.heartbeats), 2)
        slow[1].errback(CancelledError())
        self.assertEqual(len(client.server.heartbeats), 3)
        self.assertTrue(client.server.heartbeats[2].request.HasField("full_state"))

    def test_l2b_a_reply_that_comes_while_the_full_state_waits_is_of_the_old_numbering(self) -> None:
        client, slow = self.lingering()
        slow[1].callback(results(1))
        slow[0].callback(commands(1))
        self.assertEqual(client.session.generation, 2)
        self.assertEqual([event for event in client.submitted if isinstance(event, Commanded)], [])
        self.assertIsNone(client.session.commands.ack)

    def test_stopped_waits_for_the_polls_to_end(self) -> None:
        client, slow = self.lingering()
        for poll in slow:
            poll.callback(None)
        client.server.heartbeat = lambda request: OK
        slow.clear()
        self.assertTrue(client.heartbeat.healthy)
        stop = client.heartbeat.stop(stopped=True, deadline=client.clock.seconds() + 5)
        done = Deferred.fromCoroutine(stop)
        self.assertNoResult(done)
        self.assertEqual(client.server.heartbeats[-1].request.status, pb.EXECUTOR_STATUS_RUNNING)
        for poll in slow:
            poll.errback(CancelledError())
        self.successResultOf(done)
        self.assertEqual(client.server.heartbeats[-1].request.status, pb.EXECUTOR_STATUS_STOPPED)

    def test_a_poll_that_never_ends_does_not_cost_the_node_its_liveness(self) -> None:
        client, _ = self.lingering()
        client.advance(5)
        self.assertEqual(len(client.server.heartbeats), 3)

    def test_a_cut_ends_the_poll_and_keeps_the_cursor(self) -> None:
        self.start()
        self.server.poll().answer(commands(1))
        under_way = self.server.poll()
        self.server.heartbeat = lambda request: _error("UNAVAILABLE")
        self.client.advance(5.1)
        self.assertTrue(under_way.cancelled)
        self.assertFalse(self.server.polling())
        self.server.heartbeat = lambda request: OK
        self.client.advance(6)
        self.assertEqual(self.acks(), [None, 1, 1])

    def test_failed_polls_back_off_and_show_in_the_health(self) -> None:
        self.start()
        self.assertTrue(self.client.commands.healthy)
        times = []
        for _ in range(6000):
            if self.server.polling():
                times.append(self.clock.seconds())
                self.server.poll().fail("UNAVAILABLE")
            self.clock.advance(0.01)
        gaps = [b - a for a, b in itertools.pairwise(times)]
        for gap, nominal in zip(gaps, [1, 2, 4, 8, 10, 10], strict=False):
            self.assertTrue(0.79 * nominal <= gap <= 1.21 * nominal + 0.02, gaps)
        self.assertFalse(self.client.commands.healthy)
        self.assertTrue(self.client.heartbeat.healthy)
        while not self.server.polling():
            self.client.advance(0.1)
        self.server.poll().answer(commands(1))
        self.assertTrue(self.client.commands.healthy)

    def test_a_poll_that_is_held_shows_that_the_server_is_back(self) -> None:
        self.start()
        self.server.poll().fail("UNAVAILABLE")
        while not self.server.polling():
            self.client.advance(0.1)
        self.assertFalse(self.client.commands.healthy)
        self.client.advance(2.1)
        self.assertTrue(self.client.commands.healthy)

    def test_a_server_that_dropped_the_executor_gets_the_full_state_at_once_but_not_in_a_hot_loop(self) -> None:
        self.start()
        self.server.poll().fail("NOT_FOUND", "executor not registered")
        self.client.advance(0.1)
        self.assertTrue(self.server.heartbeats[-1].request.HasField("full_state"))
        self.assertEqual(len(self.server.heartbeats), 2)
        for _ in range(6000):
            if self.server.polling():
                self.server.poll().fail("NOT_FOUND")
            self.clock.advance(0.01)
        self.assertLess(len(self.server.heartbeats), 30)

    def test_l8_a_malformed_command_is_submitted_to_be_answered_counted_and_acked(self) -> None:
        self.start()
        broken = pb.Command(seq=1, add_container=pb.AddContainer(container=pb.ContainerDescription(id="x")))
        fine = pb.Command(seq=2, kill_allocation=pb.KillAllocation(allocation_id="a"))
        self.server.poll().answer(pb.PollCommandsResponse(commands=[broken, fine]))
        first, second = self.client.submitted
        assert isinstance(first, Commanded) and isinstance(first.command, Invalid)
        self.assertEqual(first.command.container_id, "x")
        self.assertEqual(second, Commanded(2, KillAllocation("a")))
        self.assertEqual(self.acks(), [None, 2])
        labels = {"command_type": "AddContainer", "reason": "invalid_add_container"}
        self.assertEqual(self.client.metrics.counter("poll_commands.malformed_total", **labels).value, 1)
        self.assertEqual(self.client.metrics.counter("poll_commands.malformed_repeated_seq_total", **labels).value, 0)
        answers = [WANTED]
        self.server.heartbeat = lambda request: answers.pop() if answers else OK
        self.client.report(1)
        self.client.advance(0.2)
        self.server.poll().answer(pb.PollCommandsResponse(commands=[broken]))
        self.assertEqual(self.client.metrics.counter("poll_commands.malformed_repeated_seq_total", **labels).value, 1)

    def test_a_result_without_payload_is_counted_and_acked(self) -> None:
        self.start()
        self.server.poll("poll_allocation_results").answer(
            pb.PollAllocationResultsResponse(results=[pb.SequencedAllocationResult(seq=1)])
        )
        self.assertEqual(self.acks("poll_allocation_results"), [None, 1])
        labels = {"command_type": "allocation_result", "reason": "missing_entry_payload"}
        self.assertEqual(self.client.metrics.counter("poll_results.malformed_total", **labels).value, 1)
        self.assertEqual(self.client.submitted, [])

    def test_l18_no_commands_are_asked_for_while_the_outbox_is_nearly_full(self) -> None:
        self.client = Client(outbox=Outbox(max_items=10))
        self.server, self.clock = self.client.server, self.client.clock
        self.server.heartbeat = lambda request: OK if request.HasField("full_state") else None
        self.start()
        for n in range(8):
            self.client.report(n, ReportKind.LOG, b"")
        self.server.poll().answer(commands(1))
        self.client.advance(3)
        self.assertFalse(self.server.polling())
        self.server.heartbeats[-1].answer(OK)
        self.client.advance(0.6)
        self.assertEqual(self.acks(), [None, 1])
        self.client.close()

    def test_no_commands_are_asked_for_while_the_store_is_unwell(self) -> None:
        self.client.accepting = False
        self.start()
        self.client.advance(3)
        self.assertFalse(self.server.polling())
        self.client.accepting = True
        self.client.advance(0.6)
        self.assertTrue(self.server.polling())

    def test_a_submit_that_raises_kills_the_loop_audibly(self) -> None:
        self.client.broken = ZeroDivisionError()
        self.start()
        self.server.poll().answer(commands(1))
        self.failureResultOf(self.client.commands.died, ZeroDivisionError)
        self.assertFalse(self.client.commands.healthy)

    def test_stopping_ends_the_call_and_the_loop(self) -> None:
        self.start()
        under_way = self.server.poll()
        ended = self.client.commands.stopService()
        assert ended is not None
        self.successResultOf(ended)
        self.assertTrue(under_way.cancelled)
        self.assertFalse(self.client.commands.alive)
        self.assertNoResult(self.client.commands.died)
        self.assertIs(self.client.session.link, Link.READY)


def _error(code: str) -> Exception:
    return ControlError(code, "")
