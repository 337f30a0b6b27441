"""How containers and allocations are written down: one JSON object a record, the description as the server sent it.

Monotonic times end with the process, so records hold wall-clock times; ``offset`` is wall minus monotonic, both in
seconds, at the time of writing or reading.
"""

from __future__ import annotations

import base64
import json
from typing import Any

import attrs

from .control.wire_values import describe, describe_allocation, read_allocation, read_description
from .core import model
from .core.model import (
    Aborting,
    Allocation,
    AllocationState,
    Cancelling,
    Container,
    Done,
    Executing,
    ExitStatus,
    Handle,
    Killing,
    Preparing,
    Queued,
    Running,
    SnapshotAnswer,
    SnapshotCompleted,
    SnapshotFailed,
    Snapshotting,
    Starting,
    State,
    Stopping,
    Terminated,
    TerminationReason,
)
from .wireproto import executor_api_pb2 as pb

_STATES: dict[str, type[State]] = {
    "queued": Queued,
    "starting": Starting,
    "aborting": Aborting,
    "running": Running,
    "snapshotting": Snapshotting,
    "stopping": Stopping,
    "killing": Killing,
    "terminated": Terminated,
}
_NAMES = {kind: name for name, kind in _STATES.items()}
_TIMES = frozenset({"since", "began", "at", "kill_at", "retry_at", "until"})
_ANSWERS: dict[str, type[SnapshotAnswer]] = {"completed": SnapshotCompleted, "failed": SnapshotFailed}


def state_name(state: State) -> str:
    """The state's name in records, on the state routes and in the log."""
    return _NAMES[type(state)]


def encode_container(container: Container, offset: float) -> bytes:
    record = {
        "description": base64.b64encode(describe(container.spec).SerializeToString()).decode(),
        "state": {"name": state_name(container.state), **_fields(container.state, offset)},
        "op": container.op,
        "claimed_at": _shift(container.claimed_at, offset),
        "removal_ordered": container.removal_ordered,
        "gpus": container.gpus,
        "stop_by": _shift(container.stop_by, offset),
        "answered": _encode_answer(container.answered),
        "unswept": container.unswept,
    }
    return json.dumps(record, separators=(",", ":")).encode()


def decode_container(data: bytes, offset: float) -> Container:
    """Raises ValueError, KeyError or TypeError for a record that this version cannot read."""
    record = json.loads(data)
    state = dict(record["state"])
    kind = _STATES[state.pop("name")]
    return Container(
        spec=_decode_spec(record["description"]),
        state=kind(**{name: _value(name, value, offset) for name, value in state.items()}),
        op=record["op"],
        claimed_at=_shift(record["claimed_at"], -offset),
        removal_ordered=record["removal_ordered"],
        gpus=tuple(record["gpus"]),
        stop_by=_shift(record["stop_by"], -offset),
        answered=_decode_answer(record.get("answered")),  # schema 1 had none
        unswept=tuple(record.get("unswept", ())),
    )


def encode_allocation(allocation: Allocation) -> bytes:
    report = allocation.state.report if isinstance(allocation.state, Done) else None
    allocation_pb = describe_allocation(allocation.spec).SerializeToString()
    record = {
        "allocation": base64.b64encode(allocation_pb).decode(),
        "report": report,
        "uploads": allocation.uploads,
        "began": isinstance(allocation.state, Executing | Cancelling),
    }
    return json.dumps(record, separators=(",", ":")).encode()


def decode_allocation(data: bytes) -> Allocation:
    """An allocation that was not done comes back as Executing if it had begun to run, else as Preparing."""
    record = json.loads(data)
    spec = read_allocation(pb.Allocation.FromString(base64.b64decode(record["allocation"])))
    state: AllocationState
    if record["report"] is not None:
        state = Done(record["report"])
    else:
        state = Executing(0.0) if record.get("began", True) else Preparing(0.0)  # older rows do not tell
    return Allocation(spec, state, tuple((uri, upload_id) for uri, upload_id in record.get("uploads", ())))


def _decode_spec(text: str) -> model.ContainerSpec:
    return read_description(pb.ContainerDescription.FromString(base64.b64decode(text)))


def _shift(value: float | None, offset: float) -> float | None:
    return None if value is None else value + offset


def _fields(state: State, offset: float) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    for attribute in attrs.fields(type(state)):
        if attribute.metadata == model.NOT_STORED:
            continue
        value = getattr(state, attribute.name)
        if attribute.name in _TIMES:
            value = _shift(value, offset)
        elif isinstance(value, TerminationReason):
            value = value.name
        elif isinstance(value, Handle | ExitStatus):
            value = attrs.asdict(value)
        elif isinstance(value, SnapshotCompleted | SnapshotFailed):
            value = _encode_answer(value)
        fields[attribute.name] = value
    return fields


def _value(name: str, value: Any, offset: float) -> Any:
    if name in _TIMES:
        return _shift(value, -offset)
    if name == "reason":
        return TerminationReason[value]
    if name == "handle":
        return Handle(**value)
    if name == "exited":
        return ExitStatus(**value) if value is not None else None
    if name == "answer":
        return _decode_answer(value)
    return value


def _encode_answer(answer: SnapshotAnswer | None) -> dict[str, Any] | None:
    if answer is None:
        return None
    kind = "completed" if isinstance(answer, SnapshotCompleted) else "failed"
    return {"kind": kind, **attrs.asdict(answer)}


def _decode_answer(record: dict[str, Any] | None) -> SnapshotAnswer | None:
    if record is None:
        return None
    fields = dict(record)
    return _ANSWERS[fields.pop("kind")](**fields)
