"""A view of a node that the tests of the monitoring routes set by hand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from immutables import Map

from indexify_dataplane.core.model import (
    Container,
    ContainerSpec,
    FunctionRef,
    Handle,
    Kind,
    Running,
    SandboxSpec,
    Starting,
    Terminated,
    TerminationReason,
)
from indexify_dataplane.core.node import Node
from indexify_dataplane.monitoring import Check, Identity

SECRET = "hunter2-do-not-show"


def node() -> Node:
    """A sandbox that runs, one that is dead, and a function that starts; all know a secret."""
    running = Container(
        spec=ContainerSpec(
            id="c-run",
            kind=Kind.SANDBOX,
            secret_names=(SECRET,),
            sandbox=SandboxSpec(sandbox_id="s-1", image="alpine", entrypoint=("sh", "-c", SECRET), timeout_secs=60),
        ),
        state=Running(
            Handle("fork_exec", "123:456", "127.0.0.1:1", "127.0.0.1:2", "127.0.0.1", opaque=SECRET), since=90.0
        ),
        claimed_at=90.0,
    )
    dead = Container(
        spec=ContainerSpec(id="c-dead", kind=Kind.SANDBOX, sandbox=SandboxSpec(snapshot_uri=SECRET)),
        state=Terminated(TerminationReason.OOM, at=95.0, report=7),
    )
    starting = Container(
        spec=ContainerSpec(id="c-fn", kind=Kind.FUNCTION, function=FunctionRef("ns", "app", "<b>fn", "v1")),
        state=Starting(since=99.5),
    )
    return Node(
        executor_id="exec-1",
        containers=Map({found.id: found for found in (running, dead, starting)}),
        sandboxes=Map({"s-1": "c-run"}),
    )


class View:
    """Implements ``StateView``."""

    def __init__(self) -> None:
        self.now_node = Node(executor_id="exec-1")
        self.answered = False
        self.is_healthy = False
        self.conditions: list[Check] = []
        self.summary = ""
        self.positions: dict[str, int | None] = {"commands": None, "results": None}

    def identity(self) -> Identity:
        return Identity(executor_id="exec-1", instance_id="inst-1", version="9.9", started_at=1_700_000_000.0)

    def node(self) -> Node:
        return self.now_node

    def ever_answered(self) -> bool:
        return self.answered

    def healthy(self) -> bool:
        return self.is_healthy

    def checks(self) -> Sequence[Check]:
        return self.conditions

    def reported(self) -> str:
        return self.summary

    def cursors(self) -> Mapping[str, int | None]:
        return self.positions
