"""What REST clients may send, as checked shapes with the real server's defaults."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from msgspec import Meta, Struct, field

DEFAULT_IMAGE = "python:3.14-slim"

Positive = Annotated[int, Meta(ge=1)]
Natural = Annotated[int, Meta(ge=0)]
Port = Annotated[int, Meta(ge=1, le=65535)]


class Namespace(Struct):
    """Body of POST /namespaces."""

    name: Annotated[str, Meta(min_length=1)]
    blob_storage_bucket: str | None = None
    blob_storage_region: str | None = None


class GpuRequest(Struct):
    count: Positive
    model: str


class SandboxResources(Struct):
    """Resources of a sandbox. What is not given is ``PARTLY``'s if anything is, ``whole_sandbox``'s if nothing is, and
    the snapshot's where one is restored."""

    cpus: Annotated[float, Meta(ge=0)] | None = None
    memory_mb: Natural | None = None
    ephemeral_disk_mb: Natural | None = None
    gpus: list[GpuRequest] = field(default_factory=list)
    disk_mb: Natural | None = None
    """What newer SDKs call ``ephemeral_disk_mb``; it wins."""


PARTLY = {"cpus": 0.1, "memory_mb": 256, "ephemeral_disk_mb": 1024}
RESTORED = {"cpus": 0, "memory_mb": 0, "ephemeral_disk_mb": 0}
"""In a restore 0 stands for what the snapshot's sandbox had."""


def whole_sandbox() -> SandboxResources:
    return SandboxResources(cpus=1.0, memory_mb=1024, ephemeral_disk_mb=1024)


class Network(Struct):
    """Egress rules."""

    allow_internet_access: bool = True
    allow_out: list[str] = field(default_factory=list)
    deny_out: list[str] = field(default_factory=list)


class NewSandbox(Struct):
    """Body of POST …/sandboxes; ``{}`` is enough."""

    image: str | None = None
    resources: SandboxResources | None = None
    secret_names: list[str] | None = None
    timeout_secs: Natural = 600
    entrypoint: list[str] | None = None
    network: Network | None = None
    snapshot_id: str | None = None
    allow_unauthenticated_access: bool | None = None
    allow_unauthenticated_proxy_access: bool | None = None
    exposed_ports: list[Port] | None = None


class SandboxChange(Struct, forbid_unknown_fields=True):
    """Body of PATCH …/sandboxes/{id}, as newer SDKs send it to open and close ports."""

    exposed_ports: list[Port] | None = None
    allow_unauthenticated_access: bool | None = None


class NewSnapshot(Struct):
    """Body of POST …/sandboxes/{id}/snapshot, which may be absent."""

    snapshot_type: Literal["filesystem", "memory"] | None = None


class NewPool(Struct):
    """Body of POST and PUT …/sandbox-pools."""

    image: str
    resources: SandboxResources | None = None
    entrypoint: list[str] | None = None
    secret_names: list[str] | None = None
    timeout_secs: Natural = 0
    max_containers: Natural | None = None
    warm_containers: Natural | None = None
    allow_unauthenticated_access: bool = False
    exposed_ports: list[Port] | None = None
    network: Network | None = None


class FunctionResources(Struct):
    cpus: Annotated[float, Meta(ge=0)] = 1.0
    memory_mb: Natural = 1024
    ephemeral_disk_mb: Natural = 2048
    gpus: list[GpuRequest] = field(default_factory=list)


class RetryPolicy(Struct):
    max_retries: Annotated[int, Meta(ge=0, le=10)] = 0
    initial_delay_sec: Annotated[float, Meta(ge=0)] = 1.0
    max_delay_sec: Annotated[float, Meta(ge=0)] = 60.0
    delay_multiplier: Annotated[float, Meta(ge=0.1)] = 2.0


class PlacementConstraints(Struct):
    filter_expressions: list[str] = field(default_factory=list)


class Function(Struct):
    """One function of a manifest."""

    name: Annotated[str, Meta(min_length=1)]
    description: str = ""
    is_api: bool = False
    secret_names: list[str] = field(default_factory=list)
    initialization_timeout_sec: Natural = 300
    timeout_sec: Annotated[int, Meta(ge=1, le=86400)] = 300
    resources: FunctionResources = field(default_factory=FunctionResources)
    retry_policy: RetryPolicy = field(default_factory=RetryPolicy)
    cache_key: str | None = None
    parameters: list[Any] = field(default_factory=list)
    return_type: Any = None
    placement_constraints: PlacementConstraints = field(default_factory=PlacementConstraints)
    max_concurrency: Positive = 1
    min_containers: Natural | None = None
    max_containers: Natural | None = None
    warm_containers: Natural | None = None


class Entrypoint(Struct):
    """Which function an invocation calls, and how its input is written."""

    function_name: str
    input_serializer: str = "json"
    inputs_base64: str = ""
    output_serializer: str = "json"
    output_type_hints_base64: str = ""


class Manifest(Struct):
    """An application. ``version`` may be left out: the deployment then gets a fresh one."""

    name: Annotated[str, Meta(min_length=1)]
    namespace: str = ""
    description: str = ""
    tombstoned: bool = False
    version: str | None = None
    tags: dict[str, str] = field(default_factory=dict)
    functions: dict[str, Function] = field(default_factory=dict)
    created_at: int | None = None
    entrypoint: Entrypoint | None = None
    state: Any = None
