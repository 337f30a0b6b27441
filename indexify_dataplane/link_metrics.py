"""Counts how often the connection to the server came and went, from the session's transitions."""

from __future__ import annotations

from collections.abc import Callable

from .core.session import Link, Session
from .metrics import Metrics

REASONS = {
    Link.UNHEALTHY: "heartbeat_failed",
    Link.REGISTERING: "full_state_needed",
    Link.CLOSED: "shutdown",
}
"""Why the node left Ready, as the label says it; a free text would make a new series each time."""


def register(metrics: Metrics, session: Session) -> Callable[[], None]:
    """Count from now on; returns a function that ends it. Every series is there from the start, at 0."""
    creations = metrics.counter("stream.creations")
    disconnections = {link: metrics.counter("stream.disconnections", reason=reason) for link, reason in REASONS.items()}

    def changed(old: Link, new: Link, reason: str) -> None:
        if old is new:
            return
        if new is Link.READY:
            creations.add()
        elif old is Link.READY:
            disconnections[new].add()

    return session.subscribe(changed)
