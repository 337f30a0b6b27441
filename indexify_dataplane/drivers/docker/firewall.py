"""What the driver asks of a firewall; ``network`` implements it where the node has the privilege."""

from __future__ import annotations

from typing import Protocol

from ...core.model import Handle, NetworkPolicy
from ..blocking import Cancelled


class Firewall(Protocol):
    """Blocking, called from several threads at once."""

    def admit(self, container_id: str, handle: Handle, policy: NetworkPolicy | None, cancelled: Cancelled) -> None:
        """Put the rules of a new sandbox in force. It is held: nothing of its user's has run. Raises DriverError, and
        then the sandbox does not start."""

    def forget(self, handle: Handle) -> None:
        """Remove the rules of a sandbox that is gone. Idempotent."""
