"""The full state of the node as one message, built anew only where it changed."""

from __future__ import annotations

from collections.abc import Iterable

from ..core.model import Container, ContainerSpec
from ..wireproto import executor_api_pb2 as pb
from .wire_values import container_state, container_status


class FullState:
    """Keeps the message of every container between full syncs. A spec is frozen, so the same object means the same
    description; that makes a sync with 1,000 containers a matter of a few milliseconds."""

    def __init__(self) -> None:
        self._known: dict[str, tuple[ContainerSpec, tuple[int, int | None], pb.ContainerState]] = {}

    def build(self, identity: pb.DataplaneStateFullSync, containers: Iterable[Container]) -> pb.DataplaneStateFullSync:
        """``identity`` (left untouched) completed by the states of ``containers``."""
        message = pb.DataplaneStateFullSync()
        message.CopyFrom(identity)
        known: dict[str, tuple[ContainerSpec, tuple[int, int | None], pb.ContainerState]] = {}
        for container in containers:
            status = container_status(container)
            entry = self._known.get(container.id)
            if entry is None or entry[0] is not container.spec or entry[1] != status:
                entry = (container.spec, status, container_state(container))
            known[container.id] = entry
        self._known = known
        message.container_states.extend(entry[2] for entry in known.values())
        return message
