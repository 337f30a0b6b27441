"""What the core wants done. Store effects are committed first, in one transaction; the others follow in order."""

from __future__ import annotations

from attrs import frozen

from .events import Event
from .model import Allocation, Container, ContainerSpec, Handle, NetworkPolicy, Outcome, Report

# Store effects.


@frozen
class Save:
    container: Container


@frozen
class Forget:
    container_id: str


@frozen
class SaveAllocation:
    allocation: Allocation


@frozen
class ForgetAllocation:
    allocation_id: str


@frozen
class Send:
    """Put the report into the outbox, from where the heartbeat takes it."""

    report: Report


@frozen
class Discard:
    """The server has these reports."""

    report_ids: tuple[int, ...]


@frozen
class CountDeath:
    """The function call was running when the node died, for the ``count``-th time."""

    function_call_id: str
    count: int


StoreEffect = CountDeath | Save | Forget | SaveAllocation | ForgetAllocation | Send | Discard


# Effects on the world. Each ``op`` comes back in the event that answers it.


@frozen
class Start:
    """Start a container and wait until it is usable: answered by Started or StartFailed."""

    container_id: str
    op: int
    spec: ContainerSpec
    gpus: tuple[str, ...] = ()


@frozen
class Adopt:
    """Finish the start of a container that the driver already has: answered like Start. ``gpus`` are what it has, for a
    start anew where somebody kills it meanwhile."""

    container_id: str
    op: int
    spec: ContainerSpec
    handle: Handle
    gpus: tuple[str, ...] = ()


@frozen
class CancelStart:
    """Stop the start ``op``: it is answered sooner, by Started or StartFailed."""

    container_id: str
    op: int


@frozen
class Watch:
    """Tell of the container's exit (Exited) and of bad health (Unhealthy), until Unwatch. A ``frozen`` one cannot
    answer: only its exit is told. Replaces an earlier watch."""

    container_id: str
    spec: ContainerSpec
    handle: Handle
    frozen: bool = False


@frozen
class Unwatch:
    container_id: str


@frozen
class Conform:
    """Make a running sandbox's rules those of ``policy``, then thaw or freeze it: answered by Conformed or
    ConformFailed, or by nothing if it has ended meanwhile. Orders for one container are carried out one by one."""

    container_id: str
    op: int
    handle: Handle
    policy: NetworkPolicy | None
    frozen: bool


@frozen
class Terminate:
    """Ask the container to end by itself; its exit is told by the watch. Failure is only logged: a kill follows."""

    container_id: str
    handle: Handle


@frozen
class TakeSnapshot:
    """Copy the container's file system to ``upload_uri`` within ``timeout`` seconds: answered by Snapshotted or
    SnapshotAttemptFailed. ``attempt`` above 1 says that an earlier one may have left an unfinished upload."""

    container_id: str
    op: int
    handle: Handle
    snapshot_id: str
    upload_uri: str
    attempt: int
    timeout: float


@frozen
class CancelSnapshot:
    """Give the attempt ``op`` up; nobody waits for its answer."""

    container_id: str
    op: int


@frozen
class SweepUploads:
    """Remove what attempts at the snapshot that was given up may have left in the blob store: answered by Swept."""

    container_id: str
    upload_uri: str


@frozen
class Kill:
    """End everything of the container and release what it holds: answered by Killed or KillFailed."""

    container_id: str
    op: int
    handle: Handle


@frozen
class KillOrphan:
    """The driver has a container of this executor that is in no record: end it."""

    handle: Handle


@frozen
class Alarm:
    """Deliver ``event`` at ``at``."""

    at: float
    event: Event


@frozen
class Prepare:
    allocation: Allocation


@frozen
class Run:
    """Run it on its container: answered by Ended, after any number of Called."""

    allocation: Allocation
    handle: Handle
    timeout_ms: int


@frozen
class CancelRun:
    """End the run in the executor: answered by Ended."""

    allocation_id: str


@frozen
class Finalize:
    """Complete or abort its uploads: answered by Finalized."""

    allocation: Allocation
    outcome: Outcome


@frozen
class Deliver:
    """Hand a child call's result to the run of ``allocation_id``."""

    allocation_id: str
    result: bytes


WorldEffect = (
    Start
    | Adopt
    | CancelStart
    | Watch
    | Unwatch
    | Conform
    | Terminate
    | TakeSnapshot
    | CancelSnapshot
    | SweepUploads
    | Kill
    | KillOrphan
    | Alarm
    | Prepare
    | Run
    | CancelRun
    | Finalize
    | Deliver
)

Effect = StoreEffect | WorldEffect


def story(effect: WorldEffect) -> dict[str, str]:
    """The ids under which an effect's part of the log is found."""
    allocation = getattr(effect, "allocation", None)
    if allocation is not None:
        spec = allocation.spec
        return {"allocation_id": spec.id, "request_id": spec.request_id, "container_id": spec.container_id}
    found = {}
    for name in ("container_id", "allocation_id"):
        value = getattr(effect, name, None)
        if value is not None:
            found[name] = value
    sandbox_id = getattr(getattr(effect, "spec", None), "sandbox_id", None)
    if sandbox_id is not None:
        found["sandbox_id"] = sandbox_id
    return found
