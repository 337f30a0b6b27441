"""The control plane without sockets: three rpcs and the actions of REST clients over one world, on one clock."""

from __future__ import annotations

import time
from collections.abc import Callable
from random import Random

from google.protobuf.message import Message
from twisted.internet.defer import Deferred, fail, succeed
from twisted.logger import Logger

from indexify_dataplane.reactor import Clock
from indexify_dataplane.wireproto import executor_api_pb2 as pb

from .alarm import Alarm
from .application_actions import ApplicationActions
from .blobs import Blobs
from .errors import RpcError
from .events import Story
from .faults import DelayReply, DropReply, Fail, Faults
from .fleet import Fleet
from .ingest import Ingest
from .placement import Placement
from .registration import Registration
from .runs import Runs
from .sandbox_actions import SandboxActions
from .sandboxes import Sandboxes
from .snapshots import Snapshots
from .state import Executor, World

log = Logger()

LIVENESS_SECS = 30.0
LONG_POLL_SECS = 300.0
RETURN_SECS = 60.0
"""After a server restart, how long executors have to come back before they are given up (spec: 3.16)."""


class Engine:
    """A control plane in memory.

    ``call`` is the wire; ``sandboxes`` and ``applications`` are what REST clients can do; ``faults`` and the methods
    at the end are what tests can order; ``world`` holds the records, to be read.

    Every time comes from ``clock`` and every id from ``random``, so that a run with the same inputs repeats itself.
    ``wall`` gives the time of day for ``created_at``. ``idle_container_secs`` is how long a function container
    outlives its last allocation (the real server: 0); ``queue_size`` times its slots is how many allocations it may
    have (see ``Placement``); ``repeat_removals`` orders again what a full sync or a restart
    of the server may have dropped (the real server does not). ``snapshot_base`` is where snapshots go; the blob
    store's base when it is None.
    """

    def __init__(
        self,
        *,
        clock: Clock,
        blobs: Blobs,
        random: Random,
        wall: Callable[[], float] = time.time,
        long_poll_secs: float = LONG_POLL_SECS,
        liveness_secs: float = LIVENESS_SECS,
        return_secs: float = RETURN_SECS,
        idle_container_secs: float = 0.0,
        queue_size: int = 1,
        repeat_removals: bool = False,
        snapshot_base: str | None = None,
    ) -> None:
        self._clock = clock
        self._long_poll_secs = long_poll_secs
        self._liveness_secs = liveness_secs
        self._return_secs = return_secs
        self._reaping = Alarm(clock)
        self.faults = Faults()
        self.world = World(clock, wall, random, blobs, snapshot_base or blobs.base)
        self.fleet = Fleet(self.world, self._stir)
        self.story = Story(self.world)
        self._sandboxes = Sandboxes(self.world, self.fleet)
        self._snapshots = Snapshots(self.world, self.fleet, self._sandboxes)
        self._runs = Runs(self.world, self.fleet, self.story)
        self._placement = Placement(
            world=self.world,
            fleet=self.fleet,
            runs=self._runs,
            story=self.story,
            idle_secs=idle_container_secs,
            queue_size=queue_size,
            settle=self.settle,
        )
        self._registration = Registration(
            world=self.world,
            fleet=self.fleet,
            sandboxes=self._sandboxes,
            snapshots=self._snapshots,
            runs=self._runs,
            placement=self._placement,
            repeat_removals=repeat_removals,
        )
        self._ingest = Ingest(
            world=self.world,
            fleet=self.fleet,
            sandboxes=self._sandboxes,
            snapshots=self._snapshots,
            runs=self._runs,
        )
        self.sandboxes = SandboxActions(
            world=self.world, sandboxes=self._sandboxes, snapshots=self._snapshots, settle=self.settle
        )
        self.applications = ApplicationActions(world=self.world, fleet=self.fleet, runs=self._runs, settle=self.settle)

    # The wire

    def call(self, rpc: str, request: Message) -> Deferred[Message]:
        """One rpc by name, as it comes from the wire, with the faults that were ordered. Fails with RpcError."""
        answer = self._call(rpc, request)
        self.faults.taken_up(rpc, request)
        return answer

    def _call(self, rpc: str, request: Message) -> Deferred[Message]:
        self.faults.record(rpc, request)
        fault = self.faults.next(rpc)
        if isinstance(fault, Fail):
            return fail(RpcError(fault.code, fault.message))
        answer: Deferred[Message]
        try:
            match request:
                case pb.HeartbeatRequest():
                    answer = succeed(self.heartbeat(request))
                case pb.PollCommandsRequest():
                    answer = self.poll_commands(request)
                case pb.PollAllocationResultsRequest():
                    answer = self.poll_allocation_results(request)
                case _:
                    raise RpcError("UNIMPLEMENTED", f"no rpc takes {type(request).__name__}")
        except RpcError as error:
            answer = fail(error)
        if isinstance(fault, DropReply):
            code = fault.code

            def lose(_: object) -> Message:
                raise RpcError(code, "the reply was dropped")

            answer.addBoth(lose)
        elif isinstance(fault, DelayReply):
            return self._later(answer, fault.seconds)
        return answer

    def _later(self, answer: Deferred[Message], seconds: float) -> Deferred[Message]:
        def give_up(_: object) -> None:
            if timer.active():
                timer.cancel()
            answer.addErrback(lambda _: None)
            answer.cancel()

        late: Deferred[Message] = Deferred(give_up)
        timer = self._clock.callLater(seconds, lambda: answer.chainDeferred(late))
        return late

    def heartbeat(self, request: pb.HeartbeatRequest) -> pb.HeartbeatResponse:
        """Liveness, full sync and reports of one executor. RpcError INVALID_ARGUMENT or INTERNAL."""
        if not request.executor_id:
            raise RpcError("INVALID_ARGUMENT", "executor_id required")
        executor = self._alive(request.executor_id)
        stopped = request.status == pb.EXECUTOR_STATUS_STOPPED
        failures = 0
        if request.HasField("full_state"):
            self._registration.register(executor, request.full_state)
        if executor.known:
            failures = self._ingest.take(executor, request)
            if stopped:
                self._deregister(executor, "it stopped")
            self.settle()
        if failures:
            raise RpcError("INTERNAL", f"heartbeat ingestion failed for {failures} report item(s)")
        if stopped:
            return pb.HeartbeatResponse(send_state=False)
        wanted, executor.want_full_state = executor.want_full_state, False
        return pb.HeartbeatResponse(send_state=not executor.known or wanted)

    def poll_commands(self, request: pb.PollCommandsRequest) -> Deferred[Message]:
        """The commands that the executor has not acknowledged; held open while there are none."""
        executor = self._polling(request.executor_id)
        acked = request.acked_command_seq
        if acked < executor.last_ack:
            executor.last_ack, executor.want_full_state = 0, True
        else:
            executor.last_ack = acked
        if request.HasField("acked_command_seq"):
            self.fleet.acknowledged(executor, executor.commands.acknowledge(acked))
        held = executor.commands.hold(self._long_poll_secs)
        return held.addCallback(lambda commands: pb.PollCommandsResponse(commands=commands))

    def poll_allocation_results(self, request: pb.PollAllocationResultsRequest) -> Deferred[Message]:
        """The results of child calls that the executor has not acknowledged; held open while there are none."""
        executor = self._polling(request.executor_id)
        if request.HasField("acked_result_seq"):
            executor.results.acknowledge(request.acked_result_seq)
        held = executor.results.hold(self._long_poll_secs)
        return held.addCallback(lambda results: pb.PollAllocationResultsResponse(results=results))

    def _polling(self, executor_id: str) -> Executor:
        executor = self._alive(executor_id)
        if not executor.known:
            raise RpcError("NOT_FOUND", "executor not registered")
        return executor

    # Liveness

    def _alive(self, executor_id: str) -> Executor:
        """Something arrived from the executor, known or not: its time begins again."""
        executor = self.fleet.executor(executor_id)
        executor.lapse.set(self._liveness_secs, lambda: self._lapsed(executor))
        return executor

    def _lapsed(self, executor: Executor) -> None:
        if executor.known:
            self._deregister(executor, "nothing was heard of it in time")
            self.settle()
        self.world.executors.pop(executor.id, None)

    def _deregister(self, executor: Executor, why: str) -> None:
        log.info("executor deregistered", executor_id=executor.id, reason=why)
        self._registration.lost(executor.id)

    def settle(self) -> None:
        """Place what can be placed and send the commands that follow from what was touched."""
        while self.world.stirred or self.world.idle:
            self.world.stirred = False
            self._sandboxes.schedule()
            self._placement.schedule()
        self.fleet.flush()

    def _stir(self) -> None:
        self.world.stirred = True
        self.settle()

    def close(self) -> None:
        """Stop all timers and end all held polls."""
        self._reaping.stop()
        self.fleet.refill.stop()
        for executor in self.world.executors.values():
            executor.lapse.stop()
            executor.commands.fail(RpcError("UNAVAILABLE", "the server is stopping"))
            executor.results.fail(RpcError("UNAVAILABLE", "the server is stopping"))
        for container in list(self.world.containers.values()):
            container.idle.stop()

    # What tests order

    def force_full_state(self, executor_id: str) -> None:
        """Answer the executor's next heartbeat with ``send_state=true``, although it is known."""
        self.fleet.executor(executor_id).want_full_state = True

    def send_command(self, executor_id: str, command: pb.Command, *, seq: int | None = None) -> None:
        """Put any command before the executor, an empty or malformed one included: under the next number, or under
        ``seq`` (a redelivery when it was used before)."""
        executor = self.fleet.executor(executor_id)
        if seq is None:
            executor.commands.put(command)
        else:
            command.seq = seq
            executor.commands.put_as(command)
        executor.commands.wake()

    def send_result(self, executor_id: str, entry: pb.AllocationLogEntry | None) -> None:
        """Put any result before the executor; None is a malformed one."""
        executor = self.fleet.executor(executor_id)
        executor.results.put(pb.SequencedAllocationResult(entry=entry))
        executor.results.wake()

    def skip_seq(self, executor_id: str) -> None:
        """Leave a gap in the numbering of the executor's commands."""
        self.fleet.executor(executor_id).commands.next_seq += 1

    def restart(self, *, durable: bool) -> None:
        """Behave as a server that was restarted. ``durable`` keeps what the real server stores (sandboxes, pools,
        snapshots, applications, requests); executors, containers and results are gone either way."""
        self.close()
        called_off = dict(self.world.called_off) if durable else {}
        for container in list(self.world.containers.values()):
            self.fleet.forget(container)
        self.world.called_off.update(called_off)
        self.world.executors.clear()
        self.world.idle.clear()
        if not durable:
            for records in (
                self.world.namespaces,
                self.world.sandboxes,
                self.world.pools,
                self.world.snapshots,
                self.world.applications,
                self.world.requests,
                self.world.unplaced_sandboxes,
                self.world.unplaced_runs,
            ):
                records.clear()
        self._reaping.set(self._return_secs, self._reap)

    def _reap(self) -> None:
        """Give up the executors that did not come back after a restart."""
        owners = {s.executor_id for s in self.world.sandboxes.values() if s.status != "terminated"}
        for request in self.world.requests.values():
            owners |= {a.executor_id for a in request.allocations.values() if a.outcome is None}
        for allocation, _ in list(self.world.called_off.values()):
            if allocation.container_id not in self.world.containers:
                self.fleet.ended(allocation.id)
        for executor_id in sorted(owner for owner in owners if owner):
            if self.fleet.known(executor_id) is None:
                self._registration.lost(executor_id)
        self.settle()
