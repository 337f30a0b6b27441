"""One heartbeat on the wire: what it holds, what it costs, what came back."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from ..core.model import Container
from ..core.outbox import Batch, ReportKind
from ..metrics import Metrics
from ..reactor import Clock
from ..wireproto import executor_api_pb2 as pb
from .full_state import FullState
from .transport import ControlError, Transport

TIMEOUT = 10.0
"""Seconds; the server gives an executor up 30 s after its last heartbeat."""
STOPPED_TIMEOUT = 3.0


class HeartbeatCall:
    """Builds and sends heartbeats of one executor; ``summary`` describes the last attempt in a line."""

    def __init__(
        self,
        *,
        clock: Clock,
        transport: Transport,
        executor_id: str,
        identity: Callable[[], pb.DataplaneStateFullSync],
        full_state: Callable[[], Iterable[Container]],
        metrics: Metrics,
    ) -> None:
        self._clock = clock
        self._transport = transport
        self._executor_id = executor_id
        self._identity = identity
        self._full_state = full_state
        self._metrics = metrics
        self._states = FullState()
        self.summary = "No state reported so far"

    async def running(self, batch: Batch, *, full: bool, began: float) -> pb.HeartbeatResponse:
        """The ordinary heartbeat. ``began`` is when its cycle began, for the latency. Raises ControlError."""
        request = pb.HeartbeatRequest(executor_id=self._executor_id, status=pb.EXECUTOR_STATUS_RUNNING)
        if full:
            request.full_state.CopyFrom(self._states.build(self._identity(), self._full_state()))
        return await self._send(request, batch, began, TIMEOUT)

    async def stopped(self, batch: Batch) -> pb.HeartbeatResponse:
        """The farewell. Raises ControlError."""
        request = pb.HeartbeatRequest(executor_id=self._executor_id, status=pb.EXECUTOR_STATUS_STOPPED)
        return await self._send(request, batch, self._clock.seconds(), STOPPED_TIMEOUT)

    async def _send(
        self, request: pb.HeartbeatRequest, batch: Batch, began: float, timeout: float
    ) -> pb.HeartbeatResponse:
        fields: dict[ReportKind, Any] = {
            ReportKind.RESPONSE: request.command_responses,
            ReportKind.OUTCOME: request.allocation_outcomes,
            ReportKind.LOG: request.allocation_log_entries,
        }
        for item in batch.items:
            fields[item.kind].add().ParseFromString(item.encoded)
        size = request.ByteSize()
        self.summary = (
            f"executor_id={self._executor_id} full_state={'true' if request.HasField('full_state') else 'false'} "
            f"command_responses={len(request.command_responses)} "
            f"allocation_outcomes={len(request.allocation_outcomes)} "
            f"allocation_log_entries={len(request.allocation_log_entries)} size_bytes={size}"
        )
        metrics = self._metrics
        metrics.counter("state_report_rpcs").add()
        metrics.histogram("state_report_message_size_mb").observe(size / 1048576)
        try:
            reply: pb.HeartbeatResponse = await self._transport.call("heartbeat", request, timeout)
        except ControlError:
            metrics.counter("heartbeat.failures").add()
            metrics.counter("state_report_rpc_errors").add()
            raise
        finally:
            metrics.histogram("state_report_rpc_latency_seconds").observe(self._clock.seconds() - began)
        metrics.counter("heartbeat.success").add()
        return reply
