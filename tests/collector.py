"""An OTLP collector on the loopback interface, made of the public protocol and grpcio's server."""

from __future__ import annotations

import queue
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2, metrics_service_pb2_grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc
from twisted.internet.defer import Deferred


class Collector(metrics_service_pb2_grpc.MetricsServiceServicer, trace_service_pb2_grpc.TraceServiceServicer):
    """``next`` fires with the next request, in the reactor's thread. ``status`` other than OK refuses."""

    def __init__(self, reactor: Any) -> None:
        self.status = grpc.StatusCode.OK
        self.metadata: dict[str, str] = {}
        self._reactor = reactor
        self._waiting: list[Deferred[Any]] = []
        self._requests: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._server = grpc.server(ThreadPoolExecutor(2))
        metrics_service_pb2_grpc.add_MetricsServiceServicer_to_server(self, self._server)
        trace_service_pb2_grpc.add_TraceServiceServicer_to_server(self, self._server)
        self.endpoint = f"http://127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"
        self._server.start()

    def Export(self, request: Any, context: grpc.ServicerContext) -> Any:
        self.metadata = {str(name): str(value) for name, value in context.invocation_metadata()}
        self._reactor.callFromThread(self._came, request)
        if self.status is not grpc.StatusCode.OK:
            context.abort(self.status, "not today")
        if "trace" in type(request).__module__:
            return trace_service_pb2.ExportTraceServiceResponse()
        return metrics_service_pb2.ExportMetricsServiceResponse()

    def _came(self, request: Any) -> None:
        if self._waiting:
            self._waiting.pop(0).callback(request)
        else:
            self._requests.put(request)

    def next(self) -> Deferred[Any]:
        waiting: Deferred[Any] = Deferred()
        if self._requests.empty():
            self._waiting.append(waiting)
        else:
            waiting.callback(self._requests.get())
        return waiting

    def stop(self) -> None:
        self._server.stop(0).wait()
