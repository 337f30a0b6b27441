"""The seam between the loops and the network: one unary call at a time, in protobuf, as a Deferred."""

from __future__ import annotations

from typing import Any, Literal, Protocol

from google.protobuf.message import Message
from twisted.internet.defer import Deferred

Method = Literal["heartbeat", "poll_commands", "poll_allocation_results"]

# Statuses that a request can earn by its content. A broken connection, an unknown executor, a deadline or a refused
# identity say nothing about the items inside.
_ABOUT_THE_REQUEST = frozenset(
    {
        "INTERNAL",
        "INVALID_ARGUMENT",
        "RESOURCE_EXHAUSTED",
        "OUT_OF_RANGE",
        "FAILED_PRECONDITION",
        "ABORTED",
        "DATA_LOSS",
        "UNKNOWN",
    }
)
_FINAL = frozenset({"UNIMPLEMENTED", "UNAUTHENTICATED", "PERMISSION_DENIED"})


class ControlError(Exception):
    """A call to the server failed. ``code`` is the name of the gRPC status; ``retryable`` is false where only an
    operator can help (the loops try again all the same, but say so)."""

    def __init__(self, code: str, message: str, retryable: bool | None = None) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code
        self.message = message
        self.retryable = code not in _FINAL if retryable is None else retryable

    @property
    def about_the_request(self) -> bool:
        """Whether something inside the request may be what the server refuses."""
        return self.code in _ABOUT_THE_REQUEST


class Transport(Protocol):
    """Cancelling the Deferred ends the call; every failure but that one is a ControlError."""

    def call(self, method: Method, request: Message, timeout: float) -> Deferred[Any]:
        """Send ``request`` and give back the reply of ``method``; after ``timeout`` seconds DEADLINE_EXCEEDED."""
