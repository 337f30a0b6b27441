"""What all connections of one edge have in common."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from attrs import define

from .pool import IdleConnections
from .routes import Routes, Settings
from .routing import Router
from .telemetry import Telemetry

if TYPE_CHECKING:
    from .http2_upstream import Http2Upstreams

HIGH_WATER = 64 * 1024
LOW_WATER = 16 * 1024
"""Bytes that may wait in a transport before its other side stops being read, and that let it go on."""

NEVER = float("inf")

READ_SIZE = 64 * 1024
"""Bytes asked of a socket at a time. asyncio's own 256 KiB is above the C library's threshold for memory of its own
mapping: a recv of 400 bytes then takes 20 microseconds instead of 3 (measured, glibc 2.36)."""


BULK_SIZE = 256 * 1024
"""The same while a body of at least ``BULK`` bytes comes in: half the CPU time per byte (measured: 0.43 s instead of
0.76 s for a request body of 1 GiB)."""

BULK = 1024 * 1024


def expect(transport: asyncio.Transport, length: int) -> None:
    """Ask the socket for as much at a time as fits a body of ``length``. Other loops' transports choose themselves."""
    if hasattr(transport, "max_size"):
        transport.max_size = BULK_SIZE if length >= BULK else READ_SIZE


def prepare(transport: asyncio.Transport) -> None:
    """Bound what a connection keeps in memory, whichever side it is."""
    transport.set_write_buffer_limits(HIGH_WATER, LOW_WATER)
    if hasattr(transport, "max_size"):
        transport.max_size = READ_SIZE


class Clock(Protocol):
    """The part of ``IReactorTime`` that is needed here."""

    def seconds(self) -> float: ...
    def callLater(self, delay: float, callable: Callable[..., Any], *args: Any, **kwargs: Any) -> Any: ...


@define(kw_only=True, eq=False)
class Shared:
    """``seconds`` is the reactor's time now. A deadline counts from there: counted from the last sweep it would be up
    to a second early, which of a limit of one second is all of it."""

    settings: Settings
    routes: Routes
    router: Router
    pool: IdleConnections
    telemetry: Telemetry
    loop: asyncio.AbstractEventLoop
    seconds: Callable[[], float]
    connections: set[Any]
    draining: bool = False
    http2: Http2Upstreams | None = None


def open_shared(
    *,
    config: Settings,
    routes: Routes,
    telemetry: Telemetry,
    pool: IdleConnections,
    clock: Clock,
    own_names: Iterable[str],
) -> Shared:
    """Made when the loop is there. Raises OSError when the configured secret cannot be read or is empty."""
    secret = None
    if config.shared_secret_file is not None:
        secret = Path(config.shared_secret_file).read_bytes().strip()
        if not secret:
            raise OSError(f"{config.shared_secret_file} is empty; it must hold the secret of the outer proxy")
    return Shared(
        settings=config,
        routes=routes,
        router=Router(routes=routes, host_suffixes=config.host_suffixes, own_names=own_names, secret=secret),
        pool=pool,
        telemetry=telemetry,
        loop=asyncio.get_event_loop(),
        seconds=clock.seconds,
        connections=set(),
    )
