"""The wire of the control plane: protobuf on one side, the core's values on the other. The only door between them."""

from ..core.outbox import ReportKind
from .wire_commands import MalformedResult, read_command, read_result
from .wire_reports import InvalidReport, check_report, encode_report, replacement, summarize
from .wire_values import (
    container_state,
    container_status,
    describe,
    describe_allocation,
    read_allocation,
    read_description,
    read_payload,
    write_payload,
)

__all__ = [
    "InvalidReport",
    "MalformedResult",
    "ReportKind",
    "check_report",
    "container_state",
    "container_status",
    "describe",
    "describe_allocation",
    "encode_report",
    "read_allocation",
    "read_command",
    "read_description",
    "read_payload",
    "read_result",
    "replacement",
    "summarize",
    "write_payload",
]
