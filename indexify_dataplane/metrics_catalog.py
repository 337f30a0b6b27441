"""Every metric of the node: its name, what it counts, its labels. ``docs/metrics.md`` is made from this.

A name is what the code records and what follows ``indexify.dataplane.`` in OTLP. Prometheus knows it with underscores,
counters with ``_total`` at the end. Units are part of the names, so neither exporter adds one.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from types import MappingProxyType

from attrs import field, frozen


class Kind(enum.Enum):
    """How the numbers of a metric behave."""

    COUNTER = "counter"
    UP_DOWN = "up-down counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"


FAST = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 60.0)
"""Seconds of what should take milliseconds: calls to a daemon or an executor on the same host."""

SLOW = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1200.0)
"""Seconds of what moves data or starts something: downloads, image pulls, container starts."""

USER = (
    0.005, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0,
    3600.0, 10800.0, 21600.0, 43200.0, 86400.0, 172800.0,
)  # fmt: skip
"""Seconds of what user code decides: from an immediate answer to two days."""

USER_MS = (1, 5, 10, 25, 50, 100, 250, 500, 1000, 2500, 5000, 10_000, 30_000, 60_000, 300_000, 3_600_000)
"""Milliseconds of a function's run."""

MEGABYTES = (0.0001, 0.001, 0.01, 0.05, 0.1, 0.5, 1.0, 2.0, 5.0, 10.0, 50.0)
"""Sizes of messages; a heartbeat is cut at 10 MiB."""


@frozen
class Metric:
    """One metric. ``labels`` are those a series may carry; ``buckets`` are upper ends, histograms only."""

    name: str
    kind: Kind
    description: str
    unit: str = ""
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = field(default=(), repr=False)

    @property
    def otlp_name(self) -> str:
        return f"indexify.dataplane.{self.name}"

    @property
    def prometheus_name(self) -> str:
        """The name on ``/metrics``; a histogram's series add ``_bucket``, ``_sum`` and ``_count``."""
        name = "indexify_dataplane_" + self.name.replace(".", "_")
        if self.kind is Kind.COUNTER and not name.endswith("_total"):
            name += "_total"
        return name


def _counters(entries: Mapping[str, str], *labels: str) -> list[Metric]:
    return [Metric(name, Kind.COUNTER, text, labels=labels) for name, text in entries.items()]


def _seconds(entries: Mapping[str, tuple[str, Sequence[float]]], *labels: str) -> list[Metric]:
    return [
        Metric(name, Kind.HISTOGRAM, text, "s", labels, tuple(buckets)) for name, (text, buckets) in entries.items()
    ]


BLOB_OPERATIONS = {
    "get_metadata": "look-ups of a blob's size",
    "presign_uri": "signed addresses made for reading or writing a part",
    "create_multipart_upload": "multipart uploads begun",
    "complete_multipart_upload": "multipart uploads completed",
    "abort_multipart_upload": "multipart uploads given up",
    "get": "reads of a blob",
    "put": "writes of a blob",
}

_MALFORMED = ("command_type", "reason")
_OUTCOME = ("outcome", "failure_reason")

