"""Tracing that exports: by OTLP, or as one line of JSON per span on a stream."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import IO, Any, cast

from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import (
    BatchSpanProcessor,
    ConsoleSpanExporter,
    SimpleSpanProcessor,
    SpanExporter,
    SpanExportResult,
)
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from twisted.internet.defer import CancelledError, TimeoutError
from twisted.logger import ILogObserver, Logger, LogLevel, formatEvent, globalLogPublisher

from .log_directives import target
from .reactor import Calls, Clock
from .telemetry import SCOPE, Delivery, Destination, LastWords
from .tracing import NO_SPAN, Span, Tracing, Value

log = Logger()

BATCH = 128
"""Spans in one message: collectors refuse messages above 4 MiB by default."""

_PROPAGATOR = TraceContextTextMapPropagator()
_LEVELS = {LogLevel.info, LogLevel.warn, LogLevel.error, LogLevel.critical}


def _plain(attributes: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: value if isinstance(value, str | int | float | bool) else "" if value is None else str(value)
        for name, value in attributes.items()
    }


class LiveSpan:
    """A span that is recorded. In a ``with`` block it is the context's span."""

    def __init__(self, span: trace.Span) -> None:
        self._span = span
        self._token: Any = None

    def set(self, **attributes: Value) -> None:
        self._span.set_attributes(_plain(attributes))

    def fail(self, message: str) -> None:
        self._span.set_status(trace.StatusCode.ERROR, message)

    def end(self) -> None:
        self._span.end()

    def __enter__(self) -> Span:
        self._token = otel_context.attach(trace.set_span_in_context(self._span))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        # A coroutine that is thrown away is closed in the context of whoever does so.
        if not isinstance(error, GeneratorExit):
            otel_context.detach(self._token)
        if isinstance(error, CancelledError):
            self._span.set_attribute("cancelled", True)
        elif isinstance(error, Exception):
            self._span.record_exception(error)
            self.fail(f"{type(error).__name__}: {error}")
        self._span.end()


class ToldExporter(SpanExporter):
    """Passes spans on and tells of failures once per change."""

    def __init__(self, exporter: SpanExporter, endpoint: str) -> None:
        self._exporter = exporter
        self._delivery = Delivery("traces", endpoint)
        self._words = LastWords.listen()

    def export(self, spans: Any) -> SpanExportResult:
        result = self._exporter.export(spans)
        if result is SpanExportResult.SUCCESS:
            self._delivery.succeeded()
        else:
            self._delivery.failed(self._words.take())
        return result

    def shutdown(self) -> None:
        self._exporter.shutdown()

    def force_flush(self, timeout_millis: int = 30000) -> bool:
        return self._exporter.force_flush(timeout_millis)


def otlp(destination: Destination) -> tuple[SpanExporter, SpanProcessor]:
    """An exporter to a collector behind a queue and a thread of its own (``OTEL_BSP_*`` set its size and pace)."""
    from grpc import Compression
    from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter

    exporter = ToldExporter(
        OTLPSpanExporter(
            endpoint=destination.endpoint,
            timeout=cast(int, destination.timeout),
            compression=Compression.Gzip if destination.gzip else Compression.NoCompression,
        ),
        destination.endpoint,
    )
    return exporter, BatchSpanProcessor(exporter, max_export_batch_size=BATCH)


def stdout(stream: IO[str] | None = None) -> tuple[SpanExporter, SpanProcessor]:
    """Whole lines at each span's end, so that they do not tear log lines."""
    exporter = ConsoleSpanExporter(out=stream or sys.stdout, formatter=lambda span: span.to_json(indent=None) + "\n")
    return exporter, SimpleSpanProcessor(exporter)


class ExportedTracing(Tracing):
    """Owns ``calls`` (one thread), ``exporter`` and ``processor``. ``process`` are the attributes of the process's
    span. ``request_ratio`` of the requests without a trace of their own get a span; with 0 no request does.

    Lines of the log inside of a span become its events; an error marks it failed.
    """

    def __init__(
        self,
        *,
        clock: Clock,
        calls: Calls,
        exporter: SpanExporter,
        processor: SpanProcessor,
        resource: Mapping[str, str],
        process: Mapping[str, str],
        request_ratio: float = 0.0,
        choose: Callable[[], float] = random.random,
        flush_seconds: float = 2.0,
    ) -> None:
        self.requests = request_ratio > 0
        self._clock = clock
        self._calls = calls
        self._exporter = exporter
        self._processor = processor
        self._ratio = request_ratio
        self._choose = choose
        self._flush_seconds = flush_seconds
        self._provider = TracerProvider(resource=Resource.create(dict(resource)), shutdown_on_exit=False)
        self._provider.add_span_processor(processor)
        self._tracer = self._provider.get_tracer(SCOPE)
        self._process = self._tracer.start_span(
            "start_dataplane", context=otel_context.Context(), attributes=_plain(process)
        )
        self._calls.start()
        globalLogPublisher.addObserver(cast(ILogObserver, self._observe))

    def start(self) -> None:
        self._process.end()

    def root(self, name: str, /, **attributes: Value) -> Span:
        return LiveSpan(
            self._tracer.start_span(
                name,
                context=otel_context.Context(),
                attributes=_plain(attributes),
                links=[trace.Link(self._process.get_span_context())],
            )
        )

    def span(self, name: str, /, **attributes: Value) -> Span:
        return LiveSpan(self._tracer.start_span(name, attributes=_plain(attributes)))

    def request(self, traceparent: str | None, /, **attributes: Value) -> Span:
        if not self.requests:
            return NO_SPAN
        context = otel_context.Context()
        if traceparent is not None:
            context = _PROPAGATOR.extract({"traceparent": traceparent}, context)
        given = trace.get_current_span(context).get_span_context()
        if not given.trace_flags.sampled if given.is_valid else self._choose() >= self._ratio:
            return NO_SPAN
        return LiveSpan(
            self._tracer.start_span(
                "proxy_request", context=context, kind=trace.SpanKind.SERVER, attributes=_plain(attributes)
            )
        )

    def headers(self) -> dict[str, str]:
        carrier: dict[str, str] = {}
        _PROPAGATOR.inject(carrier)
        return carrier

    async def stop(self) -> None:
        globalLogPublisher.removeObserver(cast(ILogObserver, self._observe))
        if self._process.is_recording():
            self._process.end()
        flush = self._calls.run(self._processor.shutdown)
        flush.addTimeout(self._flush_seconds, self._clock)  # type: ignore[arg-type]
        try:
            await flush
        except TimeoutError:
            log.warn("the last spans could not be exported in time", seconds=self._flush_seconds)
            # Makes the export that hangs return, and with it the thread.
            self._exporter.shutdown()
        finally:
            self._calls.stop()

    def _observe(self, event: Mapping[str, Any]) -> None:
        span = trace.get_current_span()
        if event.get("log_level") not in _LEVELS or not span.is_recording():
            return
        message = formatEvent(dict(event))
        fields = {name: value for name, value in event.items() if not name.startswith("log_")}
        level = event["log_level"].name
        span.add_event(message, _plain({**fields, "level": level, "target": target(event.get("log_namespace") or "")}))
        if level in ("error", "critical"):
            span.set_status(trace.StatusCode.ERROR, message)
