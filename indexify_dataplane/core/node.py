"""The whole node as one frozen value."""

from __future__ import annotations

from attrs import field, frozen
from immutables import Map

from .model import Allocation, Container, FunctionRef, Kind, SnapshotAnswer


@frozen
class DriverRules:
    """What the core must know of the driver of one kind of container."""

    enforces_policies: bool = False
    survives_node: bool = False
    takes_snapshots: bool = False
    freezes: bool = False


@frozen
class Rules:
    """What the configuration decides. Times in seconds.

    ``forget_after``: a dead container that the server never removes is forgotten this long after the server knows.
    ``outcome_grace``: a finished allocation's id is remembered this long after its outcome was accepted, so that a
    command that crossed with the outcome does not run it again. ``allowed`` empty means every function.
    ``freeze_after``: a warm container of a pool rests this long after it was ready, where the driver can freeze.
    ``abandoned_grace``: a sandbox whose snapshot failed lives so much longer at most. ``snapshot_timeout``: for all
    attempts of one snapshot together. ``gpu_wait``: a container waits so long for GPUs of others that are being killed,
    or longer if its own start may take longer. ``drivers`` lacks a kind that this node does not run.
    """

    stop_grace: float = 10.0
    forget_after: float = 300.0
    outcome_grace: float = 600.0
    abandoned_grace: float = 60.0
    snapshot_timeout: float = 3600.0
    snapshot_attempts: int = 5
    snapshot_retry_first: float = 1.0
    snapshot_retry_most: float = 30.0
    freeze_after: float = 10.0
    kill_retry_first: float = 1.0
    kill_retry_most: float = 30.0
    gpu_wait: float = 60.0
    default_allocation_timeout_ms: int = 300_000
    allowed: tuple[FunctionRef, ...] = ()
    drivers: Map[Kind, DriverRules] = field(factory=Map)

    def allows(self, function: FunctionRef | None) -> bool:
        """Whether the allow-list lets ``function`` run here."""
        if not self.allowed:
            return True
        if function is None:
            return False
        return any(
            entry.namespace == function.namespace
            and entry.application == function.application
            and entry.function == function.function
            and (entry.version is None or function.version is None or entry.version == function.version)
            for entry in self.allowed
        )


@frozen
class Slots:
    """A function container's allocations: those that wait, first prepared first, and those that run."""

    waiting: tuple[str, ...] = ()
    running: frozenset[str] = frozenset()


@frozen
class ContainerWaits:
    """A dead container hears when the server knows of it."""

    container_id: str


@frozen
class AllocationWaits:
    """A finished allocation hears when the server has its outcome."""

    allocation_id: str


Waiter = ContainerWaits | AllocationWaits


@frozen
class Node:
    """All that the node knows and has decided.

    ``sandboxes`` maps a sandbox id to its container's id. ``assigned`` maps a container to every allocation that is
    not finished; ``slots`` orders those that are prepared. ``finished`` remembers allocations whose outcome is known,
    ``answers`` how snapshots ended, by their id, also when the container is forgotten.
    ``unacknowledged`` maps a report's id to whoever waits for its delivery. ``gpu_queue``: the containers that wait for
    GPUs, first come first.
    """

    executor_id: str
    rules: Rules = Rules()
    containers: Map[str, Container] = field(factory=Map)
    sandboxes: Map[str, str] = field(factory=Map)
    allocations: Map[str, Allocation] = field(factory=Map)
    assigned: Map[str, frozenset[str]] = field(factory=Map)
    slots: Map[str, Slots] = field(factory=Map)
    finished: Map[str, None] = field(factory=Map)
    answers: Map[str, SnapshotAnswer] = field(factory=Map)
    unacknowledged: Map[int, Waiter] = field(factory=Map)
    free_gpus: tuple[str, ...] = ()
    gpus: frozenset[str] | None = None
    """The host's devices in this life of the node; None: all that are held are. One that is gone is given to nobody."""
    gpu_queue: tuple[str, ...] = ()
    next_report: int = 1
    next_op: int = 1
    draining: bool = False

    def find(self, name: str) -> Container | None:
        """The container with this id, or the one that serves the sandbox with this id."""
        found = self.containers.get(name)
        if found is None:
            container_id = self.sandboxes.get(name)
            found = self.containers.get(container_id) if container_id is not None else None
        return found
