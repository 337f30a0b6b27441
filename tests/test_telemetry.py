"""Metrics and spans on the wire, into a real collector."""

from __future__ import annotations

import io
import json
import os
import socket
import subprocess
import sys
import time
from typing import Any

import grpc
from twisted.internet import reactor
from twisted.internet.defer import CancelledError, Deferred, succeed
from twisted.internet.task import Clock
from twisted.logger import Logger, globalLogPublisher
from twisted.trial.unittest import SynchronousTestCase, TestCase

from indexify_dataplane.config_model import Telemetry
from indexify_dataplane.metrics import Metrics
from indexify_dataplane.otlp import MetricsPush, OtlpExporter, metrics_push
from indexify_dataplane.reactor import Pool
from indexify_dataplane.telemetry import Destination, Signal, destination, push_metrics, resource
from indexify_dataplane.tracing import NO_SPAN, Tracing, tracing
from indexify_dataplane.tracing_export import ExportedTracing, otlp, stdout

from .collector import Collector

RESOURCE = resource(executor_id="exec-1", instance_id="inst-1", version="1.2.3")
log = Logger()


def attributes(found: Any) -> dict[str, Any]:
    return {entry.key: getattr(entry.value, entry.value.WhichOneof("value")) for entry in found}


class RulesTest(SynchronousTestCase):
    def test_when_metrics_are_pushed(self) -> None:
        for enabled, endpoint, expected in (
            (None, None, False),
            (None, "", False),
            (None, "http://c:1", True),
            (False, "http://c:1", False),
            (True, None, True),
        ):
            self.assertIs(push_metrics(enabled, endpoint), expected)

    def test_destination(self) -> None:
        general = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://general:1", "OTEL_EXPORTER_OTLP_TIMEOUT": "2500"}
        own = {"OTEL_EXPORTER_OTLP_METRICS_ENDPOINT": "own:2", "OTEL_EXPORTER_OTLP_METRICS_COMPRESSION": "gzip"}
        for configured, environ, expected in (
            (None, {}, Destination("http://localhost:4317")),
            ("https://key:3", general | own, Destination("https://key:3", 2.5, True)),
            ("", general | own, Destination("http://own:2", 2.5, True)),
            (None, general, Destination("http://general:1", 2.5)),
            (None, {"OTEL_EXPORTER_OTLP_TIMEOUT": "soon"}, Destination("http://localhost:4317")),
            (None, {"OTEL_EXPORTER_OTLP_COMPRESSION": "zstd"}, Destination("http://localhost:4317")),
        ):
            self.assertEqual(destination(Signal.METRICS, configured, environ), expected)
        self.assertEqual(destination(Signal.TRACES, None, own), Destination("http://localhost:4317", gzip=True))


class MemoryTest(SynchronousTestCase):
    def test_a_node_without_telemetry_does_not_import_it(self) -> None:
        script = """
import sys
from indexify_dataplane.reactor import install
install()
from twisted.internet import reactor
import indexify_dataplane.host.gpus, indexify_dataplane.host.usage, indexify_dataplane.otlp, indexify_dataplane.tracing
from indexify_dataplane import control_socket, monitoring
from indexify_dataplane.metrics import Metrics
from tests.monitoring_view import View
monitoring.routes(answers=None, view=View(), metrics=Metrics())
control_socket.routes(answers=None, drain=None, leaks=None)
print([name for name in sys.modules if name.split(".")[0] in ("opentelemetry", "docker", "boto3", "treq", "pyroute2")])
"""
        result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, timeout=30)
        self.assertEqual((result.stdout, result.stderr), ("[]\n", ""))


class LogCase(TestCase):
    timeout = 30

    def setUp(self) -> None:
        self.lines: list[dict[str, Any]] = []
        globalLogPublisher.addObserver(self.lines.append)  # type: ignore[arg-type]
        self.addCleanup(globalLogPublisher.removeObserver, self.lines.append)
        self.clock = Clock()

    def said(self, text: str) -> list[dict[str, Any]]:
        return [line for line in self.lines if line.get("log_format") == text]


