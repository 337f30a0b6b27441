"""The client against the control plane for development, on one clock, with everything going wrong at random.

Checked from the server's side: whatever is called delivered was ingested; at the end everything was, in order; no
command is acknowledged that was not accepted here, and none is carried out twice.
"""

from __future__ import annotations

from random import Random
from typing import Any

from attrs import define, field
from google.protobuf.message import Message
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from indexify_dataplane.control.transport import ControlError
from indexify_dataplane.core.events import Commanded, KillAllocation
from indexify_dataplane.core.outbox import ReportKind
from indexify_dataplane.core.session import Link
from indexify_dataplane.devserver.blobs import MemoryBlobs
from indexify_dataplane.devserver.engine import Engine
from indexify_dataplane.devserver.errors import RpcError
from indexify_dataplane.wireproto import executor_api_pb2 as pb

from .scripted import Client


class Witness(Engine):
    """An engine that writes down what it ingested, and checks every acknowledgement."""

    def __init__(self, clock: Clock, client: Client) -> None:
        super().__init__(clock=clock, blobs=MemoryBlobs(), random=Random(1), wall=clock.seconds, long_poll_secs=20.0)
        self.client = client
        self.ingested: list[str] = []
        self.stopped = False
        self.ordered: dict[int, str] = {}
        self.count = 0
        self.wrong: list[str] = []

    def heartbeat(self, request: pb.HeartbeatRequest) -> pb.HeartbeatResponse:
        if self.stopped:
            self.wrong.append("a heartbeat after STOPPED")
        if request.HasField("full_state"):
            self.ordered.clear()
        if request.HasField("full_state") or self.fleet.known("ex"):
            self.ingested += [r.container_started.container_id for r in request.command_responses]
            self.ingested += [o.completed.allocation_id for o in request.allocation_outcomes]
        self.stopped = request.status == pb.EXECUTOR_STATUS_STOPPED
        return super().heartbeat(request)

    def poll_commands(self, request: pb.PollCommandsRequest) -> Deferred[Message]:
        if self.stopped:
            self.wrong.append("a poll after STOPPED")
        taken = self.client_took()
        for seq, id in self.ordered.items():
            if seq <= request.acked_command_seq and id not in taken:
                self.wrong.append(f"#{seq} was acknowledged but never accepted")
        return super().poll_commands(request)

    def order(self) -> None:
        if self.fleet.known("ex") is None:
            return
        self.count += 1
        id = f"kill-{self.count}"
        self.ordered[self.fleet.executor("ex").commands.next_seq] = id
        self.send_command("ex", pb.Command(kill_allocation=pb.KillAllocation(allocation_id=id)))

    def client_took(self) -> list[str]:
        return [
            event.command.allocation_id
            for event in self.client.submitted
            if isinstance(event, Commanded) and isinstance(event.command, KillAllocation)
        ]


@define(eq=False)
class Wire:
    """Carries calls in order, with a delay each way; ``cut`` loses what is on it and what is sent."""

    clock: Clock
    engine: Engine
    random: Random
    cut: bool = False
    _arrival: float = 0.0
    calls: int = 0
    open_replies: set[Deferred[Any]] = field(factory=set)

    def call(self, method: Any, request: Message, timeout: float) -> Deferred[Any]:
        self.calls += 1
        copy = type(request)()
        copy.CopyFrom(request)
        reply: Deferred[Any] = Deferred()
        timers = [self.clock.callLater(timeout, self._end, reply, ControlError("DEADLINE_EXCEEDED", ""))]
        now = self.clock.seconds()
        self._arrival = max(self._arrival, now + self.random.uniform(0.0, 0.05))
        if self.cut:
            timers.append(self.clock.callLater(0.05, self._end, reply, ControlError("UNAVAILABLE", "cut")))
        else:
            # A request that was cancelled on the way arrives all the same.
            self.clock.callLater(self._arrival - now, self._arrive, method, copy, reply, timers)

        def over(result: Any) -> Any:
            for timer in timers:
                if timer.active():
                    timer.cancel()
            self.open_replies.discard(reply)
            return result

        self.open_replies.add(reply)
        return reply.addBoth(over)

    def _arrive(self, method: str, request: Message, reply: Deferred[Any], timers: list[Any]) -> None:
        if self.cut:
            return
        held = self.engine.call(method, request)

        def answer(result: Any) -> None:
            if isinstance(result, Failure):
                error = result.value
                assert isinstance(error, RpcError), result.getTraceback()
                result = ControlError(error.code, error.message)
            if not self.cut and not reply.called:
                timers.append(self.clock.callLater(self.random.uniform(0.0, 0.05), self._end, reply, result))

        held.addBoth(answer)

    def _end(self, reply: Deferred[Any], result: Any) -> None:
        if not reply.called:
            if isinstance(result, Exception):
                reply.errback(result)
            else:
                reply.callback(result)

    def set_cut(self, cut: bool) -> None:
        self.cut = cut
        if cut:
            for reply in list(self.open_replies):
                if self.random.random() < 0.7:
                    self._end(reply, ControlError("UNAVAILABLE", "cut"))


