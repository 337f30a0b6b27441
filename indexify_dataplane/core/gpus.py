"""Which container holds which GPU, and who waits for one. A device is free again only when its container is dead.

To the server a container is dead earlier: when it has ordered its end, or was told of an outcome that blames it. So an
AddContainer that follows may ask for devices that are still held. It waits for them, if those of containers on their
way out are enough for it and for all that wait already; they are served in the order of their commands, and nobody is
handed anything while somebody waits. So what is promised is there in the end, however the kills interleave.
"""

from __future__ import annotations

from attrs import evolve

from .model import Aborting, Container, ContainerSpec, Killing, Kind, Stopping
from .node import Node
from .turn import Turn


def wanted(spec: ContainerSpec) -> int:
    """How many devices ``spec`` asks for; sandboxes get none."""
    if spec.kind is not Kind.FUNCTION or spec.resources is None or spec.resources.gpus is None:
        return 0
    return spec.resources.gpus.count


def leaving(node: Node) -> list[Container]:
    """The containers on their way out that still hold devices, by id."""
    found = (each for each in node.containers.values() if each.gpus)
    return sorted((each for each in found if isinstance(each.state, Aborting | Stopping | Killing)), key=lambda c: c.id)


def shortage(node: Node, spec: ContainerSpec) -> str | None:
    """Why ``spec`` cannot have its devices, not even by waiting; None if it can."""
    count = wanted(spec)
    free = len(node.free_gpus)
    if count <= free and not (count and node.gpu_queue):
        return None
    freed = sum(len(_there(node, each.gpus)) for each in leaving(node))
    promised = sum(wanted(node.containers[each].spec) for each in node.gpu_queue)
    if count + promised <= free + freed:
        return None
    text = f"{count} GPUs are asked for, {free} are free"
    if freed:
        text += f", {freed} will be when their containers are dead"
    if promised:
        text += f", {promised} are promised to containers that wait"
    return text


def must_wait(node: Node, spec: ContainerSpec) -> bool:
    """Whether the devices are there only later, or for others first; the caller has asked for a ``shortage``."""
    count = wanted(spec)
    return count > 0 and (bool(node.gpu_queue) or count > len(node.free_gpus))


def patience(node: Node, spec: ContainerSpec) -> float:
    """How many seconds it may wait: as long as its start may take."""
    return max((spec.initialization_timeout_ms or 0) / 1000, node.rules.gpu_wait)


def take(turn: Turn, spec: ContainerSpec) -> tuple[str, ...]:
    """Hand out devices; the caller has checked that there are enough."""
    count = wanted(spec)
    free = turn.node.free_gpus
    if count:
        turn.node = evolve(turn.node, free_gpus=free[count:])
    return free[:count]


def give_back(turn: Turn, devices: tuple[str, ...]) -> None:
    free = _there(turn.node, devices)
    if free:
        turn.node = evolve(turn.node, free_gpus=turn.node.free_gpus + free)


def _there(node: Node, devices: tuple[str, ...]) -> tuple[str, ...]:
    """Those that the host still has: an earlier life of the node may have known others."""
    return tuple(each for each in devices if node.gpus is None or each in node.gpus)


def enqueue(turn: Turn, container_id: str) -> None:
    turn.node = evolve(turn.node, gpu_queue=(*turn.node.gpu_queue, container_id))


def dequeue(turn: Turn, container_id: str) -> None:
    if container_id in turn.node.gpu_queue:
        rest = tuple(each for each in turn.node.gpu_queue if each != container_id)
        turn.node = evolve(turn.node, gpu_queue=rest)


def next_served(node: Node) -> Container | None:
    """Who waits longest, if there are enough devices for it now."""
    if not node.gpu_queue or node.draining:
        return None
    first = node.containers[node.gpu_queue[0]]
    return first if wanted(first.spec) <= len(node.free_gpus) else None
