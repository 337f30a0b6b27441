"""Values and a tiny driver of steps for the core's tests."""

from __future__ import annotations

from attrs import evolve
from immutables import Map

from indexify_dataplane.core import effects as fx
from indexify_dataplane.core import events as ev
from indexify_dataplane.core.model import (
    AllocationSpec,
    ContainerSpec,
    FunctionRef,
    Gpus,
    Handle,
    Kind,
    NetworkPolicy,
    Resources,
    SandboxSpec,
)
from indexify_dataplane.core.node import DriverRules, Node, Rules
from indexify_dataplane.core.step import step

BOTH = Map({Kind.SANDBOX: DriverRules(survives_node=True), Kind.FUNCTION: DriverRules()})


def sandbox(id: str = "sb", *, claimed: bool = True, timeout: int | None = None, policy: bool = False) -> ContainerSpec:
    meta = SandboxSpec(
        image="img",
        timeout_secs=timeout,
        sandbox_id=id if claimed else None,
        network_policy=NetworkPolicy(allow_internet=False) if policy else None,
    )
    return ContainerSpec(id=id, kind=Kind.SANDBOX, sandbox=meta)


def function(id: str = "fn", *, slots: int = 1, gpus: int = 0, name: str = "f") -> ContainerSpec:
    return ContainerSpec(
        id=id,
        kind=Kind.FUNCTION,
        function=FunctionRef("ns", "app", name, "v1"),
        max_concurrency=slots,
        allocation_timeout_ms=1000,
        resources=Resources(gpus=Gpus(gpus, 4)) if gpus else None,
    )


def allocation(id: str = "a1", container: str = "fn") -> AllocationSpec:
    return AllocationSpec(id, container, FunctionRef("ns", "app", "f"), f"call-{id}", "req")


def handle(id: str = "sb", life: int = 1) -> Handle:
    return Handle("memory", f"{id}#{life}", f"127.0.0.1:{9000 + life}", "127.0.0.1:9501", "127.0.0.1")


class Play:
    """Steps a node and remembers what every step wanted."""

    def __init__(self, node: Node | None = None, **rules: object) -> None:
        self.node = node or Node("exec", rules=evolve(Rules(drivers=BOTH), **rules), free_gpus=("g1", "g2"))
        self.now = 0.0
        self.effects: tuple[fx.Effect, ...] = ()
        self.seq = 0

    def __call__(self, event: ev.Event) -> tuple[fx.Effect, ...]:
        self.node, self.effects = step(self.node, event, self.now)
        return self.effects

    def command(self, command: ev.Command) -> tuple[fx.Effect, ...]:
        self.seq += 1
        return self(ev.Commanded(self.seq, command))

    def add(self, spec: ContainerSpec) -> tuple[fx.Effect, ...]:
        return self.command(ev.AddContainer(spec))

    def started(self, id: str) -> tuple[fx.Effect, ...]:
        container = self.node.containers[id]
        return self(ev.Started(id, container.op, handle(id)))

    def running(self, spec: ContainerSpec) -> tuple[fx.Effect, ...]:
        self.add(spec)
        return self.started(spec.id)

    def killed(self, id: str) -> tuple[fx.Effect, ...]:
        return self(ev.Killed(id, self.node.containers[id].op))

    def of(self, kind: type) -> list[fx.Effect]:
        return [effect for effect in self.effects if isinstance(effect, kind)]

    @property
    def reports(self) -> list[object]:
        return [effect.report.body for effect in self.effects if isinstance(effect, fx.Send)]

    def deliver_all(self) -> None:
        """The server accepts whatever somebody waits for."""
        self(ev.Delivered(tuple(self.node.unacknowledged)))

    def state(self, id: str = "sb") -> object:
        return self.node.containers[id].state
