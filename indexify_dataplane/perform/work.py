"""All who perform effects, together."""

from __future__ import annotations

from attrs import define

from .allocations import AllocationWork
from .containers import ContainerWork
from .snapshots import SnapshotWork


@define
class Work:
    """The hands: who performs which effect."""

    containers: ContainerWork
    allocations: AllocationWork | None
    snapshots: SnapshotWork | None = None

    def taking(self) -> SnapshotWork:
        if self.snapshots is None:
            raise RuntimeError("a snapshot on a node that takes none")
        return self.snapshots
