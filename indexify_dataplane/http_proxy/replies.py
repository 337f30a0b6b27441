"""The answers that the proxy gives itself: JSON with a sentence and a code, in the texts that users know."""

from __future__ import annotations

import json
from http import HTTPStatus

from attrs import frozen

GRPC_NOT_FOUND = 5
GRPC_PERMISSION_DENIED = 7
GRPC_INTERNAL = 13
GRPC_UNAVAILABLE = 14
GRPC_UNAUTHENTICATED = 16


@frozen
class Reply:
    """``closes``: whether the connection ends with it; ``grpc_status``: the status a gRPC caller gets in its place."""

    status: int
    code: str
    error: str
    closes: bool = False
    grpc_status: int = GRPC_UNAVAILABLE

    @property
    def body(self) -> bytes:
        return json.dumps({"error": self.error, "code": self.code}, separators=(",", ":")).encode()

    @property
    def reason(self) -> bytes:
        return HTTPStatus(self.status).phrase.encode()


MISSING_SANDBOX_ID = Reply(400, "MISSING_SANDBOX_ID", "Missing Tensorlake-Sandbox-Id header", grpc_status=GRPC_INTERNAL)
CONFLICTING_SANDBOX_ID = Reply(
    400, "CONFLICTING_SANDBOX_ID", "The request names more than one sandbox", grpc_status=GRPC_INTERNAL
)
INVALID_SANDBOX_PORT = Reply(
    400, "INVALID_SANDBOX_PORT", "The sandbox port must be one number from 1 to 65535", grpc_status=GRPC_INTERNAL
)
UNAUTHORIZED = Reply(
    401, "UNAUTHORIZED", "This node takes requests from its sandbox proxy only", grpc_status=GRPC_UNAUTHENTICATED
)
SANDBOX_NOT_FOUND = Reply(404, "SANDBOX_NOT_FOUND", "Sandbox not found", grpc_status=GRPC_NOT_FOUND)

CONNECTION_REFUSED = Reply(
    502, "CONNECTION_REFUSED", "Connection to sandbox refused. The sandbox may not be running.", closes=True
)
CONNECTION_CLOSED = Reply(
    502,
    "CONNECTION_CLOSED",
    "Connection to sandbox closed unexpectedly. The sandbox may have terminated.",
    closes=True,
)
PROXY_ERROR = Reply(502, "PROXY_ERROR", "Failed to proxy request to sandbox.", closes=True)
CONNECTION_TIMEOUT = Reply(
    504,
    "CONNECTION_TIMEOUT",
    "Connection to sandbox timed out. The sandbox may be overloaded or unresponsive.",
    closes=True,
)
READ_TIMEOUT = Reply(
    504,
    "READ_TIMEOUT",
    "Reading from sandbox timed out. The operation is taking longer than expected.",
    closes=True,
)
WRITE_TIMEOUT = Reply(504, "WRITE_TIMEOUT", "Writing to sandbox timed out. The sandbox may be overloaded.", closes=True)


def not_running(state: str) -> Reply:
    return Reply(503, "SANDBOX_NOT_RUNNING", f"Sandbox not running (state: {state})")


def port_not_allowed(port: int) -> Reply:
    return Reply(
        403,
        "PORT_NOT_ALLOWED",
        f"Port {port} of this sandbox cannot be reached through the proxy",
        grpc_status=GRPC_PERMISSION_DENIED,
    )


class HeadRefused(Exception):
    """A request that is not passed on because of its form; ``reply`` says why, and the connection ends with it."""

    def __init__(self, status: int, code: str, error: str) -> None:
        super().__init__(error)
        self.reply = Reply(status, code, error, closes=True, grpc_status=GRPC_INTERNAL)


def bad_request(error: str) -> HeadRefused:
    return HeadRefused(400, "BAD_REQUEST", error)