_ALL: tuple[Metric, ...] = (
    # Containers
    *_counters({"containers.started": "Containers that reached running."}, "container_type"),
    *_counters({"containers.terminated": "Containers that ended, whatever ended them."}, "container_type", "reason"),
    *_counters(
        {
            "sandbox.warm_pool_claims": "Warm containers that were given to a sandbox.",
            "sandbox.failed_health_checks": "Health checks of a sandbox's daemon that failed.",
            "sandbox.network_rules_errors": "Network policies that could not be put in force.",
            "sandbox.network_rules_repairs": "Times that rules which somebody else had changed were put back.",
            "sandbox.daemon_connect_errors": "Daemons that did not answer in time after a start.",
        }
    ),
    *_seconds(
        {
            "sandbox.startup_latency_seconds": ("From the command to running or failed.", SLOW),
            "sandbox.daemon_connect_latency_seconds": ("Until the daemon answered or was given up.", FAST),
            "sandbox.health_check_latency_seconds": ("One health check of a sandbox's daemon.", FAST),
        }
    ),
    *(
        Metric(f"containers.{state}.{kind}", Kind.GAUGE, f"{state.title()} {what} containers.")
        for state in ("running", "pending")
        for kind, what in (("functions", "function"), ("sandboxes", "sandbox"))
    ),
    Metric("sandboxes_with_state", Kind.GAUGE, "Sandbox containers by state.", labels=("state",)),
    Metric("function_executors_with_state", Kind.GAUGE, "Function containers by state.", labels=("state",)),
    Metric("containers_count", Kind.UP_DOWN, "Function containers that are not dead."),
    # The link to the server
    *_counters(
        {
            "heartbeat.success": "Heartbeat calls the server answered; every fragment counts.",
            "heartbeat.failures": "Heartbeat calls that failed; every fragment counts.",
            "state_report_rpcs": "Heartbeat calls attempted.",
            "state_report_rpc_errors": "Heartbeat calls that failed.",
            "state_report_message_fragmentations": "Heartbeats that were too big for one message.",
            "desired_state.received": "Orders of the server that reached the node.",
            "desired_state.containers": "Containers the server ordered.",
            "desired_state.function_executors": "Function containers the server ordered.",
            "desired_state.allocations": "Allocations the server ordered.",
            "stream.creations": "Connections to the server that were made.",
            "state_reconciliations": "Events the node decided on.",
            "state_reconciliation_errors": "Decisions that could not be written to the store at the first try.",
        }
    ),
    *_counters({"stream.disconnections": "Losses of the connection to the server."}, "reason"),
    *_counters(
        {
            "poll_commands.malformed_total": "Commands that cannot be carried out and were answered as failed.",
            "poll_commands.malformed_repeated_seq_total": "The same sequence number was malformed again.",
            "poll_results.malformed_total": "Function call results without a payload.",
            "poll_results.malformed_repeated_seq_total": "The same sequence number was malformed again.",
        },
        *_MALFORMED,
    ),
    Metric("state_report_message_size_mb", Kind.HISTOGRAM, "Size of a heartbeat.", "MB", buckets=MEGABYTES),
    *_seconds(
        {
            "state_report_rpc_latency_seconds": ("One heartbeat call.", FAST),
            "state_reconciliation_latency_seconds": ("From an event's decision to its commit.", FAST),
        }
    ),
    Metric("outbox.reports", Kind.GAUGE, "Reports the server does not have yet."),
    Metric("outbox.bytes", Kind.GAUGE, "Size of the reports the server does not have yet.", "By"),
    Metric("last_desired_state_containers", Kind.GAUGE, "Containers the node was ordered to have."),
    Metric("last_desired_state_allocations", Kind.GAUGE, "Allocations in the node's hands."),
    # Function executors
    *_counters(
        {
            "function_executor.creates": "Starts attempted.",
            "function_executor.create_errors": "Starts that failed.",
            "function_executor.create_server_errors": "Starts that failed in the driver.",
            "function_executor.establish_channel_errors": "Executors that could not be connected to.",
            "function_executor.get_info_rpc_errors": "Calls of get_info that failed.",
            "function_executor.initialize_rpc_errors": "Calls of initialize that failed or took too long.",
            "function_executor.destroys": "Executors that ended, whatever ended them.",
            "function_executor.failed_health_checks": "Health checks that failed.",
        }
    ),
    *_counters(
        {"function_executor.infos": "Executors that told their versions."},
        "version",
        "sdk_version",
        "sdk_language",
        "sdk_language_version",
    ),
    *_seconds(
        {
            "function_executor.create_latency_seconds": ("From the command to running or failed.", SLOW),
            "function_executor.create_server_latency_seconds": ("The driver's start, when it succeeded.", SLOW),
            "function_executor.establish_channel_latency_seconds": ("Until connected or given up.", SLOW),
            "function_executor.get_info_rpc_latency_seconds": ("One call of get_info.", FAST),
            "function_executor.initialize_rpc_latency_seconds": ("One call of initialize; loads user code.", SLOW),
            "function_executor.health_check_latency_seconds": ("One health check.", FAST),
        }
    ),
    # Allocations
    *_counters(
        {
            "allocations_fetched": "Allocations accepted from the server, repetitions not counted.",
            "allocation_preparations": "Preparations begun.",
            "allocation_preparation_errors": "Preparations that failed.",
            "allocation_runs": "Allocations handed to a function executor.",
            "allocation_run_errors": "Runs that ended without an answer of the executor.",
            "allocation_finalizations": "Finalisations begun.",
            "allocation_finalization_errors": "Finalisations that failed.",
            "call_function_rpcs": "Calls of other functions passed to the server.",
            "call_function_rpc_errors": "Calls of other functions that could not be passed on.",
        }
    ),
    *_counters({"allocations.completed": "Outcomes queued for the server."}, *_OUTCOME),
    Metric("allocations.duration_ms", Kind.HISTOGRAM, "Time a function ran.", "ms", _OUTCOME, USER_MS),
    *_seconds(
        {
            "allocation_preparation_latency_seconds": ("One preparation.", FAST),
            "allocation_run_latency_seconds": ("One run.", USER),
            "allocation_finalization_latency_seconds": ("One finalisation.", FAST),
            "call_function_rpc_latency_seconds": ("From a call until the server has it.", FAST),
        }
    ),
    Metric("function_call_message_size_mb", Kind.HISTOGRAM, "Size of a function call.", "MB", buckets=MEGABYTES),
    Metric("allocations_getting_prepared", Kind.UP_DOWN, "Allocations in preparation."),
    Metric("runnable_allocations", Kind.UP_DOWN, "Allocations that wait for their container or a slot in it."),
    Metric("allocation_runs_in_progress", Kind.UP_DOWN, "Allocations that run."),
    Metric("allocations_finalizing", Kind.UP_DOWN, "Allocations in finalisation."),
    # Code and blobs
    *_counters(
        {
            "application_downloads": "Downloads of application code.",
            "application_download_errors": "Downloads of application code that failed.",
            "application_downloads_from_cache": "Application code that was in the cache.",
        }
    ),
    *_seconds({"application_download_latency_seconds": ("One download of application code.", SLOW)}),
    *(
        metric
        for operation, what in BLOB_OPERATIONS.items()
        for metric in (
            Metric(f"blob_store.{operation}.requests", Kind.COUNTER, f"Number of {what}."),
            Metric(f"blob_store.{operation}.errors", Kind.COUNTER, f"Number of {what} that failed."),
            Metric(f"blob_store.{operation}.latency_seconds", Kind.HISTOGRAM, f"Time of {what}.", "s", (), SLOW),
        )
    ),
    # Snapshots
    *_counters({"snapshots.ended": "Snapshots that were taken or given up."}, "outcome"),
    *_counters(
        {
            "snapshots.attempt_errors": "Attempts to take a snapshot that failed and were tried again.",
            "snapshots.read_bytes": "Bytes of file systems that were read for snapshots; grows while one is taken.",
            "snapshots.stored_bytes": "Compressed bytes that were handed to the blob store; grows while one is taken.",
            "snapshots.restores": "Sandboxes that were started from a snapshot, or should have been.",
            "snapshots.restore_errors": "Starts from a snapshot for which it could not be read.",
            "snapshots.restored_bytes": "Bytes of file systems that were restored; grows while one is restored.",
        }
    ),
    Metric(
        "snapshots.duration_seconds",
        Kind.HISTOGRAM,
        "From the order to the end, all attempts.",
        "s",
        ("outcome",),
        USER,
    ),
    Metric("snapshots.in_progress", Kind.GAUGE, "Snapshots that are being taken."),
    # Proxy
    *_counters({"proxy.requests": "Requests answered by the proxy."}, "code_class", "upstream"),
    *_counters({"proxy.errors": "Requests the proxy answered with an error of its own."}, "code"),
    *_seconds({"proxy.duration_seconds": ("From a request's head to the end of its answer.", USER)}),
    Metric("proxy.active_requests", Kind.GAUGE, "Requests in the proxy's hands."),
    Metric("proxy.active_upgrades", Kind.GAUGE, "Upgraded connections (WebSocket and others)."),
    # The host
    Metric("resources.free_cpu_percent", Kind.GAUGE, "Free CPU since the last refresh.", "%"),
    Metric("resources.free_memory_bytes", Kind.GAUGE, "Memory that can be given out without swapping.", "By"),
    Metric("resources.free_disk_bytes", Kind.GAUGE, "Free disk of the file systems that hold containers.", "By"),
)

CATALOG: Mapping[str, Metric] = MappingProxyType({metric.name: metric for metric in _ALL})
"""Every metric by its name, in the order of the documentation."""

if len(CATALOG) != len(_ALL):
    raise ValueError("a metric is in the catalog twice")
