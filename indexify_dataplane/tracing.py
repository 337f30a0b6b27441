"""Spans, when somebody wants them. ``Tracing`` itself is the tracing that is off: its spans are one shared object that
does nothing. ``tracing_export`` has the one that exports; it alone imports OpenTelemetry.

A unit of work that begins by itself (the start of a container, an allocation) is a root of its own, linked to the
span of the process, so that no trace lives as long as the process. Spans inside of it follow the context of the
coroutine. None as a value is written as an empty string.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import TracebackType
from typing import Any, Protocol

from .config_model import Telemetry

Value = str | int | float | bool | None


class Span(Protocol):
    """One span; ends with its ``with`` block or by ``end``. An exception that leaves the block marks it failed."""

    def set(self, **attributes: Value) -> None: ...

    def fail(self, message: str) -> None:
        """Mark it failed though nothing is raised."""

    def end(self) -> None: ...

    def __enter__(self) -> Span: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class NoSpan:
    """The span of a tracing that is off, or of a request that was not chosen."""

    __slots__ = ()

    def set(self, **attributes: Value) -> None:
        pass

    def fail(self, message: str) -> None:
        pass

    def end(self) -> None:
        pass

    def __enter__(self) -> Span:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass


NO_SPAN: Span = NoSpan()


class Tracing:
    """Off. ``requests`` says whether any proxied request may get a span, so that the proxy need not ask each time."""

    requests = False

    def start(self) -> None:
        """Begin; the node has started when this returns, which ends the span of the process."""

    def root(self, name: str, /, **attributes: Value) -> Span:
        """A new trace for a unit of work."""
        return NO_SPAN

    def span(self, name: str, /, **attributes: Value) -> Span:
        """A part of the span around it."""
        return NO_SPAN

    def request(self, traceparent: str | None, /, **attributes: Value) -> Span:
        """The span of one proxied request, part of the caller's trace if it sends a sampled ``traceparent``. It does
        not become the context's span; end it by ``end``."""
        return NO_SPAN

    def headers(self) -> dict[str, str]:
        """What makes a call from here part of this trace (W3C ``traceparent``); empty outside of a span."""
        return {}

    async def stop(self) -> None:
        """Export what is left, within a deadline."""


def tracing(
    *,
    reactor: Any,
    settings: Telemetry,
    environ: Mapping[str, str],
    resource: Mapping[str, str],
    process: Mapping[str, str],
    request_ratio: float = 0.0,
) -> Tracing:
    """The tracing that the configuration asks for, on the reactor's clock. ``process`` are the attributes of the
    process's span: env, instance id and executor id."""
    if settings.tracing_exporter is None:
        return Tracing()
    from . import tracing_export
    from .reactor import Pool
    from .telemetry import Signal, destination

    if settings.tracing_exporter == "otlp":
        made = tracing_export.otlp(destination(Signal.TRACES, settings.endpoint, environ))
    else:
        made = tracing_export.stdout()
    return tracing_export.ExportedTracing(
        clock=reactor,
        calls=Pool(reactor, "tracing", 1),
        exporter=made[0],
        processor=made[1],
        resource=resource,
        process=process,
        request_ratio=request_ratio,
    )
