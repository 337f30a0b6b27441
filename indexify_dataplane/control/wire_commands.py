"""Commands and results of the server, read and checked.

Everything a command carries is checked here, once, so that no later part meets a missing field, an id that escapes
from a directory or a text that breaks a label or a log line. What cannot be carried out becomes ``events.Invalid`` with
the path of the field and every id that could be read, because the server has to be answered.
"""

from __future__ import annotations

import re
from typing import Any

from attrs import frozen

from ..core.events import (
    AddContainer,
    ChildResult,
    Command,
    Invalid,
    KillAllocation,
    RemoveContainer,
    RunAllocation,
    SnapshotContainer,
    UpdateContainer,
)
from ..core.model import Kind
from ..network.policy import InvalidPolicy, networks
from ..wireproto import executor_api_pb2 as pb
from .wire_values import kind_of, read_allocation, read_description, read_sandbox

# Ids of containers, sandboxes, snapshots and allocations become parts of paths, of container and chain names and of
# header values. The server's own are 21 characters of 0-9a-z; a UUID and the names used by hand fit as well.
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}", re.ASCII)
_ID_RULE = "1 to 128 letters, digits, '.', '_' or '-', beginning with a letter or digit"
_POLICY_RULE = "allowed are addresses and networks, such as 192.0.2.7, 10.0.0.0/8 or 2001:db8::/32, and no host names"
_NAME_LIMIT = 256
_TEXT_LIMIT = 4096


class _Fault(ValueError):
    """What is wrong with a message; its text names the field by its path."""


class _PolicyFault(_Fault):
    """The fault is in a network policy."""


@frozen
class MalformedResult:
    """A result that cannot be handed on; ``reason`` is the metric label."""

    reason: str
    detail: str


def _shown(value: str) -> str:
    return repr(value if len(value) <= 80 else value[:77] + "...")


def _set(message: Any, field: str, path: str) -> Any:
    if not message.HasField(field):
        raise _Fault(f"{path}.{field} is missing")
    return getattr(message, field)


def _id(value: str, path: str) -> None:
    if not value:
        raise _Fault(f"{path} is empty")
    if not _ID.fullmatch(value):
        raise _Fault(f"{path} is {_shown(value)}; allowed are {_ID_RULE}")


def _text(value: str, path: str, *, limit: int = _TEXT_LIMIT, empty: bool = True) -> None:
    if not value and not empty:
        raise _Fault(f"{path} is empty")
    if len(value) > limit:
        raise _Fault(f"{path} has {len(value)} characters; {limit} are allowed")
    if not value.isprintable():
        raise _Fault(f"{path} is {_shown(value)}, which holds characters that cannot be printed")


def _name(value: str, path: str, *, empty: bool = False) -> None:
    """A name that may become one component of a path."""
    _text(value, path, limit=_NAME_LIMIT, empty=empty)
    if "/" in value or "\\" in value or value in (".", ".."):
        raise _Fault(f"{path} is {_shown(value)}, which is not the name of anything but a path")


def _payload(message: pb.DataPayload, path: str) -> None:
    _text(_set(message, "uri", path), f"{path}.uri", empty=False)
    for field in ("encoding", "encoding_version", "size"):
        _set(message, field, path)
    _text(_set(message, "sha256_hash", path), f"{path}.sha256_hash", limit=_NAME_LIMIT)
    for field in ("content_type", "source_function_call_id", "id"):
        _text(getattr(message, field), f"{path}.{field}")


def _function(message: pb.FunctionRef, path: str) -> None:
    for field in ("namespace", "application_name", "function_name"):
        _name(_set(message, field, path), f"{path}.{field}")
    _name(message.application_version, f"{path}.application_version", empty=True)


def _sandbox(message: pb.SandboxMetadata, path: str) -> None:
    if message.sandbox_id:
        _id(message.sandbox_id, f"{path}.sandbox_id")
    _text(message.image, f"{path}.image")
    _text(message.snapshot_uri, f"{path}.snapshot_uri")
    for index, argument in enumerate(message.entrypoint):
        if "\0" in argument:
            raise _Fault(f"{path}.entrypoint[{index}] holds a NUL character")
    _policy(message.network_policy, f"{path}.network_policy")


def _policy(message: pb.NetworkPolicy, path: str) -> None:
    for field in ("allow_out", "deny_out"):
        entries = getattr(message, field)
        try:
            for index, entry in enumerate(entries):
                _text(entry, f"{path}.{field}[{index}]", limit=_NAME_LIMIT, empty=False)
            networks(entries, f"{path}.{field}")
        except (_Fault, InvalidPolicy) as error:
            raise _PolicyFault(f"{error}; {_POLICY_RULE}") from error


def _description(message: pb.ContainerDescription, path: str) -> None:
    _id(_set(message, "id", path), f"{path}.id")
    kind = kind_of(message)
    if kind is None:
        raise _Fault(f"{path}.container_type is {message.container_type}; known are FUNCTION (1) and SANDBOX (2)")
    if kind is Kind.FUNCTION:
        _set(message, "function", path)
        _function(message.function, f"{path}.function")
        for field in ("initialization_timeout_ms", "max_concurrency", "allocation_timeout_ms"):
            _set(message, field, path)
        _payload(_set(message, "application", path), f"{path}.application")
        _id(message.application.sha256_hash, f"{path}.application.sha256_hash")
    else:
        for field in ("namespace", "application_name", "function_name", "application_version"):
            _name(getattr(message.function, field), f"{path}.function.{field}", empty=True)
    for index, name in enumerate(message.secret_names):
        _name(name, f"{path}.secret_names[{index}]")
        if "=" in name:
            raise _Fault(f"{path}.secret_names[{index}] is {_shown(name)}, which cannot name an environment variable")
    _text(message.pool_id, f"{path}.pool_id", limit=4 * _NAME_LIMIT)
    _sandbox(message.sandbox_metadata, f"{path}.sandbox_metadata")


