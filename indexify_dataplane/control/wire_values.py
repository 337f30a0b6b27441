"""Protobuf messages and the core's values, in both directions and without loss.

``read_…`` takes a message as it is and checks nothing (``wire_commands`` does); ``write_…`` and ``describe…`` are the
exact inverse: a field that was unset stays unset, which the peers tell apart from zero and from empty.
"""

from __future__ import annotations

from typing import Any

from ..core.model import (
    AllocationSpec,
    Container,
    ContainerSpec,
    FunctionRef,
    Gpus,
    Killing,
    Kind,
    NetworkPolicy,
    Payload,
    Resources,
    Running,
    SandboxSpec,
    Snapshotting,
    Stopping,
    Terminated,
)
from ..wireproto import executor_api_pb2 as pb

_KINDS = {pb.CONTAINER_TYPE_FUNCTION: Kind.FUNCTION, pb.CONTAINER_TYPE_SANDBOX: Kind.SANDBOX}
_TYPES = {kind: number for number, kind in _KINDS.items()}

# The value's attribute and the message's field.
_PAYLOAD = (
    ("uri", "uri"),
    ("encoding", "encoding"),
    ("encoding_version", "encoding_version"),
    ("content_type", "content_type"),
    ("metadata_size", "metadata_size"),
    ("offset", "offset"),
    ("size", "size"),
    ("sha256", "sha256_hash"),
    ("source_function_call_id", "source_function_call_id"),
    ("id", "id"),
)
_FUNCTION = (
    ("namespace", "namespace"),
    ("application", "application_name"),
    ("function", "function_name"),
    ("version", "application_version"),
)


def _read(message: Any, field: str) -> Any:
    return getattr(message, field) if message.HasField(field) else None


def _write(message: Any, field: str, value: Any) -> None:
    if value is not None:
        setattr(message, field, value)


def read_payload(message: pb.DataPayload) -> Payload:
    return Payload(**{attribute: _read(message, field) for attribute, field in _PAYLOAD})


def write_payload(message: pb.DataPayload, payload: Payload) -> None:
    message.SetInParent()
    for attribute, field in _PAYLOAD:
        _write(message, field, getattr(payload, attribute))


def read_function(message: pb.FunctionRef) -> FunctionRef:
    return FunctionRef(**{attribute: _read(message, field) for attribute, field in _FUNCTION})


def write_function(message: pb.FunctionRef, function: FunctionRef) -> None:
    message.SetInParent()
    for attribute, field in _FUNCTION:
        _write(message, field, getattr(function, attribute))


def read_resources(message: pb.ContainerResources) -> Resources:
    gpus = None
    if message.HasField("gpu"):
        gpus = Gpus(count=message.gpu.count, model=_read(message.gpu, "model"))
    return Resources(
        cpu_ms_per_sec=_read(message, "cpu_ms_per_sec"),
        memory_bytes=_read(message, "memory_bytes"),
        disk_bytes=_read(message, "disk_bytes"),
        gpus=gpus,
    )


def write_resources(message: pb.ContainerResources, resources: Resources) -> None:
    message.SetInParent()
    _write(message, "cpu_ms_per_sec", resources.cpu_ms_per_sec)
    _write(message, "memory_bytes", resources.memory_bytes)
    _write(message, "disk_bytes", resources.disk_bytes)
    if resources.gpus is not None:
        message.gpu.count = resources.gpus.count
        _write(message.gpu, "model", resources.gpus.model)


def read_policy(message: pb.NetworkPolicy) -> NetworkPolicy:
    return NetworkPolicy(
        allow_internet=_read(message, "allow_internet_access"),
        allow_out=tuple(message.allow_out),
        deny_out=tuple(message.deny_out),
    )


def write_policy(message: pb.NetworkPolicy, policy: NetworkPolicy) -> None:
    message.SetInParent()
    _write(message, "allow_internet_access", policy.allow_internet)
    message.allow_out.extend(policy.allow_out)
    message.deny_out.extend(policy.deny_out)


def read_sandbox(message: pb.SandboxMetadata) -> SandboxSpec:
    return SandboxSpec(
        image=_read(message, "image"),
        timeout_secs=_read(message, "timeout_secs"),
        entrypoint=tuple(message.entrypoint),
        network_policy=read_policy(message.network_policy) if message.HasField("network_policy") else None,
        sandbox_id=_read(message, "sandbox_id"),
        snapshot_uri=_read(message, "snapshot_uri"),
    )