class MetricsPushTest(LogCase):
    def setUp(self) -> None:
        super().setUp()
        self.collector = Collector(reactor)
        self.addCleanup(self.collector.stop)
        self.metrics = Metrics()

    def push(self, endpoint: str, **options: float) -> MetricsPush:
        pool = Pool(reactor, "metrics", 1)
        push = MetricsPush(
            clock=self.clock,
            calls=pool,
            wall=lambda: 1_700_000_000.0 + self.clock.seconds(),
            metrics=self.metrics,
            exporter=OtlpExporter(destination=Destination(endpoint, 5.0), resource=RESOURCE),
            endpoint=endpoint,
            interval=5.0,
            **options,
        )
        push.startService()
        self.addCleanup(pool.stop)
        return push

    async def test_every_kind_arrives_as_it_is(self) -> None:
        self.metrics.counter("containers.terminated", container_type="sandbox", reason="oom").add(3)
        self.metrics.histogram("sandbox.startup_latency_seconds").observe(0.3)
        self.metrics.histogram("sandbox.startup_latency_seconds").observe(5000.0)
        self.metrics.histogram("sandbox.health_check_latency_seconds")
        self.metrics.gauge("resources.free_cpu_percent", lambda: 12.5)
        self.metrics.gauge("resources.free_memory_bytes", lambda: 2**40)
        self.metrics.gauge("containers_count", lambda: 2)
        os.environ["OTEL_RESOURCE_ATTRIBUTES"] = "service.name=other,deployment=blue"
        self.addCleanup(os.environ.pop, "OTEL_RESOURCE_ATTRIBUTES")
        push = self.push(self.collector.endpoint)
        self.clock.advance(5)
        request = await self.collector.next()
        (resource_metrics,) = request.resource_metrics
        self.assertLessEqual(
            (RESOURCE | {"deployment": "blue"}).items(), attributes(resource_metrics.resource.attributes).items()
        )
        (scope,) = resource_metrics.scope_metrics
        self.assertEqual(scope.scope.name, "indexify-dataplane")
        found = {metric.name.removeprefix("indexify.dataplane."): metric for metric in scope.metrics}
        self.assertEqual(
            set(found),
            {
                "containers.terminated", "sandbox.startup_latency_seconds", "resources.free_cpu_percent",
                "resources.free_memory_bytes", "containers_count",
            },
        )  # fmt: skip
        counter = found["containers.terminated"].sum
        self.assertTrue(counter.is_monotonic)
        self.assertEqual(counter.aggregation_temporality, 2)
        (point,) = counter.data_points
        self.assertEqual(
            (point.as_int, attributes(point.attributes)), (3, {"container_type": "sandbox", "reason": "oom"})
        )
        self.assertEqual(
            (point.start_time_unix_nano, point.time_unix_nano), (1_700_000_000 * 10**9, 1_700_000_005 * 10**9)
        )
        histogram = found["sandbox.startup_latency_seconds"]
        (point,) = histogram.histogram.data_points
        self.assertEqual((histogram.unit, point.count, point.sum, point.min, point.max), ("s", 2, 5000.3, 0.3, 5000.0))
        self.assertEqual(
            list(point.explicit_bounds), list(self.metrics.histogram("sandbox.startup_latency_seconds").bounds)
        )
        self.assertEqual(list(point.bucket_counts), self.metrics.histogram("sandbox.startup_latency_seconds").counts)
        gauges = found["resources.free_cpu_percent"], found["resources.free_memory_bytes"]
        self.assertEqual(
            [(gauge.unit, gauge.WhichOneof("data")) for gauge in gauges], [("%", "gauge"), ("By", "gauge")]
        )
        self.assertEqual(gauges[0].gauge.data_points[0].as_double, 12.5)
        self.assertEqual(gauges[1].gauge.data_points[0].as_int, 2**40)
        self.assertEqual(
            (found["containers_count"].sum.is_monotonic, found["containers_count"].WhichOneof("data")), (False, "sum")
        )
        await push.stopService()

    async def test_the_last_numbers_are_flushed_at_the_end(self) -> None:
        push = self.push(self.collector.endpoint)
        self.clock.advance(1)
        self.metrics.counter("heartbeat.success").add(41)
        await push.stopService()
        request = await self.collector.next()
        (metric,) = request.resource_metrics[0].scope_metrics[0].metrics
        self.assertEqual(metric.sum.data_points[0].as_int, 41)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    async def test_failures_are_told_once_per_change_and_never_doubled(self) -> None:
        self.metrics.counter("heartbeat.success").add()
        self.collector.status = grpc.StatusCode.PERMISSION_DENIED
        push = self.push(self.collector.endpoint)
        for _ in range(3):
            self.clock.advance(5)
            await self.collector.next()
            await self.settled(push)
        (told,) = self.said("telemetry cannot be exported")
        self.assertIn("PERMISSION_DENIED", told["error"])
        self.assertIn("not today", told["error"])
        self.collector.status = grpc.StatusCode.OK
        self.clock.advance(5)
        await self.collector.next()
        await self.settled(push)
        self.assertEqual([line["missed"] for line in self.said("telemetry is exported again")], [3])
        await push.stopService()

    async def test_as_the_configuration_asks(self) -> None:
        def made(**settings: Any) -> MetricsPush | None:
            return metrics_push(
                reactor=reactor, settings=Telemetry(**settings), environ={}, resource=RESOURCE, metrics=self.metrics
            )

        self.assertIsNone(made())
        self.assertIsNone(made(enable_metrics=False, endpoint=self.collector.endpoint))
        self.metrics.counter("heartbeat.success").add()
        push = made(endpoint=self.collector.endpoint)
        assert push is not None
        push.startService()
        await push.stopService()
        self.assertEqual(len((await self.collector.next()).resource_metrics), 1)

    async def settled(self, push: MetricsPush) -> None:
        """Until the export that is under way has been judged."""
        running = push._pushing
        if running is not None:
            done: Deferred[None] = Deferred()
            running.addBoth(lambda _: done.callback(None))
            await done

    async def test_a_collector_that_never_answers_delays_nothing(self) -> None:
        self.metrics.counter("heartbeat.success").add()
        with socket.socket() as deaf:
            deaf.bind(("127.0.0.1", 0))
            deaf.listen()
            push = self.push(f"http://127.0.0.1:{deaf.getsockname()[1]}", flush_seconds=2.0)
            self.clock.advance(5)
            first = push._pushing
            self.clock.advance(50)
            self.assertIs(push._pushing, first)
            stopped = push.stopService()
            self.assertFalse(stopped.called)
            began = time.monotonic()
            self.clock.advance(2)
            await stopped
        self.assertLess(time.monotonic() - began, 3, "the export's thread was not freed")
        self.assertEqual(len(self.said("the last metrics could not be exported in time")), 1)
        self.assertEqual(self.clock.getDelayedCalls(), [])


