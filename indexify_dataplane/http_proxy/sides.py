"""The two sides that an exchange joins; each of them speaks HTTP/1.1 or HTTP/2."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from .replies import Reply
from .response import ResponseHead

if TYPE_CHECKING:
    from .exchange import Exchange


class Requester(Protocol):
    """The client's side of an exchange."""

    @property
    def writing_paused(self) -> bool:
        """Whether more waits to be sent than should."""

    def limit(self, deadline: float) -> None:
        """Call ``Exchange.expired`` at this time, unless another is set before."""

    def inform(self, head: ResponseHead) -> None:
        """Pass an interim answer on."""

    def respond(self, head: ResponseHead, length: int, data: bytes, ended: bool, trailers: list[bytes]) -> None: ...
    def more(self, data: bytes, ended: bool, trailers: list[bytes]) -> None: ...
    def switch(self, head: ResponseHead, data: bytes) -> None:
        """The connection is a raw pipe from here on."""

    def pipe(self, data: bytes) -> None: ...
    def refuse(self, reply: Reply) -> None:
        """Answer in the proxy's own name; nothing has been sent yet."""

    def cut(self) -> None:
        """End an answer that has begun so that the client cannot take it for whole."""

    def hold_request(self) -> None: ...
    def go_on_with_request(self) -> None: ...
    def exchange_ended(self) -> None: ...


class Upstream(Protocol):
    """The container's side of an exchange."""

    address: str

    @property
    def paused_writing(self) -> bool: ...

    def request(self, exchange: Exchange, body: bytes, complete: bool, trailers: list[bytes]) -> None: ...
    def body(self, payload: bytes, complete: bool, trailers: list[bytes]) -> None: ...
    def pipe(self, data: bytes) -> None: ...
    def pause_response(self) -> None: ...
    def resume_response(self) -> None: ...
    def release(self, complete: bool) -> None: ...
    def drop(self) -> None: ...
    def end_pipe(self) -> None: ...
