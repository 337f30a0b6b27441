"""The one exception that an endpoint raises to say no."""

from __future__ import annotations


class Refusal(Exception):
    """A request that is answered with an error: its status, text, machine-readable code and further header fields."""

    def __init__(
        self, status: int, error: str, code: str | None = None, headers: tuple[tuple[str, str], ...] = ()
    ) -> None:
        super().__init__(error)
        self.status = status
        self.error = error
        self.code = code
        self.headers = headers


class ClientGone(Exception):
    """The peer closed the connection in the middle of a request or a response."""
