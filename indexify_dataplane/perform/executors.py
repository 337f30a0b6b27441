"""The seam to function executors: what the node asks of the process inside a function container."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from ..core.model import Allocation, ContainerSpec, Handle, Outcome, TerminationReason


class StartupFailed(Exception):
    """The container's process runs, but it will never be usable; the text says why."""

    def __init__(self, reason: TerminationReason, message: str) -> None:
        super().__init__(message)
        self.reason = reason


def ignore(uri: str, upload_id: str) -> None:
    """For those who survive every crash."""


class Executors(Protocol):
    """Every coroutine is on Deferreds and may be cancelled.

    An allocation goes through prepare, run and finalize; one that is lost before it runs is only finalized.
    """

    def arguments(self, spec: ContainerSpec) -> tuple[str, ...]:
        """The executor's command line, without its address."""

    async def initialize(self, spec: ContainerSpec, handle: Handle, gone: Callable[[], bool]) -> None:
        """Connect, load the code, run the constructor. ``gone`` says that the process is dead. Raises StartupFailed."""

    async def healthy(self, handle: Handle, timeout: float) -> bool:
        """Ask once, for at most ``timeout`` seconds. Raises any exception when it cannot be asked."""

    async def release(self, container_id: str) -> None:
        """The container is dead: let go of what belongs to it."""

    async def prepare(self, allocation: Allocation) -> None:
        """Make its inputs readable and its outputs writable. Raises any exception on failure."""

    async def run(
        self,
        allocation: Allocation,
        handle: Handle,
        timeout_ms: int,
        called: Callable[[bytes], None],
        began: Callable[[str, str], None] = ignore,
    ) -> Outcome:
        """Run it. ``called`` takes encoded ``FunctionCallRequest`` messages for the server, ``began`` URI and id of
        each upload that after a crash nothing but ``Allocation.uploads`` tells. On cancellation the executor is told to
        stop and the coroutine ends with CancelledError when it has."""

    def deliver(self, allocation_id: str, result: bytes) -> None:
        """Hand a child call's result (encoded ``FunctionCallResult``) to the run."""

    async def finalize(self, allocation: Allocation, outcome: Outcome) -> Outcome:
        """Complete its uploads, or abort them; the outcome to report (a failure if the uploads cannot be completed)."""

    async def close(self) -> None:
        """The node ends."""
