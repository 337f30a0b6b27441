"""An executor as the control plane sees it, played by a test on a clock."""

from __future__ import annotations

from random import Random
from typing import Any

from twisted.internet.task import Clock

from indexify_dataplane.devserver.blobs import MemoryBlobs
from indexify_dataplane.devserver.engine import Engine
from indexify_dataplane.wireproto import executor_api_pb2 as pb

GIB = 1024**3


def make_engine(**settings: Any) -> tuple[Engine, Clock]:
    clock = Clock()
    clock.advance(1_700_000_000)
    return Engine(clock=clock, blobs=MemoryBlobs(), random=Random(7), wall=clock.seconds, **settings), clock


def host(cpus: int = 4, memory: int = 8 * GIB, disk: int = 100 * GIB) -> pb.HostResources:
    return pb.HostResources(cpu_count=cpus, memory_bytes=memory, disk_bytes=disk)


def full_state(*containers: pb.ContainerState, resources: pb.HostResources | None = None, **fields: Any) -> Any:
    return pb.DataplaneStateFullSync(
        hostname="host",
        version="0.3.0",
        total_container_resources=resources or host(),
        container_states=containers,
        proxy_address=fields.pop("proxy_address", "127.0.0.1:8095"),
        **fields,
    )


def state(description: pb.ContainerDescription, status: str, reason: str | None = None) -> pb.ContainerState:
    found = pb.ContainerState(
        description=description, status=pb.ContainerStatus.Value(f"CONTAINER_STATUS_{status.upper()}")
    )
    if reason is not None:
        found.termination_reason = termination(reason)
    return found


def termination(reason: str) -> Any:
    return pb.ContainerTerminationReason.Value(f"CONTAINER_TERMINATION_REASON_{reason}")


def failure(reason: str) -> Any:
    return pb.AllocationFailureReason.Value(f"ALLOCATION_FAILURE_REASON_{reason}")


def started(container_id: str) -> pb.CommandResponse:
    return pb.CommandResponse(container_started=pb.ContainerStarted(container_id=container_id))


def terminated(container_id: str, reason: str) -> pb.CommandResponse:
    return pb.CommandResponse(
        container_terminated=pb.ContainerTerminated(container_id=container_id, reason=termination(reason))
    )


def payload(uri: str = "file:///blobs/out", size: int = 3, **fields: Any) -> pb.DataPayload:
    return pb.DataPayload(
        uri=uri, size=size, sha256_hash="ab", encoding=pb.DATA_PAYLOAD_ENCODING_UTF8_JSON, encoding_version=0, **fields
    )


def completed(allocation: pb.Allocation, **fields: Any) -> pb.AllocationOutcome:
    return pb.AllocationOutcome(
        completed=pb.AllocationCompleted(
            allocation_id=allocation.allocation_id,
            function=allocation.function,
            function_call_id=allocation.function_call_id,
            request_id=allocation.request_id,
            **fields,
        )
    )


def failed(allocation: pb.Allocation, reason: str, **fields: Any) -> pb.AllocationOutcome:
    return pb.AllocationOutcome(
        failed=pb.AllocationFailed(
            allocation_id=allocation.allocation_id,
            reason=failure(reason),
            function=allocation.function,
            function_call_id=allocation.function_call_id,
            request_id=allocation.request_id,
            **fields,
        )
    )


def kinds(commands: list[pb.Command]) -> list[str]:
    return [command.WhichOneof("command") or "" for command in commands]


class Peer:
    """Speaks for one executor, straight to an engine."""

    def __init__(self, engine: Engine, executor_id: str = "executor-1") -> None:
        self.engine = engine
        self.id = executor_id
        self.acked = 0

    def register(self, *containers: pb.ContainerState, **fields: Any) -> pb.HeartbeatResponse:
        """A full sync; the cursor begins anew, as the contract wants."""
        self.acked = 0
        return self.beat(full_state=full_state(*containers, **fields))

    def beat(self, *responses: pb.CommandResponse, **fields: Any) -> pb.HeartbeatResponse:
        fields.setdefault("status", pb.EXECUTOR_STATUS_RUNNING)
        request = pb.HeartbeatRequest(executor_id=self.id, command_responses=responses, **fields)
        return self.engine.heartbeat(request)

    def poll(self, acked: int | None = None) -> Any:
        return self.engine.poll_commands(pb.PollCommandsRequest(executor_id=self.id, acked_command_seq=acked))

    def take(self) -> list[pb.Command]:
        """What is pending, acknowledged at once; nothing is held."""
        executor = self.engine.world.executors[self.id]
        pending = executor.commands.prefix()
        if pending:
            self.acked = pending[-1].seq
            held = self.poll(self.acked)
            held.addErrback(lambda _: None)
            held.cancel()
        return pending

    def results(self) -> list[pb.FunctionCallResult]:
        executor = self.engine.world.executors[self.id]
        pending = executor.results.prefix()
        if pending:
            executor.results.acknowledge(pending[-1].seq)
        return [result.entry.function_call_result for result in pending]

    def stop(self) -> pb.HeartbeatResponse:
        return self.beat(status=pb.EXECUTOR_STATUS_STOPPED)
