"""What the node counts. Recording is an addition to a plain number; exporters read the numbers when they need them.

Names carry no prefix here; exporters add ``indexify.dataplane.`` or ``indexify_dataplane_``.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence

SECONDS = (
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0,
)  # fmt: skip

Labels = tuple[tuple[str, str], ...]


class Counter:
    """A number that only grows."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value = 0

    def add(self, amount: int = 1) -> None:
        self.value += amount


class Histogram:
    """Counts per bucket, with sum and count; ``bounds`` are the buckets' upper ends."""

    __slots__ = ("bounds", "count", "counts", "sum")

    def __init__(self, bounds: Sequence[float] = SECONDS) -> None:
        self.bounds = tuple(bounds)
        self.counts = [0] * (len(self.bounds) + 1)
        self.sum = 0.0
        self.count = 0

    def observe(self, value: float) -> None:
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value
        self.count += 1


class Metrics:
    """All instruments of one node, made on first use. Keep what ``counter`` and ``histogram`` return on hot paths."""

    def __init__(self) -> None:
        self.counters: dict[tuple[str, Labels], Counter] = {}
        self.histograms: dict[tuple[str, Labels], Histogram] = {}
        self.gauges: dict[tuple[str, Labels], Callable[[], float]] = {}

    def counter(self, name: str, **labels: str) -> Counter:
        key = (name, tuple(sorted(labels.items())))
        found = self.counters.get(key)
        if found is None:
            found = self.counters[key] = Counter()
        return found

    def histogram(self, name: str, bounds: Sequence[float] = SECONDS, **labels: str) -> Histogram:
        key = (name, tuple(sorted(labels.items())))
        found = self.histograms.get(key)
        if found is None:
            found = self.histograms[key] = Histogram(bounds)
        return found

    def gauge(self, name: str, read: Callable[[], float], **labels: str) -> None:
        """Register a gauge; ``read`` is called at every export and must be quick and pure."""
        self.gauges[(name, tuple(sorted(labels.items())))] = read
