"""The gauges that are read from the Node: one owner, counted from what is, so that they cannot drift."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

from .core.model import Aborting, Executing, Finalizing, Kind, Preparing, Queued, Running, Starting, Terminated, Waiting
from .core.node import Node
from .metrics import Metrics

FUNCTION_STATES = ("starting", "running", "terminated")
SANDBOX_STATES = ("pending", "running", "stopping")


class _Counts:
    """What is where in a Node; a Node never changes, so each is counted once however many gauges ask."""

    def __init__(self, read: Callable[[], Node]) -> None:
        self._read = read
        self._node: Node | None = None
        self._containers: Counter[tuple[Kind, str]] = Counter()
        self._allocations: Counter[str] = Counter()

    def _refresh(self) -> None:
        node = self._read()
        if node is self._node:
            return
        self._node = node
        self._containers = Counter()
        for container in node.containers.values():
            match container.state:
                case Queued() | Starting() | Aborting():
                    state = "starting"
                case Running():
                    state = "running"
                case Terminated():
                    state = "terminated"
                case _:
                    state = "stopping"
            self._containers[container.spec.kind, state] += 1
        self._allocations = Counter(type(allocation.state).__name__ for allocation in node.allocations.values())

    def containers(self, kind: Kind, *states: str) -> int:
        self._refresh()
        return sum(self._containers[kind, state] for state in states)

    def allocations(self, state: type) -> int:
        self._refresh()
        return self._allocations[state.__name__]

    def all_containers(self) -> int:
        self._refresh()
        return sum(number for (_, state), number in self._containers.items() if state != "terminated")

    def all_allocations(self) -> int:
        self._refresh()
        return self._allocations.total()


def register(metrics: Metrics, read: Callable[[], Node]) -> None:
    """Register every gauge of containers and allocations; ``read`` returns the current Node."""
    counts = _Counts(read)

    def containers(name: str, kind: Kind, *states: str, **labels: str) -> None:
        metrics.gauge(name, lambda: counts.containers(kind, *states), **labels)

    def allocations(name: str, state: type) -> None:
        metrics.gauge(name, lambda: counts.allocations(state))

    containers("containers.running.functions", Kind.FUNCTION, "running")
    containers("containers.pending.functions", Kind.FUNCTION, "starting")
    containers("containers.running.sandboxes", Kind.SANDBOX, "running", "stopping")
    containers("containers.pending.sandboxes", Kind.SANDBOX, "starting")
    containers("containers_count", Kind.FUNCTION, "starting", "running", "stopping")
    containers("function_executors_with_state", Kind.FUNCTION, "starting", state="starting")
    containers("function_executors_with_state", Kind.FUNCTION, "running", "stopping", state="running")
    containers("function_executors_with_state", Kind.FUNCTION, "terminated", state="terminated")
    containers("sandboxes_with_state", Kind.SANDBOX, "starting", state="pending")
    containers("sandboxes_with_state", Kind.SANDBOX, "running", state="running")
    containers("sandboxes_with_state", Kind.SANDBOX, "stopping", state="stopping")
    allocations("allocations_getting_prepared", Preparing)
    allocations("runnable_allocations", Waiting)
    allocations("allocation_runs_in_progress", Executing)
    allocations("allocations_finalizing", Finalizing)
    metrics.gauge("last_desired_state_containers", counts.all_containers)
    metrics.gauge("last_desired_state_allocations", counts.all_allocations)
