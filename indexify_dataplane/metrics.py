"""What the node counts. Recording is an addition to a plain number; exporters read the numbers when they need them.

Names carry no prefix here; exporters add ``indexify.dataplane.`` or ``indexify_dataplane_``. ``metrics_catalog`` holds
all names: one that is not in it, or a label the catalog does not give it, is refused while tests run and told once in
the log otherwise, because a metric must never end the work that it counts.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence
from typing import ClassVar

from attrs import frozen
from twisted.logger import Logger

from .core.model import TerminationReason
from .metrics_catalog import CATALOG, Kind, Metric

log = Logger()

SECONDS = (
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0,
)  # fmt: skip

Labels = tuple[tuple[str, str], ...]


class UnknownMetric(LookupError):
    """What was recorded is not in the catalog, or not like that."""


class Counter:
    """A number that only grows; of an up-down counter it may also fall."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value = 0

    def add(self, amount: int = 1) -> None:
        self.value += amount


class Histogram:
    """Counts per bucket, with sum, count and extremes; ``bounds`` are the buckets' upper ends."""

    __slots__ = ("bounds", "count", "counts", "max", "min", "sum")

    def __init__(self, bounds: Sequence[float] = SECONDS) -> None:
        self.bounds = tuple(bounds)
        self.counts = [0] * (len(self.bounds) + 1)
        self.sum = 0.0
        self.count = 0
        self.min = float("inf")
        self.max = float("-inf")

    def observe(self, value: float) -> None:
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value
        self.count += 1
        if value < self.min:
            self.min = value
        if value > self.max:
            self.max = value


@frozen
class Distribution:
    """A histogram at one moment. ``counts`` has one entry more than ``bounds``: what lies above them."""

    bounds: tuple[float, ...]
    counts: tuple[int, ...]
    sum: float
    count: int
    min: float
    max: float


@frozen
class Family:
    """All series of one metric at one moment."""

    metric: Metric
    points: tuple[tuple[Labels, float | Distribution], ...]


class Metrics:
    """All instruments of one node, made on first use. Keep what ``counter`` and ``histogram`` return on hot paths.

    Not thread-safe: record and take snapshots in the reactor's thread. ``strict`` makes every use that the catalog
    does not know an UnknownMetric; the test suite sets it.
    """

    strict: ClassVar[bool] = False

    def __init__(self) -> None:
        self.counters: dict[tuple[str, Labels], Counter] = {}
        self.histograms: dict[tuple[str, Labels], Histogram] = {}
        self.gauges: dict[tuple[str, Labels], Callable[[], float]] = {}
        self._told: set[str] = set()

    def counter(self, name: str, **labels: str) -> Counter:
        key = (name, tuple(sorted(labels.items())))
        found = self.counters.get(key)
        if found is None:
            self._check(key, Kind.COUNTER, Kind.UP_DOWN)
            found = self.counters[key] = Counter()
        return found

    def histogram(self, name: str, bounds: Sequence[float] | None = None, **labels: str) -> Histogram:
        """``bounds`` is for names that the catalog does not know; it must agree with the catalog where it does."""
        key = (name, tuple(sorted(labels.items())))
        found = self.histograms.get(key)
        if found is None:
            metric = self._check(key, Kind.HISTOGRAM)
            buckets = metric.buckets if metric else tuple(bounds or SECONDS)
            if bounds is not None and tuple(bounds) != buckets:
                self._refuse(name, "its buckets differ from the catalog's")
            found = self.histograms[key] = Histogram(buckets)
        return found

    def gauge(self, name: str, read: Callable[[], float], **labels: str) -> None:
        """Register a gauge; ``read`` is called at every export and must be quick and pure.

        Counters can be registered as well, where the number is kept elsewhere. The last registration wins.
        """
        key = (name, tuple(sorted(labels.items())))
        self._check(key, Kind.GAUGE, Kind.UP_DOWN, Kind.COUNTER)
        self.gauges[key] = read

    def snapshot(self) -> tuple[Family, ...]:
        """Every series that has been made, by metric in the catalog's order. Nothing in it changes later, so that it
        can be encoded in another thread."""
        points: dict[str, list[tuple[Labels, float | Distribution]]] = {}
        for (name, labels), counter in self.counters.items():
            points.setdefault(name, []).append((labels, counter.value))
        for (name, labels), histogram in self.histograms.items():
            points.setdefault(name, []).append(
                (
                    labels,
                    Distribution(
                        bounds=histogram.bounds,
                        counts=tuple(histogram.counts),
                        sum=histogram.sum,
                        count=histogram.count,
                        min=histogram.min,
                        max=histogram.max,
                    ),
                )
            )
        for (name, labels), read in self.gauges.items():
            try:
                value = read()
            except Exception as error:
                self._tell(name, f"reading it failed: {error!r}")
                continue
            points.setdefault(name, []).append((labels, value))
        return tuple(Family(metric, tuple(points[name])) for name, metric in CATALOG.items() if name in points)

    def _check(self, key: tuple[str, Labels], *kinds: Kind) -> Metric | None:
        name, labels = key
        metric = CATALOG.get(name)
        if metric is None:
            self._refuse(name, "the catalog does not know it")
            return None
        if metric.kind not in kinds:
            self._refuse(name, f"the catalog says that it is a {metric.kind.value}")
            return None
        strangers = [label for label, _ in labels if label not in metric.labels]
        if strangers:
            self._refuse(name, f"the catalog gives it no label {', '.join(strangers)}")
        return metric

    def _refuse(self, name: str, problem: str) -> None:
        if self.strict:
            raise UnknownMetric(f"metric {name}: {problem}")
        self._tell(name, problem)

    def _tell(self, name: str, problem: str) -> None:
        if name not in self._told:
            self._told.add(name)
            log.error("metric is wrong", metric=name, error=problem)


def begin_counters(metrics: Metrics) -> None:
    """Make the counters that alerts are built on, at 0: a rate needs a first value before the first event."""
    for name in (
        "desired_state.received",
        "desired_state.function_executors",
        "desired_state.containers",
        "desired_state.allocations",
        "heartbeat.success",
        "heartbeat.failures",
    ):
        metrics.counter(name)
    for kind in ("function", "sandbox"):
        metrics.counter("containers.started", container_type=kind)
        for reason in TerminationReason:
            metrics.counter("containers.terminated", container_type=kind, reason=reason.name.lower())
