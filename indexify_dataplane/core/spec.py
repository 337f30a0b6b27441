"""What the server asks for: descriptions of containers, as received. Sizes are bytes.

Enumerations carry the numbers of the wire, so that ``control.wire`` maps them by value.
"""

from __future__ import annotations

import enum

from attrs import frozen


class Kind(enum.Enum):
    """What a container is for; decides its driver and its rules."""

    FUNCTION = "function"
    SANDBOX = "sandbox"


class TerminationReason(enum.IntEnum):
    """Why a container is dead (``ContainerTerminationReason`` of the wire)."""

    UNKNOWN = 0
    STARTUP_FAILED_INTERNAL_ERROR = 1
    STARTUP_FAILED_FUNCTION_ERROR = 2
    STARTUP_FAILED_FUNCTION_TIMEOUT = 3
    UNHEALTHY = 4
    INTERNAL_ERROR = 5
    FUNCTION_TIMEOUT = 6
    FUNCTION_CANCELLED = 7
    OOM = 8
    PROCESS_CRASH = 9
    STARTUP_FAILED_BAD_IMAGE = 10


class FailureReason(enum.IntEnum):
    """Why an allocation failed (``AllocationFailureReason`` of the wire; 8 and 9 are the server's own)."""

    UNKNOWN = 0
    INTERNAL_ERROR = 1
    FUNCTION_ERROR = 2
    FUNCTION_TIMEOUT = 3
    REQUEST_ERROR = 4
    ALLOCATION_CANCELLED = 5
    CONTAINER_TERMINATED = 6
    OOM = 7
    STARTUP_FAILED_INTERNAL_ERROR = 10
    STARTUP_FAILED_FUNCTION_ERROR = 11
    STARTUP_FAILED_FUNCTION_TIMEOUT = 12
    STARTUP_FAILED_BAD_IMAGE = 13


@frozen
class FunctionRef:
    """Names a function; ``version`` is None where the sender left it out."""

    namespace: str | None = None
    application: str | None = None
    function: str | None = None
    version: str | None = None


@frozen
class Gpus:
    """A demand for ``count`` devices of one model (number of ``GPUModel``, None when unset)."""

    count: int = 0
    model: int | None = None


@frozen
class Resources:
    """Limits of one container; None means unset."""

    cpu_ms_per_sec: int | None = None
    memory_bytes: int | None = None
    disk_bytes: int | None = None
    gpus: Gpus | None = None


@frozen
class Payload:
    """A contiguous range of a blob (``DataPayload``); None means unset."""

    uri: str | None = None
    encoding: int | None = None
    encoding_version: int | None = None
    content_type: str | None = None
    metadata_size: int | None = None
    offset: int | None = None
    size: int | None = None
    sha256: str | None = None
    source_function_call_id: str | None = None
    id: str | None = None


@frozen
class NetworkPolicy:
    """Egress rules of a sandbox; ``allow_internet`` None is read as true."""

    allow_internet: bool | None = None
    allow_out: tuple[str, ...] = ()
    deny_out: tuple[str, ...] = ()


@frozen
class SandboxSpec:
    """The sandbox part of a description. ``timeout_secs`` None or 0 means no limit."""

    image: str | None = None
    timeout_secs: int | None = None
    entrypoint: tuple[str, ...] = ()
    network_policy: NetworkPolicy | None = None
    sandbox_id: str | None = None
    snapshot_uri: str | None = None


@frozen
class ContainerSpec:
    """What to run (``ContainerDescription``); kept as received, so that a full sync reports it unchanged."""

    id: str
    kind: Kind
    function: FunctionRef | None = None
    secret_names: tuple[str, ...] = ()
    initialization_timeout_ms: int | None = None
    application: Payload | None = None
    resources: Resources | None = None
    max_concurrency: int | None = None
    allocation_timeout_ms: int | None = None
    sandbox: SandboxSpec | None = None
    pool_id: str | None = None

    @property
    def sandbox_id(self) -> str | None:
        """The sandbox this container serves; None while it is a warm one of a pool."""
        return self.sandbox.sandbox_id or None if self.sandbox else None

    @property
    def slots(self) -> int:
        """How many allocations may run at once (the server's default is 1)."""
        return max(1, self.max_concurrency or 1)
