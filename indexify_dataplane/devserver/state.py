"""The records of the control plane and the world that holds them. Rules live elsewhere.

``created_at`` is wall-clock milliseconds since the epoch, other times are seconds on the injected clock.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Any

from attrs import Factory, define, field

from indexify_dataplane.reactor import Clock
from indexify_dataplane.wireproto import executor_api_pb2 as pb

from .alarm import Alarm
from .blobs import Blobs
from .line import Line
from .outbox import Outbox

LETTERS = "0123456789abcdefghijklmnopqrstuvwxyz"


@define
class Amount:
    """Resources as numbers: thousandths of a CPU, bytes, devices of one GPU model (0 when there are none)."""

    cpu_ms: int = 0
    memory: int = 0
    disk: int = 0
    gpus: int = 0
    gpu_model: int = 0

    def fits_into(self, free: Amount) -> bool:
        return (
            self.cpu_ms <= free.cpu_ms
            and self.memory <= free.memory
            and self.disk <= free.disk
            and (not self.gpus or (self.gpus <= free.gpus and self.gpu_model == free.gpu_model))
        )

    def add(self, other: Amount, sign: int = 1) -> None:
        self.cpu_ms += sign * other.cpu_ms
        self.memory += sign * other.memory
        self.disk += sign * other.disk
        self.gpus += sign * other.gpus

    @classmethod
    def of_container(cls, resources: pb.ContainerResources) -> Amount:
        return cls(
            resources.cpu_ms_per_sec,
            resources.memory_bytes,
            resources.disk_bytes,
            resources.gpu.count,
            resources.gpu.model,
        )


@define(eq=False)
class Executor:
    """One executor as the server knows it. ``known`` from its full sync until it is deregistered."""

    id: str
    commands: Outbox[pb.Command]
    results: Outbox[pb.SequencedAllocationResult]
    lapse: Alarm
    known: bool = False
    want_full_state: bool = False
    last_ack: int = 0
    identity: pb.DataplaneStateFullSync = Factory(pb.DataplaneStateFullSync)
    used: Amount = Factory(Amount)
    containers: dict[str, Container] = Factory(dict)

    @property
    def capacity(self) -> Amount:
        host = self.identity.total_container_resources
        return Amount(host.cpu_count * 1000, host.memory_bytes, host.disk_bytes, host.gpu.count, host.gpu.model)

    @property
    def free(self) -> Amount:
        left = self.capacity
        left.add(self.used, -1)
        return left


@define(eq=False)
class Container:
    """A container on an executor. ``state`` is pending, running or terminated; ``wanted`` says that it should live;
    ``adopting`` that a new process of its executor has yet to find it usable."""

    id: str
    executor_id: str
    description: pb.ContainerDescription
    idle: Alarm
    state: str = "pending"
    reason: int = 0
    wanted: bool = True
    adopting: bool = False
    allocations: dict[str, Allocation] = Factory(dict)
    created_at_clock: int = 0

    @property
    def sandbox_id(self) -> str | None:
        return self.description.sandbox_metadata.sandbox_id or None

    @property
    def pool_id(self) -> str | None:
        return self.description.pool_id or None

    @property
    def pool_key(self) -> tuple[str, str]:
        return (self.description.function.namespace, self.description.pool_id)

    @property
    def is_sandbox(self) -> bool:
        return self.description.container_type == pb.CONTAINER_TYPE_SANDBOX

    @property
    def lives(self) -> bool:
        return self.wanted and self.state != "terminated"


@define(eq=False)
class SandboxSpec:
    """What a client asked for; ``resources`` as cpus (float), memory_mb, ephemeral_disk_mb and gpus."""

    image: str
    resources: dict[str, Any]
    secret_names: list[str]
    timeout_secs: int
    entrypoint: list[str]
    network: dict[str, Any] | None
    allow_unauthenticated_access: bool
    exposed_ports: list[int] | None
    snapshot_uri: str | None = None


@define(eq=False)
class Sandbox:
    """One sandbox, terminated ones included. ``status``: pending, running, snapshotting or terminated."""

    id: str
    namespace: str
    spec: SandboxSpec
    created_at: int
    application: str | None = None
    status: str = "pending"
    pending_reason: str = "scheduling"
    outcome: str | None = None
    container_id: str | None = None
    executor_id: str | None = None
    pool_id: str | None = None


@define(eq=False)
class Pool:
    """A sandbox pool: what its containers are like and how many of them may exist or wait warm."""

    id: str
    namespace: str
    spec: SandboxSpec
    max_containers: int | None
    warm_containers: int


@define(eq=False)
class Snapshot:
    """``status``: in_progress, completed or failed."""

    id: str
    namespace: str
    sandbox_id: str
    container_id: str
    executor_id: str
    spec: SandboxSpec
    upload_uri: str
    created_at: int
    status: str = "in_progress"
    error: str | None = None
    snapshot_uri: str | None = None
    size_bytes: int | None = None


@define(eq=False)
class Version:
    """One deployed version of an application. ``code`` is None when it has no functions."""

    manifest: dict[str, Any]
    code: pb.DataPayload | None


@define(eq=False)
class Application:
    """An application with every version that was deployed; ``current`` names the newest one."""

    namespace: str
    name: str
    created_at: int
    current: str
    versions: dict[str, Version] = Factory(dict)

    @property
    def manifest(self) -> dict[str, Any]:
        return self.versions[self.current].manifest


@define(eq=False)
class Route:
    """Where the result of a child call goes: to ``allocation_id`` on ``executor_id``, under the call's own id."""

    executor_id: str
    allocation_id: str
    call_id: str


