"""The node's numbers in Prometheus' text format."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import accumulate
from typing import TYPE_CHECKING

from .metrics import Distribution, Family, Labels, Metrics
from .metrics_catalog import Kind

if TYPE_CHECKING:
    from prometheus_client.core import Metric as PrometheusMetric

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class _Collector:
    """Hands the registry the numbers of the moment."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    def collect(self) -> Iterator[PrometheusMetric]:
        for family in self._metrics.snapshot():
            yield _convert(family)


def _convert(family: Family) -> PrometheusMetric:
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily

    metric = family.metric
    name = metric.prometheus_name
    if metric.kind is Kind.HISTOGRAM:
        histogram = HistogramMetricFamily(name, metric.description, labels=metric.labels)
        for labels, point in family.points:
            if isinstance(point, Distribution):
                ends = [*(repr(float(bound)) for bound in point.bounds), "+Inf"]
                buckets = list(zip(ends, accumulate(point.counts), strict=True))
                histogram.add_metric(_values(metric.labels, labels), buckets=buckets, sum_value=point.sum)
        return histogram
    plain = CounterMetricFamily if metric.kind is Kind.COUNTER else GaugeMetricFamily
    numbers = plain(name, metric.description, labels=metric.labels)
    for labels, value in family.points:
        if not isinstance(value, Distribution):
            numbers.add_metric(_values(metric.labels, labels), value)
    return numbers


def _values(names: tuple[str, ...], labels: Labels) -> list[str]:
    """In the order of the names; one that is not set is empty, which Prometheus takes for the same."""
    given = dict(labels)
    return [given.get(name, "") for name in names]


def exposition(metrics: Metrics) -> Callable[[], bytes]:
    """A function that writes everything as it is when called, the process's own figures (``process_*``) included."""
    from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest

    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Collector(metrics))
    ProcessCollector(registry=registry)
    return lambda: generate_latest(registry)
