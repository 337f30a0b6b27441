"""The Node as plain values for people and tools. What may hold a secret never appears: environments, entrypoints,
tokens, payload addresses and the drivers' own records."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from attrs import frozen

from .core import gpus
from .core.model import (
    Allocation,
    Container,
    FunctionRef,
    Killing,
    Queued,
    Stopping,
    Terminated,
)
from .core.node import Node
from .records import state_name


@frozen
class Moment:
    """Now, on both clocks in seconds: turns the Node's monotonic times into dates."""

    monotonic: float
    wall: float

    def date(self, monotonic: float | None) -> str | None:
        """RFC 3339 in UTC with milliseconds."""
        if monotonic is None:
            return None
        found = datetime.fromtimestamp(self.wall + monotonic - self.monotonic, UTC)
        return found.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def container(container: Container, now: Moment, node: Node) -> dict[str, Any]:
    """One container. ``since`` is when it came into its state, where the state remembers; ``waits_for`` are the
    containers whose GPUs a queued one waits for, until ``gives_up_at``."""
    spec, state, handle = container.spec, container.state, container.handle
    reason = getattr(state, "reason", None)
    began = state.at if isinstance(state, Terminated) else getattr(state, "since", None)
    return {
        "id": spec.id,
        "kind": spec.kind.value,
        "state": state_name(state),
        "since": now.date(began),
        "reason": reason.name.lower() if reason is not None else None,
        "kill_at": now.date(state.kill_at) if isinstance(state, Stopping) else None,
        "kill_attempt": state.attempt if isinstance(state, Killing) else None,
        "sandbox_id": spec.sandbox_id,
        "pool_id": spec.pool_id,
        "function": function(spec.function),
        "image": spec.sandbox.image if spec.sandbox else None,
        "expires_at": now.date(container.expires_at),
        "gpus": list(container.gpus),
        "waits_for": [each.id for each in gpus.leaving(node)] if isinstance(state, Queued) else None,
        "gives_up_at": now.date(state.until) if isinstance(state, Queued) else None,
        "removal_ordered": container.removal_ordered,
        "driver": handle.driver if handle else None,
        "handle_id": handle.id if handle else None,
        "daemon_address": handle.daemon_address if handle else None,
        "http_address": handle.http_address if handle else None,
        "ip": handle.ip if handle else None,
    }


def allocation(allocation: Allocation, now: Moment) -> dict[str, Any]:
    spec, state = allocation.spec, allocation.state
    return {
        "id": spec.id,
        "state": type(state).__name__.lower(),
        "since": now.date(getattr(state, "since", None)),
        "container_id": spec.container_id,
        "request_id": spec.request_id,
        "function": function(spec.function),
    }


def function(ref: FunctionRef | None) -> str | None:
    """``namespace:application:function[:version]``."""
    if ref is None:
        return None
    parts = [ref.namespace, ref.application, ref.function, *([ref.version] if ref.version else [])]
    return ":".join(part or "" for part in parts)


def state(node: Node, now: Moment) -> dict[str, Any]:
    """Everything; what the node knows of itself comes from the caller."""
    return {
        "draining": node.draining,
        "containers": [container(found, now, node) for _, found in sorted(node.containers.items())],
        "allocations": [allocation(found, now) for _, found in sorted(node.allocations.items())],
        "unacknowledged_reports": len(node.unacknowledged),
        "free_gpus": len(node.free_gpus),
    }


def desired(node: Node, cursors: Mapping[str, int | None]) -> dict[str, Any]:
    """What the server wants, as far as the node has heard of it. ``cursors`` are the acknowledged positions."""
    wanted = [
        found
        for _, found in sorted(node.containers.items())
        if not found.removal_ordered and not isinstance(found.state, Terminated)
    ]
    return {
        "containers": [
            {"id": found.id, "kind": found.spec.kind.value, "state": state_name(found.state)} for found in wanted
        ],
        "allocations": [
            {"id": found.id, "container_id": found.spec.container_id, "state": type(found.state).__name__.lower()}
            for _, found in sorted(node.allocations.items())
        ],
        "cursors": dict(cursors),
    }
