"""What can happen to the node. An event is the only way into ``core.step``."""

from __future__ import annotations

from attrs import frozen

from .model import (
    AllocationSpec,
    ContainerSpec,
    ExitStatus,
    Handle,
    Outcome,
    SandboxSpec,
    TerminationReason,
)

# Commands of the server, as control.wire reads them.


@frozen
class AddContainer:
    spec: ContainerSpec


@frozen
class RemoveContainer:
    container_id: str


@frozen
class UpdateContainer:
    """``sandbox`` None means that the command carried nothing to change."""

    container_id: str
    sandbox: SandboxSpec | None


@frozen
class SnapshotContainer:
    container_id: str
    snapshot_id: str
    upload_uri: str


@frozen
class RunAllocation:
    spec: AllocationSpec


@frozen
class KillAllocation:
    allocation_id: str


@frozen
class Invalid:
    """A command that cannot be carried out.

    ``command`` and ``reason`` are the metric labels of the wire's validation table; ``detail`` is a sentence with the
    path of the field. Where an id could be read, the server gets an answer: ``container_id`` is terminated,
    ``allocation`` fails (its spec holds what could be read, empty strings otherwise), ``snapshot`` fails.
    ``unprotected`` is a sandbox that was to get a network policy which nobody can enforce: it ends, rather than go on
    under another one.
    """

    command: str
    reason: str
    detail: str
    container_id: str | None = None
    allocation: AllocationSpec | None = None
    snapshot: SnapshotContainer | None = None
    unprotected: str | None = None


Command = (
    AddContainer | RemoveContainer | UpdateContainer | SnapshotContainer | RunAllocation | KillAllocation | Invalid
)


@frozen
class Commanded:
    """The server ordered ``command`` under sequence number ``seq``."""

    seq: int
    command: Command


@frozen
class ChildResult:
    """A function call that ``allocation_id`` waits for has a result (``result``: encoded ``FunctionCallResult``)."""

    allocation_id: str
    result: bytes


@frozen
class Delivered:
    """The server accepted the reports with these ids."""

    report_ids: tuple[int, ...]


# What drivers and the watch over running containers tell. ``op`` is the operation's number from the effect.


@frozen
class Started:
    container_id: str
    op: int
    handle: Handle


@frozen
class StartFailed:
    """Nothing of the container is left on the host. ``message`` is for the log."""

    container_id: str
    op: int
    reason: TerminationReason
    message: str


@frozen
class Killed:
    container_id: str
    op: int


@frozen
class KillFailed:
    container_id: str
    op: int
    message: str


@frozen
class Exited:
    container_id: str
    handle_id: str
    status: ExitStatus


@frozen
class Unhealthy:
    container_id: str
    handle_id: str
    message: str


@frozen
class Snapshotted:
    """The copy is complete in the blob store: ``size_bytes`` there, compressed, with this SHA-256 (hex)."""

    container_id: str
    op: int
    size_bytes: int
    sha256: str


@frozen
class SnapshotAttemptFailed:
    """Nothing of the attempt is left in the blob store. ``retryable``: the next one may succeed."""

    container_id: str
    op: int
    message: str
    retryable: bool


@frozen
class Swept:
    """Nothing is left of the snapshot that was given up, or it was told that something may be."""

    container_id: str
    upload_uri: str


@frozen
class Conformed:
    """The network policy is in force; ``frozen`` says whether it rests now: freezing may fail."""

    container_id: str
    op: int
    frozen: bool


@frozen
class ConformFailed:
    """The policy is not in force, or the container is not awake. ``message`` is for the log."""

    container_id: str
    op: int
    message: str


@frozen
class Due:
    """An alarm that the core set for this container rings."""

    container_id: str


# What the runner of allocations tells.


@frozen
class Prepared:
    allocation_id: str


@frozen
class PrepareFailed:
    allocation_id: str
    message: str


@frozen
class Ended:
    """The run is over and the executor no longer works on it."""

    allocation_id: str
    outcome: Outcome


@frozen
class UploadBegun:
    """A run began to write request state at ``uri``."""

    allocation_id: str
    uri: str
    upload_id: str


@frozen
class Called:
    """The allocation called functions (``request``: encoded ``FunctionCallRequest``); must reach the server."""

    allocation_id: str
    request: bytes


@frozen
class Finalized:
    allocation_id: str
    outcome: Outcome


@frozen
class ForgetDue:
    """A finished allocation's grace period is over."""

    allocation_id: str


@frozen
class ForgetAnswer:
    """A snapshot's grace period is over, like a finished allocation's."""

    snapshot_id: str


@frozen
class DrainAll:
    """An operator gives the node up: every container is stopped, nothing new is accepted."""


Event = (
    Commanded
    | ChildResult
    | Delivered
    | Started
    | StartFailed
    | Killed
    | KillFailed
    | Exited
    | Unhealthy
    | Snapshotted
    | SnapshotAttemptFailed
    | Swept
    | Conformed
    | ConformFailed
    | Due
    | Prepared
    | PrepareFailed
    | Ended
    | Called
    | UploadBegun
    | Finalized
    | ForgetDue
    | ForgetAnswer
    | DrainAll
)
