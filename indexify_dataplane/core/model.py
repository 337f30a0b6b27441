"""The values the node decides on: containers, allocations, reports.

Everything here is frozen and plain. Times are seconds on the node's monotonic clock unless a name says ``wall``;
sizes are bytes. What the server asks for is described in ``spec``; its names are also here.
"""

from __future__ import annotations

from attrs import field, frozen

from .spec import (
    ContainerSpec as ContainerSpec,
)
from .spec import (
    FailureReason as FailureReason,
)
from .spec import (
    FunctionRef as FunctionRef,
)
from .spec import (
    Gpus as Gpus,
)
from .spec import (
    Kind as Kind,
)
from .spec import (
    NetworkPolicy as NetworkPolicy,
)
from .spec import (
    Payload as Payload,
)
from .spec import (
    Resources as Resources,
)
from .spec import (
    SandboxSpec as SandboxSpec,
)
from .spec import (
    TerminationReason as TerminationReason,
)

NOT_STORED = {"stored": False}
"""Metadata of a field that the records leave out."""


@frozen
class Handle:
    """What a driver needs to find a container again, also after a restart of the node.

    ``id`` is unique among the driver's containers of all time (a pid with its start time, an engine id), so that a
    late message about an earlier life cannot be taken for this one. ``opaque`` belongs to the driver alone.
    Addresses are ``host:port``. ``token`` is what the sandbox's daemon wants to hear from the node and its proxy, and
    from nobody else. ``held``: the daemon starts nothing of the user's before the node tells it to.
    """

    driver: str
    id: str
    daemon_address: str | None = None
    http_address: str | None = None
    ip: str | None = None
    opaque: str = ""
    token: str | None = field(default=None, repr=False)
    held: bool = False


@frozen
class ExitStatus:
    """How a container ended: a code, or a signal, or neither when nobody could tell."""

    code: int | None = None
    signal: int | None = None
    oom: bool = False


@frozen
class Queued:
    """Waits for GPUs that containers on their way out still hold; no driver knows of it. ``since`` is when the command
    came; at ``until`` it is given up. Those that wait are served in the order of their ``op``."""

    since: float
    until: float


@frozen
class Starting:
    """The driver was told to start (or to take over) and has not answered; ``since`` is when it was told.
    ``outdated``: its network policy has changed since the driver was told."""

    since: float
    outdated: bool = False


@frozen
class Aborting:
    """Its removal was ordered while the start is under way; whatever the start yields is killed."""

    reason: TerminationReason
    since: float


@frozen
class Running:
    """Usable: the process is up and answered that it is healthy.

    ``frozen``: a warm container that rests, or is being put to rest. ``claiming``: its claim is being carried out; it
    is reported and routed to when its network policy is in force and it is awake. ``ordered``: id and place of a
    snapshot that waits for its claim; not stored, as the server repeats what it has no answer to.
    """

    handle: Handle
    since: float
    frozen: bool = False
    claiming: bool = False
    ordered: tuple[str, str] | None = field(default=None, metadata=NOT_STORED)


@frozen
class Snapshotting:
    """Its file system is being copied to ``upload_uri``; whatever the outcome, its life ends with it.

    ``since`` is when it became Running, ``began`` when the snapshot was ordered. ``attempt`` counts from 1; between two
    attempts ``retry_at`` is when the next one begins. ``exited`` is how the container ended by itself meanwhile, None
    while it runs: what it wrote can still be copied then, but not a second time.
    """

    handle: Handle
    since: float
    began: float
    snapshot_id: str
    upload_uri: str
    attempt: int = 1
    retry_at: float | None = None
    exited: ExitStatus | None = None


@frozen
class Stopping:
    """Told to stop; killed at ``kill_at`` if it has not ended by itself."""

    handle: Handle
    reason: TerminationReason
    kill_at: float


@frozen
class Killing:
    """A kill is under way or will be tried again at ``retry_at``; ``attempt`` counts from 1. ``answer`` is how the
    snapshot that ended it went: reported right after its end."""

    handle: Handle
    reason: TerminationReason
    attempt: int = 1
    retry_at: float | None = None
    answer: SnapshotCompleted | SnapshotFailed | None = None


@frozen
class Terminated:
    """Dead, nothing of it is left on the host. Kept until the server removes it, or for a while after it knows.

    ``report`` is the id of the report that tells the server, None once the server has it.
    """

    reason: TerminationReason
    at: float
    report: int | None = None


State = Queued | Starting | Aborting | Running | Snapshotting | Stopping | Killing | Terminated


