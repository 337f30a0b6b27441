"""One allocation in one executor, as far as both protocols agree.

    create ─▶ watch states ─▶ (answers, each in a task of its own) ─▶ one end ─▶ delete ─▶ outcome

Interleavings: result, deadline, broken connection and cancellation race; the first is the end. Until the executor has
let go of the allocation answers go on, because user code that is being ended may still need one. User code that does
not end by itself is ended with its process: then the outcome blames the container. A dead process is noticed here by
its connection and elsewhere by its exit; the exit knows why and cancels the run, so a broken run waits a moment for it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Coroutine
from typing import Any, cast

from attrs import frozen
from google.rpc import status_pb2
from twisted.internet.defer import CancelledError, Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from ..blobs.base import BlobError
from ..core.model import Allocation, AllocationSpec, Failed, FailureReason, Outcome
from ..metrics import Metrics
from ..reactor import Clock, sleep
from ..wireproto import executor_api_pb2 as pb
from ..wireproto import function_executor_pb2 as fe
from .blobs import AllocationBlobs
from .calls import INTERNAL, OK, FunctionCalls
from .client import ExecutorClient, Messages, RpcError
from .deadline import Deadline
from .request_state import RequestState
from .results import Results

log = Logger()

REOPENINGS = 3
"""How often in a row a stream of states may end with UNKNOWN and is opened again."""
UPDATE_PAUSES = (0.05, 0.2, 1.0)
STOP_SECONDS = 2.0
"""What user code has to end by itself when its allocation is given up."""


@frozen
class Finished:
    """The executor ended the allocation."""

    outcome: Outcome


@frozen
class Stopped:
    """It ended in another way. ``crash_suspected``: the process may be dead."""

    reason: FailureReason
    text: str
    crash_suspected: bool = False


End = Finished | Stopped


class AllocationRun(ABC):
    """``outcome`` once; ``deliver`` any number of times meanwhile."""

    def __init__(
        self,
        *,
        clock: Clock,
        wall: Callable[[], float],
        client: ExecutorClient,
        allocation: Allocation,
        blobs: AllocationBlobs,
        timeout_ms: int,
        called: Callable[[bytes], None],
        metrics: Metrics,
    ) -> None:
        self.clock = clock
        self.wall = wall
        self.client = client
        self.spec: AllocationSpec = allocation.spec
        self.blobs = blobs
        self.calls = FunctionCalls(allocation=self.spec, blobs=blobs, called=called, metrics=metrics)
        self.results = Results(spec=self.spec, blobs=blobs, calls=self.calls, milliseconds=self._milliseconds)
        self.deadline = Deadline(clock=clock, seconds=timeout_ms / 1000, passed=self._timed_out)
        self.leaving = False
        self._timeout_ms = timeout_ms
        self._state = RequestState(allocation_id=self.spec.id, blobs=blobs)
        self._offered: set[str] = set()
        self._ended: Deferred[End] = Deferred()
        self._tasks: set[Deferred[None]] = set()
        self._streams: list[Messages[Any]] = []
        self.finished = False
        self._began = 0.0
        self._created = False
        self._saw_state = False

    @abstractmethod
    def begin(self) -> None:
        """The allocation was created: spawn what the protocol needs besides the states."""

    @abstractmethod
    def observe(self, state: fe.AllocationState) -> None:
        """Take from a new snapshot what only this protocol has in it."""

    @abstractmethod
    def states_ended(self) -> None:
        """The stream of states came to its orderly end before the allocation did."""

    @abstractmethod
    def deliver(self, result: pb.FunctionCallResult) -> None:
        """A child call has a result."""

    @abstractmethod
    def release_user_code(self) -> None:
        """Fail everything that user code waits for."""

    async def outcome(self) -> Outcome:
        """Run to the end. A cancellation gives Failed(ALLOCATION_CANCELLED) when the executor has let go."""
        self._began = self.clock.seconds()
        try:
            end = await self._until_end()
        except CancelledError:
            end = Stopped(FailureReason.ALLOCATION_CANCELLED, "cancelled")
        try:
            return await self._leave(end)
        except CancelledError:  # While it was being left: whoever cancels knows a better reason.
            if isinstance(end, Finished):
                return end.outcome
            return Failed(end.reason, blame_container=self._created, begun=self._created)
        finally:
            self._close()

    def end(self, end: End) -> None:
        """The first end counts."""
        if not self._ended.called:
            self._ended.callback(end)

    @property
    def has_ended(self) -> bool:
        return self._ended.called

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        """Do ``work`` until the run is closed; what it raises ends the run."""
        task = Deferred.fromCoroutine(work)
        if not task.called:
            self._tasks.add(task)
        task.addBoth(self._task_ended, task)

    def broken(self, error: RpcError) -> Stopped:
        """What a failed call or stream means, by its status."""
        suspected = error.code in ("UNAVAILABLE", "INTERNAL") or not self._saw_state
        return Stopped(FailureReason.FUNCTION_ERROR, str(error), suspected)

    async def insist(self, call: Callable[[], Deferred[Any]]) -> None:
        """Make a call that the executor must not miss; one that comes too late is no error. Raises RpcError."""
        for pause in UPDATE_PAUSES:
            try:
                await call()
                return
            except RpcError as error:
                if error.code in ("NOT_FOUND", "FAILED_PRECONDITION"):
                    log.debug("answer came too late", allocation_id=self.spec.id, error=str(error))
                    return
                if not error.unreachable and error.code not in ("RESOURCE_EXHAUSTED", "UNKNOWN"):
                    raise
            await sleep(self.clock, pause)
        await call()

    async def update(self, update: fe.AllocationUpdate) -> None:
        update.allocation_id = self.spec.id
        await self.insist(lambda: self.client.update(update))

    def stream(self, stream: Messages[Any]) -> Messages[Any]:
        """Own a stream until the run is closed."""
        self._streams.append(stream)
        return stream

    async def _until_end(self) -> End:
        try:
            inputs = await self.blobs.inputs(self._timeout_ms)
        except BlobError as error:
            return Stopped(FailureReason.INTERNAL_ERROR, str(error))
        self._created = True
        try:
            await self.client.create(
                fe.Allocation(
                    request_id=self.spec.request_id,
                    function_call_id=self.spec.function_call_id,
                    allocation_id=self.spec.id,
                    inputs=inputs,
                )
            )
        except RpcError as error:
            return Stopped(FailureReason.INTERNAL_ERROR, str(error), crash_suspected=True)
        self.deadline.restart()
        self.spawn(self._read_states())
        self.begin()
        return await self._ended

    async def _read_states(self) -> None:
        reopened, last = 0, ""
        while True:
            states = self.stream(self.client.states(self.spec.id))
            try:
                while True:
                    state = await states.next()
                    if state is None:
                        self.states_ended()
                        return
                    self._saw_state = True
                    if not state.sha256_hash or state.sha256_hash != last:
                        reopened, last = 0, state.sha256_hash
                        self._observe(state)
            except RpcError as error:
                if error.code != "UNKNOWN" or reopened >= REOPENINGS:
                    self.end(self.broken(error))
                    return
                reopened += 1
                log.warn("stream of states is opened again", allocation_id=self.spec.id, error=str(error))
                self.deadline.restart()
            finally:
                states.close()

    def _observe(self, state: fe.AllocationState) -> None:
        if state.HasField("progress"):
            self.deadline.restart()
        for request in state.output_blob_requests:
            if request.id and request.id not in self._offered:
                self._offered.add(request.id)
                self.spawn(self._offer_blob(request.id, request.size))
        self.observe(state)
        for operation in state.request_state_operations:
            if self._state.is_new(operation):
                self.spawn(self._perform(operation))

    async def _offer_blob(self, blob_id: str, size: int) -> None:
        try:
            blob = await self.blobs.output(blob_id, size)
        except BlobError as error:
            failed = status_pb2.Status(code=INTERNAL, message=str(error))
            answer = fe.AllocationOutputBlob(status=failed, blob=fe.BLOB(id=blob_id))
            await self.update(fe.AllocationUpdate(output_blob=answer))
            self.end(Stopped(FailureReason.INTERNAL_ERROR, f"nowhere to write a result: {error}"))
            return
        answer = fe.AllocationOutputBlob(status=status_pb2.Status(code=OK), blob=blob)
        await self.update(fe.AllocationUpdate(output_blob=answer))

    async def _perform(self, operation: fe.AllocationRequestStateOperation) -> None:
        result = await self._state.perform(operation)
        if result is not None:
            await self.update(fe.AllocationUpdate(request_state_operation_result=result))

    def _timed_out(self) -> None:
        text = f"no progress for {self._timeout_ms / 1000:g} s"
        self.end(Stopped(FailureReason.FUNCTION_TIMEOUT, text))

    def _milliseconds(self) -> int:
        return int((self.clock.seconds() - self._began) * 1000)

    async def _leave(self, end: End) -> Outcome:
        if isinstance(end, Finished):
            self.finished = True
            return end.outcome
        log.warn(
            "allocation ended without a result",
            allocation_id=self.spec.id,
            container_id=self.spec.container_id,
            reason=end.reason.name,
            error=end.text,
        )
        self.deadline.stop()
        self.calls.refuse()
        self.leaving = True
        if not self._created:
            return Failed(end.reason, begun=False)
        self.release_user_code()
        gone = await let_go(self.clock, self.client, self.spec.id, STOP_SECONDS, unreachable_too=end.crash_suspected)
        return Failed(end.reason, blame_container=not gone)

    def _task_ended(self, result: Any, task: Deferred[None]) -> None:
        self._tasks.discard(task)
        if not isinstance(result, Failure) or result.check(CancelledError):
            return
        if result.check(RpcError):
            self.end(self.broken(cast(RpcError, result.value)))
            return
        log.failure("running an allocation failed", result, allocation_id=self.spec.id)
        self.end(Stopped(FailureReason.INTERNAL_ERROR, result.getErrorMessage()))

    def _close(self) -> None:
        self.deadline.stop()
        for stream in self._streams:
            stream.close()
        for task in tuple(self._tasks):
            task.cancel()


async def let_go(
    clock: Clock, client: ExecutorClient, allocation_id: str, seconds: float, *, unreachable_too: bool = False
) -> bool:
    """Delete the allocation as soon as the executor permits, within ``seconds``; whether that came about.

    ``unreachable_too``: go on asking one that cannot be reached. Its connection broke, but it may live; and if it is
    dead, whoever watches its exit cancels this within milliseconds, with the reason.
    """
    until, pause = clock.seconds() + seconds, 0.01
    while True:
        try:
            await client.delete(allocation_id)
            return True
        except RpcError as error:
            if error.code == "NOT_FOUND":
                return True
            again = error.code == "FAILED_PRECONDITION" or (unreachable_too and error.unreachable)
            if not again or clock.seconds() + pause > until:
                log.debug("executor keeps an allocation", allocation_id=allocation_id, error=str(error))
                return False
        await sleep(clock, pause)
        pause = min(pause * 2, 0.2)
