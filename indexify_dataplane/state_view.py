"""What the state routes see of a node, at every stage of its life."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from . import __version__
from .core.node import Node
from .core.session import Link
from .monitoring import Check, Identity

if TYPE_CHECKING:
    from .service import Root

NO_NODE = Node("")


class View:
    """Implements ``monitoring.StateView`` over the parts that are there already."""

    def __init__(self, root: Root, *, started_at: float, instance_id: str) -> None:
        self._root = root
        self._started_at = started_at
        self.instance_id = instance_id

    def identity(self) -> Identity:
        dataplane = self._root.dataplane
        executor_id = getattr(dataplane, "executor_id", "")
        return Identity(executor_id, self.instance_id, __version__, self._started_at)

    def node(self) -> Node:
        dataplane = self._root.dataplane
        return dataplane.node if dataplane is not None and hasattr(dataplane, "reconciliation") else NO_NODE

    def ever_answered(self) -> bool:
        return self._root.dataplane is not None and self._root.dataplane.session.ever_answered

    def healthy(self) -> bool:
        return self._root.dataplane is not None and self._root.dataplane.session.healthy

    def checks(self) -> Sequence[Check]:
        dataplane = self._root.dataplane
        if dataplane is None or not hasattr(dataplane, "heartbeat"):
            return (Check("started", False, "the node is starting"),)
        link = dataplane.session.link
        proxy = getattr(self._root, "proxy", None)
        return (
            Check("started", True),
            Check("server", link is Link.READY, f"the connection is {link.value}"),
            Check("poll_commands", dataplane.commands.healthy, "the last poll failed"),
            Check("poll_results", dataplane.results.healthy, "the last poll failed"),
            Check("store", dataplane.reconciliation.accepting, "the store cannot be written"),
            Check("proxy", proxy is not None and proxy.listening, "not listening"),
        )

    def reported(self) -> str:
        heartbeat = getattr(self._root.dataplane, "heartbeat", None)
        return heartbeat.last_report_summary if heartbeat is not None else ""

    def cursors(self) -> Mapping[str, int | None]:
        dataplane = self._root.dataplane
        if dataplane is None:
            return {"commands": None, "results": None}
        return {"commands": dataplane.session.commands.ack, "results": dataplane.session.results.ack}
