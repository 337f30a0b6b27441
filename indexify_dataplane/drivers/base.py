"""The interface between the node and whatever runs containers.

A driver's methods are coroutines on Deferreds, callable at the same time for different containers, and never block
the reactor. A driver that is blocking by nature (an engine's client library, LVM) implements ``BlockingDriver`` and is
wrapped by ``drivers.threaded``. A driver knows nothing of the core's states; it only does what it is told.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Protocol

from attrs import field, frozen

from ..core.model import ExitStatus, Handle, Kind, NetworkPolicy, Resources, TerminationReason

if TYPE_CHECKING:
    from .blocking import Cancelled


class DriverError(Exception):
    """An operation failed for a reason that is the platform's. ``reason`` is what a start that failed so is reported
    with."""

    reason = TerminationReason.STARTUP_FAILED_INTERNAL_ERROR


class ImageError(DriverError):
    """The image is wrong or missing: trying again with the same order cannot help."""

    reason = TerminationReason.STARTUP_FAILED_BAD_IMAGE


class PolicyRefused(DriverError):
    """The order carries a network policy that this driver cannot enforce here."""


class SnapshotImpossible(DriverError):
    """This container's file system cannot be copied, now or later."""


class PortRefused(DriverError):
    """The proxy may not reach this port of the container."""


@frozen
class UpperLayer:
    """What ``Driver.export`` yields where only what was written on top of the image can be copied."""

    pieces: Iterator[bytes]

    def __iter__(self) -> Iterator[bytes]:
        return self.pieces


@frozen
class StoredRoot:
    """A root file system to start from, taken earlier by ``Driver.export``. ``is_upper`` (it blocks) says that it was
    an ``UpperLayer``, which only makes sense on top of the image.

    ``read`` yields its tar; it blocks, can be called again, and calls its argument now and then, which may raise to end
    it. It raises DriverError when the snapshot cannot be read or is not whole.
    """

    uri: str
    read: Callable[[Callable[[], None]], Iterator[bytes]]
    is_upper: Callable[[], bool] = lambda: False


@frozen
class StartOrder:
    """All that a driver needs to start one container.

    ``argv`` is the user's entrypoint for a sandbox (may be empty; the daemon starts it) and the function executor's
    command line, without its address, for a function. ``labels`` travel with the container where the driver can keep
    them; executor id and container id can always be read back from ``list_containers``. With a ``snapshot`` the files
    are the snapshot's and only the configuration (environment, user, working directory) is ``image``'s.
    """

    container_id: str
    executor_id: str
    kind: Kind
    argv: tuple[str, ...] = ()
    env: Mapping[str, str] = field(factory=dict)
    image: str | None = None
    resources: Resources = Resources()
    gpus: tuple[str, ...] = ()
    network_policy: NetworkPolicy | None = None
    snapshot: StoredRoot | None = None
    labels: Mapping[str, str] = field(factory=dict)


@frozen
class Listed:
    """A container the driver has, running or not, whoever started it. ``started`` is False for one that was made but
    never ran, or that is being removed: a start of the same id replaces it."""

    container_id: str
    executor_id: str
    kind: Kind
    handle: Handle
    alive: bool
    started: bool = True


class Driver(Protocol):
    """See the module's text. Every coroutine raises DriverError with a sentence that names what failed and where."""

    @property
    def name(self) -> str:
        """The ``type`` of the configuration; also ``Handle.driver``."""

    def enforces_policies(self) -> bool:
        """Whether a sandbox with a network policy can be started at all."""

    def survives_node(self, kind: Kind) -> bool:
        """Whether containers of this kind go on when the node dies or stops. Sandboxes always do."""

    def takes_snapshots(self, kind: Kind) -> bool:
        """Whether ``export`` works for containers of this kind, and orders with a ``snapshot`` can be started."""

    def export(self, handle: Handle, cancelled: Cancelled) -> AbstractContextManager[Iterable[bytes]]:
        """The container's file system as a tar, without what the node put into it (the guest bundle, mounts).

        The one method that blocks: it is called and read in a thread of the caller's, so that a stream of minutes holds
        none of the driver's own. The container does not change while it is read (it is frozen where it runs), and goes
        on afterwards. One that has ended by itself can be exported until it is killed. Raises DriverError, and
        SnapshotImpossible when trying again is no use; ``cancelled`` ends it soon.
        """

    async def open(self) -> None:
        """Check and set up what the driver needs on this host; raises DriverError to end the start of the node."""

    async def close(self) -> None:
        """Release what ``open`` took. Containers go on, unless the driver says they die with the node."""

    async def start(self, order: StartOrder) -> Handle:
        """Start the container's process. On failure and on cancellation nothing of it is left behind.

        Returning means that the process runs, not that it is ready. Raises ImageError, PolicyRefused, DriverError.
        """

    async def terminate(self, handle: Handle) -> None:
        """Ask it to end by itself (SIGTERM to its first process); an ended or unknown one is no error."""

    async def kill(self, handle: Handle) -> None:
        """End the whole tree and release everything. Idempotent; when it returns nothing of it is left."""

    async def inspect(self, handle: Handle) -> ExitStatus | None:
        """None while it runs; else how it ended (an empty status when it is unknown or nobody can tell)."""

    async def list_containers(self) -> Sequence[Listed]:
        """All containers this driver can see, those of other executors included."""

    async def logs(self, handle: Handle, lines: int) -> str:
        """The last lines of its own output, decoded with replacement; empty when there are none."""

    def watch(self, handle: Handle, exited: Callable[[ExitStatus], None]) -> Callable[[], None]:
        """Call ``exited`` once, in the reactor's thread, when it ends (soon, if it already has). Returns a function
        that stops the watch."""

    async def apply_policy(self, handle: Handle, container_id: str, policy: NetworkPolicy | None) -> None:
        """Make the rules of a running container those of ``policy``, whatever they were; nothing happens if they are.

        A driver that enforces none does nothing for None. Raises PolicyRefused, DriverError: it must not run on then.
        ``kill`` takes the rules away.
        """

    def freezes(self) -> bool:
        """Whether idle containers can be frozen here, and are to be."""

    async def freeze(self, handle: Handle) -> None:
        """Stop all its processes where they are; it cannot answer any more. Raises DriverError."""

    async def thaw(self, handle: Handle) -> None:
        """Let them go on; nothing happens to one that is not frozen or unknown. Raises DriverError. ``terminate`` and
        ``kill`` thaw first where that is needed."""

    async def upstream(self, handle: Handle, port: int) -> tuple[str, int]:
        """Where the proxy reaches ``port`` of the container. 9501 is the daemon's HTTP API. Raises PortRefused."""
