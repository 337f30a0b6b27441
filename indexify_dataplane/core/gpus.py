"""Which container holds which GPU. A device is free again only when its container is dead."""

from __future__ import annotations

from attrs import evolve

from .model import ContainerSpec, Kind
from .turn import Turn


def wanted(spec: ContainerSpec) -> int:
    """How many devices ``spec`` asks for; sandboxes get none."""
    if spec.kind is not Kind.FUNCTION or spec.resources is None or spec.resources.gpus is None:
        return 0
    return spec.resources.gpus.count


def take(turn: Turn, spec: ContainerSpec) -> tuple[str, ...]:
    """Hand out devices; the caller has checked that there are enough."""
    count = wanted(spec)
    free = turn.node.free_gpus
    turn.node = evolve(turn.node, free_gpus=free[count:])
    return free[:count]


def give_back(turn: Turn, devices: tuple[str, ...]) -> None:
    if devices:
        turn.node = evolve(turn.node, free_gpus=turn.node.free_gpus + devices)
