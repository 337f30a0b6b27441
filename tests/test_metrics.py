"""Recording, the catalog, the documentation made from it, and that the code records only what the catalog has."""

from __future__ import annotations

import ast
import re
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.logger import LogLevel, globalLogPublisher
from twisted.trial.unittest import SynchronousTestCase

import indexify_dataplane
from indexify_dataplane import link_metrics
from indexify_dataplane.core.session import Session
from indexify_dataplane.metrics import Distribution, Metrics, UnknownMetric
from indexify_dataplane.metrics_catalog import CATALOG, Kind
from indexify_dataplane.metrics_docs import markdown

PACKAGE = Path(indexify_dataplane.__file__).parent
DOCS = PACKAGE.parent / "docs" / "metrics.md"


class Strict(Metrics):
    strict = True


class Lenient(Metrics):
    strict = False


class RecordingTest(SynchronousTestCase):
    def test_snapshot_holds_what_was_recorded_and_does_not_change_later(self) -> None:
        metrics = Strict()
        started = metrics.counter("containers.started", container_type="sandbox")
        started.add(2)
        metrics.histogram("sandbox.startup_latency_seconds").observe(0.3)
        free = [5.0]
        metrics.gauge("resources.free_memory_bytes", lambda: free[0])
        before = {family.metric.name: family.points for family in metrics.snapshot()}
        started.add(1)
        metrics.histogram("sandbox.startup_latency_seconds").observe(7000)
        free[0] = 9
        after = {family.metric.name: family.points for family in metrics.snapshot()}
        label = (("container_type", "sandbox"),)
        self.assertEqual(before["containers.started"], ((label, 2),))
        self.assertEqual(after["containers.started"], ((label, 3),))
        self.assertEqual(before["resources.free_memory_bytes"], (((), 5.0),))
        self.assertEqual(after["resources.free_memory_bytes"], (((), 9),))
        first, second = (found["sandbox.startup_latency_seconds"][0][1] for found in (before, after))
        assert isinstance(first, Distribution) and isinstance(second, Distribution)
        self.assertEqual((first.count, first.min, first.max), (1, 0.3, 0.3))
        self.assertEqual((second.count, second.min, second.max, second.counts[-1]), (2, 0.3, 7000, 1))

    @settings(max_examples=50)
    @given(st.lists(st.floats(0, 10_000)))
    def test_every_observation_is_in_the_bucket_that_holds_it(self, values: list[float]) -> None:
        histogram = Strict().histogram("allocation_run_latency_seconds")
        for value in values:
            histogram.observe(value)
        self.assertEqual(histogram.count, len(values))
        self.assertEqual(sum(histogram.counts), len(values))
        for index, bound in enumerate(histogram.bounds):
            self.assertEqual(sum(histogram.counts[: index + 1]), sum(value <= bound for value in values))

    def test_names_kinds_labels_and_buckets_outside_of_the_catalog_are_refused(self) -> None:
        metrics = Strict()
        for wrong in (
            lambda: metrics.counter("containers.startd"),
            lambda: metrics.counter("sandbox.startup_latency_seconds"),
            lambda: metrics.histogram("containers.started"),
            lambda: metrics.gauge("sandbox.startup_latency_seconds", lambda: 0),
            lambda: metrics.counter("containers.started", kind="sandbox"),
            lambda: metrics.histogram("sandbox.startup_latency_seconds", (1, 2)),
        ):
            self.assertRaises(UnknownMetric, wrong)
        self.assertEqual(metrics.snapshot(), ())

    def test_in_production_a_wrong_name_is_told_once_and_ends_nothing(self) -> None:
        seen: list[str] = []

        def observe(event: object) -> None:
            assert isinstance(event, dict)
            if event["log_level"] is LogLevel.error:
                seen.append(event["metric"])

        globalLogPublisher.addObserver(observe)
        self.addCleanup(globalLogPublisher.removeObserver, observe)
        metrics = Lenient()
        metrics.counter("no.such").add()
        metrics.counter("no.such", again="1").add()
        metrics.gauge("resources.free_disk_bytes", lambda: 1 / 0)
        metrics.counter("heartbeat.success").add()
        for _ in range(3):
            self.assertEqual([family.metric.name for family in metrics.snapshot()], ["heartbeat.success"])
        self.assertEqual(seen, ["no.such", "resources.free_disk_bytes"])


