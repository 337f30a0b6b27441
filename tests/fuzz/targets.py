"""All targets by name. Each takes bytes and raises when a rule does not hold; nothing else is needed to run one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from .guest_grpc import guest_grpc, guest_grpc_calls, guest_messages
from .guest_http1 import guest_order, guest_request
from .guest_websocket import guest_pty
from .proxy_http1 import chunked, exchange, head, response
from .proxy_http2 import http2, http2_calls, http2_upstream

TARGETS: dict[str, Callable[[bytes], None]] = {
    target.__name__: target
    for target in (
        head, chunked, response, exchange, http2, http2_upstream, http2_calls,
        guest_request, guest_order, guest_pty, guest_grpc, guest_grpc_calls, guest_messages,
    )
}  # fmt: skip

SEEDS = Path(__file__).parent / "seeds"