@define(eq=False)
class Story:
    """One run by one seed."""

    seed: int
    random: Random = field(init=False)
    client: Client = field(init=False)
    engine: Witness = field(init=False)
    wire: Wire = field(init=False)
    made: list[str] = field(factory=list)

    def __attrs_post_init__(self) -> None:
        self.random = Random(self.seed)
        self.client = Client()
        self.client.store_at_once = self.random.random() < 0.5
        self.engine = Witness(self.client.clock, self.client)
        self.wire = Wire(self.client.clock, self.engine, self.random)
        self.client.build(self.wire)

    def report(self) -> None:
        number = len(self.made)
        self.made.append(f"r{number}")
        if self.random.random() < 0.5:
            self.client.report(
                number,
                encoded=pb.CommandResponse(
                    container_started=pb.ContainerStarted(container_id=f"r{number}")
                ).SerializeToString(),
            )
        else:
            done = pb.AllocationCompleted(allocation_id=f"r{number}", function_call_id="f", request_id="r")
            self.client.report(number, ReportKind.OUTCOME, pb.AllocationOutcome(completed=done).SerializeToString())

    def misfortune(self) -> None:
        faults = self.engine.faults
        rpc = self.random.choice(("heartbeat", "heartbeat", "poll_commands", "poll_allocation_results"))
        match self.random.randrange(8):
            case 0:
                faults.fail_next(rpc, self.random.randint(1, 3), self.random.choice(("INTERNAL", "UNAVAILABLE")))
            case 1:
                faults.drop_reply(rpc)
            case 2:
                faults.delay_reply(rpc, self.random.uniform(0.1, 12))
            case 3:
                self.engine.force_full_state("ex")
            case 4:
                self.engine.restart(durable=self.random.random() < 0.5)
                self.engine.ordered.clear()
            case 5:
                self.wire.set_cut(True)
                self.client.clock.callLater(self.random.uniform(0.1, 40), self.wire.set_cut, False)
            case 6:
                if self.engine.fleet.known("ex") is not None:
                    self.engine.skip_seq("ex")
            case 7:
                self.client.accepting = not self.client.accepting

    def settle_stores(self, at_most: int) -> None:
        waiting, self.client.stores[:] = self.client.stores[:at_most], self.client.stores[at_most:]
        for stored in waiting:
            stored.callback(None)

    def run(self) -> None:
        clock = self.client.clock
        self.report()
        self.client.start()
        for _ in range(6000):
            clock.advance(0.02)
            if self.random.random() < 0.02:
                self.report()
            if self.random.random() < 0.02:
                self.engine.order()
            if self.random.random() < 0.006:
                self.misfortune()
            if self.random.random() < 0.2:
                self.settle_stores(2)
        self.engine.faults.clear()
        self.wire.set_cut(False)
        self.client.accepting = True
        for _ in range(1000):
            clock.advance(0.02)
            self.settle_stores(1000)
        for _ in range(750):  # A poll whose reply was lost in silence waits for its deadline of 330 s.
            clock.advance(0.5)
            self.settle_stores(1000)


class EngineTest(SynchronousTestCase):
    def check(self, seed: int) -> None:
        story = Story(seed)
        story.run()
        client, engine = story.client, story.engine
        told = f"seed {seed}"
        self.assertEqual(engine.wrong, [], told)
        self.assertIs(client.session.link, Link.READY, told)
        self.assertEqual(len(client.outbox), 0, told)
        self.assertEqual(client.replaced, [], told)
        self.assertEqual(sorted(client.delivered), list(range(len(story.made))), told)
        self.assertEqual(set(story.made) - set(engine.ingested), set(), told)
        took = engine.client_took()
        self.assertEqual(len(took), len(set(took)), told)
        self.assertEqual(set(engine.ordered.values()) - set(took), set(), told)
        self.assertEqual(took, sorted(took, key=lambda id: int(id.split("-")[1])), told)
        for service in (client.heartbeat, client.commands, client.results):
            self.assertTrue(service.alive, told)
        self.assertLess(story.wire.calls, 6000, told)
        client.close()
        engine.close()

    def test_whatever_goes_wrong_nothing_is_lost_or_doubled(self) -> None:
        for seed in range(25):
            self.check(seed)

    def test_stopped_is_the_last_call_in_every_story(self) -> None:
        for seed in range(100, 110):
            story = Story(seed)
            story.client.store_at_once = True
            story.client.start()
            for _ in range(story.random.randrange(5, 1500)):
                story.client.clock.advance(0.02)
                if story.random.random() < 0.05:
                    story.report()
                if story.random.random() < 0.05:
                    story.engine.order()
            stop = story.client.heartbeat.stop(stopped=True, deadline=story.client.clock.seconds() + 10)
            done = Deferred.fromCoroutine(stop)
            for _ in range(1500):
                story.client.clock.advance(0.02)
            self.successResultOf(done)
            self.assertEqual(story.engine.wrong, [], f"seed {seed}")
            self.assertTrue(story.engine.stopped)
            self.assertEqual(set(story.made) - set(story.engine.ingested), set(), f"seed {seed}")
            story.client.close()
            story.engine.close()