def write_sandbox(message: pb.SandboxMetadata, sandbox: SandboxSpec) -> None:
    message.SetInParent()
    _write(message, "image", sandbox.image)
    _write(message, "timeout_secs", sandbox.timeout_secs)
    message.entrypoint.extend(sandbox.entrypoint)
    if sandbox.network_policy is not None:
        write_policy(message.network_policy, sandbox.network_policy)
    _write(message, "sandbox_id", sandbox.sandbox_id)
    _write(message, "snapshot_uri", sandbox.snapshot_uri)


def kind_of(message: pb.ContainerDescription) -> Kind | None:
    """The container's kind; None for a type that is unset or that this version does not know."""
    return _KINDS.get(message.container_type)


def read_description(message: pb.ContainerDescription) -> ContainerSpec:
    """The inverse of ``describe``. ValueError when the type is neither FUNCTION nor SANDBOX."""
    kind = kind_of(message)
    if kind is None:
        raise ValueError(f"container_type {message.container_type} of container {message.id!r} is not known")
    return ContainerSpec(
        id=message.id,
        kind=kind,
        function=read_function(message.function) if message.HasField("function") else None,
        secret_names=tuple(message.secret_names),
        initialization_timeout_ms=_read(message, "initialization_timeout_ms"),
        application=read_payload(message.application) if message.HasField("application") else None,
        resources=read_resources(message.resources) if message.HasField("resources") else None,
        max_concurrency=_read(message, "max_concurrency"),
        allocation_timeout_ms=_read(message, "allocation_timeout_ms"),
        sandbox=read_sandbox(message.sandbox_metadata) if message.HasField("sandbox_metadata") else None,
        pool_id=_read(message, "pool_id"),
    )


def describe(spec: ContainerSpec) -> pb.ContainerDescription:
    """The description as the server sent it, for full syncs and for the store."""
    message = pb.ContainerDescription(id=spec.id)
    message.container_type = _TYPES[spec.kind]
    if spec.function is not None:
        write_function(message.function, spec.function)
    message.secret_names.extend(spec.secret_names)
    _write(message, "initialization_timeout_ms", spec.initialization_timeout_ms)
    if spec.application is not None:
        write_payload(message.application, spec.application)
    if spec.resources is not None:
        write_resources(message.resources, spec.resources)
    _write(message, "max_concurrency", spec.max_concurrency)
    _write(message, "allocation_timeout_ms", spec.allocation_timeout_ms)
    if spec.sandbox is not None:
        write_sandbox(message.sandbox_metadata, spec.sandbox)
    _write(message, "pool_id", spec.pool_id)
    return message


def read_allocation(message: pb.Allocation) -> AllocationSpec:
    """The inverse of ``describe_allocation``; what is unset becomes an empty string."""
    return AllocationSpec(
        id=message.allocation_id,
        container_id=message.container_id,
        function=read_function(message.function),
        function_call_id=message.function_call_id,
        request_id=message.request_id,
        args=tuple(read_payload(arg) for arg in message.args),
        request_data_prefix=message.request_data_payload_uri_prefix,
        request_error_prefix=message.request_error_payload_uri_prefix,
        metadata=message.function_call_metadata,
        replay_mode=_read(message, "replay_mode"),
        last_event_clock=_read(message, "last_event_clock"),
    )


def describe_allocation(spec: AllocationSpec) -> pb.Allocation:
    """The allocation as the server sent it, for the store. Fields that every valid one has are always set."""
    message = pb.Allocation(
        allocation_id=spec.id,
        container_id=spec.container_id,
        function_call_id=spec.function_call_id,
        request_id=spec.request_id,
        request_data_payload_uri_prefix=spec.request_data_prefix,
        request_error_payload_uri_prefix=spec.request_error_prefix,
        function_call_metadata=spec.metadata,
    )
    write_function(message.function, spec.function)
    for arg in spec.args:
        write_payload(message.args.add(), arg)
    _write(message, "replay_mode", spec.replay_mode)
    _write(message, "last_event_clock", spec.last_event_clock)
    return message


def container_status(container: Container) -> tuple[int, int | None]:
    """``ContainerStatus`` and ``ContainerTerminationReason`` as the server is told them. A container that is being
    stopped is still reported as running, because it holds its resources until it is dead."""
    match container.state:
        case Terminated(reason=reason):
            return pb.CONTAINER_STATUS_TERMINATED, int(reason)
        case Running() | Snapshotting() | Stopping() | Killing():
            return pb.CONTAINER_STATUS_RUNNING, None
        case _:
            return pb.CONTAINER_STATUS_PENDING, None


def container_state(container: Container) -> pb.ContainerState:
    """One container as a full sync reports it, with its description as currently held."""
    status, reason = container_status(container)
    message = pb.ContainerState(description=describe(container.spec))
    _write(message, "status", status)
    _write(message, "termination_reason", reason)
    return message
