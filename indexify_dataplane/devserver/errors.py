"""How the control plane says no: to an executor by a gRPC status, to a REST client by an HTTP status."""

from __future__ import annotations


class RpcError(Exception):
    """An rpc fails. ``code`` is the name of a gRPC status (``"NOT_FOUND"``)."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code
        self.message = message


class Refused(Exception):
    """A REST request fails with ``status``; ``message`` is the body, as plain text."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(f"{status}: {message}")
        self.status = status
        self.message = message


class Malformed(Exception):
    """A report item with a gap in its structure. It is skipped; the rest of the heartbeat is accepted."""


class Unacceptable(Exception):
    """A report item that cannot be stored. It fails the whole heartbeat with INTERNAL."""
