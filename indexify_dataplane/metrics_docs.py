"""Makes ``docs/metrics.md`` from the catalog: ``python -m indexify_dataplane.metrics_docs docs/metrics.md``."""

from __future__ import annotations

import sys
from pathlib import Path

from .metrics_catalog import CATALOG, Kind, Metric

_HEAD = """\
# Metrics

<!-- Made by `python -m indexify_dataplane.metrics_docs docs/metrics.md` from `metrics_catalog.py`. -->

Two exporters read the same numbers:

- **Prometheus**: `GET /metrics` (also `/monitoring/metrics`) on the monitoring port, always on. Names start with
  `indexify_dataplane_`, dots become underscores, counters end in `_total`. `process_*` describe the process itself.
- **OTLP** by gRPC: pushed every `telemetry.metrics_interval` seconds to `telemetry.endpoint`, if
  `telemetry.enable_metrics` is true, or if it is absent and `telemetry.endpoint` is set. Names start with
  `indexify.dataplane.`; temporality is cumulative. Resource attributes: `service.namespace`, `service.name`,
  `service.version`, `indexify.instance.id`, `indexify.executor.id` and those of `OTEL_RESOURCE_ATTRIBUTES`. The last
  push is made when the node stops.

A metric appears once something recorded it. Histograms also tell the least and the greatest value by OTLP.
"""


def _row(metric: Metric) -> str:
    labels = ", ".join(f"`{label}`" for label in metric.labels) or "–"
    return f"| `{metric.name}` | `{metric.prometheus_name}` | {metric.unit or '–'} | {labels} | {metric.description} |"


def markdown() -> str:
    """The whole page."""
    parts = [_HEAD]
    for kind, title in (
        (Kind.COUNTER, "Counters"),
        (Kind.UP_DOWN, "Up-down counters"),
        (Kind.GAUGE, "Gauges"),
        (Kind.HISTOGRAM, "Histograms"),
    ):
        found = [metric for metric in CATALOG.values() if metric.kind is kind]
        parts.append(
            f"\n## {title}\n\n| OTLP name without prefix | Prometheus | Unit | Labels | What |\n|---|---|---|---|---|\n"
        )
        parts.append("\n".join(map(_row, found)) + "\n")
    parts.append("\n## Buckets\n\n| Upper ends | Histograms |\n|---|---|\n")
    by_buckets: dict[tuple[float, ...], list[str]] = {}
    for metric in CATALOG.values():
        if metric.buckets:
            by_buckets.setdefault(metric.buckets, []).append(f"`{metric.name}`")
    for buckets, names in by_buckets.items():
        parts.append(f"| {', '.join(f'{bound:g}' for bound in buckets)} | {', '.join(names)} |\n")
    return "".join(parts)


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(markdown())