class CatalogTest(SynchronousTestCase):
    def test_the_names_of_the_public_readme_are_there(self) -> None:
        for name, labels in (
            ("containers.started", {"container_type"}),
            ("containers.terminated", {"container_type", "reason"}),
            ("desired_state.received", set()),
            ("desired_state.function_executors", set()),
            ("desired_state.allocations", set()),
            ("heartbeat.success", set()),
            ("heartbeat.failures", set()),
            ("stream.disconnections", {"reason"}),
        ):
            self.assertEqual((CATALOG[name].kind, set(CATALOG[name].labels)), (Kind.COUNTER, labels), name)
        for name, unit in (
            ("containers.running.functions", ""),
            ("containers.running.sandboxes", ""),
            ("containers.pending.functions", ""),
            ("containers.pending.sandboxes", ""),
            ("resources.free_cpu_percent", "%"),
            ("resources.free_memory_bytes", "By"),
            ("resources.free_disk_bytes", "By"),
        ):
            self.assertEqual((CATALOG[name].kind, CATALOG[name].unit), (Kind.GAUGE, unit), name)

    def test_every_metric_is_well_formed(self) -> None:
        prometheus: set[str] = set()
        for metric in CATALOG.values():
            self.assertRegex(metric.prometheus_name, r"^[a-z][a-z0-9_]*$")
            self.assertNotIn(metric.prometheus_name, prometheus)
            prometheus.add(metric.prometheus_name)
            self.assertTrue(metric.description.endswith("."), metric.name)
            self.assertEqual(bool(metric.buckets), metric.kind is Kind.HISTOGRAM, metric.name)
            self.assertEqual(list(metric.buckets), sorted(set(metric.buckets)), metric.name)
        self.assertEqual(CATALOG["heartbeat.success"].prometheus_name, "indexify_dataplane_heartbeat_success_total")
        self.assertEqual(
            CATALOG["poll_commands.malformed_total"].prometheus_name,
            "indexify_dataplane_poll_commands_malformed_total",
        )

    def test_documentation_is_fresh(self) -> None:
        self.assertEqual(DOCS.read_text(), markdown(), "run: python -m indexify_dataplane.metrics_docs docs/metrics.md")

    def test_the_package_records_only_names_and_labels_of_the_catalog(self) -> None:
        recorded: list[tuple[str, str, set[str]]] = []
        for path in PACKAGE.rglob("*.py"):
            for call in ast.walk(ast.parse(path.read_text())):
                if not (isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute) and call.args):
                    continue
                name = call.args[0]
                if call.func.attr not in ("counter", "histogram", "gauge") or "metric" not in ast.unparse(
                    call.func.value
                ):
                    continue
                if isinstance(name, ast.Constant):
                    labels = {keyword.arg for keyword in call.keywords if keyword.arg} - {"bounds", "read"}
                    recorded.append((f"{path.name}:{call.lineno}", name.value, labels))
                elif isinstance(name, ast.JoinedStr):
                    parts = [re.escape(part.value) if isinstance(part, ast.Constant) else ".+" for part in name.values]
                    self.assertTrue(
                        any(re.fullmatch("".join(parts), known) for known in CATALOG), f"{path.name}:{call.lineno}"
                    )
        self.assertGreater(len(recorded), 10)
        wrong = [entry for entry in recorded if entry[1] not in CATALOG or entry[2] - set(CATALOG[entry[1]].labels)]
        self.assertEqual(wrong, [])


class LinkTest(SynchronousTestCase):
    def test_connections_are_counted_by_what_ended_them(self) -> None:
        metrics, session = Strict(), Session()
        stop = link_metrics.register(metrics, session)

        def counted() -> tuple[int, dict[str, int]]:
            lost = {dict(labels)["reason"]: found.value for (name, labels), found in metrics.counters.items() if labels}
            return metrics.counter("stream.creations").value, lost

        self.assertEqual(counted(), (0, {"heartbeat_failed": 0, "full_state_needed": 0, "shutdown": 0}))
        session.heartbeat_failed("refused")
        session.heartbeat_accepted(full_state=True)
        session.poll_began()
        session.poll_ended()
        session.heartbeat_failed("gone")
        session.heartbeat_failed("still gone")
        session.heartbeat_accepted(full_state=False)
        session.state_requested()
        session.heartbeat_accepted(full_state=True)
        self.assertEqual(counted(), (3, {"heartbeat_failed": 1, "full_state_needed": 1, "shutdown": 0}))
        stop()
        session.close()
        self.assertEqual(counted()[1]["shutdown"], 0)
