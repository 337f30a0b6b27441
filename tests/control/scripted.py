"""A server that does what a test says, call by call, on a clock."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Any

from attrs import define, field
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from indexify_dataplane.control.heartbeat import Heartbeat
from indexify_dataplane.control.stream import CommandPoll, ResultPoll
from indexify_dataplane.control.transport import ControlError
from indexify_dataplane.core.events import Event
from indexify_dataplane.core.model import Container, ContainerSpec, Handle, Kind, Running, SandboxSpec
from indexify_dataplane.core.outbox import Outbox, ReportKind
from indexify_dataplane.core.session import Session
from indexify_dataplane.metrics import Metrics
from indexify_dataplane.wireproto import executor_api_pb2 as pb

OK = pb.HeartbeatResponse(send_state=False)
WANTED = pb.HeartbeatResponse(send_state=True)


@define(eq=False)
class Call:
    method: str
    request: Any
    timeout: float
    at: float
    reply: Deferred[Any]
    cancelled: bool = False

    @property
    def open(self) -> bool:
        return not self.reply.called

    def answer(self, message: Any) -> None:
        self.reply.callback(message)

    def fail(self, code: str, message: str = "") -> None:
        self.reply.errback(ControlError(code, message))


@define(eq=False)
class Scripted:
    """``heartbeat`` answers heartbeats at once: a message, an error to raise, or None to leave the call open. Polls
    stay open until the test answers them. Calls end with DEADLINE_EXCEEDED as on the wire."""

    clock: Clock
    heartbeat: Callable[[pb.HeartbeatRequest], Any] = lambda request: OK
    calls: list[Call] = field(factory=list)

    def call(self, method: str, request: Any, timeout: float) -> Deferred[Any]:
        def cancel(_: Deferred[Any]) -> None:
            call.cancelled = True

        copy = type(request)()
        copy.CopyFrom(request)
        call = Call(method, copy, timeout, self.clock.seconds(), Deferred(cancel))
        self.calls.append(call)
        deadline = self.clock.callLater(timeout, lambda: call.fail("DEADLINE_EXCEEDED"))
        call.reply.addBoth(lambda result: (deadline.active() and deadline.cancel(), result)[1])
        if method == "heartbeat":
            answer = self.heartbeat(copy)
            if isinstance(answer, Exception):
                call.reply.errback(answer)
            elif answer is not None:
                call.reply.callback(answer)
        return call.reply

    def of(self, method: str) -> list[Call]:
        return [call for call in self.calls if call.method == method]

    @property
    def heartbeats(self) -> list[Call]:
        return self.of("heartbeat")

    def poll(self, method: str = "poll_commands") -> Call:
        """The poll that is under way."""
        found = [call for call in self.of(method) if call.open and not call.cancelled]
        assert len(found) == 1, (method, found)
        return found[0]

    def polling(self, method: str = "poll_commands") -> bool:
        return any(call.open and not call.cancelled for call in self.of(method))


def sandbox(id: str) -> Container:
    spec = ContainerSpec(id, Kind.SANDBOX, sandbox=SandboxSpec(image="python", sandbox_id=id, entrypoint=("sh",)))
    return Container(spec, Running(Handle("memory", id), 0.0))


@define(eq=False)
class Client:
    """The whole client against a scripted server."""

    clock: Clock = field(factory=Clock)
    session: Session = field(factory=Session)
    outbox: Outbox = field(factory=Outbox)
    metrics: Metrics = field(factory=Metrics)
    containers: list[Container] = field(factory=list)
    delivered: list[int] = field(factory=list)
    replaced: list[int] = field(factory=list)
    submitted: list[Event] = field(factory=list)
    stores: list[Deferred[None]] = field(factory=list)
    store_at_once: bool = True
    broken: Exception | None = None
    accepting: bool = True
    idle: bool = False
    server: Scripted = field(init=False)
    heartbeat: Heartbeat = field(init=False)
    commands: CommandPoll = field(init=False)
    results: ResultPoll = field(init=False)

    def __attrs_post_init__(self) -> None:
        self.server = Scripted(self.clock)
        self.build(self.server)

    def build(self, transport: Any) -> None:
        self.heartbeat = Heartbeat(
            clock=self.clock,
            transport=transport,
            session=self.session,
            outbox=self.outbox,
            executor_id="ex",
            identity=lambda: pb.DataplaneStateFullSync(
                hostname="host",
                total_container_resources=pb.HostResources(cpu_count=4, memory_bytes=2**30, disk_bytes=2**30),
            ),
            full_state=lambda: self.containers,
            delivered=self.delivered.extend,
            replaced=lambda id, encoded: self.replaced.append(id),
            metrics=self.metrics,
            rng=Random(7),
            idle=lambda: self.idle,
        )
        polls: dict[str, Any] = {
            "clock": self.clock,
            "transport": transport,
            "session": self.session,
            "outbox": self.outbox,
            "executor_id": "ex",
            "submit": self.submit,
            "accepting": lambda: self.accepting,
            "metrics": self.metrics,
            "rng": Random(8),
        }
        self.commands = CommandPoll(**polls)
        self.results = ResultPoll(**polls)

    def submit(self, event: Event) -> Deferred[None]:
        if self.broken is not None:
            raise self.broken
        self.submitted.append(event)
        stored: Deferred[None] = Deferred()
        if self.store_at_once:
            stored.callback(None)
        else:
            self.stores.append(stored)
        return stored

    def start(self) -> None:
        self.heartbeat.startService()
        self.commands.startService()
        self.results.startService()

    def close(self) -> None:
        for service in (self.commands, self.results, self.heartbeat):
            service.stopService()

    def report(self, id: int, kind: ReportKind = ReportKind.RESPONSE, encoded: bytes | None = None) -> None:
        if encoded is None:
            encoded = pb.CommandResponse(
                container_started=pb.ContainerStarted(container_id=f"c{id}")
            ).SerializeToString()
        self.outbox.add(id, kind, encoded)

    def advance(self, seconds: float, step: float = 0.01) -> None:
        """Let time pass in small steps, as it does."""
        for _ in range(round(seconds / step)):
            self.clock.advance(step)
