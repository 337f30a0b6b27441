"""Where telemetry goes and under whose name: the rules that metrics and spans share. Opens no connection."""

from __future__ import annotations

import enum
import threading
from collections.abc import Mapping
from logging import Handler, LogRecord, getLogger

from attrs import frozen
from twisted.logger import Logger

log = Logger()

SCOPE = "indexify-dataplane"
LAST_RESORT = "http://localhost:4317"
DEFAULT_TIMEOUT = 10.0


class Signal(enum.Enum):
    """The part of a variable's name that makes it one signal's own."""

    METRICS = "METRICS"
    TRACES = "TRACES"


def push_metrics(enable_metrics: bool | None, endpoint: str | None) -> bool:
    """Whether metrics are pushed: as ``telemetry.enable_metrics`` says, else if ``telemetry.endpoint`` is set."""
    return enable_metrics if enable_metrics is not None else bool(endpoint)


@frozen
class Destination:
    """A collector. ``endpoint`` always has a scheme; ``timeout`` is for one export, in seconds."""

    endpoint: str
    timeout: float = DEFAULT_TIMEOUT
    gzip: bool = False


def destination(signal: Signal, configured: str | None, environ: Mapping[str, str]) -> Destination:
    """The key of the configuration wins over the signal's variable, that over the general one, that over localhost.

    Variables give the timeout in milliseconds, as the OpenTelemetry specification has it; the Python SDK would read
    seconds. Headers and certificates are read from the environment by the SDK itself.
    """

    def variable(name: str) -> str:
        return (
            environ.get(f"OTEL_EXPORTER_OTLP_{signal.value}_{name}", "").strip()
            or environ.get(f"OTEL_EXPORTER_OTLP_{name}", "").strip()
        )

    endpoint = (configured or "").strip() or variable("ENDPOINT") or LAST_RESORT
    compression = variable("COMPRESSION").lower()
    if compression not in ("", "none", "gzip"):
        log.warn("OTLP compression is not supported, sending uncompressed", compression=compression)
    return Destination(
        endpoint=endpoint if "://" in endpoint else f"http://{endpoint}",
        timeout=_milliseconds(variable("TIMEOUT")),
        # Spans are always compressed: they repeat the same names over and over.
        gzip=compression == "gzip" or signal is Signal.TRACES,
    )


def _milliseconds(text: str) -> float:
    try:
        value = float(text) / 1000 if text else DEFAULT_TIMEOUT
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        log.warn("OTLP timeout is no positive number of milliseconds, using the default", timeout=text)
        return DEFAULT_TIMEOUT
    return value


def resource(*, executor_id: str, instance_id: str, version: str) -> dict[str, str]:
    """Attributes of every metric and span. They win over ``OTEL_RESOURCE_ATTRIBUTES``, which the SDK adds."""
    return {
        "service.namespace": "indexify",
        "service.name": "indexify-dataplane",
        "service.version": version,
        "indexify.instance.id": instance_id,
        "indexify.executor.id": executor_id,
    }


class Delivery:
    """Tells once when exports begin to fail and once when they succeed again."""

    def __init__(self, what: str, endpoint: str) -> None:
        self._what = what
        self._endpoint = endpoint
        self._failed = 0

    def failed(self, reason: str) -> None:
        self._failed += 1
        if self._failed == 1:
            log.warn("telemetry cannot be exported", signal=self._what, endpoint=self._endpoint, error=reason)

    def succeeded(self) -> None:
        if self._failed:
            log.info("telemetry is exported again", signal=self._what, endpoint=self._endpoint, missed=self._failed)
            self._failed = 0


class LastWords(Handler):
    """The SDK's exporters say why they failed only to the standard library's logging, at every failure. This handler
    takes those lines off the log and keeps the last one of each thread, for ``Delivery``."""

    LOGGERS = ("opentelemetry.exporter.otlp.proto.grpc.exporter", "opentelemetry.sdk._shared_internal")

    def __init__(self) -> None:
        super().__init__()
        self._said: dict[int, str] = {}

    @classmethod
    def listen(cls) -> LastWords:
        """The one handler; the loggers of the SDK belong to it from now on."""
        first = getLogger(cls.LOGGERS[0])
        for handler in first.handlers:
            if isinstance(handler, cls):
                return handler
        found = cls()
        for name in cls.LOGGERS:
            logger = getLogger(name)
            # The SDK's filter drops repetitions by text, without regard to the signal.
            logger.filters.clear()
            logger.addHandler(found)
            logger.propagate = False
        return found

    def emit(self, record: LogRecord) -> None:
        self._said[threading.get_ident()] = record.getMessage()

    def take(self) -> str:
        """What this thread's exporter said last."""
        return self._said.pop(threading.get_ident(), "the exporter gave no reason")
