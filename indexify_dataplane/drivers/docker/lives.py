"""Which containers are known to run, from what the node did and what the engine's events told.

Interleaving that matters: an answer that says that a container lives is on its way while its end is told. So ends are
remembered for a while, and win.
"""

from __future__ import annotations

import threading
from collections import OrderedDict

from attrs import frozen

REMEMBERED = 1024
"""Ends that are remembered, many more than can come while an answer is on its way."""
OOM_SECONDS = 2.0
"""An OOM kill is the cause of an end that is no further from it: both are told by different watchers of the kernel."""


@frozen
class Death:
    """``code`` is the engine's exit code, None when nobody can tell it; ``at`` is in seconds on the engine's clock."""

    code: int | None
    at: float


class Lives:
    """By engine id. Used from several threads. ``heard`` says whether ends are told."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._alive: set[str] = set()
        self._listed: set[str] = set()
        self._dead: OrderedDict[str, Death | None] = OrderedDict()
        self._oom: dict[str, float] = {}
        self._told: set[str] = set()
        self.heard = False

    def alive(self, identity: str) -> None:
        """It is about to run, or was seen running for the first time in its life."""
        with self._lock:
            if identity not in self._dead:
                self._alive.add(identity)

    def listed(self, identity: str) -> None:
        """The engine counts it among those that run; a list does not tell whether it was started anew."""
        with self._lock:
            if identity not in self._dead:
                self._listed.add(identity)

    def surely_runs(self, identity: str) -> bool:
        return self.heard and identity in self._alive

    def seen(self, identity: str) -> bool:
        """Whether this process has started it, or found it running, and knows of no end."""
        return identity in self._alive or identity in self._listed

    def told_to_end(self, identity: str) -> None:
        """By this node, now."""
        with self._lock:
            self._told.add(identity)

    def was_told(self, identity: str) -> bool:
        """Whether this node told it to end."""
        return identity in self._told

    def death(self, identity: str) -> Death | None:
        """Its first, if the engine told of it: whatever runs under its id afterwards is another life."""
        return self._dead.get(identity)

    def last_oom(self, identity: str) -> float | None:
        """When a process of it was last killed for memory, in seconds on the engine's clock; None: never heard of."""
        return self._oom.get(identity)

    def ended(self, action: str, identity: str, at: float, code: int | None) -> None:
        """An event: ``die``, ``oom`` or ``destroy``, when it happened by the engine's clock, and the exit code."""
        if action == "oom":
            with self._lock:
                # Of another life, if it was started anew.
                death = self._dead.get(identity)
                if death is None or at <= death.at + OOM_SECONDS:
                    self._oom[identity] = at
        elif action == "die":
            with self._lock:
                self._die(identity, Death(code, at))
        else:
            self.gone(identity)

    def gone(self, identity: str) -> None:
        """It was removed."""
        with self._lock:
            self._die(identity, None)
            self._oom.pop(identity, None)
            self._told.discard(identity)

    def _die(self, identity: str, death: Death | None) -> None:
        self._alive.discard(identity)
        self._listed.discard(identity)
        if self._dead.get(identity) is None:
            self._dead[identity] = death
        if len(self._dead) > REMEMBERED:
            self._dead.popitem(last=False)