@define(eq=False)
class Allocation:
    """One attempt of a run. ``outcome`` None while it is open; ``sent`` from its order on, ``accepted`` from the
    executor's acknowledgement of it."""

    id: str
    run: FunctionRun
    executor_id: str
    container_id: str
    attempt: int
    created_at: int
    outcome: str | None = None
    failure_reason: int = 0
    duration_ms: int | None = None
    sent: bool = False
    accepted: bool = False


@define(eq=False)
class FunctionRun:
    """A function call of a request. ``sources`` are its arguments: payloads, or the ids of calls that yield them.

    ``status``: waiting (for arguments), pending (for a place), running or completed. ``tail`` is the call whose value
    is this run's value after a tail call; ``value`` is the payload once it is known (an empty one counts as known).
    ``depth`` is how many callers may wait for it: one more than its caller's, after a tail call as many.
    """

    id: str
    request: Request
    function: str
    sources: list[pb.DataPayload | str]
    metadata: bytes
    created_at_ns: int
    parent_id: str | None = None
    depth: int = 0
    status: str = "waiting"
    outcome: str | None = None
    failure_reason: int = 0
    request_error: pb.DataPayload | None = None
    value: pb.DataPayload | None = None
    tail: str | None = None
    counted_failures: int = 0
    allocations: list[Allocation] = Factory(list)
    children: list[str] = Factory(list)
    routes: list[Route] = Factory(list)

    @property
    def needs(self) -> set[str]:
        """The calls whose values are arguments."""
        return {source for source in self.sources if isinstance(source, str)}


@define(eq=False)
class Request:
    """One invocation of an application; its entry run has the request's id. ``outcome``: None, success or failure."""

    id: str
    namespace: str
    application: str
    version: str
    created_at: int
    runs: dict[str, FunctionRun] = Factory(dict)
    allocations: dict[str, Allocation] = Factory(dict)
    outcome: str | None = None
    failure_reason: int = 0
    failed_run: FunctionRun | None = None
    """The run of whose failure the request failed."""
    events: list[dict[str, Any]] = Factory(list)
    listeners: list[Callable[[dict[str, Any]], None]] = Factory(list)


@define(eq=False)
class World:
    """Everything the control plane knows, with the clock, the dice and the blob store that it uses."""

    clock: Clock
    wall: Callable[[], float]
    random: Random
    blobs: Blobs
    snapshot_base: str
    namespaces: dict[str, int] = Factory(dict)
    executors: dict[str, Executor] = Factory(dict)
    containers: dict[str, Container] = Factory(dict)
    sandboxes: dict[str, Sandbox] = Factory(dict)
    pools: dict[str, Pool] = Factory(dict)
    snapshots: dict[str, Snapshot] = Factory(dict)
    applications: dict[tuple[str, str], Application] = Factory(dict)
    requests: dict[tuple[str, str, str], Request] = Factory(dict)
    unplaced_sandboxes: dict[str, Sandbox] = Factory(dict)
    unplaced_runs: dict[tuple[str, str], Line] = Factory(dict)
    """Runs that wait for a place, by namespace and pool."""
    called_off: dict[str, tuple[Allocation, pb.Allocation]] = Factory(dict)
    """Allocations whose end was ordered, with their orders, until the executor's outcome comes or their container is
    gone: until then they take up their slot."""
    members: dict[tuple[str, str], dict[str, Container]] = Factory(dict)
    """The containers of each pool that are not dead, by namespace and pool id."""
    idle: dict[str, Container] = Factory(dict)
    """Function containers that became idle since the scheduler looked last."""
    stirred: bool = field(default=False)
    """Something changed that may let a waiting sandbox, pool or run be placed."""
    ticks: int = 0

    def fresh_id(self) -> str:
        """21 characters of 0-9a-z, as the server gives."""
        return "".join(self.random.choices(LETTERS, k=21))

    def now_ms(self) -> int:
        return int(self.wall() * 1000)

    def tick(self) -> int:
        self.ticks += 1
        return self.ticks

    def touch_namespace(self, name: str) -> None:
        """Using a namespace creates it."""
        self.namespaces.setdefault(name, self.now_ms())
