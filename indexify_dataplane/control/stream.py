"""The two polls: commands, and the results of child calls that allocations wait for."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any

from attrs import frozen
from google.protobuf.message import Message
from twisted.internet.defer import Deferred
from twisted.logger import Logger

from ..core.events import (
    AddContainer,
    ChildResult,
    Command,
    Commanded,
    Invalid,
    KillAllocation,
    RemoveContainer,
    RunAllocation,
    SnapshotContainer,
    UpdateContainer,
)
from ..core.session import Cursor
from ..wireproto import executor_api_pb2 as pb
from .poll import Malformed, Poll
from .transport import Method
from .wire_commands import read_command, read_result

log = Logger()


@frozen
class Received:
    """A command as the state routes show it; ``at`` is seconds on the node's clock."""

    seq: int
    command: str
    ids: dict[str, str]
    at: float


def _ids(command: Command) -> dict[str, str]:
    match command:
        case AddContainer(spec):
            return {"container_id": spec.id, "sandbox_id": spec.sandbox_id or "", "pool_id": spec.pool_id or ""}
        case RemoveContainer(container_id):
            return {"container_id": container_id}
        case UpdateContainer(container_id, sandbox):
            return {"container_id": container_id, "sandbox_id": (sandbox.sandbox_id if sandbox else None) or ""}
        case SnapshotContainer(container_id, snapshot_id, upload_uri):
            return {"container_id": container_id, "snapshot_id": snapshot_id, "upload_uri": upload_uri}
        case RunAllocation(spec):
            return {"container_id": spec.container_id, "allocation_id": spec.id, "request_id": spec.request_id}
        case KillAllocation(allocation_id):
            return {"allocation_id": allocation_id}
        case Invalid():
            allocation, snapshot = command.allocation, command.snapshot
            return {
                "container_id": command.container_id
                or (allocation.container_id if allocation else "")
                or (snapshot.container_id if snapshot else "")
                or command.unprotected
                or "",
                "allocation_id": allocation.id if allocation else "",
                "request_id": allocation.request_id if allocation else "",
                "snapshot_id": snapshot.snapshot_id if snapshot else "",
            }


class CommandPoll(Poll):
    """Commands of the server. One that cannot be carried out is submitted as ``Invalid``, so that it is answered."""

    name = "poll_commands"
    loop_name = "poll_commands"
    method: Method = "poll_commands"

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.recent: deque[Received] = deque(maxlen=50)

    @property
    def cursor(self) -> Cursor:
        return self._session.commands

    def request(self, ack: int | None) -> Message:
        return pb.PollCommandsRequest(executor_id=self._executor_id, acked_command_seq=ack)

    def items(self, reply: pb.PollCommandsResponse) -> Sequence[pb.Command]:
        return reply.commands

    def take(self, item: pb.Command) -> Deferred[Any]:
        command = read_command(item)
        ids = _ids(command)
        name = type(command).__name__
        if isinstance(command, Invalid):
            self.malformed(item.seq, Malformed(command.command, command.reason, command.detail), **ids)
        else:
            log.info("command received", command=name, seq=int(item.seq), **ids)
        self.recent.append(Received(int(item.seq), name, ids, self._clock.seconds()))
        return self._submit(Commanded(int(item.seq), command))


class ResultPoll(Poll):
    """Results of child calls."""

    name = "poll_results"
    loop_name = "poll_results"
    method: Method = "poll_allocation_results"

    @property
    def cursor(self) -> Cursor:
        return self._session.results

    def request(self, ack: int | None) -> Message:
        return pb.PollAllocationResultsRequest(executor_id=self._executor_id, acked_result_seq=ack)

    def items(self, reply: pb.PollAllocationResultsResponse) -> Sequence[pb.SequencedAllocationResult]:
        return reply.results

    def take(self, item: pb.SequencedAllocationResult) -> Deferred[Any] | None:
        result = read_result(item)
        if isinstance(result, ChildResult):
            return self._submit(result)
        fault = Malformed("allocation_result", result.reason, result.detail)
        self.malformed(int(item.seq), fault, allocation_id=item.entry.allocation_id)
        return None