class TracingOffTest(SynchronousTestCase):
    def test_it_is_one_object_that_does_nothing(self) -> None:
        tracing = Tracing()
        with tracing.root("container_lifecycle", container_id="c") as span:
            span.set(reason=None)
            span.fail("x")
        for made in (span, tracing.span("x"), tracing.request("00-" + "a" * 32 + "-" + "b" * 16 + "-01")):
            self.assertIs(made, NO_SPAN)
        self.assertEqual(tracing.headers(), {})


class TracingTest(LogCase):
    def tracing(self, exporter: Any, **options: Any) -> ExportedTracing:
        pool = Pool(reactor, "tracing", 1)
        self.addCleanup(pool.stop)
        return ExportedTracing(
            clock=self.clock,
            calls=pool,
            exporter=exporter[0],
            processor=exporter[1],
            resource=RESOURCE,
            process={"executor_id": "exec-1"},
            **options,
        )

    def on_stream(self, **options: Any) -> tuple[ExportedTracing, io.StringIO]:
        stream = io.StringIO()
        return self.tracing(stdout(stream), **options), stream

    def spans(self, stream: io.StringIO) -> dict[str, dict[str, Any]]:
        return {span["name"]: span for span in map(json.loads, stream.getvalue().splitlines())}

    async def test_spans_reach_a_collector_at_the_end(self) -> None:
        collector = Collector(reactor)
        self.addCleanup(collector.stop)
        tracing = self.tracing(otlp(Destination(collector.endpoint, 5.0, gzip=True)))
        tracing.start()
        with tracing.root("container_lifecycle", container_id="c", sandbox_id=None), tracing.span("start_container"):
            pass
        await tracing.stop()
        (found,) = (await collector.next()).resource_spans
        self.assertLessEqual(RESOURCE.items(), attributes(found.resource.attributes).items())
        spans = {span.name: span for span in found.scope_spans[0].spans}
        root, child, process = (spans[name] for name in ("container_lifecycle", "start_container", "start_dataplane"))
        self.assertEqual(attributes(root.attributes), {"container_id": "c", "sandbox_id": ""})
        self.assertEqual((child.trace_id, child.parent_span_id), (root.trace_id, root.span_id))
        self.assertNotEqual(root.trace_id, process.trace_id)
        self.assertEqual((root.parent_span_id, root.links[0].span_id), (b"", process.span_id))
        self.assertEqual(attributes(process.attributes), {"executor_id": "exec-1"})

    async def test_as_the_configuration_asks(self) -> None:
        collector = Collector(reactor)
        self.addCleanup(collector.stop)

        def made(exporter: str | None) -> Tracing:
            settings = Telemetry(tracing_exporter=exporter, endpoint=collector.endpoint)
            return tracing(reactor=reactor, settings=settings, environ={}, resource=RESOURCE, process={"env": "test"})

        self.assertIs(type(made(None)), Tracing)
        live = made("otlp")
        live.start()
        await live.stop()
        (span,) = (await collector.next()).resource_spans[0].scope_spans[0].spans
        self.assertEqual((span.name, attributes(span.attributes)), ("start_dataplane", {"env": "test"}))

    async def test_a_dead_collector_is_told_once_and_given_up_at_the_deadline(self) -> None:
        with socket.socket() as deaf:
            deaf.bind(("127.0.0.1", 0))
            deaf.listen()
            tracing = self.tracing(otlp(Destination(f"http://127.0.0.1:{deaf.getsockname()[1]}", 600.0)))
            for _ in range(300):
                tracing.root("container_lifecycle").end()
            stopped = Deferred.fromCoroutine(tracing.stop())
            self.assertFalse(stopped.called)
            began = time.monotonic()
            self.clock.advance(2)
            await stopped
        self.assertLess(time.monotonic() - began, 5, "the export's thread was not freed")
        self.assertEqual(len(self.said("the last spans could not be exported in time")), 1)

    async def test_spans_follow_their_coroutine(self) -> None:
        tracing, stream = self.on_stream()
        first, second = Deferred[None](), Deferred[None]()

        async def work(name: str, gate: Deferred[None]) -> None:
            with tracing.root(name):
                await gate
                with tracing.span(name + ".inner"):
                    await succeed(None)
                    log.info("half way", container_id=name)

        running = [Deferred.fromCoroutine(work("a", first)), Deferred.fromCoroutine(work("b", second))]
        self.assertEqual(tracing.headers(), {})
        second.callback(None)
        first.callback(None)
        for each in running:
            await each
        await tracing.stop()
        spans = self.spans(stream)
        for name in "ab":
            self.assertEqual(spans[name + ".inner"]["parent_id"], spans[name]["context"]["span_id"])
            (event,) = spans[name + ".inner"]["events"]
            self.assertEqual((event["name"], event["attributes"]["container_id"]), ("half way", name))
        self.assertEqual(self.said("Failed to detach context"), [])

    async def test_failure_cancellation_and_errors_in_the_log(self) -> None:
        tracing, stream = self.on_stream()
        with self.assertRaises(OSError), tracing.root("failed"):
            raise OSError("no such image")

        async def wait() -> None:
            with tracing.root("cancelled"):
                await Deferred()

        waiting = Deferred.fromCoroutine(wait())
        waiting.cancel()
        with self.assertRaises(CancelledError):
            await waiting
        self.assertEqual(tracing.headers(), {})
        with tracing.root("outer"), tracing.root("apart"):
            pass
        with tracing.root("logged"):
            log.error("image cannot be pulled", image="x")
        log.info("outside")
        await tracing.stop()
        log.error("after the end")
        self.flushLoggedErrors()
        spans = self.spans(stream)
        self.assertIsNone(spans["apart"]["parent_id"])
        self.assertEqual(spans["failed"]["status"], {"status_code": "ERROR", "description": "OSError: no such image"})
        self.assertEqual(spans["cancelled"]["attributes"], {"cancelled": True})
        self.assertEqual(spans["cancelled"]["status"]["status_code"], "UNSET")
        self.assertEqual(spans["logged"]["status"]["description"], "image cannot be pulled")
        self.assertEqual(spans["logged"]["events"][0]["attributes"]["level"], "error")

    async def test_requests_are_chosen(self) -> None:
        draws = iter((0.05, 0.5))
        tracing, stream = self.on_stream(request_ratio=0.1, choose=lambda: next(draws))
        trace_id, span_id = "a" * 32, "b" * 16
        chosen = tracing.request(None, path="/x")
        self.assertIsNot(chosen, NO_SPAN)
        chosen.end()
        self.assertIs(tracing.request(None), NO_SPAN)
        self.assertIs(tracing.request(f"00-{trace_id}-{span_id}-00"), NO_SPAN)
        given = tracing.request(f"00-{trace_id}-{span_id}-01", status_code=200)
        with given:
            self.assertRegex(tracing.headers()["traceparent"], f"^00-{trace_id}-[0-9a-f]{{16}}-01$")
        await tracing.stop()
        last = json.loads(stream.getvalue().splitlines()[1])
        self.assertEqual((last["context"]["trace_id"], last["parent_id"]), (f"0x{trace_id}", f"0x{span_id}"))
        off, _ = self.on_stream()
        self.assertIs(off.request(f"00-{trace_id}-{span_id}-01"), NO_SPAN)
        self.assertFalse(off.requests)
        await off.stop()
