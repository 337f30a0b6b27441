"""Faults that a test can order: calls that fail, replies that are lost or late, and a record of every request."""

from __future__ import annotations

from collections import defaultdict, deque

from attrs import Factory, define, frozen
from google.protobuf.message import Message
from twisted.internet.defer import Deferred


@frozen
class Fail:
    """The call is answered with a status and not processed."""

    code: str
    message: str


@frozen
class DropReply:
    """The call is processed, and its answer is lost: the caller sees ``code``."""

    code: str = "UNAVAILABLE"


@frozen
class DelayReply:
    """The call is processed at once and answered ``seconds`` later."""

    seconds: float


Fault = Fail | DropReply | DelayReply


@define(eq=False)
class Faults:
    """Faults per rpc, used up in order, one per call. ``recorded`` holds every call while ``recording``."""

    recording: bool = False
    recorded: list[tuple[str, Message]] = Factory(list)
    _awaited: list[Deferred[tuple[str, Message]]] = Factory(list)
    _planned: defaultdict[str, deque[Fault]] = Factory(lambda: defaultdict(deque))

    def fail_next(self, rpc: str, times: int = 1, code: str = "UNAVAILABLE", message: str = "fault") -> None:
        """Fail the next calls of ``rpc`` (``"heartbeat"``, ``"poll_commands"``, ``"poll_allocation_results"``)."""
        self._planned[rpc].extend([Fail(code, message)] * times)

    def drop_reply(self, rpc: str, times: int = 1, code: str = "UNAVAILABLE") -> None:
        self._planned[rpc].extend([DropReply(code)] * times)

    def delay_reply(self, rpc: str, seconds: float, times: int = 1) -> None:
        self._planned[rpc].extend([DelayReply(seconds)] * times)

    def clear(self) -> None:
        self._planned.clear()

    def next(self, rpc: str) -> Fault | None:
        planned = self._planned.get(rpc)
        return planned.popleft() if planned else None

    def arrival(self) -> Deferred[tuple[str, Message]]:
        """Fires with the next call that comes in, when it has been taken up."""
        awaited: Deferred[tuple[str, Message]] = Deferred()
        self._awaited.append(awaited)
        return awaited

    def taken_up(self, rpc: str, request: Message) -> None:
        awaited, self._awaited = self._awaited, []
        for arrival in awaited:
            arrival.callback((rpc, request))

    def record(self, rpc: str, request: Message) -> None:
        if self.recording:
            copy = type(request)()
            copy.CopyFrom(request)
            self.recorded.append((rpc, copy))