def _allocation(message: pb.Allocation, path: str) -> None:
    _id(_set(message, "allocation_id", path), f"{path}.allocation_id")
    _id(_set(message, "container_id", path), f"{path}.container_id")
    _set(message, "function", path)
    _function(message.function, f"{path}.function")
    for field in ("function_call_id", "request_id"):
        _text(_set(message, field, path), f"{path}.{field}", limit=_NAME_LIMIT, empty=False)
    for field in ("request_data_payload_uri_prefix", "request_error_payload_uri_prefix"):
        _text(_set(message, field, path), f"{path}.{field}", empty=False)
    for index, arg in enumerate(message.args):
        _payload(arg, f"{path}.args[{index}]")


def _unprotected(fault: _Fault, container_id: str | None) -> str | None:
    return container_id if isinstance(fault, _PolicyFault) else None


def _read_add(message: pb.AddContainer) -> Command:
    if not message.HasField("container"):
        return Invalid("AddContainer", "missing_container_payload", "add_container.container is missing")
    try:
        _description(message.container, "add_container.container")
    except _Fault as fault:
        container_id = message.container.id or None
        return Invalid(
            "AddContainer",
            "invalid_add_container",
            str(fault),
            container_id=container_id,
            unprotected=_unprotected(fault, container_id),
        )
    return AddContainer(read_description(message.container))


def _read_run(message: pb.RunAllocation) -> Command:
    if not message.HasField("allocation"):
        return Invalid("RunAllocation", "missing_allocation_payload", "run_allocation.allocation is missing")
    try:
        _allocation(message.allocation, "run_allocation.allocation")
    except _Fault as fault:
        readable = read_allocation(message.allocation) if message.allocation.allocation_id else None
        return Invalid("RunAllocation", "invalid_run_allocation", str(fault), allocation=readable)
    return RunAllocation(read_allocation(message.allocation))


def _read_update(message: pb.UpdateContainerDescription) -> Command:
    # No container_id in the answers: a bad patch is no reason to end what runs, but for a policy that it would lack.
    if not message.container_id:
        return Invalid(
            "UpdateContainerDescription",
            "missing_container_id",
            "update_container_description.container_id is empty",
        )
    if not message.HasField("sandbox_metadata"):
        return UpdateContainer(message.container_id, None)
    try:
        _sandbox(message.sandbox_metadata, "update_container_description.sandbox_metadata")
    except _Fault as fault:
        return Invalid(
            "UpdateContainerDescription",
            "invalid_update_container_description",
            str(fault),
            unprotected=_unprotected(fault, message.container_id),
        )
    return UpdateContainer(message.container_id, read_sandbox(message.sandbox_metadata))


def _read_snapshot(message: pb.SnapshotContainer) -> Command:
    order = SnapshotContainer(message.container_id, message.snapshot_id, message.upload_uri)
    try:
        if not message.container_id:
            raise _Fault("snapshot_container.container_id is empty")
        _id(message.snapshot_id, "snapshot_container.snapshot_id")
        _text(message.upload_uri, "snapshot_container.upload_uri", empty=False)
    except _Fault as fault:
        return Invalid(
            "SnapshotContainer",
            "invalid_snapshot_container",
            str(fault),
            snapshot=order if message.snapshot_id else None,
        )
    return order


def read_command(message: pb.Command) -> Command:
    """The command, or ``Invalid``; never raises, whatever the message holds."""
    match message.WhichOneof("command"):
        case "add_container":
            return _read_add(message.add_container)
        case "remove_container":
            if not message.remove_container.container_id:
                return Invalid("RemoveContainer", "missing_container_id", "remove_container.container_id is empty")
            return RemoveContainer(message.remove_container.container_id)
        case "run_allocation":
            return _read_run(message.run_allocation)
        case "kill_allocation":
            if not message.kill_allocation.allocation_id:
                return Invalid("KillAllocation", "missing_allocation_id", "kill_allocation.allocation_id is empty")
            return KillAllocation(message.kill_allocation.allocation_id)
        case "update_container_description":
            return _read_update(message.update_container_description)
        case "snapshot_container":
            return _read_snapshot(message.snapshot_container)
        case _:
            # Empty, or a command of a newer server.
            return Invalid("Unknown", "missing_command_payload", "command holds no order that this version knows")


def read_result(message: pb.SequencedAllocationResult) -> ChildResult | MalformedResult:
    """The child call's result for the allocation that waits for it; never raises."""
    if not message.HasField("entry"):
        return MalformedResult("missing_entry_payload", "result.entry is missing")
    if not message.entry.allocation_id:
        return MalformedResult("missing_allocation_id", "result.entry.allocation_id is empty")
    if message.entry.WhichOneof("entry") != "function_call_result":
        return MalformedResult("missing_function_call_result", "result.entry.function_call_result is missing")
    return ChildResult(message.entry.allocation_id, message.entry.function_call_result.SerializeToString())