@frozen
class Container:
    """One container from its AddContainer to the moment it is forgotten.

    ``op`` numbers the driver operation that was ordered last: the result of an older one is late.
    ``claimed_at`` is when its sandbox's lifetime began. ``removal_ordered`` says that the server sent RemoveContainer.
    ``gpus`` are the devices it holds until it is dead. ``stop_by`` is when it is stopped if the server, which was told
    that its snapshot failed, does not remove it before. ``answered`` is the last answer to a SnapshotContainer that was
    reported: a repeated order gets the same one again. ``unswept`` are the places of snapshots that were given up and
    may have left something there; it is not forgotten before that is gone.
    """

    spec: ContainerSpec
    state: State
    op: int = 0
    claimed_at: float | None = None
    removal_ordered: bool = False
    gpus: tuple[str, ...] = ()
    stop_by: float | None = None
    answered: SnapshotCompleted | SnapshotFailed | None = None
    unswept: tuple[str, ...] = ()

    @property
    def id(self) -> str:
        return self.spec.id

    @property
    def handle(self) -> Handle | None:
        """Where its process is, in the states that have one."""
        match self.state:
            case Running(handle) | Snapshotting(handle) | Stopping(handle) | Killing(handle):
                return handle
        return None

    @property
    def expires_at(self) -> float | None:
        """When the sandbox's lifetime is over; None if it has no limit or is not claimed."""
        if self.claimed_at is None or self.spec.sandbox is None or not self.spec.sandbox.timeout_secs:
            return None
        return self.claimed_at + self.spec.sandbox.timeout_secs


@frozen
class AllocationSpec:
    """One attempt to run one function call (``Allocation``), as received."""

    id: str
    container_id: str
    function: FunctionRef
    function_call_id: str
    request_id: str
    args: tuple[Payload, ...] = ()
    request_data_prefix: str = ""
    request_error_prefix: str = ""
    metadata: bytes = b""
    replay_mode: int | None = None
    last_event_clock: int | None = None


@frozen
class Completed:
    """An allocation's success. ``value`` and ``updates`` exclude one another; ``updates`` is an encoded
    ``ExecutionPlanUpdates``, opaque to the core."""

    value: Payload | None = None
    updates: bytes | None = None
    duration_ms: int | None = None


@frozen
class Failed:
    """An allocation's failure. ``blame_container`` reports its container as dead with it. ``begun``: the executor was
    told of it, so that it may have had a part in what happened there."""

    reason: FailureReason
    request_error: Payload | None = None
    duration_ms: int | None = None
    blame_container: bool = False
    begun: bool = True


Outcome = Completed | Failed


@frozen
class Preparing:
    """Its inputs are being made readable."""

    since: float


@frozen
class Waiting:
    """Prepared; waits for its container or for a slot in it."""

    since: float


@frozen
class Executing:
    """Handed to the function executor."""

    since: float


@frozen
class Cancelling:
    """Told to stop; ``reason`` is reported unless the run had ended by itself."""

    reason: FailureReason


@frozen
class Finalizing:
    """Its outcome is known; uploads are being completed or aborted before it is reported."""

    outcome: Outcome


@frozen
class Done:
    """Its outcome is in the outbox as report ``report``."""

    report: int


AllocationState = Preparing | Waiting | Executing | Cancelling | Finalizing | Done


@frozen
class Allocation:
    """One accepted allocation, until its outcome is in the outbox.

    ``uploads``: URI and id of each upload of request state that it began. Names of other uploads tell whose they are;
    those of request state belong to the whole request, so after a crash only this list says which to abort.
    """

    spec: AllocationSpec
    state: AllocationState
    uploads: tuple[tuple[str, str], ...] = ()

    @property
    def id(self) -> str:
        return self.spec.id


@frozen
class ContainerStarted:
    container_id: str


@frozen
class ContainerTerminated:
    container_id: str
    reason: TerminationReason


@frozen
class AllocationScheduled:
    allocation_id: str
    seq: int


@frozen
class SnapshotCompleted:
    container_id: str
    snapshot_id: str
    snapshot_uri: str
    size_bytes: int


@frozen
class SnapshotFailed:
    container_id: str
    snapshot_id: str
    message: str


@frozen
class AllocationEnded:
    """The one outcome of an allocation. ``container_id`` is set only when that container is dead or unknown here."""

    spec: AllocationSpec
    outcome: Outcome
    container_id: str | None = None


@frozen
class FunctionCalled:
    """A running allocation calls other functions; ``request`` is an encoded ``FunctionCallRequest``."""

    allocation_id: str
    request: bytes


SnapshotAnswer = SnapshotCompleted | SnapshotFailed

ReportBody = (
    ContainerStarted
    | ContainerTerminated
    | AllocationScheduled
    | SnapshotCompleted
    | SnapshotFailed
    | AllocationEnded
    | FunctionCalled
)


@frozen
class Report:
    """Something the server must learn. ``id`` grows with every report of this node's store, across restarts."""

    id: int
    body: ReportBody
